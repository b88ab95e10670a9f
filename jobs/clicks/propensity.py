"""How likely a position is looked at at all: the bias that clicks carry.

Letters: S sessions, L positions.
"""

import numpy as np

from jobs.clicks.sessions import Sessions

MIN_SHUFFLED = 100  # sessions; fewer say nothing about the later positions


def propensities(sessions: Sessions, exponent: float, floor: float) -> np.ndarray:
    """(L,) chance that a position is looked at, against the first; never below `floor`, which bounds what one click can weigh.

    Measured where the order was drawn by lot, so that every position held equally good products: its clicks an impression,
    against those of position 1. Without such sessions: 1 / position ** `exponent`.
    """
    length = sessions.shown_SL.shape[1]
    drawn = sessions.pick(sessions.shuffled_S)
    clicks_L = drawn.clicked_SL.sum(axis=0)
    if len(drawn) < MIN_SHUFFLED or not clicks_L[0]:
        curve_L = 1.0 / np.arange(1, length + 1) ** exponent
    else:
        rate_L = clicks_L / np.maximum(drawn.shown_SL.sum(axis=0), 1)
        curve_L = np.minimum.accumulate(smoothed(rate_L / rate_L[0]))
    return np.asarray(np.maximum(curve_L / curve_L[0], floor))


def smoothed(rates_L: np.ndarray) -> np.ndarray:
    """Mean with the neighbours from position 3 on; the first two are seen often enough and differ most."""
    if len(rates_L) < 5:
        return rates_L
    middle = np.convolve(np.r_[rates_L[2:3], rates_L[2:], rates_L[-1:]], np.ones(3) / 3, "valid")
    return np.asarray(np.r_[rates_L[:2], middle])
