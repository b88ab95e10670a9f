"""From which score on a result is a match: one threshold for each partition, from photos of what the other partitions hold.

A stored crop of another partition is a photo of something that this one does not have. The threshold of a partition is a
quantile of the best exact cosines that such crops reach in it, the same quantile everywhere: the one at which a crop whose own
partition is taken away still gets a match in at most the wanted share of cases. Half of the crops choose it, the others measure
it. Letters: S partitions, Q crops.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MIN_FOREIGN = 20  # crops of other partitions; with fewer a quantile says nothing
STEPS = 200


@dataclass(frozen=True)
class NoMatch:
    """Thresholds by partition, and what they do to crops that did not choose them."""

    thresholds: dict[str, float]
    false_match_frac: float  # of crops whose own partition is taken away: something passes its threshold
    num_crops: int


def calibrate_no_match(
    names: Sequence[str], best_SQ: np.ndarray, own_Q: np.ndarray, max_false_match_frac: float, seed: int
) -> NoMatch | None:
    """`best_SQ`: best exact cosine of each crop in each partition; `own_Q`: the number of its own. None = too little to say."""
    foreign_SQ = own_Q[None] != np.arange(len(names))[:, None]
    chosen_Q = np.random.default_rng(seed).random(len(own_Q)) < 0.5
    if len(names) < 2 or (foreign_SQ & chosen_Q).sum(axis=1).min() < MIN_FOREIGN or not (~chosen_Q).any():
        return None
    others_SQ = np.where(foreign_SQ, best_SQ, -np.inf)  # as if the shop had nothing of its kind

    def false_matches(thresholds_S: np.ndarray, crops_Q: np.ndarray) -> float:
        return float((others_SQ[:, crops_Q] >= thresholds_S[:, None]).any(axis=0).mean())

    thresholds_S = np.array([])
    for quantile in np.linspace(1 - max_false_match_frac, 1.0, STEPS):
        known = [best_SQ[s, foreign_SQ[s] & chosen_Q] for s in range(len(names))]
        thresholds_S = np.array([np.quantile(scores, quantile) for scores in known])
        if false_matches(thresholds_S, chosen_Q) <= max_false_match_frac:
            break
    return NoMatch(
        thresholds={name: round(float(threshold), 4) for name, threshold in zip(names, thresholds_S, strict=True)},
        false_match_frac=round(false_matches(thresholds_S, ~chosen_Q), 4),
        num_crops=int((~chosen_Q).sum()),
    )
