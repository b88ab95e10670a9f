"""A photo looked at in its other quarter turns, as networks that learned from upright photos find little in a turned one.

First the crops that were found in it are turned, which costs the encoder alone; if one turn finds what is nearer, the photo is
turned that way and looked at like any other.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    from serve.vision.bundle import CropFeatures

T = TypeVar("T")
QUARTERS = (1, 2, 3)
GLANCED = 3  # items that choose the turn; of 256 photos of items in four turns all of them choose 224 right, three 222, two 218


def glanced(of_crops: Sequence[T]) -> Sequence[T]:
    """What belongs to the crops of a photo that are turned: its surest items, the whole where none was found."""
    return (of_crops[1:] or of_crops)[:GLANCED]


def quarter_turned(pixels: np.ndarray, quarters: int) -> np.ndarray:
    """(H, W, 3) or (W, H, 3): `pixels` after so many quarter turns anticlockwise."""
    whole = pixels.view("V3")[..., 0]  # the three bytes of a pixel at once: half the time
    return np.ascontiguousarray(np.rot90(whole, quarters))[..., None].view(np.uint8)


def turned_back(features: Sequence["CropFeatures"], quarters: int, width: int, height: int) -> list["CropFeatures"]:
    """Crops of a photo after so many quarter turns, their boxes in the photo as it came, which is `width` x `height`."""
    return [replace(found, crop=replace(found.crop, box=box_back(found.crop.box, quarters, width, height))) for found in features]


def box_back(box: tuple[float, float, float, float], quarters: int, width: int, height: int) -> tuple[float, float, float, float]:
    """A box (x0, y0, x1, y1) of the turned photo, in the photo as it came."""
    for turn in reversed(range(quarters)):
        side = height if turn % 2 else width  # of the photo before this turn
        x0, y0, x1, y1 = box
        box = (side - y1, x0, side - y0, x1)
    return box


def best_turn(scores: Sequence[float], lead: float) -> int:
    """The number of quarter turns with the best score, which must lead by `lead` before the photo as it came (0)."""
    return max(range(len(scores)), key=lambda quarters: scores[quarters] + (lead if quarters == 0 else 0.0))
