"""How well boxes are found: average precision and recall at one overlap, one class.

Letters: N found boxes, M true boxes; boxes are x0, y0, x1, y1 in any unit.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from serve.vision.boxes import iou


@dataclass(frozen=True)
class BoxFigures:
    """Quality over a set of photos."""

    average_precision: float  # all-point interpolation, all scores
    recall: float  # of the boxes with at least `min_score`
    precision: float  # of the boxes with at least `min_score`
    num_true: int


def hits(scores_N: np.ndarray, boxes_N4: np.ndarray, true_M4: np.ndarray, min_iou: float) -> np.ndarray:
    """(N,) bool: which found boxes of one photo are right. Best score first, each takes the free true box it overlaps most."""
    overlaps_NM = iou(boxes_N4, true_M4)
    right = np.zeros(len(scores_N), bool)
    for row in np.argsort(-scores_N, kind="stable"):
        if overlaps_NM.shape[1] and overlaps_NM[row].max() >= min_iou:
            right[row] = True
            overlaps_NM[:, overlaps_NM[row].argmax()] = -1.0
    return right


def box_figures(
    found: Sequence[tuple[np.ndarray, np.ndarray]], true: Sequence[np.ndarray], *, min_iou: float = 0.5, min_score: float = 0.3
) -> BoxFigures:
    """Figures over photos: per photo the found (scores (N,), boxes (N, 4)) and the true boxes (M, 4).

    Average precision is the area under the precision-recall curve with every point kept and precision made monotone
    (PASCAL VOC from 2010 on; no 11-point sampling). Raises ValueError where no photo has a true box.
    """
    num_true = sum(len(boxes) for boxes in true)
    if num_true == 0:
        raise ValueError("no true box in any photo: average precision is not defined")
    scores = np.concatenate([scores_N for scores_N, _ in found])
    pairs = zip(found, true, strict=True)
    right = np.concatenate([hits(scores_N, boxes_N4, true_M4, min_iou) for (scores_N, boxes_N4), true_M4 in pairs])
    order = np.argsort(-scores, kind="stable")
    hit_curve = np.cumsum(right[order])
    precision = hit_curve / np.arange(1, len(order) + 1)
    monotone = np.maximum.accumulate(precision[::-1])[::-1]
    sure = scores >= min_score
    return BoxFigures(
        average_precision=float((monotone * right[order]).sum() / num_true),
        recall=float(right[sure].sum() / num_true),
        precision=float(right[sure].mean()) if sure.any() else 0.0,
        num_true=num_true,
    )
