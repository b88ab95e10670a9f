"""The declared rules: each gives, for every candidate, what it adds to the visual score (below 0: takes from it).

A rule is bounded by its weight, and silent where it knows nothing. Letters: N candidates.
"""

from collections.abc import Callable

import numpy as np

from serve.ranking.candidates import Candidates, Shopper
from serve.ranking.spec import Boost, RankingConfig

Rule = Callable[[Candidates, Shopper, RankingConfig], np.ndarray]
UNISEX = "unisex"
UNKNOWN_FIT = 0.5  # a product without price, or in another currency: neither in the range nor far outside


def availability(candidates: Candidates, _: Shopper, config: RankingConfig) -> np.ndarray:
    """Takes the weight from what is sold out."""
    return -config.weights.availability * ~candidates.available_N()


def price(candidates: Candidates, shopper: Shopper, config: RankingConfig) -> np.ndarray:
    """Takes nothing inside the shopper's range, then ever more with the ratio of price and bound, up to the weight."""
    return config.weights.price * (price_fit(candidates, shopper, config.price_tolerance) - 1.0)


def price_fit(candidates: Candidates, shopper: Shopper, tolerance: float) -> np.ndarray:
    """(N,) in 0..1: 1 inside the shopper's range or without one, exp(-|ln(price / bound)| / ln(1 + tolerance)) outside."""
    if shopper.price_range is None:
        return np.ones(len(candidates.visual_N))
    low, high = shopper.price_range
    price_N = candidates.number("price")
    comparable_N = np.isfinite(price_N)
    if shopper.currency is not None:
        comparable_N &= ~candidates.known("currency") | candidates.is_value("currency", shopper.currency)
    cents_N = np.maximum(np.where(comparable_N, price_N, 1.0), 0.01)  # what costs nothing has a logarithm as well
    above_N = np.log(cents_N / max(high, 0.01))
    below_N = np.log(max(low, 0.01) / cents_N)
    fit_N = np.exp(-np.maximum(np.maximum(above_N, below_N), 0.0) / np.log1p(tolerance))
    return np.asarray(np.where(comparable_N, fit_N, UNKNOWN_FIT))


def gender(candidates: Candidates, shopper: Shopper, config: RankingConfig) -> np.ndarray:
    """Takes the weight from what is made for another gender; unisex and unknown fit everyone."""
    return -config.weights.gender * other_gender(candidates, shopper)


def other_gender(candidates: Candidates, shopper: Shopper) -> np.ndarray:
    """(N,) bool: made for another gender than the shopper's."""
    if shopper.gender is None or shopper.gender == UNISEX:
        return np.zeros(len(candidates.visual_N), bool)
    return np.asarray(candidates.known("gender") & ~candidates.is_value("gender", shopper.gender, UNISEX))


def popularity(candidates: Candidates, _: Shopper, config: RankingConfig) -> np.ndarray:
    """Adds the weight to the most popular candidate; to others by the logarithm of theirs."""
    return config.weights.popularity * popularity_share(candidates)


def popularity_share(candidates: Candidates) -> np.ndarray:
    """(N,) in 0..1: ln(1 + popularity) against the candidates' largest; 0 = unknown."""
    raised_N = np.log1p(np.maximum(np.nan_to_num(candidates.number("popularity"), posinf=0.0), 0.0))
    return np.asarray(raised_N / max(raised_N.max(initial=0.0), 1e-12))


def recency(candidates: Candidates, shopper: Shopper, config: RankingConfig) -> np.ndarray:
    """Adds the weight to what was updated now, half of it a half-life ago."""
    return config.weights.recency * freshness(candidates, shopper, config.recency_half_life_days)


def freshness(candidates: Candidates, shopper: Shopper, half_life_days: float) -> np.ndarray:
    """(N,) in 0..1: 1 = updated now; 0 = unknown."""
    return np.nan_to_num(np.exp2(-candidates.age_days(shopper.now) / half_life_days))


def hubness(candidates: Candidates, shopper: Shopper, config: RankingConfig) -> np.ndarray:
    """Takes the weight from what comes up whatever is photographed, against what does so least; nothing where that is unknown."""
    if candidates.hubness_N is None or not shopper.photographs:
        return np.zeros(len(candidates.visual_N))
    above_N = np.nan_to_num(candidates.hubness_N - np.nanmin(candidates.hubness_N))
    return np.asarray(-config.weights.hubness * above_N)


RULES: dict[str, Rule] = {
    "hubness": hubness,
    "availability": availability,
    "price": price,
    "gender": gender,
    "popularity": popularity,
    "recency": recency,
}


def boost(candidates: Candidates, rule: Boost) -> np.ndarray:
    """Adds the weight to every product that the boost names."""
    chosen_N = np.ones(len(candidates.visual_N), bool)
    if rule.brand is not None:
        chosen_N &= candidates.is_value("brand", rule.brand)
    if rule.seller is not None:
        chosen_N &= candidates.is_value("seller", rule.seller)
    if rule.category is not None:
        chosen_N &= candidates.below(rule.category)
    return rule.weight * chosen_N
