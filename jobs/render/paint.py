"""From a product to pixels: patterns, textures, logos and the fall of light on its silhouette.

Letters: H, W canvas pixels (supersampled), P parts.
"""

from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from jobs.render.catalog import COLOURS, PATTERN_SIZES, PATTERN_TURNS
from jobs.render.geometry import ellipse, points, ribbon, smooth, symmetric
from jobs.render.products import RenderedProduct

FIXED = {"dark": (44, 44, 48), "metal": (188, 190, 196), "pale": (236, 234, 228), "wood": (186, 140, 92)}
SHINE = {"gloss": 0.34, "leather": 0.14}  # strength of the highlight
SUPERSAMPLE = 2
FIRST_BLEND, BLEND, LOGO = 128, 127, 255  # colour numbers: the parts lie below, the logo above


HEART_LEFT = ((-0.6, 0.3), (-0.95, -0.4), (-0.45, -0.85))


@cache
def glyph(name: str) -> tuple[np.ndarray, ...]:
    """Outlines of a logo in a circle of radius 1; the second and later ones are holes."""
    turn = np.radians(np.arange(10) * 36 - 90)
    star = np.stack([np.cos(turn), np.sin(turn)], axis=1) * np.where(np.arange(10) % 2, 0.42, 1.0)[:, None]
    outlines: dict[str, tuple[np.ndarray, ...]] = {
        "star": (star,),
        "heart": (smooth([(0, -0.45), (0.45, -0.85), (0.95, -0.4), (0.6, 0.3), (0, 0.95), *HEART_LEFT]),),
        "ring": (ellipse(0, 0, 1, 1), ellipse(0, 0, 0.58, 0.58)),
        "triangle": (points((0, -0.95), (0.95, 0.75), (-0.95, 0.75)),),
        "bolt": (points((0.25, -1), (-0.6, 0.15), (-0.05, 0.15), (-0.3, 1), (0.6, -0.25), (0.05, -0.25)),),
        "cross": (symmetric(points((0.3, -1), (0.3, -0.3), (1, -0.3), (1, 0.3), (0.3, 0.3), (0.3, 1))),),
        "moon": (ellipse(0, 0, 1, 1), ellipse(0.42, -0.1, 0.78, 0.78)),
        "diamond": (points((0, -1), (0.7, 0), (0, 1), (-0.7, 0)),),
        "leaf": (smooth([(-0.9, 0.9), (-0.7, -0.3), (0.9, -0.9), (0.3, 0.7)]), ribbon(points((-0.6, 0.6), (0.5, -0.5)), 0.14)),
        "arrow": (points((-1, -0.28), (0.1, -0.28), (0.1, -0.85), (1, 0), (0.1, 0.85), (0.1, 0.28), (-1, 0.28)),),
        "hexagon": (ellipse(0, 0, 1, 1, 6), ellipse(0, 0, 0.5, 0.5, 6)),
        "wave": (ribbon(smooth([(-1, 0.1), (-0.5, -0.4), (0, 0.1), (0.5, 0.6), (1, 0.1)], closed=False), 0.5),),
    }  # fmt: skip
    return outlines[name]


def fraction(values: np.ndarray) -> np.ndarray:
    """values modulo 1; several times faster than %."""
    return np.asarray(values - np.floor(values))


def pattern_field(product: RenderedProduct, x_HW: np.ndarray, y_HW: np.ndarray) -> np.ndarray:
    """Share of the accent colour at product coordinates (float32): (H, W), bool or float32 in 0..1."""
    angle = np.radians(PATTERN_TURNS[product.pattern_turn])
    period = PATTERN_SIZES[product.pattern_size]
    along, across = np.float32(np.cos(angle) / period), np.float32(np.sin(angle) / period)
    u = x_HW * along + y_HW * across
    v = y_HW * along - x_HW * across
    if product.pattern == "stripes":
        return fraction(v) < 0.45
    if product.pattern == "zigzag":
        return fraction(v + np.abs(fraction(u) - 0.5)) < 0.42
    if product.pattern == "blocks":
        return fraction((v - (v.min() + v.max()) / 2) / 4) < 0.5  # one edge always runs through the middle
    if product.pattern == "checks":
        return np.float32(0.5) * (fraction(u) < 0.5) + np.float32(0.5) * (fraction(v) < 0.5)
    if product.pattern == "gradient":
        return np.asarray((v - v.min()) / (v.max() - v.min()))
    if product.pattern == "dots":
        row = np.floor(v)
        return (fraction(u + row * 0.5) - 0.5) ** 2 + (v - row - 0.5) ** 2 < 0.085
    if product.pattern == "floral":
        u, v = u / 1.2, v / 1.2
        row = np.floor(v)
        du, dv = fraction(u + row * 0.5) - 0.5, v - row - 0.5
        radius = np.hypot(du, dv)
        return (radius < 0.2 + 0.11 * np.cos(5 * np.arctan2(dv, du) + row * 0.7)) & (radius > 0.07)
    raise AssertionError(product.pattern)


