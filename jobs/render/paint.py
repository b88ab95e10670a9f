"""From a product to pixels: patterns, textures, logos and the fall of light on its silhouette.

Letters: H, W canvas pixels (supersampled), P parts.
"""

from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from jobs.render.catalog import COLOURS, PATTERN_SIZES, PATTERN_TURNS
from jobs.render.geometry import ellipse, points, ribbon, smooth
from jobs.render.products import RenderedProduct
from jobs.render.wear import Part

FIXED = {"dark": (44, 44, 48), "metal": (188, 190, 196), "pale": (236, 234, 228), "wood": (186, 140, 92)}
SUPERSAMPLE = 2


@cache
def glyph(name: str) -> tuple[np.ndarray, ...]:
    """Outlines of a logo in a circle of radius 1; the second and later ones are holes."""
    turn = np.radians(np.arange(10) * 36 - 90)
    star = np.stack([np.cos(turn), np.sin(turn)], axis=1) * np.where(np.arange(10) % 2, 0.42, 1.0)[:, None]
    outlines: dict[str, tuple[np.ndarray, ...]] = {
        "star": (star,),
        "heart": (smooth([(0, -0.45), (0.45, -0.85), (0.95, -0.4), (0.6, 0.3), (0, 0.95), (-0.6, 0.3), (-0.95, -0.4), (-0.45, -0.85)]),),
        "ring": (ellipse(0, 0, 1, 1), ellipse(0, 0, 0.58, 0.58)),
        "triangle": (points((0, -0.95), (0.95, 0.75), (-0.95, 0.75)),),
        "bolt": (points((0.25, -1), (-0.6, 0.15), (-0.05, 0.15), (-0.3, 1), (0.6, -0.25), (0.05, -0.25)),),
        "cross": (points(*[(x, y) for x, y in ((-0.3, -1), (0.3, -1), (0.3, -0.3), (1, -0.3), (1, 0.3), (0.3, 0.3), (0.3, 1), (-0.3, 1), (-0.3, 0.3), (-1, 0.3), (-1, -0.3), (-0.3, -0.3))]),),
        "moon": (ellipse(0, 0, 1, 1), ellipse(0.42, -0.1, 0.78, 0.78)),
        "diamond": (points((0, -1), (0.7, 0), (0, 1), (-0.7, 0)),),
        "leaf": (smooth([(-0.9, 0.9), (-0.7, -0.3), (0.9, -0.9), (0.3, 0.7)]), ribbon(points((-0.6, 0.6), (0.5, -0.5)), 0.14)),
        "arrow": (points((-1, -0.28), (0.1, -0.28), (0.1, -0.85), (1, 0), (0.1, 0.85), (0.1, 0.28), (-1, 0.28)),),
        "hexagon": (ellipse(0, 0, 1, 1, 6), ellipse(0, 0, 0.5, 0.5, 6)),
        "wave": (ribbon(smooth([(-1, 0.1), (-0.5, -0.4), (0, 0.1), (0.5, 0.6), (1, 0.1)], closed=False), 0.5),),
    }  # fmt: skip
    return outlines[name]


def pattern_field(product: RenderedProduct, x_HW: np.ndarray, y_HW: np.ndarray) -> np.ndarray:
    """Share of the second colour at product coordinates: (H, W) float32 in 0..1, hard edges softened by supersampling."""
    angle = np.radians(PATTERN_TURNS[product.pattern_turn])
    period = PATTERN_SIZES[product.pattern_size]
    u = (x_HW * np.cos(angle) + y_HW * np.sin(angle)) / period
    v = (y_HW * np.cos(angle) - x_HW * np.sin(angle)) / period
    if product.pattern == "stripes":
        field = (v % 1.0) < 0.45
    elif product.pattern == "dots":
        row = np.floor(v)
        field = ((u + 0.5 * (row % 2)) % 1.0 - 0.5) ** 2 + (v - row - 0.5) ** 2 < 0.085
    elif product.pattern == "checks":
        return (0.5 * ((u % 1.0) < 0.5) + 0.5 * ((v % 1.0) < 0.5)).astype(np.float32)
    elif product.pattern == "zigzag":
        field = ((v + np.abs(u % 1.0 - 0.5)) % 1.0) < 0.42
    elif product.pattern == "gradient":
        return np.clip(v * period / 0.8, 0, 1).astype(np.float32)
    elif product.pattern == "floral":
        row = np.floor(v / 1.6)
        du, dv = (u / 1.6 + 0.5 * (row % 2)) % 1.0 - 0.5, v / 1.6 - row - 0.5
        petals = 0.2 + 0.11 * np.cos(5 * np.arctan2(dv, du) + row * 0.7 + np.floor(u / 1.6))
        radius = np.hypot(du, dv)
        field = (radius < petals) & (radius > 0.07)
    elif product.pattern == "blocks":
        field = v % 4.0 < 2.0
    else:
        raise AssertionError(product.pattern)
    return field.astype(np.float32)


def texture_field(name: str, x_HW: np.ndarray, y_HW: np.ndarray) -> np.ndarray | None:
    """Faint brightness of a surface around 1: (H, W) float32, or None where it is even."""
    if name == "denim":
        return (1 + 0.05 * np.sin((x_HW + y_HW) * 420) + 0.03 * np.sin(x_HW * 37)).astype(np.float32)
    if name == "knit":
        return (1 + 0.06 * np.sin(x_HW * 260) * np.sign(np.sin(y_HW * 190))).astype(np.float32)
    if name == "canvas":
        return (1 + 0.035 * (np.sin(x_HW * 330) + np.sin(y_HW * 330))).astype(np.float32)
    if name == "leather":
        return (1 + 0.04 * np.sin(x_HW * 71 + 3 * np.sin(y_HW * 53)) * np.sin(y_HW * 67 + 3 * np.sin(x_HW * 47))).astype(
            np.float32
        )
    return None


