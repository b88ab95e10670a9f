"""From neighbours of many shards to the best k, and from neighbours to distinct products.

Letters: S shards, Q queries, K neighbours per shard, N candidates of one query.
"""

import numpy as np

from serve.index.exact import NONE_SCORE, best_k


def merge_top_k(scores_SQK: np.ndarray, rows_SQK: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Best k of S shards for each of Q queries: (Q, k) scores, best first, and (Q, k) rows; -inf and -1 where there are fewer.

    Rows are numbered through over the shards; -1 = none. Equal scores come in the order of their rows.
    """
    shards, queries, neighbours = scores_SQK.shape
    scores_QN = scores_SQK.transpose(1, 0, 2).reshape(queries, shards * neighbours).astype(np.float32)
    rows_QN = rows_SQK.transpose(1, 0, 2).reshape(queries, shards * neighbours).astype(np.int64)
    missing = max(k - scores_QN.shape[1], 0)
    scores_QN = np.pad(np.where(rows_QN >= 0, scores_QN, NONE_SCORE), ((0, 0), (0, missing)), constant_values=NONE_SCORE)
    rows_QN = np.pad(rows_QN, ((0, 0), (0, missing)), constant_values=-1)
    return best_k(scores_QN, rows_QN, k)


def best_per_product(scores_N: np.ndarray, products_N: np.ndarray, k: int) -> np.ndarray:
    """Places of the best candidate of each of the k best products, best first; equal scores in the order of their places."""
    order = np.argsort(-scores_N, kind="stable")
    _, first = np.unique(products_N[order], return_index=True)
    places: np.ndarray = order[np.sort(first)[:k]]
    return places
