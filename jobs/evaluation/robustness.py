"""What users' cameras and hands do to a photo, one thing at a time and to a known degree: the x axes of robustness curves.

Each distortion leaves the photo otherwise as it is, so a curve shows the effect of that one thing. The same photo, level and seed
give the same pixels.

Letters: H, W pixels, B boxes of one photo (x0, y0, x1, y1 in pixels).
"""

import io
import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from jobs.config import JobError
from jobs.evaluation.queries import Query
from serve.vision.image import ImageError, decode_image
from serve.vision.spec import DecodeLimits

NONE = "none"
WRITTEN_QUALITY = 95  # JPEG of distorted photos: next to nothing is lost beside the distortion


@dataclass(frozen=True)
class Variant:
    """A distortion and its level."""

    kind: str
    level: float

    def __str__(self) -> str:
        return self.kind if self.kind == NONE else f"{self.kind}={self.level:g}"


@dataclass(frozen=True)
class Distortion:
    """How one thing is done, what its level means, and the levels of its curve, mildest first (that one changes nothing)."""

    apply: Callable[[np.ndarray, np.ndarray, float, np.random.Generator], tuple[np.ndarray, np.ndarray]]
    unit: str
    levels: tuple[float, ...]


UNCHANGED = Variant(NONE, 0.0)