def texture_field(name: str, x_HW: np.ndarray, y_HW: np.ndarray) -> np.ndarray:
    """Faint brightness of a surface around 1: (H, W) float32."""
    faint = np.zeros_like(x_HW)
    if name == "denim":
        faint = 0.05 * np.sin((x_HW + y_HW) * 260) + 0.03 * np.sin(x_HW * 37)
    elif name == "knit":
        faint = 0.06 * np.sin(x_HW * 190) * np.sin(y_HW * 130)
    elif name == "canvas":
        faint = 0.03 * (np.sin(x_HW * 230) + np.sin(y_HW * 230))
    elif name == "leather":
        faint = 0.04 * np.sin(x_HW * 71 + 3 * np.sin(y_HW * 53)) * np.sin(y_HW * 67 + 3 * np.sin(x_HW * 47))
    return 1 + faint


@cache
def folds(seed: int) -> np.ndarray:
    """Soft folds of cloth: (96, 96) float32 around 0, the same for a seed."""
    noise = np.random.default_rng(seed).normal(size=(7, 5)).astype(np.float32)
    return np.asarray(Image.fromarray(noise).resize((96, 96), Image.Resampling.BICUBIC)) * 0.05


def paint(product: RenderedProduct, turn_22: np.ndarray, px: int) -> np.ndarray:
    """The product under the linear map `turn_22`, longer side `px`: (h, w, 4) uint8 RGBA, tight box.

    Parts, logo and pattern are drawn at SUPERSAMPLE times the size as one map of colour numbers, which a palette turns
    into RGBA and a box filter into antialiased pixels; light is laid on at the final size.
    """
    drawing = product.drawing()
    outlines = [part.outline @ turn_22.T for part in drawing.parts]
    solid = np.concatenate([o for o, part in zip(outlines, drawing.parts, strict=True) if part.paint != "hole"])
    low, high = solid.min(axis=0), solid.max(axis=0)
    scale = px * SUPERSAMPLE / float((high - low).max())
    width, height = (max(2, int(np.ceil(side / SUPERSAMPLE - 1e-6))) for side in (high - low) * scale)

    canvas = Image.new("L", (width * SUPERSAMPLE, height * SUPERSAMPLE), 0)
    draw = ImageDraw.Draw(canvas)
    for number, (outline, part) in enumerate(zip(outlines, drawing.parts, strict=True), start=1):
        draw.polygon(((outline - low) * scale).ravel().tolist(), fill=0 if part.paint == "hole" else number)
    if product.logo and product.logo_position:
        x, y, radius = drawing.anchors[product.logo_position]
        stencil = Image.new("1", canvas.size, 0)
        for index, outline in enumerate(glyph(product.logo)):
            corners = (outline * radius * 1.15 + (x, y)) @ turn_22.T
            ImageDraw.Draw(stencil).polygon(((corners - low) * scale).ravel().tolist(), fill=int(index == 0))
        canvas.paste(LOGO, mask=stencil)
    numbers_HW = np.asarray(canvas)

    inverse = np.linalg.inv(turn_22).astype(np.float32)
    is_body = np.isin(np.arange(256), [i for i, part in enumerate(drawing.parts, start=1) if part.paint == "body"])[numbers_HW]
    painted = numbers_HW
    if product.pattern != "plain":
        x_HW, y_HW = product_grid(canvas.width, canvas.height, scale, low, inverse)
        steps = (pattern_field(product, x_HW, y_HW) * np.float32(BLEND - 1)).astype(np.uint8) + np.uint8(FIRST_BLEND)
        painted = np.where(is_body, steps, numbers_HW)
    picture = Image.fromarray(painted)
    picture.putpalette(palette(product, [part.paint for part in drawing.parts]), "RGBA")
    pixels = np.asarray(picture.convert("RGBA").reduce(SUPERSAMPLE)).astype(np.float32)

    x_hw, y_hw = product_grid(width, height, scale / SUPERSAMPLE, low, inverse)
    seams = np.zeros(numbers_HW.shape, np.uint8)
    seams[1:] = numbers_HW[1:] != numbers_HW[:-1]
    seams[:, 1:] |= numbers_HW[:, 1:] != numbers_HW[:, :-1]
    body_hw, seam_hw = (np.asarray(Image.fromarray(mask * np.uint8(255)).reduce(SUPERSAMPLE)) > 100 for mask in (is_body, seams))
    pixels[..., :3] *= light_on(product, pixels[..., 3], body_hw, seam_hw, x_hw, y_hw)[..., None]
    return np.clip(pixels, 0, 255).astype(np.uint8)


