"""Crops: what is kept, in which order, and inside the image whatever a detector or a user says."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.vision.boxes import iou, suppress
from serve.vision.crop import BoxError, Crop, crops_of, crops_of_drawn, cut
from serve.vision.detector import NOTHING, Detections
from serve.vision.spec import DetectorConfig

CONFIG = DetectorConfig(pad_frac=0.1, min_side_frac=0.1, merge_iou=0.7, max_items=2)


def detections(*rows: tuple[float, float, float, float, float, str]) -> Detections:
    boxes = np.array([row[:4] for row in rows], np.float32).reshape(-1, 4)
    return Detections(boxes, np.array([row[4] for row in rows], np.float32), tuple(row[5] for row in rows))


def test_nothing_found_is_the_whole_image() -> None:
    assert crops_of(80, 60, NOTHING, CONFIG) == [Crop((0, 0, 80, 60), None, 1.0)]


def test_best_items_first_padded_and_clipped() -> None:
    found = detections((0, 0, 20, 20, 0.5, "cup"), (40, 40, 60, 60, 0.9, "bowl"), (60, 0, 75, 15, 0.4, "fork"))
    crops = crops_of(100, 100, found, CONFIG)
    assert [crop.label for crop in crops] == [None, "bowl", "cup"]  # max_items = 2
    assert crops[1].box == pytest.approx((38, 38, 62, 62))
    assert crops[2].box == pytest.approx((0, 0, 22, 22))
    assert crops[1].score == pytest.approx(0.9)


def test_near_duplicates_merge_whatever_their_labels() -> None:
    found = detections((10, 10, 50, 50, 0.6, "orange"), (11, 11, 51, 51, 0.5, "apple"), (10, 60, 50, 90, 0.4, "apple"))
    assert [crop.label for crop in crops_of(100, 100, found, CONFIG)] == [None, "orange", "apple"]


def test_small_and_image_filling_boxes_are_left_out() -> None:
    found = detections((0, 0, 99, 99, 0.9, "box"), (10, 10, 18, 60, 0.8, "pen"))
    assert len(crops_of(100, 100, found, CONFIG)) == 1


coordinate = st.floats(-200, 400, width=32)


@given(st.lists(st.tuples(coordinate, coordinate, coordinate, coordinate, st.floats(0, 1, width=32)), max_size=12))
def test_every_crop_lies_in_the_image_and_has_pixels(rows: list[tuple[float, float, float, float, float]]) -> None:
    width, height = 150, 100
    pixels = np.zeros((height, width, 3), np.uint8)
    crops = crops_of(width, height, detections(*[(*row, "item") for row in rows]), CONFIG)
    assert len(crops) <= 1 + CONFIG.max_items
    assert [crop.score for crop in crops[1:]] == sorted((crop.score for crop in crops[1:]), reverse=True)
    for crop in crops:
        x0, y0, x1, y1 = crop.box
        assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
        part = cut(pixels, crop)
        assert part.size > 0 and np.shares_memory(part, pixels)


def test_drawn_boxes_are_clipped_and_keep_their_order() -> None:
    crops = crops_of_drawn(100, 80, [(50, 50, 200, 200), (-10, 0, 30, 40)])
    assert [crop.box for crop in crops] == [(0, 0, 100, 80), (50, 50, 100, 80), (0, 0, 30, 40)]


@pytest.mark.parametrize(
    "box", [(0, 0, 10), (0, 0, float("nan"), 10), (0, 0, float("inf"), 10), (60, 60, 20, 20), (0, 0, 4, 50), (300, 300, 400, 400)]
)
def test_a_bad_drawn_box_is_named(box: tuple[float, ...]) -> None:
    with pytest.raises(BoxError, match=r"^box 1: .*expected"):
        crops_of_drawn(100, 80, [(0, 0, 50, 50), box])


def test_suppress_keeps_the_best_of_a_group() -> None:
    boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [0, 0, 10, 10], [50, 50, 60, 60]], np.float32)
    scores, groups = np.array([0.5, 0.9, 0.7, 0.1], np.float32), np.array([0, 0, 1, 0])
    assert suppress(boxes, scores, 0.5).tolist() == [1, 3]
    assert suppress(boxes, scores, 0.5, groups).tolist() == [1, 2, 3]
    assert iou(boxes[:1], boxes)[0] == pytest.approx([1, 9 / 11, 1, 0])
