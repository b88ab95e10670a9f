"""The learned ranking: LightGBM's LambdaMART over features of a candidate, from a text model (never a pickle).

Features are made by the same function in serving and in training. Letters: N candidates, F features.
"""

from pathlib import Path

import lightgbm
import numpy as np

from serve.index.manifest import ReleaseError
from serve.ranking.candidates import Candidates, Shopper
from serve.ranking.rules import freshness, other_gender, popularity_share, price_fit
from serve.ranking.spec import RankingConfig

RANKER_FILE = "ranker.txt"
FEATURES = ("visual", "gap", "price_fit", "log_price", "sold_out", "other_gender", "popularity", "freshness")


def ranking_features(candidates: Candidates, shopper: Shopper, config: RankingConfig) -> np.ndarray:
    """(N, F) float32 in the order of FEATURES; NaN = unknown, which LightGBM understands."""
    columns = {
        "visual": candidates.visual_N,
        "gap": candidates.visual_N.max(initial=-1.0) - candidates.visual_N,
        "price_fit": price_fit(candidates, shopper, config.price_tolerance),
        "log_price": np.log1p(np.maximum(candidates.number("price"), 0.0)),
        "sold_out": ~candidates.available_N(),
        "other_gender": other_gender(candidates, shopper),
        "popularity": popularity_share(candidates),
        "freshness": freshness(candidates, shopper, config.recency_half_life_days),
    }
    return np.stack([columns[name] for name in FEATURES], axis=1).astype(np.float32)


class Ranker:
    """A trained model. Safe to share between threads."""

    def __init__(self, text: str) -> None:
        """Reads LightGBM's text format. Raises ReleaseError for what is none, or has other features than this code makes."""
        try:
            self.booster = lightgbm.Booster(model_str=text)
        except lightgbm.basic.LightGBMError as error:
            raise ReleaseError(f"the learned ranking is no LightGBM text model ({error}); train it again") from error
        names = tuple(self.booster.feature_name())
        if names != FEATURES:
            raise ReleaseError(f"the learned ranking has features {names}, this code makes {FEATURES}; train it again")

    @classmethod
    def open(cls, path: Path) -> "Ranker":
        """The model in a file of the release."""
        return cls(path.read_text())

    def scores(self, features_NF: np.ndarray) -> np.ndarray:
        """(N,) float64, higher = better; only their order within one query means something."""
        return np.asarray(self.booster.predict(features_NF, num_threads=1), np.float64)

    def parts(self, candidates: Candidates, shopper: Shopper, config: RankingConfig) -> np.ndarray:
        """(N,) what to add to the visual scores so that they come into the learned order.

        The learned scores are brought onto the visual scale: the best of both is the same, and so is the spread.
        """
        if not len(candidates.visual_N):
            return np.empty(0)
        learned_N = self.scores(ranking_features(candidates, shopper, config))
        spread = learned_N.std()
        scale = candidates.visual_N.std() / spread if spread > 0 else 0.0
        return np.asarray(candidates.visual_N.max() + (learned_N - learned_N.max()) * scale - candidates.visual_N)
