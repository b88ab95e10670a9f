"""Recall against the plain definition and against ir-measures."""

import ir_measures
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.evaluation.metrics import hit_rate_at, mean_average_precision, ndcg_at, recall_at


@given(st.integers(1, 6), st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_recall_is_ir_measures(queries: int, k: int, seed: int) -> None:
    """Distinct scores: recall by score is recall by document, with the k truly nearest as the relevant ones."""
    random = np.random.default_rng(seed)
    truth = np.stack([random.permutation(100) for _ in range(queries)]) / 100  # score of every document
    exact = -np.sort(-truth, axis=1)
    seen = [random.choice(100, 60, replace=False) for _ in range(queries)]
    found = np.stack([-np.sort(-truth[q, seen[q]]) for q in range(queries)])
    qrels = {str(q): {str(d): 1 for d in np.argsort(-truth[q])[:k]} for q in range(queries)}
    runs = {str(q): {str(d): float(truth[q, d]) for d in seen[q]} for q in range(queries)}
    measure = ir_measures.parse_measure(f"R@{k}")
    assert recall_at(found, exact, k) == pytest.approx(ir_measures.calc_aggregate([measure], qrels, runs)[measure])


@given(st.lists(st.tuples(st.permutations("abcdef"), st.sampled_from("abcdefz")), min_size=1, max_size=8), st.integers(1, 6))
def test_hit_rate_is_success(queries: list[tuple[list[str], str]], k: int) -> None:
    qrels = {str(q): {truth: 1} for q, (_, truth) in enumerate(queries)}
    runs = {str(q): {p: float(-i) for i, p in enumerate(ranked)} for q, (ranked, _) in enumerate(queries)}
    measure = ir_measures.parse_measure(f"Success@{k}")
    ours = hit_rate_at([ranked for ranked, _ in queries], [{truth} for _, truth in queries], k)
    assert ours == pytest.approx(ir_measures.calc_aggregate([measure], qrels, runs)[measure])


def test_equal_photos_and_short_lists() -> None:
    none = -np.inf
    exact = np.array([[0.9, 0.9, 0.9], [0.5, 0.4, none], [none, none, none]])
    assert recall_at(exact, exact, 3) == 1.0
    assert recall_at(np.array([[0.9, 0.9, 0.1], [0.4, none, none], [none] * 3]), exact, 3) == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert recall_at(np.array([[0.9], [0.5], [none]]), exact[:, :1], 1) == 1.0


RANKED = st.lists(
    st.tuples(
        st.permutations("abcdefgh"),
        st.integers(1, 8),
        st.dictionaries(st.sampled_from("abcdefghyz"), st.integers(1, 3), min_size=1),
    ),
    min_size=1,
    max_size=6,
)


def judged(
    queries: list[tuple[list[str], int, dict[str, int]]],
) -> tuple[list[list[str]], dict[str, dict[str, float]], dict[str, dict[str, int]]]:
    """Lists cut at a length, and the same as runs and judgments of ir-measures."""
    ranked = [products[:length] for products, length, _ in queries]
    runs = {str(q): {product: float(-place) for place, product in enumerate(products)} for q, products in enumerate(ranked)}
    return ranked, runs, {str(q): gains for q, (_, _, gains) in enumerate(queries)}


@given(RANKED)
def test_average_precision_is_ir_measures(queries: list[tuple[list[str], int, dict[str, int]]]) -> None:
    """Right answers that are missing from the list count too."""
    ranked, runs, qrels = judged(queries)
    measure = ir_measures.parse_measure("AP")
    ours = mean_average_precision(ranked, [set(gains) for gains in qrels.values()])
    assert ours == pytest.approx(ir_measures.calc_aggregate([measure], qrels, runs)[measure])


@given(RANKED, st.integers(1, 10))
def test_discounted_gain_is_ir_measures(queries: list[tuple[list[str], int, dict[str, int]]], k: int) -> None:
    ranked, runs, qrels = judged(queries)
    measure = ir_measures.parse_measure(f"nDCG@{k}")
    ours = ndcg_at(ranked, [{p: float(gain) for p, gain in gains.items()} for gains in qrels.values()], k)
    assert ours == pytest.approx(ir_measures.calc_aggregate([measure], qrels, runs)[measure])


def test_a_query_without_a_right_answer_has_no_figure() -> None:
    with pytest.raises(ValueError, match="no average precision"):
        mean_average_precision([["a"]], [set()])
    with pytest.raises(ValueError, match="no discounted gain"):
        ndcg_at([["a"]], [{}], 5)
