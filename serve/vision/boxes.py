"""Plain geometry of boxes: (x0, y0, x1, y1) in pixels, y down, half open.

Letters: N and M boxes, 4 = x0, y0, x1, y1.
"""

import numpy as np


def clip(boxes_N4: np.ndarray, width: int, height: int) -> np.ndarray:
    """The parts of the boxes inside a width x height image: (N, 4) float32."""
    inside: np.ndarray = np.clip(boxes_N4.astype(np.float32), 0, np.array([width, height, width, height], np.float32))
    return inside


def iou(boxes_N4: np.ndarray, others_M4: np.ndarray) -> np.ndarray:
    """Intersection over union of each pair: (N, M) float32 in [0, 1]; empty boxes overlap nothing."""
    top_left = np.maximum(boxes_N4[:, None, :2], others_M4[None, :, :2])
    bottom_right = np.minimum(boxes_N4[:, None, 2:], others_M4[None, :, 2:])
    shared = np.prod(np.clip(bottom_right - top_left, 0, None), axis=2)
    union = area(boxes_N4)[:, None] + area(others_M4)[None, :] - shared
    overlaps: np.ndarray = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0).astype(np.float32)
    return overlaps


def area(boxes_N4: np.ndarray) -> np.ndarray:
    """(N,) areas in square pixels."""
    areas: np.ndarray = np.prod(np.clip(boxes_N4[:, 2:] - boxes_N4[:, :2], 0, None), axis=1)
    return areas


def suppress(boxes_N4: np.ndarray, scores_N: np.ndarray, max_iou: float, groups_N: np.ndarray | None = None) -> np.ndarray:
    """Greedy non-maximum suppression: rows kept, best score first (ties: lower row first), int64.

    A box goes when it overlaps a better kept one by more than `max_iou`. `groups_N`: only boxes of one group compete.
    """
    order = np.argsort(-scores_N, kind="stable")
    overlaps = iou(boxes_N4[order], boxes_N4[order]) > max_iou
    if groups_N is not None:
        overlaps &= groups_N[order][:, None] == groups_N[order][None, :]
    alive = np.ones(len(order), bool)
    for place in range(len(order)):
        if alive[place]:
            alive[place + 1 :] &= ~overlaps[place, place + 1 :]
    return order[alive]
