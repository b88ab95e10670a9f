"""Quarter turns: what is found in a turned photo lies where it lies in the photo as it came."""

import numpy as np
import pytest

from serve.vision.bundle import CropFeatures
from serve.vision.crop import Crop, cut
from serve.vision.turns import GLANCED, QUARTERS, best_turn, box_back, glanced, quarter_turned, turned_back


@pytest.mark.parametrize("quarters", QUARTERS)
def test_a_box_of_the_turned_photo_holds_the_same_pixels(quarters: int) -> None:
    photo = np.random.default_rng(1).integers(0, 255, (40, 70, 3), dtype=np.uint8)
    turned = quarter_turned(photo, quarters)
    assert turned.shape[:2] == ((40, 70) if quarters == 2 else (70, 40))
    box = (5.0, 12.0, 30.0, 36.0)
    [found] = turned_back([CropFeatures(Crop(box, "item", 0.5), None, None, None, np.zeros(4))], quarters, 70, 40)
    seen = cut(turned, Crop(box, None, 1.0))
    np.testing.assert_array_equal(np.rot90(cut(photo, found.crop), quarters), seen)
    assert (found.crop.label, found.crop.score) == ("item", 0.5)


def test_the_whole_photo_stays_the_whole_photo() -> None:
    assert box_back((0.0, 0.0, 40.0, 70.0), 1, 70, 40) == (0.0, 0.0, 70.0, 40.0)
    assert box_back((0.0, 0.0, 70.0, 40.0), 2, 70, 40) == (0.0, 0.0, 70.0, 40.0)
    assert box_back((0.0, 0.0, 40.0, 70.0), 3, 70, 40) == (0.0, 0.0, 70.0, 40.0)


def test_another_turn_must_lead() -> None:
    assert best_turn([0.70, 0.71, 0.69, 0.60], lead=0.02) == 0
    assert best_turn([0.70, 0.71, 0.73, 0.60], lead=0.02) == 2


def test_the_surest_items_choose_the_turn_or_the_whole_where_there_are_none() -> None:
    crops = [Crop((0.0, 0.0, 9.0, 9.0), None, 1.0), *(Crop((0.0, 0.0, 4.0, 4.0), "item", 0.9 - 0.1 * n) for n in range(5))]
    assert glanced(crops) == crops[1 : 1 + GLANCED] and glanced(crops[:1]) == crops[:1]
