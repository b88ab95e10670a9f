"""What a network in another precision lost against itself in float32, on photos.

Letters: N catalog photos, Q query crops, D numbers of an embedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jobs.evaluation.boxes import hits
from serve.vision.detector import Detections
from serve.vision.spec import BoxFidelity, Fidelity

SAME_IOU = 0.5


@dataclass(frozen=True)
class Vectors:
    """Of the same crops, by one encoder: (N, D) of catalog photos and (Q, D) of queries, unit length."""

    catalog_ND: np.ndarray
    queries_QD: np.ndarray


def encoder_fidelity(exact: Vectors, other: Vectors, products_N: np.ndarray, asked_Q: np.ndarray) -> Fidelity:
    """`other` against `exact`, the float32 ones. `asked_Q`: rows of the products asked for, in the terms of `products_N`."""
    both = [(exact.catalog_ND, other.catalog_ND), (exact.queries_QD, other.queries_QD)]
    cosines = np.concatenate([(one * two).sum(axis=1) for one, two in both])
    before = recall_at_1(exact.queries_QD, exact.catalog_ND, products_N, asked_Q)
    after = recall_at_1(other.queries_QD, other.catalog_ND, products_N, asked_Q)
    mixed = recall_at_1(other.queries_QD, exact.catalog_ND, products_N, asked_Q)
    return Fidelity(
        num_photos=len(cosines),
        mean_cosine=round(float(cosines.mean()), 5),
        same_neighbour_frac=round(float(np.mean(nearest_other(exact.catalog_ND) == nearest_other(other.catalog_ND))), 4),
        recall_at_1_change=None if before is None or after is None else round(after - before, 4),
        mixed_recall_at_1_change=None if before is None or mixed is None else round(mixed - before, 4),
    )


def recall_at_1(queries_QD: np.ndarray, catalog_ND: np.ndarray, products_N: np.ndarray, asked_Q: np.ndarray) -> float | None:
    """Share of queries whose nearest photo shows the product asked for; None without queries."""
    return float(np.mean(products_N[(queries_QD @ catalog_ND.T).argmax(axis=1)] == asked_Q)) if len(asked_Q) else None


def nearest_other(vectors_ND: np.ndarray) -> np.ndarray:
    """(N,) row of each vector's nearest neighbour."""
    cosines_NN = vectors_ND @ vectors_ND.T
    np.fill_diagonal(cosines_NN, -np.inf)
    nearest: np.ndarray = cosines_NN.argmax(axis=1)
    return nearest


def detector_fidelity(exact: Sequence[Detections], other: Sequence[Detections]) -> BoxFidelity:
    """Boxes of `other` against those of the same photos in float32: a box is found again at SAME_IOU with its label."""
    num_boxes, num_other, num_found = 0, 0, 0
    for before, after in zip(exact, other, strict=True):
        num_boxes += len(before.labels)
        num_other += len(after.labels)
        for label in set(before.labels) & set(after.labels):
            was, now = (np.array([own == label for own in side.labels]) for side in (before, after))
            num_found += int(hits(after.scores[now], after.boxes[now], before.boxes[was], SAME_IOU).sum())
    return BoxFidelity(
        num_photos=len(exact),
        num_boxes=num_boxes,
        found_frac=round(num_found / num_boxes, 4) if num_boxes else 1.0,
        extra_frac=round((num_other - num_found) / max(num_boxes, 1), 4),
    )
