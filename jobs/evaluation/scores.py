"""Scores of every product for every query, in training and after it.

Letters: A queries, P products, D numbers of an embedding.
"""

import numpy as np


def concatenated_scores(photo_AP: np.ndarray, photos_AD: np.ndarray, texts_PD: np.ndarray, weight: float) -> np.ndarray:
    """(A, P) cosines of photos with products whose vector is photo and description side by side.

    With the parts scaled by the roots of 1 - `weight` and `weight`, and the query's vector twice, this is the weighted sum of
    both cosines. A product without a text is its photo alone.
    """
    has_text_P = np.abs(texts_PD).sum(axis=1) > 0
    mixed: np.ndarray = np.where(has_text_P, (1 - weight) * photo_AP + weight * photos_AD @ texts_PD.T, photo_AP)
    return mixed


def recall(scores_AP: np.ndarray, true_A: np.ndarray, k: int) -> float:
    """Share of rows whose true product has fewer than `k` better ones."""
    true_A1 = np.take_along_axis(scores_AP, true_A[:, None], axis=1)
    return float(np.mean((scores_AP > true_A1).sum(axis=1) < k))
