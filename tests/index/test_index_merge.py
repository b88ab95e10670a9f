"""Merging, exact search and distinct products against the plain definition."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from serve.index.exact import NONE_SCORE, best_k, exact_search
from serve.index.merge import distinct_top_k, merge_top_k

SCORES = st.integers(-50, 50).map(lambda n: np.float32(n / 50))


@settings(deadline=None)
@given(st.data(), st.integers(1, 4), st.integers(1, 3), st.integers(1, 6), st.integers(1, 30))
def test_merge_top_k(data: st.DataObject, shards: int, queries: int, neighbours: int, k: int) -> None:
    scores_SQK = data.draw(arrays(np.float32, (shards, queries, neighbours), elements=SCORES))
    rows_SQK = np.arange(scores_SQK.size).reshape(scores_SQK.shape)
    rows_SQK = np.where(data.draw(arrays(bool, scores_SQK.shape)), rows_SQK, -1)
    scores_Qk, rows_Qk = merge_top_k(scores_SQK, rows_SQK, k)
    assert scores_Qk.shape == rows_Qk.shape == (queries, k)
    for q in range(queries):
        real = {int(r): float(s) for s, r in zip(scores_SQK[:, q].ravel(), rows_SQK[:, q].ravel(), strict=True) if r >= 0}
        wanted = sorted(real.values(), reverse=True)[:k]
        num = len(wanted)
        assert scores_Qk[q, :num].tolist() == wanted
        assert [real[row] for row in rows_Qk[q, :num].tolist()] == wanted and len(set(rows_Qk[q, :num])) == num
        assert (rows_Qk[q, num:] == -1).all() and (scores_Qk[q, num:] == NONE_SCORE).all()


@settings(deadline=None)
@given(st.data(), st.integers(1, 4), st.integers(0, 30), st.integers(1, 8))
def test_distinct_top_k(data: st.DataObject, queries: int, candidates: int, k: int) -> None:
    """The best row of each product, in order, none twice; -1 only where there is no further product."""
    product_of_row = data.draw(arrays(np.int32, 40, elements=st.integers(0, 6)))
    scores_QN = -np.sort(-data.draw(arrays(np.float32, (queries, candidates), elements=SCORES)), axis=1)
    rows_QN = np.stack([np.random.default_rng(q).permutation(40)[:candidates] for q in range(queries)])
    rows_QN = np.where(data.draw(arrays(bool, rows_QN.shape)), rows_QN, -1)
    scores_Qk, rows_Qk = distinct_top_k(scores_QN, rows_QN, product_of_row, k)
    for q in range(queries):
        best: dict[int, float] = {}
        for score, row in zip(scores_QN[q], rows_QN[q], strict=True):
            if row >= 0:
                best.setdefault(int(product_of_row[row]), float(score))
        wanted = sorted(best.values(), reverse=True)[:k]
        num = len(wanted)
        assert scores_Qk[q, :num].tolist() == wanted and len(set(product_of_row[rows_Qk[q, :num]])) == num
        assert (rows_Qk[q, num:] == -1).all() and (scores_Qk[q, num:] == NONE_SCORE).all()


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_exact_search(rows: int, k: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    vectors = random.standard_normal((rows, 8)).astype(np.float16)
    queries = random.standard_normal((3, 8)).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    scores_QK, rows_QK = exact_search(queries, vectors, k)
    plain = queries @ (vectors.astype(np.float32) / np.linalg.norm(vectors.astype(np.float32), axis=1, keepdims=True)).T
    num = min(k, rows)
    np.testing.assert_allclose(scores_QK[:, :num], -np.sort(-plain, axis=1)[:, :num], atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(plain, rows_QK[:, :num], 1), scores_QK[:, :num], atol=1e-5)
    assert (rows_QK[:, num:] == -1).all()


def test_best_k_cuts_first_where_there_are_many() -> None:
    scores = np.random.default_rng(0).standard_normal((2, 1000)).astype(np.float32)
    found, rows = best_k(scores, np.broadcast_to(np.arange(1000), (2, 1000)), 5)
    np.testing.assert_array_equal(rows, np.argsort(-scores, axis=1)[:, :5])
    np.testing.assert_array_equal(found, -np.sort(-scores, axis=1)[:, :5])
