"""Average precision and recall of boxes against cases worked out by hand, and against the plain definition."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

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


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boxes, by counting."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0.0, float(width)) * max(0.0, float(height))
    return shared / (float((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])) - shared)


def plain_average_precision(found: list[tuple[np.ndarray, np.ndarray]], true: list[np.ndarray]) -> float:
    """Precision at each recall, step by step: all finds in order of score, each taking the free true box it overlaps most."""
    finds = sorted(((s, photo, box) for photo, (scores, boxes) in enumerate(found) for s, box in zip(scores, boxes, strict=True)),
                   key=lambda find: -find[0])  # fmt: skip
    free = [list(boxes) for boxes in true]
    points, right = [], 0
    for count, (_, photo, box) in enumerate(finds, start=1):
        best = max(free[photo], key=lambda other: overlap(box, other), default=None)
        if best is not None and overlap(box, best) >= 0.5:
            free[photo] = [other for other in free[photo] if other is not best]
            right += 1
        points.append((right, right / count))
    num_true = sum(len(boxes) for boxes in true)
    return sum(max((p for r, p in points if r >= step), default=0.0) for step in range(1, num_true + 1)) / num_true


@given(st.integers(0, 2**32 - 1))
def test_average_precision_is_the_area_under_the_curve(seed: int) -> None:
    random = np.random.default_rng(seed)

    def boxes(num: int) -> np.ndarray:
        corners = random.integers(0, 20, (num, 2))
        return np.concatenate([corners, corners + random.integers(4, 12, (num, 2))], axis=1).astype(np.float32)

    true = [boxes(1 + int(random.integers(4))) for _ in range(4)]
    seen = []
    for of_photo in true:
        near = of_photo[random.random(len(of_photo)) < 0.8]
        both = np.concatenate([near + random.integers(-2, 3, near.shape), boxes(int(random.integers(4)))]).astype(np.float32)
        both[:, 2:] = np.maximum(both[:, 2:], both[:, :2] + 1)
        seen.append(both)
    scores = random.permutation(sum(map(len, seen))).astype(np.float32)  # distinct: with equal scores the order is free
    distinct = list(zip(np.split(scores, np.cumsum([len(both) for both in seen])[:-1]), seen, strict=True))
    figures = box_figures(distinct, true, min_score=0.0)
    assert figures.average_precision == pytest.approx(plain_average_precision(distinct, true))