def product_grid(width: int, height: int, scale: float, low: np.ndarray, inverse_22: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Product coordinates x, y of a canvas' pixels: two (height, width) float32."""
    columns = np.arange(width, dtype=np.float32) / np.float32(scale) + np.float32(low[0])
    rows = (np.arange(height, dtype=np.float32) / np.float32(scale) + np.float32(low[1]))[:, None]
    x_HW = columns * inverse_22[0, 0] + rows * inverse_22[0, 1]
    y_HW = columns * inverse_22[1, 0] + rows * inverse_22[1, 1]
    return x_HW, y_HW


def palette(product: RenderedProduct, paints: list[str]) -> bytes:
    """256 RGBA colours: 0 nothing, 1.. the parts, then main to accent in BLEND steps, and the logo last."""
    main, accent, logo = (
        np.asarray(COLOURS[name], np.float32) for name in (product.main_colour, product.accent_colour, product.logo_colour)
    )
    colours = {"body": main, "main": main, "accent": accent, "shade": main * 0.62, "hole": main} | FIXED
    assert len(paints) < FIRST_BLEND
    table = np.zeros((256, 4), np.float32)
    table[1:, 3] = 255
    table[1 : len(paints) + 1, :3] = [colours[paint] for paint in paints]
    table[FIRST_BLEND:LOGO, :3] = main + np.linspace(0, 1, BLEND, dtype=np.float32)[:, None] * (accent - main)
    table[LOGO, :3] = logo
    return table.astype(np.uint8).tobytes()


def light_on(
    product: RenderedProduct, alpha_hw: np.ndarray, body_hw: np.ndarray, seam_hw: np.ndarray, x_hw: np.ndarray, y_hw: np.ndarray
) -> np.ndarray:
    """Brightness around 1: round edges, seams between parts, folds or highlights by finish. (h, w) float32."""
    height, width = alpha_hw.shape
    inside = Image.fromarray(alpha_hw.astype(np.uint8))
    soft = np.asarray(inside.filter(ImageFilter.BoxBlur(max(1.0, 0.03 * max(height, width)))), np.float32) / 255
    light = 0.62 + 0.42 * np.clip(soft * 1.6 - 0.6, 0, 1)
    light[seam_hw] *= 0.8
    light *= np.linspace(1.06, 0.94, height, dtype=np.float32)[:, None]
    finish = product.spec.finish
    if finish == "cloth":
        style = int(product.group_id.rsplit("-", 1)[-1]) % 4096  # siblings fold alike
        light += np.asarray(Image.fromarray(folds(style)).resize((width, height), Image.Resampling.BILINEAR))
    elif finish in SHINE:
        span = max(0.1, float(np.abs(x_hw[body_hw]).max(initial=0)))
        u = x_hw / np.float32(span)
        light *= 1.05 - SHINE[finish] * np.clip(np.abs(u + 0.15) - 0.25, 0, 1)
        light += SHINE[finish] * np.exp(-(((u + 0.42) / 0.10) ** 2)) * body_hw
    return np.where(body_hw, light * texture_field(product.texture, x_hw, y_hw), light)
