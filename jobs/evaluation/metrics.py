"""Recall of ranked lists. Letters: Q queries, K places."""

from collections.abc import Collection, Sequence

import numpy as np

EQUAL = 1e-5  # cosines nearer than this are one: which of two equal photos comes first means nothing


def recall_at(found_QK: np.ndarray, exact_QK: np.ndarray, k: int) -> float:
    """Share of the k truly nearest that an index finds among its first k, by score.

    Both are cosines, best first, -inf where there is none. By score, not by row: equal photos have equal cosines, and any of them
    is right. Queries with no neighbour at all do not count.
    """
    exact_Qk = exact_QK[:, :k]
    wanted_Q = np.isfinite(exact_Qk).sum(axis=1)
    worst_Q = np.where(np.isfinite(exact_Qk), exact_Qk, np.inf).min(axis=1)
    right_Q = (found_QK[:, :k] >= worst_Q[:, None] - EQUAL).sum(axis=1)
    asked = wanted_Q > 0
    return float(np.mean(np.minimum(right_Q, wanted_Q)[asked] / wanted_Q[asked])) if asked.any() else 1.0


def hit_rate_at(ranked: Sequence[Sequence[str]], truths: Sequence[Collection[str]], k: int) -> float:
    """Share of queries with a right product among the first k (what visual search papers call Recall@k)."""
    hits = [any(product in truth for product in products[:k]) for products, truth in zip(ranked, truths, strict=True)]
    return float(np.mean(hits))