def turned(pixels: np.ndarray, boxes_B4: np.ndarray, degrees: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Turned anticlockwise about the centre; the frame grows to hold all of it, and the photo's edge goes on beyond it."""
    height, width = pixels.shape[:2]
    if degrees % 90 == 0:
        around = np.ascontiguousarray(np.rot90(pixels, round(degrees / 90)))
    else:
        cos, sin = abs(math.cos(math.radians(degrees))), abs(math.sin(math.radians(degrees)))
        new_width, new_height = round(cos * width + sin * height), round(sin * width + cos * height)
        margin = math.ceil(math.hypot(new_width, new_height) / 2)
        wide = Image.fromarray(np.pad(pixels, ((margin, margin), (margin, margin), (0, 0)), mode="edge"))
        left, top = (wide.width - new_width) // 2, (wide.height - new_height) // 2
        wide = wide.rotate(degrees, Image.Resampling.BILINEAR)
        around = np.asarray(wide.crop((left, top, left + new_width, top + new_height)))
    return around, turned_boxes(boxes_B4, degrees, (width, height), (around.shape[1], around.shape[0]))


def turned_boxes(boxes_B4: np.ndarray, degrees: float, size: tuple[int, int], new_size: tuple[int, int]) -> np.ndarray:
    """Boxes of a photo of `size` (width, height) that was turned anticlockwise into one of `new_size`.

    A turned box's own corners would make it too large (at 45 degrees twice the area of a round item's). The box of the ellipse
    in it is the better guess where the outline is not known (Kalra et al., "Towards Rotation Invariance in Object Detection",
    ICCV 2021), and exact for quarter turns.
    """
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    centres_B2 = (boxes_B4[:, :2] + boxes_B4[:, 2:]) / 2 - np.array(size) / 2
    x_B, y_B = centres_B2[:, 0] * cos + centres_B2[:, 1] * sin, centres_B2[:, 1] * cos - centres_B2[:, 0] * sin
    half_x_B, half_y_B = (boxes_B4[:, 2] - boxes_B4[:, 0]) / 2, (boxes_B4[:, 3] - boxes_B4[:, 1]) / 2
    reach_x_B, reach_y_B = np.hypot(half_x_B * cos, half_y_B * sin), np.hypot(half_x_B * sin, half_y_B * cos)
    x_B, y_B = x_B + new_size[0] / 2, y_B + new_size[1] / 2
    boxes = np.stack([x_B - reach_x_B, y_B - reach_y_B, x_B + reach_x_B, y_B + reach_y_B], axis=1)
    inside: np.ndarray = np.clip(boxes, 0, np.array([*new_size, *new_size]))
    return inside


def occluded(pixels: np.ndarray, boxes_B4: np.ndarray, frac: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A rectangle of one random colour over `frac` of each box's area, somewhere inside it; of the photo's where no box is known.

    The boxes stay: they say where the item is, not what is seen of it.
    """
    covered = pixels.copy()
    height, width = pixels.shape[:2]
    for x0, y0, x1, y1 in boxes_B4 if len(boxes_B4) else np.array([[0, 0, width, height]], np.float64):
        stretch = math.exp(rng.uniform(-0.5, 0.5))
        share_x = min(1.0, max(frac, math.sqrt(frac) * stretch))  # of the box's width; the rest of `frac` falls to its height
        w, h = (x1 - x0) * share_x, (y1 - y0) * frac / max(share_x, 1e-9)
        left, top = x0 + rng.random() * (x1 - x0 - w), y0 + rng.random() * (y1 - y0 - h)
        colour = rng.integers(0, 256, 3)
        covered[round(top) : round(top + h), round(left) : round(left + w)] = colour
    return covered, boxes_B4


def dimmed(pixels: np.ndarray, boxes_B4: np.ndarray, light: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """`light` times the light that fell on the sensor, in linear sRGB (IEC 61966-2-1), rounded to 8 bits again."""
    values = np.arange(256) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4) * light
    encoded = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    return by_table(pixels, encoded), boxes_B4


def gamma_changed(
    pixels: np.ndarray, boxes_B4: np.ndarray, gamma: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Another tone curve: value ** gamma, so more than 1 is darker and harder."""
    return by_table(pixels, (np.arange(256) / 255) ** gamma), boxes_B4


def by_table(pixels: np.ndarray, curve_256: np.ndarray) -> np.ndarray:
    """Each value 0..255 replaced by its place on a curve in 0..1."""
    table = np.clip(np.round(curve_256 * 255), 0, 255).astype(np.uint8)
    changed: np.ndarray = table[pixels]
    return changed


def blurred(pixels: np.ndarray, boxes_B4: np.ndarray, radius: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian blur; `radius` is its standard deviation in pixels of a photo whose shorter side has 320."""
    if radius == 0:
        return pixels, boxes_B4
    sigma = radius * min(pixels.shape[:2]) / 320
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(sigma))), boxes_B4


def compressed(
    pixels: np.ndarray, boxes_B4: np.ndarray, quality: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """One more JPEG."""
    with io.BytesIO() as buffer:
        Image.fromarray(pixels).save(buffer, "JPEG", quality=round(quality))
        return np.asarray(Image.open(buffer).convert("RGB")), boxes_B4


def noisy(pixels: np.ndarray, boxes_B4: np.ndarray, sigma: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian noise of standard deviation `sigma`, of 255, drawn for each value."""
    noise = rng.standard_normal(pixels.shape, dtype=np.float32) * np.float32(sigma)
    return np.clip(pixels + noise, 0, 255).round().astype(np.uint8), boxes_B4


DISTORTIONS = {
    "rotation": Distortion(turned, "degrees anticlockwise", tuple(range(0, 360, 15))),
    "occlusion": Distortion(occluded, "share of the item's box", (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)),
    "light": Distortion(dimmed, "times the light", (1, 0.5, 0.25, 0.125, 0.0625, 0.03125)),
    "gamma": Distortion(gamma_changed, "exponent", (1, 0.4, 0.6, 1.5, 2.2, 3)),
    "blur": Distortion(blurred, "px of 320", (0, 1, 2, 4, 8)),
    "jpeg": Distortion(compressed, "quality", (95, 60, 30, 15, 8)),
    "noise": Distortion(noisy, "of 255", (0, 10, 20, 40, 80)),
}


def curve_variants(kinds: tuple[str, ...]) -> list[Variant]:
    """The unchanged photo, then every level of each of `kinds` that changes something."""
    return [UNCHANGED, *(Variant(kind, float(level)) for kind in kinds for level in DISTORTIONS[kind].levels[1:])]


def parse_variant(text: str) -> Variant:
    """`none`, or `kind=level` such as light=0.25. Raises ValueError that says what is allowed."""
    if text == NONE:
        return UNCHANGED
    kind, _, level = text.partition("=")
    try:
        value = float(level)
    except ValueError:
        value = math.nan
    if kind not in DISTORTIONS or not math.isfinite(value):
        known = ", ".join(f"{name}=LEVEL ({entry.unit})" for name, entry in DISTORTIONS.items())
        raise ValueError(f"{text!r} is no distortion; allowed: none, {known}")
    return Variant(kind, value)


def distorted(
    pixels: np.ndarray, boxes: tuple[tuple[float, float, float, float], ...], variant: Variant, photo: str, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """An (H, W, 3) uint8 RGB photo and its boxes under `variant`: pixels and (B, 4) float64 boxes.

    `photo` names it: what is drawn at random depends on it, on the kind of distortion and on `seed` alone, so the occluded place
    of a photo only grows with the level.
    """
    boxes_B4 = np.array(boxes, np.float64).reshape(-1, 4)
    if variant.kind == NONE:
        return pixels, boxes_B4
    rng = np.random.default_rng([seed, zlib.crc32(f"{variant.kind} {photo}".encode())])
    return DISTORTIONS[variant.kind].apply(pixels, boxes_B4, variant.level, rng)


def write_distorted(queries: Sequence[Query], variant: Variant, folder: Path, seed: int, limits: DecodeLimits) -> list[Query]:
    """The queries with their photos under `variant`, written into `folder` as JPEG. Raises JobError for an unreadable photo."""
    written = []
    for number, query in enumerate(queries):
        try:
            pixels = decode_image(query.path.read_bytes(), limits)
        except (OSError, ImageError) as error:
            raise JobError(f"evaluate.queries: {query.path}: {error}") from error
        changed, boxes_B4 = distorted(pixels, query.boxes_N4, variant, query.path.name, seed)
        path = folder / f"{number:06d}.jpg"
        Image.fromarray(changed).save(path, quality=WRITTEN_QUALITY)
        boxes = tuple((x0, y0, x1, y1) for x0, y0, x1, y1 in boxes_B4.tolist())
        written.append(replace(query, path=path, boxes_N4=boxes))
    return written
