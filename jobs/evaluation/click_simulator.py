"""Shoppers whose wishes are known: what a learned ranking must find out from their clicks alone.

A shopper looks at position p with the chance 1 / p ** exponent, and clicks what he looks at with the chance that he wants it.
What he wants depends on looks, price, gender, stock and fame, not in a straight line: a product that is sold out or made for
someone else loses nearly everything, a good price matters only where the looks are right.
Letters: S sessions, L positions, F features.
"""

from dataclasses import dataclass

import numpy as np

from jobs.clicks.lambdamart import ranks
from jobs.clicks.sessions import Sessions
from serve.ranking.candidates import Candidates, Shopper
from serve.ranking.ranker import FEATURES, ranking_features
from serve.ranking.rerank import weighted
from serve.ranking.spec import RankingConfig

HAND_SET = RankingConfig.model_validate(
    {
        "sold_out": "demote",
        "weights": {"availability": 0.05, "price": 0.05, "gender": 0.1, "popularity": 0.02, "recency": 0.01},
    }
)


@dataclass(frozen=True)
class World:
    """Queries with their candidates, best looks first, and the truth about them."""

    features_SLF: np.ndarray  # float32
    wanted_SL: np.ndarray  # chance that a shopper who looks clicks
    hand_set_SL: np.ndarray  # score by visual + the hand-set weights

    @property
    def visual_SL(self) -> np.ndarray:
        """Score by looks."""
        return np.asarray(self.features_SLF[:, :, FEATURES.index("visual")], np.float64)

    def repeated(self, times: int) -> "World":
        """Every query asked so many times."""
        return World(*(np.repeat(part, times, axis=0) for part in (self.features_SLF, self.wanted_SL, self.hand_set_SL)))


def make_world(num_sessions: int, length: int, seed: int) -> World:
    """Queries for the candidates of a shop: the same features as in serving, made by the same function."""
    rng = np.random.default_rng(seed)
    features = np.empty((num_sessions, length, len(FEATURES)), np.float32)
    hand_set = np.empty((num_sessions, length))
    for session in range(num_sessions):
        visual = np.sort(rng.uniform(0.5, 0.9) - 0.15 * rng.random(length))[::-1]
        price = np.exp(rng.normal(3.5, 0.7, length))
        rows = [
            {
                "price": float(price[i]) if rng.random() > 0.03 else None,
                "available": bool(rng.random() > 0.2),
                "gender": ("women", "men", "unisex", None)[int(rng.integers(4))],
                "popularity": float(np.exp(rng.normal(3, 1.5))),
            }
            for i in range(length)
        ]
        middle = float(np.exp(rng.normal(3.5, 0.5)))
        shopper = Shopper(("women", "men")[int(rng.integers(2))], (0.7 * middle, 1.4 * middle))
        candidates = Candidates.of_rows(visual.tolist(), [False] * length, rows)
        features[session] = ranking_features(candidates, shopper, HAND_SET)
        hand_set[session] = visual + sum(weighted(candidates, shopper, HAND_SET).values())
    return World(features, wanted(features), hand_set)


def wanted(features_SLF: np.ndarray) -> np.ndarray:
    """The truth: the chance that a product is clicked by who looks at it."""
    value = {name: features_SLF[:, :, i].astype(np.float64) for i, name in enumerate(FEATURES)}
    near = np.exp(-value["gap"] / 0.08)
    utility = 2.5 * near + 2.0 * near * value["price_fit"] + 1.0 * value["popularity"] - 3.0
    utility -= 2.5 * value["sold_out"] + 2.5 * value["other_gender"]
    return np.asarray(1.0 / (1.0 + np.exp(-utility)))


def simulate(world: World, scores_SL: np.ndarray, exponent: float, shuffled_frac: float, seed: int) -> Sessions:
    """Shoppers in front of the order by `scores_SL`; a share of the sessions is shown in an order drawn by lot."""
    rng = np.random.default_rng(seed)
    num, length = scores_SL.shape
    shuffled_S = np.asarray(rng.random(num) < shuffled_frac)
    order_SL = np.argsort(-np.where(shuffled_S[:, None], rng.random((num, length)), scores_SL), axis=1, kind="stable")
    looked_at_L = 1.0 / np.arange(1, length + 1) ** exponent
    chance_SL = looked_at_L * np.take_along_axis(world.wanted_SL, order_SL, 1)
    return Sessions(
        np.take_along_axis(world.features_SLF, order_SL[:, :, None], 1),
        (rng.random((num, length)) < chance_SL).astype(np.float64),
        np.ones((num, length), bool),
        shuffled_S,
    )


def ndcg(world: World, scores_SL: np.ndarray) -> float:
    """Mean nDCG of the order by `scores_SL`; the gain of a product is the chance that it is wanted."""
    gained, ideal = ((world.wanted_SL / np.log2(2.0 + ranks(by_SL))).sum(axis=1) for by_SL in (scores_SL, world.wanted_SL))
    return float((gained / ideal).mean())


def recovered(world: World, scores_SL: np.ndarray) -> float:
    """Share of the gain from the visual order (0) to the ideal one (1)."""
    visual = ndcg(world, world.visual_SL)
    return (ndcg(world, scores_SL) - visual) / (1.0 - visual)
