"""LambdaMART whose pairs are weighted by inverse propensity (Joachims et al. 2017, Wang et al. 2018), on LightGBM.

LightGBM's own objective can weight documents, not pairs, which is why the gradient is made here: every clicked product against
every other one of its session, weighted by gain / propensity and by what their exchange would change in DCG.
Letters: S sessions, L positions, F features, R rows = shown products.
"""

import lightgbm
import numpy as np

from jobs.clicks.sessions import Sessions
from jobs.config import TrainRankerConfig
from serve.ranking.ranker import FEATURES, Ranker

STEEPNESS = 2.0  # of the pairwise logistic
BLOCK = 2048  # sessions whose pairs are held at once


def train_ranker(sessions: Sessions, propensities_L: np.ndarray, config: TrainRankerConfig) -> Ranker:
    """A model of all sessions with a click."""
    sessions = sessions.pick(np.flatnonzero(sessions.clicked_SL.any(axis=1)))
    weights_SL = sessions.gains_SL / propensities_L
    shown_SL = sessions.shown_SL
    data = lightgbm.Dataset(
        sessions.features_SLF[shown_SL], np.zeros(int(shown_SL.sum())), feature_name=list(FEATURES), free_raw_data=False
    )

    def objective(scores_R: np.ndarray, _: lightgbm.Dataset) -> tuple[np.ndarray, np.ndarray]:
        scores_SL = np.full(shown_SL.shape, -np.inf)
        scores_SL[shown_SL] = scores_R
        blocks = [slice(start, start + BLOCK) for start in range(0, len(shown_SL), BLOCK)]
        parts = [lambda_gradients(scores_SL[b], weights_SL[b], shown_SL[b]) for b in blocks]
        return tuple(np.concatenate([part[side] for part in parts])[shown_SL] for side in (0, 1))

    settings = {
        "objective": objective,
        "num_leaves": config.leaves,
        "learning_rate": config.learning_rate,
        "min_data_in_leaf": config.min_rows_in_leaf,
        "num_threads": config.threads,
        "seed": config.seed,
        "deterministic": True,
        "force_row_wise": True,
        "verbose": -1,
    }
    return Ranker(lightgbm.train(settings, data, config.trees).model_to_string())


def lambda_gradients(scores_SL: np.ndarray, weights_SL: np.ndarray, shown_SL: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gradient and second derivative by score, both (S, L); 0 where nothing was shown."""
    discounts_SL = 1.0 / np.log2(2.0 + ranks(scores_SL))
    swap_SLL = np.abs(discounts_SL[:, :, None] - discounts_SL[:, None, :])
    pairs_SLL = shown_SL[:, :, None] & shown_SL[:, None, :]
    finite_SL = np.where(shown_SL, scores_SL, 0.0)
    wrong_SLL = 1.0 / (1.0 + np.exp(np.clip(STEEPNESS * (finite_SL[:, :, None] - finite_SL[:, None, :]), -50, 50)))
    pull_SLL = weights_SL[:, :, None] * swap_SLL * wrong_SLL * pairs_SLL  # of a clicked product (axis 1) past another (axis 2)
    bend_SLL = pull_SLL * (1.0 - wrong_SLL)
    gradient_SL = STEEPNESS * (pull_SLL.sum(axis=1) - pull_SLL.sum(axis=2))
    second_SL = STEEPNESS**2 * (bend_SLL.sum(axis=1) + bend_SLL.sum(axis=2))
    return gradient_SL, np.maximum(second_SL, 1e-6)


def ranks(scores_SL: np.ndarray) -> np.ndarray:
    """Rank of each from 0, best first."""
    return np.argsort(np.argsort(-scores_SL, axis=1, kind="stable"), axis=1, kind="stable")
