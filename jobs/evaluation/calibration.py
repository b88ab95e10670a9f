"""Does a predicted probability mean what it says: reliability by bins, and the expected calibration error.

Letters: N predictions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

NUM_BINS = 15  # of equal width, as in Guo et al., "On Calibration of Modern Neural Networks" (ICML 2017)


@dataclass(frozen=True)
class ReliabilityBin:
    """Predictions of about the same probability: how sure they were, and how often right."""

    num: int
    confidence: float
    accuracy: float


def reliability(probs_N: np.ndarray, right_N: np.ndarray, num_bins: int = NUM_BINS) -> list[ReliabilityBin]:
    """Bins with something in them, least sure first: `probs_N` of the predicted class in [0, 1], `right_N` whether it was it."""
    bins_N = np.minimum((probs_N * num_bins).astype(np.int64), num_bins - 1)
    found = []
    for number in np.unique(bins_N):
        own = bins_N == number
        found.append(ReliabilityBin(int(own.sum()), float(probs_N[own].mean()), float(right_N[own].mean())))
    return found


def expected_calibration_error(bins: Sequence[ReliabilityBin]) -> float:
    """Mean distance between confidence and accuracy, bins weighted by what is in them."""
    total = sum(one.num for one in bins)
    return sum(one.num * abs(one.confidence - one.accuracy) for one in bins) / total
