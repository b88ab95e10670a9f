"""Exact cosine of queries against stored vectors: what small partitions are searched with and what the index is measured against.

Letters: N stored vectors, D width, Q queries, K neighbours. Stored vectors are of unit length up to rounding.
"""

from collections.abc import Iterator
from typing import Protocol

import numpy as np

CHUNK_ROWS = 65_536  # 64 MB of float32 at D = 256
NONE_SCORE = np.float32(-np.inf)  # of a place that no row took; its row is -1


class Rows(Protocol):
    """(N, D) vectors of any float type that decode a slice at a time: an array, or `vectors.StoredVectors`."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice) -> np.ndarray: ...


def cosines(queries_QD: np.ndarray, vectors_ND: np.ndarray) -> np.ndarray:
    """(Q, N) float32 in [-1, 1] of unit-length float32 queries and stored vectors, whose rounding is divided out."""
    vectors_ND = vectors_ND.astype(np.float32, copy=False)
    norms_N = np.sqrt(np.einsum("nd,nd->n", vectors_ND, vectors_ND))
    scores: np.ndarray = np.clip(queries_QD @ vectors_ND.T / norms_N, -1.0, 1.0)
    return scores


def scan(queries_QD: np.ndarray, vectors_ND: Rows) -> Iterator[tuple[int, np.ndarray]]:
    """First row and (Q, chunk) cosines of one chunk of rows after the other."""
    for start in range(0, len(vectors_ND), CHUNK_ROWS):
        yield start, cosines(queries_QD, vectors_ND[start : start + CHUNK_ROWS])


def exact_search(queries_QD: np.ndarray, vectors_ND: Rows, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest rows of each query: (Q, k) float32 scores, best first, and (Q, k) int64 rows; -inf and -1 where N < k."""
    queries = len(queries_QD)
    scores_QK = np.full((queries, k), NONE_SCORE, np.float32)
    rows_QK = np.full((queries, k), -1, np.int64)
    for start, chunk_QN in scan(queries_QD, vectors_ND):
        rows_QN = np.broadcast_to(np.arange(start, start + chunk_QN.shape[1]), chunk_QN.shape)
        scores_QK, rows_QK = best_k(np.hstack([scores_QK, chunk_QN]), np.hstack([rows_QK, rows_QN]), k)
    return scores_QK, rows_QK


def best_k(scores_QN: np.ndarray, rows_QN: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best of each query's N >= k places, best first; equal scores in the order of their rows."""
    every_Q1 = np.arange(len(scores_QN))[:, None]  # indexed by hand: np.take_along_axis takes thrice as long for one query
    if scores_QN.shape[1] > 4 * k:  # cut first: ties at the border may fall either way, as their scores are equal
        part = np.argpartition(-scores_QN, k - 1, axis=1)[:, :k]
        scores_QN, rows_QN = scores_QN[every_Q1, part], rows_QN[every_Q1, part]
    order = np.lexsort((rows_QN, -scores_QN), axis=1)[:, :k]
    return scores_QN[every_Q1, order], rows_QN[every_Q1, order]
