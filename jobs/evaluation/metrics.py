"""Recall, average precision and discounted gain of ranked lists. Letters: Q queries, K places."""

from collections.abc import Collection, Mapping, Sequence

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


def mean_average_precision(ranked: Sequence[Sequence[str]], truths: Sequence[Collection[str]]) -> float:
    """Mean over queries of the average precision of a ranked list without doubles; what is right but not listed counts as 0.

    Raises ValueError where a query has no right answer at all: its average precision is not defined.
    """
    return float(np.mean([average_precision(products, truth) for products, truth in zip(ranked, truths, strict=True)]))


def average_precision(products: Sequence[str], truth: Collection[str]) -> float:
    """Mean, over the right answers, of the precision at the place of each."""
    if not truth:
        raise ValueError("a query without a right answer has no average precision")
    right = np.array([product in truth for product in products], np.float64)
    return float((right * np.cumsum(right) / np.arange(1, len(right) + 1)).sum() / len(truth))


def ndcg_at(ranked: Sequence[Sequence[str]], gains: Sequence[Mapping[str, float]], k: int) -> float:
    """Mean over queries of the discounted cumulative gain of the first k over that of the best order possible.

    `gains`: what each right answer of a query is worth, linear, discounted by log2(place + 1) (Jarvelin and Kekalainen 2002).
    """
    return float(np.mean([discounted(products, worth, k) for products, worth in zip(ranked, gains, strict=True)]))


def discounted(products: Sequence[str], gains: Mapping[str, float], k: int) -> float:
    """The normalised discounted gain of one list. Raises ValueError where nothing has a gain."""
    best = sorted(gains.values(), reverse=True)[:k]
    if not best or best[0] <= 0:
        raise ValueError("a query without a right answer has no discounted gain")
    discounts_k = 1 / np.log2(np.arange(2, k + 2))
    got = np.array([gains.get(product, 0.0) for product in products[:k]])
    return float((got * discounts_k[: len(got)]).sum() / (np.array(best) * discounts_k[: len(best)]).sum())
