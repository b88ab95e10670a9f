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


def distinct_top_k(
    scores_QN: np.ndarray, rows_QN: np.ndarray, product_of_row: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The best row of each of the k best products: (Q, k) scores, best first, and (Q, k) rows; -inf and -1 where there are fewer.

    Each query's N candidates come best first; row -1 = none. `product_of_row`: product number of every row of the shard.
    """
    queries = len(rows_QN)
    scores_Qk = np.full((queries, k), NONE_SCORE, np.float32)
    rows_Qk = np.full((queries, k), -1, np.int64)
    todo = np.arange(queries)
    for width in (2 * k, rows_QN.shape[1]):  # most queries are full after the first few
        rows = rows_QN[todo, :width]
        products = np.where(rows >= 0, product_of_row[rows], -1) if len(product_of_row) else np.full(rows.shape, -1)
        order = np.argsort(products, axis=1, kind="stable")  # of one product the first is the best
        ordered = np.take_along_axis(products, order, 1)
        is_first = ordered >= 0
        is_first[:, 1:] &= ordered[:, 1:] != ordered[:, :-1]
        kept = np.zeros(rows.shape, bool)
        np.put_along_axis(kept, order, is_first, 1)
        place = kept.cumsum(axis=1) - 1
        at_q, at_n = np.nonzero(kept & (place < k))
        scores_Qk[todo[at_q], place[at_q, at_n]] = scores_QN[todo[at_q], at_n]
        rows_Qk[todo[at_q], place[at_q, at_n]] = rows[at_q, at_n]
        todo = todo[place[:, -1] + 1 < k] if rows.shape[1] else todo
        if not todo.size or width >= rows_QN.shape[1]:
            break
    return scores_Qk, rows_Qk
