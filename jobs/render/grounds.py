"""Busy grounds for scenes, and clutter that is no product. All procedural, all from the given generator."""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from jobs.render.geometry import ellipse, rounded, smooth

Rgb = np.ndarray  # (3,) float32, 0..255


def colour(rng: np.random.Generator, spread: float = 44.0) -> Rgb:
    """A muted colour, as walls, floors and streets have."""
    grey = rng.uniform(60, 225)
    return np.clip(grey + rng.normal(0, spread / 2, 3), 15, 245).astype(np.float32)


def octaves(rng: np.random.Generator, px: int, coarsest: int = 3, num: int = 4) -> np.ndarray:
    """Smooth noise of several scales: (px, px) float32, about -1..1."""
    total = np.zeros((px, px), np.float32)
    for level in range(num):
        cells = min(px, coarsest * 3**level)
        layer = Image.fromarray(rng.uniform(-1, 1, (cells, cells)).astype(np.float32))
        total += np.asarray(layer.resize((px, px), Image.Resampling.BILINEAR)) * 0.6**level
    return total / 1.6


def tinted(field_HW: np.ndarray, low: Rgb, high: Rgb) -> Image.Image:
    """A picture that runs from `low` to `high` where the field runs from 0 to 1."""
    picture = Image.fromarray((np.clip(field_HW, 0, 1) * 255).astype(np.uint8))
    ramp = low + np.linspace(0, 1, 256, dtype=np.float32)[:, None] * (high - low)
    picture.putpalette(np.clip(ramp, 0, 255).astype(np.uint8).tobytes())
    return picture.convert("RGB")


def noise_ground(rng: np.random.Generator, px: int) -> Image.Image:
    """Stone, carpet, plaster."""
    return tinted(octaves(rng, px, int(rng.integers(2, 8))) * 0.5 + 0.5, colour(rng), colour(rng))


def gradient_ground(rng: np.random.Generator, px: int) -> Image.Image:
    """Wall meets floor, both shaded."""
    ramp = np.linspace(0, 1, px, dtype=np.float32)
    field = ramp[:, None] * rng.uniform(0.2, 1) + ramp[None, :] * rng.uniform(-0.5, 0.5) + 0.15
    picture = tinted(field + 0.06 * octaves(rng, px), colour(rng), colour(rng))
    edge = int(px * rng.uniform(0.5, 0.9))
    floor = tinted(0.5 + 0.3 * octaves(rng, px, 6), colour(rng), colour(rng)).crop((0, edge, px, px))
    picture.paste(floor, (0, edge))
    return picture


def masonry(rng: np.random.Generator, px: int, width: float, height: float, shift: float) -> Image.Image:
    """Rows of blocks of (width, height) pixels with dark joints, each row shifted; every block its own shade."""
    x, y = np.arange(px, dtype=np.float32), np.arange(px, dtype=np.float32)[:, None]
    row = np.floor(y / height)
    u = x / width + (row % 2 if shift == 0.5 else row) * shift
    column = np.floor(u)
    shades = rng.uniform(-0.2, 0.2, (64, 64)).astype(np.float32)
    field = 0.7 + shades[row.astype(int) % 64, column.astype(int) % 64] + 0.15 * octaves(rng, px, 8)
    joint = max(1.0, px * 0.006)
    field[(y - row * height < joint) | ((u - column) * width < joint)] *= 0.35
    high = colour(rng, 56)
    return tinted(field, high * 0.25, high)


def brick_ground(rng: np.random.Generator, px: int) -> Image.Image:
    """A brick wall."""
    height = px * rng.uniform(0.05, 0.12)
    return masonry(rng, px, height * rng.uniform(1.8, 3), height, 0.5)


def tile_ground(rng: np.random.Generator, px: int) -> Image.Image:
    """Tiles or paving."""
    side = px * rng.uniform(0.08, 0.25)
    return masonry(rng, px, side, side, 0.0)


