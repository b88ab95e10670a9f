"""From which score on a result is a match: one threshold for each partition, from photos of what the other partitions hold.

A stored crop of another partition is a photo of something that this one does not have. The threshold of a partition is a
quantile of the best exact cosines that such crops reach in it, the same quantile everywhere: the one at which a crop whose own
partition is taken away still gets a match in at most the wanted share of cases. Half of the crops choose it, the others measure
it. Letters: S partitions, Q crops.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from serve.index.manifest import NoMatchEntry

MIN_FOREIGN = 20  # crops of other partitions; with fewer a quantile says nothing
STEPS = 200


@dataclass(frozen=True)
class NearestCrops:
    """What lies nearest to stored crops in every partition, each crop's own row left out."""

    names: tuple[str, ...]  # of the partitions
    best_SQ: np.ndarray  # best exact cosine of each crop in each partition
    own_Q: np.ndarray  # number of each crop's own partition


def calibrate_no_match(
    nearest: NearestCrops,
    right: Sequence[tuple[str, float]],
    max_false_match_frac: float,
    max_lost_frac: float,
    seed: int,
) -> NoMatchEntry | None:
    """Thresholds of the partitions, all lowered by as much as keeps the right answers; None = too little to say.

    `right`: partition and score of first results known to be right; at most `max_lost_frac` of them may be called no match.
    """
    names, best_SQ, own_Q = nearest.names, nearest.best_SQ, nearest.own_Q
    foreign_SQ = own_Q[None] != np.arange(len(names))[:, None]
    chosen_Q = np.random.default_rng(seed).random(len(own_Q)) < 0.5
    if len(names) < 2 or not right or (foreign_SQ & chosen_Q).sum(axis=1).min() < MIN_FOREIGN or chosen_Q.all():
        return None
    others_SQ = np.where(foreign_SQ, best_SQ, -np.inf)  # as if the shop had nothing of its kind

    def false_matches(thresholds_S: np.ndarray, crops_Q: np.ndarray) -> float:
        return float((others_SQ[:, crops_Q] >= thresholds_S[:, None]).any(axis=0).mean())

    known = [best_SQ[s, foreign_SQ[s] & chosen_Q] for s in range(len(names))]
    for quantile in np.linspace(1 - max_false_match_frac, 1.0, STEPS):
        thresholds_S = np.array([np.quantile(scores, quantile) for scores in known])
        if false_matches(thresholds_S, chosen_Q) <= max_false_match_frac:
            break
    place = {name: s for s, name in enumerate(names)}
    above = np.sort([score - thresholds_S[place[name]] for name, score in right])  # below 0: called no match
    lowered = max(0.0, -float(above[int(max_lost_frac * len(above))]))
    thresholds_S = np.floor((thresholds_S - lowered) * 1e4) / 1e4
    return NoMatchEntry(
        thresholds=dict(zip(names, thresholds_S.tolist(), strict=True)),
        false_match_frac=round(false_matches(thresholds_S, ~chosen_Q), 4),
        lost_frac=round(float((above + lowered < 0).mean()), 4),
    )