@cache
def folds(seed: int) -> np.ndarray:
    """Soft folds of cloth: (96, 96) float32 around 0, the same for a seed."""
    noise = np.random.default_rng(seed).normal(size=(7, 5)).astype(np.float32)
    return np.asarray(Image.fromarray(noise).resize((96, 96), Image.Resampling.BICUBIC)) * 0.05


def parts_of(product: RenderedProduct) -> list[Part]:
    """Silhouette and logo, back to front."""
    drawing = product.drawing()
    parts = list(drawing.parts)
    if product.logo and product.logo_position:
        x, y, radius = drawing.anchors[product.logo_position]
        for i, outline in enumerate(glyph(product.logo)):
            parts.append(Part(outline * radius * 1.15 + (x, y), "under-logo" if i else "logo"))
    return parts


def paint(product: RenderedProduct, turn_22: np.ndarray, px: int) -> np.ndarray:
    """The product under the linear map `turn_22`, longer side `px`: (h, w, 4) uint8 RGBA, tight box.

    Parts are drawn as an index map at twice the size, coloured by table, shaded, then averaged down.
    """
    parts = parts_of(product)
    outlines = [part.outline @ turn_22.T for part in parts]
    solid = np.concatenate([o for o, part in zip(outlines, parts, strict=True) if part.paint != "hole"])
    low, high = solid.min(axis=0), solid.max(axis=0)
    scale = px * SUPERSAMPLE / float((high - low).max())
    width, height = (max(2, int(np.ceil(side / SUPERSAMPLE))) for side in (high - low) * scale)
    canvas = Image.new("L", (width * SUPERSAMPLE, height * SUPERSAMPLE), 0)
    draw = ImageDraw.Draw(canvas)
    for index, (outline, part) in enumerate(zip(outlines, parts, strict=True), start=1):
        draw.polygon(((outline - low) * scale).ravel().tolist(), fill=0 if part.paint == "hole" else index)
    index_HW = np.asarray(canvas)

    main, accent, logo = (
        np.asarray(COLOURS[c], np.float32) for c in (product.main_colour, product.accent_colour, product.logo_colour)
    )
    table = {"body": main, "main": main, "accent": accent, "shade": main * 0.62, "logo": logo, "under-logo": main}
    lut = np.zeros((256, 3), np.float32)
    for index, part in enumerate(parts, start=1):
        lut[index] = table.get(part.paint, FIXED.get(part.paint, (0, 0, 0)))
    rgb = lut[index_HW]

    inverse = np.linalg.inv(turn_22)
    columns = np.arange(canvas.width, dtype=np.float32) / scale + low[0]
    rows = (np.arange(canvas.height, dtype=np.float32) / scale + low[1])[:, None]
    x_HW = (columns * inverse[0, 0] + rows * inverse[0, 1]).astype(np.float32)
    y_HW = (columns * inverse[1, 0] + rows * inverse[1, 1]).astype(np.float32)
    is_body = np.isin(np.arange(256), [i for i, part in enumerate(parts, start=1) if part.paint == "body"])[index_HW]
    if product.pattern != "plain":
        mix = pattern_field(product, x_HW, y_HW) * is_body
        rgb += mix[..., None] * (accent - main)
    rgb *= light_on(product, index_HW, is_body, x_HW, y_HW)[..., None]
    alpha = (index_HW > 0).astype(np.uint8) * 255
    full = np.dstack([np.clip(rgb, 0, 255).astype(np.uint8), alpha])
    small = Image.fromarray(full, "RGBA").reduce(SUPERSAMPLE)
    return np.asarray(small)


def light_on(
    product: RenderedProduct, index_HW: np.ndarray, is_body: np.ndarray, x_HW: np.ndarray, y_HW: np.ndarray
) -> np.ndarray:
    """Brightness around 1: round edges, seams between parts, folds or highlights by finish. (H, W) float32."""
    height, width = index_HW.shape
    inside = Image.fromarray((index_HW > 0).astype(np.uint8) * 255)
    blurred = np.asarray(inside.filter(ImageFilter.BoxBlur(max(1.0, 0.03 * max(height, width)))), np.float32) / 255
    light = 0.62 + 0.42 * np.clip(blurred * 1.6 - 0.6, 0, 1)
    seam = np.zeros((height, width), bool)
    seam[1:] |= index_HW[1:] != index_HW[:-1]
    seam[:, 1:] |= index_HW[:, 1:] != index_HW[:, :-1]
    light[seam] *= 0.78
    light *= 1.06 - 0.12 * np.linspace(0, 1, height, dtype=np.float32)[:, None]
    finish = product.spec.finish
    if finish == "cloth":
        fold = Image.fromarray(folds(hash_seed(product))).resize((width, height), Image.Resampling.BILINEAR)
        light += np.asarray(fold)
    elif finish in ("gloss", "leather"):
        span = np.maximum(np.abs(x_HW[is_body]).max(initial=0.1), 1e-3)
        u = x_HW / span
        strength = 0.34 if finish == "gloss" else 0.14
        light *= 1.05 - 0.35 * strength / 0.34 * np.clip(np.abs(u + 0.15) - 0.25, 0, 1)
        light += (strength * np.exp(-(((u + 0.42) / 0.10) ** 2)) * is_body).astype(np.float32)
    texture = texture_field(product.texture, x_HW, y_HW)
    if texture is not None:
        light = np.where(is_body, light * texture, light)
    return light.astype(np.float32)


def hash_seed(product: RenderedProduct) -> int:
    """A small number that belongs to a style: siblings fold alike."""
    return int(product.group_id.rsplit("-", 1)[-1]) % 4096