def plank_ground(rng: np.random.Generator, px: int) -> Image.Image:
    """A wooden floor or table."""
    grain = Image.fromarray(rng.uniform(-1, 1, (px // 3, 5)).astype(np.float32)).resize((px, px), Image.Resampling.BILINEAR)
    boards = np.asarray(masonry(rng, px, px * rng.uniform(0.7, 1.5), px * rng.uniform(0.09, 0.2), 0.31), np.float32)
    wood = np.array([1.08, 0.92, 0.72], np.float32) if rng.random() < 0.7 else np.ones(3, np.float32)
    picture = Image.fromarray(np.clip(boards * wood * (1 + 0.18 * np.asarray(grain)[..., None]), 0, 255).astype(np.uint8))
    return picture.rotate(90) if rng.random() < 0.5 else picture


def foliage_ground(rng: np.random.Generator, px: int) -> Image.Image:
    """Leaves and bushes."""
    base = np.array([rng.uniform(20, 110), rng.uniform(70, 140), rng.uniform(20, 80)], np.float32)
    picture = tinted(octaves(rng, px) * 0.5 + 0.5, base * 0.3, base)
    draw = ImageDraw.Draw(picture)
    for _ in range(70):
        x, y = rng.uniform(0, px, 2)
        long, turn = px * rng.uniform(0.03, 0.09), rng.uniform(0, np.pi)
        leaf = ellipse(0, 0, long, long * 0.4, 10) @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
        draw.polygon((leaf + np.array([x, y])).ravel().tolist(), fill=ink(base * rng.uniform(0.5, 1.6)))
    return picture


def shelf_ground(rng: np.random.Generator, px: int) -> Image.Image:
    """Shelves with the backs of books and boxes."""
    wood = colour(rng)
    picture = tinted(octaves(rng, px) * 0.2 + 0.5, wood * 0.3, wood * 0.7)
    draw = ImageDraw.Draw(picture)
    step = px * rng.uniform(0.22, 0.4)
    for floor in np.arange(step, px + step, step):
        x = 0.0
        while x < px:
            width, height = px * rng.uniform(0.02, 0.08), step * rng.uniform(0.45, 0.9)
            if rng.random() < 0.8:
                draw.rectangle((x, floor - height, x + width - 2, floor), fill=ink(colour(rng, 130)))
            x += width
        draw.rectangle((0, floor, px, floor + px * 0.02), fill=ink(wood))
    return picture


def street_ground(rng: np.random.Generator, px: int) -> Image.Image:
    """Far houses with windows, out of focus, over a pavement."""
    sky = colour(rng) * 0.4 + 140
    picture = tinted(
        np.linspace(0, 1, px, dtype=np.float32)[:, None] * np.ones((1, px), np.float32), np.minimum(sky, 250), colour(rng)
    )
    draw = ImageDraw.Draw(picture)
    x = -px * rng.uniform(0, 0.2)
    while x < px:
        width, top = px * rng.uniform(0.15, 0.4), px * rng.uniform(0, 0.4)
        draw.rectangle((x, top, x + width, px * 0.75), fill=ink(colour(rng, 80)))
        pane, glass = px * rng.uniform(0.03, 0.07), ink(colour(rng, 90))
        for wx in np.arange(x + pane, x + width - pane, pane * 1.8):
            for wy in np.arange(top + pane, px * 0.7, pane * 2.1):
                draw.rectangle((wx, wy, wx + pane, wy + pane * 1.3), fill=glass)
        x += width
    pavement = tinted(0.5 + 0.3 * octaves(rng, px, 8), colour(rng) * 0.6, colour(rng))
    picture.paste(pavement.crop((0, int(px * 0.75), px, px)), (0, int(px * 0.75)))
    return picture.filter(ImageFilter.BoxBlur(px * rng.uniform(0.002, 0.01)))


GROUNDS: tuple[Callable[[np.random.Generator, int], Image.Image], ...] = (
    noise_ground,
    gradient_ground,
    brick_ground,
    tile_ground,
    plank_ground,
    foliage_ground,
    shelf_ground,
    street_ground,
)


def busy_ground(rng: np.random.Generator, px: int) -> Image.Image:
    """One of the grounds."""
    return GROUNDS[int(rng.integers(len(GROUNDS)))](rng, px)


def ink(rgb: Rgb) -> tuple[int, int, int]:
    """A fill colour for Pillow."""
    red, green, blue = (int(value) for value in np.clip(rgb, 0, 255))
    return red, green, blue


def clutter(rng: np.random.Generator, size: float) -> Image.Image:
    """A thing that is no product: RGBA, about `size` pixels long: plank, box, pebble, leaf, rod or sheet with lines."""
    kind = int(rng.integers(6))
    side = 2 * max(4, round(size))  # drawn at twice the size, then averaged
    long, wide = {0: (0.5, 0.09), 1: (0.45, 0.38), 2: (0.42, 0.33), 3: (0.48, 0.17), 4: (0.5, 0.03), 5: (0.36, 0.45)}[kind]
    if kind == 2:
        radii = rng.uniform(0.7, 1.0, 9)
        angles = np.arange(9) * 2 * np.pi / 9
        outline = smooth(
            [(float(long * r * np.cos(a)), float(wide * r * np.sin(a))) for r, a in zip(radii, angles, strict=True)], 4
        )
    elif kind == 3:
        outline = smooth([(-long, 0), (0, -wide), (long, 0), (0, wide)])
    else:
        outline = rounded(0, 0, long, wide * rng.uniform(0.7, 1.0), 12, 24)
    turn = rng.uniform(0, np.pi)
    outline = outline @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    picture = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    draw = ImageDraw.Draw(picture)
    tone = colour(rng, 110)
    draw.polygon(((outline + 0.5) * side).ravel().tolist(), fill=(*ink(tone), 255))
    draw.polygon(((outline * (0.8, 0.6) + 0.5) * side).ravel().tolist(), fill=(*ink(tone * rng.uniform(0.8, 1.2)), 255))
    return picture.reduce(2)
