"""Average precision and recall of boxes against cases worked out by hand."""

import numpy as np
import pytest

from jobs.evaluation.boxes import box_figures

TRUE = np.array([[0, 0, 10, 10], [20, 20, 30, 30]], np.float32)
FAR = np.array([[50, 50, 60, 60]], np.float32)


def found(scores: list[float], boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.array(scores, np.float32), boxes


def test_all_found_is_one() -> None:
    figures = box_figures([found([0.9, 0.8], TRUE)], [TRUE])
    assert (figures.average_precision, figures.recall, figures.precision, figures.num_true) == (1.0, 1.0, 1.0, 2)


def test_a_wrong_box_between_two_right_ones_costs_precision_of_the_second() -> None:
    boxes = np.concatenate([TRUE[:1], FAR, TRUE[1:]])
    figures = box_figures([found([0.9, 0.8, 0.7], boxes)], [TRUE])
    assert figures.average_precision == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert (figures.recall, figures.precision) == (1.0, pytest.approx(2 / 3))


def test_a_second_box_on_one_item_is_wrong() -> None:
    figures = box_figures([found([0.9, 0.8], np.concatenate([TRUE[:1], TRUE[:1]]))], [TRUE])
    assert figures.average_precision == pytest.approx(0.5)
    assert figures.precision == pytest.approx(0.5)


def test_low_scores_count_for_average_precision_only() -> None:
    figures = box_figures([found([0.9, 0.1], TRUE)], [TRUE], min_score=0.3)
    assert (figures.average_precision, figures.recall) == (1.0, 0.5)


def test_scores_are_ranked_over_all_photos() -> None:
    figures = box_figures([found([0.2], TRUE[:1]), found([0.9], FAR)], [TRUE[:1], TRUE[1:]])
    assert figures.average_precision == pytest.approx(0.5 * 0.5)


def test_photos_without_items_or_finds() -> None:
    nothing = found([], np.empty((0, 4), np.float32))
    assert box_figures([nothing], [TRUE]).average_precision == 0.0
    with pytest.raises(ValueError, match="no true box"):
        box_figures([nothing], [np.empty((0, 4), np.float32)])
