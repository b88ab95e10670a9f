"""Which parts of an image are embedded: the whole, and the items found or drawn in it.

Letters: B boxes of one image, 4 = x0, y0, x1, y1 in pixels of the upright image.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from serve.vision.boxes import clip, iou, suppress
from serve.vision.detector import Detections
from serve.vision.spec import DetectorConfig

MIN_DRAWN_PX = 8  # smaller drawn boxes hold nothing that could be recognised
WHOLE_IOU = 0.9  # an item that fills the image this much is the image: crop 0 is its crop already


class BoxError(ValueError):
    """A drawn box that cannot be used, with its place in the list and what is allowed."""


@dataclass(frozen=True)
class Crop:
    """A part of an image. `label`: the detector's, None for the whole image and for drawn boxes."""

    box: tuple[float, float, float, float]
    label: str | None
    score: float


def whole(width: int, height: int) -> Crop:
    """Crop 0."""
    return Crop((0.0, 0.0, float(width), float(height)), None, 1.0)


def crops_of(width: int, height: int, detections: Detections, config: DetectorConfig) -> list[Crop]:
    """Crop 0 = the whole image, then at most `config.max_items` items, best score first.

    A box grows by `pad_frac` of its sides and is clipped to the image; small ones, those that nearly cover a better one
    (whatever their labels) and those that nearly are the whole image are left out.
    """
    inside_B4 = clip(detections.boxes, width, height)
    sides_B2 = inside_B4[:, 2:] - inside_B4[:, :2]
    big = np.flatnonzero((sides_B2 >= max(1.0, config.min_side_frac * min(width, height))).all(axis=1))
    kept = big[suppress(inside_B4[big], detections.scores[big], config.merge_iou)]
    margins_B2 = sides_B2[kept] * config.pad_frac
    padded_B4 = clip(inside_B4[kept] + np.concatenate([-margins_B2, margins_B2], axis=1), width, height)
    full_14 = np.array([[0, 0, width, height]], np.float32)
    items = [
        Crop(box_of(box), detections.labels[row], float(detections.scores[row]))
        for row, box, overlap in zip(kept, padded_B4, iou(padded_B4, full_14)[:, 0], strict=True)
        if overlap < WHOLE_IOU
    ]
    return [whole(width, height), *items[: config.max_items]]


def crops_of_drawn(width: int, height: int, boxes: Sequence[Sequence[float]]) -> list[Crop]:
    """Crop 0 = the whole image, then the boxes a user drew, in their order, clipped to the image.

    Raises BoxError for a box that is not four finite numbers, or of which less than MIN_DRAWN_PX a side lies in the image.
    """
    crops = [whole(width, height)]
    for place, box in enumerate(boxes):
        if len(box) != 4 or not np.isfinite(np.asarray(box, np.float64)).all():
            raise BoxError(f"box {place}: {list(box)}: expected four finite numbers x0, y0, x1, y1")
        inside = clip(np.asarray([box]), width, height)[0]
        if min(inside[2] - inside[0], inside[3] - inside[1]) < MIN_DRAWN_PX:
            raise BoxError(
                f"box {place}: {list(box)}: expected x0 < x1 and y0 < y1, {MIN_DRAWN_PX} px or more inside {width} x {height}"
            )
        crops.append(Crop(box_of(inside), None, 1.0))
    return crops


def cut(pixels: np.ndarray, crop: Crop) -> np.ndarray:
    """The crop's pixels, a view of (H, W, 3): the box rounded outwards, so never empty."""
    x0, y0, x1, y1 = crop.box
    return pixels[int(y0) : int(np.ceil(y1)), int(x0) : int(np.ceil(x1))]


def box_of(box_4: np.ndarray) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = (float(value) for value in box_4)
    return x0, y0, x1, y1
