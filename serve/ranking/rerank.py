"""From visual scores to the order that is shown: rules, guard rail, diversity, and every step of it explained.

    total = visual + rules (or the learned ranking) + boosts + guard rail

Products of the query photo itself ("exact") stay first, as they are: whoever asks what something is gets the answer.
Letters: N candidates, M that are shown, best first.
"""

from dataclasses import dataclass

import numpy as np

from serve.ranking.candidates import Candidates, Shopper
from serve.ranking.diversity import diversify
from serve.ranking.ranker import Ranker
from serve.ranking.rules import RULES, boost
from serve.ranking.spec import RankingConfig

GUARD_RAIL = "guard_rail"
LEARNED = "learned"


@dataclass(frozen=True)
class Ranking:
    """The order, and why."""

    order_M: np.ndarray  # places of the candidates that are shown, best first
    totals_N: np.ndarray  # float64: visual + all parts
    parts: dict[str, np.ndarray]  # by rule, (N,) float64

    def explained(self, place: int) -> dict[str, float]:
        """What each rule did to the candidate at `place`; those that did nothing are left out."""
        return {name: float(part_N[place]) for name, part_N in self.parts.items() if part_N[place] != 0.0}


def rerank(candidates: Candidates, shopper: Shopper, config: RankingConfig, k: int, ranker: Ranker | None = None) -> Ranking:
    """The best `k` of N candidates. `ranker`: takes the place of the weighted rules."""
    parts = {LEARNED: ranker.parts(candidates, shopper, config)} if ranker else weighted(candidates, shopper, config)
    day = shopper.now.strftime("%m-%d")
    parts |= {f"boost:{b.name}": boost(candidates, b) for b in config.boosts if b.is_on(day)}
    similar_N = ~candidates.exact_N
    parts = {name: part_N * similar_N for name, part_N in parts.items()}
    parts[GUARD_RAIL] = guard_rail(candidates, parts, config.max_gap)
    totals_N = candidates.visual_N + sum(parts.values())
    order_M = np.lexsort((-candidates.visual_N, -totals_N, similar_N))  # exact first; equal totals by looks
    if config.sold_out == "hide":
        order_M = order_M[(candidates.available_N() | candidates.exact_N)[order_M]]
    return Ranking(diversify(candidates, order_M, config.diversity, k), totals_N, parts)


def weighted(candidates: Candidates, shopper: Shopper, config: RankingConfig) -> dict[str, np.ndarray]:
    """What the rules with a weight do."""
    weights = config.weights.model_dump()
    return {name: rule(candidates, shopper, config) for name, rule in RULES.items() if weights[name]}


def guard_rail(candidates: Candidates, parts: dict[str, np.ndarray], max_gap: float) -> np.ndarray:
    """(N,) takes back what lifts a candidate that looks more than `max_gap` less alike than the best similar one."""
    lift_N = np.maximum(sum(parts.values(), np.zeros(len(candidates.visual_N))), 0.0)
    best = candidates.visual_N[~candidates.exact_N].max(initial=-1.0)
    return np.asarray(-lift_N * (best - candidates.visual_N > max_gap))


def acts(config: RankingConfig, shopper: Shopper, ranker: Ranker | None = None) -> bool:
    """Whether re-ranking can change anything for this query; if not, no more than k candidates are needed."""
    weights = config.weights
    asked = (shopper.gender is not None and weights.gender > 0) or (shopper.price_range is not None and weights.price > 0)
    asked = asked or (shopper.photographs and weights.hubness > 0)
    always = weights.availability or weights.popularity or weights.recency or config.boosts or config.sold_out == "hide"
    diverse = config.diversity.variants == "once" or config.diversity.near_duplicates == "once" or config.diversity.per_seller
    return bool(asked or always or diverse or ranker)
