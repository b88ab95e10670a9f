"""What an order would have earned on logged queries, before it is switched on.

A click at a position that is seldom looked at stands for many that were not made: it counts gain / propensity. The value of an
order is the discounted sum of these where it would have put the products (DCG), a session on average.
Letters: S sessions, L positions, B bootstraps.
"""

from dataclasses import dataclass

import numpy as np

from jobs.clicks.lambdamart import ranks
from jobs.clicks.sessions import Sessions

BOOTSTRAPS = 500


@dataclass(frozen=True)
class Replay:
    """The new order against the one that was shown, over the same sessions."""

    sessions: int
    shown: float  # mean value of the order that was shown
    new: float
    gain_low: float  # 95 % interval of new - shown
    gain_high: float

    @property
    def is_better(self) -> bool:
        """Whether the whole interval is above zero."""
        return self.gain_low > 0


def values(sessions: Sessions, scores_SL: np.ndarray, propensities_L: np.ndarray) -> np.ndarray:
    """(S,) value of the order by `scores_SL`, highest first."""
    ordered_SL = ranks(np.where(sessions.shown_SL, scores_SL, -np.inf))
    earned_SL = sessions.gains_SL / propensities_L / np.log2(2.0 + ordered_SL)
    return np.asarray(earned_SL.sum(axis=1))


def replay(sessions: Sessions, scores_SL: np.ndarray, propensities_L: np.ndarray, seed: int) -> Replay:
    """`scores_SL` against the shown order on those sessions that were not drawn by lot."""
    ours = ~sessions.shuffled_S
    sessions, scores_SL = sessions.pick(ours), scores_SL[ours]
    shown_order_SL = np.tile(-np.arange(scores_SL.shape[1], dtype=float), (len(sessions), 1))
    shown_S, new_S = (values(sessions, order, propensities_L) for order in (shown_order_SL, scores_SL))
    if not len(sessions):
        return Replay(0, 0.0, 0.0, 0.0, 0.0)
    drawn_BS = np.random.default_rng(seed).integers(0, len(sessions), (BOOTSTRAPS, len(sessions)))
    low, high = np.quantile((new_S - shown_S)[drawn_BS].mean(axis=1), [0.025, 0.975])
    return Replay(len(sessions), float(shown_S.mean()), float(new_S.mean()), float(low), float(high))
