"""Thresholds of a match: their error is what was asked for, on crops that did not choose them, and right answers are kept."""

import numpy as np

from jobs.evaluation.no_match import NearestCrops, calibrate_no_match

NAMES = ("bags", "hats", "shoes")


def crops(num: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Best cosine in each partition: high in their own, elsewhere lower, in each partition around another value."""
    rng = np.random.default_rng(seed)
    own_Q = rng.integers(0, len(NAMES), num)
    best_SQ = np.array([0.3, 0.5, 0.6])[:, None] + 0.08 * rng.standard_normal((len(NAMES), num))
    best_SQ[own_Q, np.arange(num)] = 0.9
    return best_SQ, own_Q


def test_the_stated_error_is_what_other_crops_show() -> None:
    best_SQ, own_Q = crops(4000, 1)
    found = calibrate_no_match(NearestCrops(NAMES, best_SQ, own_Q), [("bags", 0.9)] * 50, 0.05, 0.02, seed=3)
    assert found is not None and found.lost_frac == 0.0
    assert 0.02 <= found.false_match_frac <= 0.08
    fresh_SQ, fresh_own_Q = crops(4000, 2)
    fresh_SQ[fresh_own_Q, np.arange(4000)] = -1.0  # things that the shop does not have
    passes = (fresh_SQ >= np.array([found.thresholds[name] for name in NAMES])[:, None]).any(axis=0).mean()
    assert abs(passes - found.false_match_frac) < 0.03
    assert found.thresholds["bags"] < found.thresholds["hats"] < found.thresholds["shoes"], "each partition has its own"


def test_right_answers_come_first() -> None:
    best_SQ, own_Q = crops(1000, 1)
    right = [("shoes", score) for score in np.linspace(0.5, 0.9, 100)]
    found = calibrate_no_match(NearestCrops(NAMES, best_SQ, own_Q), right, 0.05, 0.02, seed=3)
    assert found is not None and found.lost_frac <= 0.02
    lost = sum(score < found.thresholds[name] for name, score in right)
    assert lost <= 2 and found.false_match_frac > 0.05, "and what that costs is said"


def test_too_little_to_say() -> None:
    best_SQ, own_Q = crops(1000, 1)
    right, bounds = [("bags", 0.9)], (0.05, 0.02, 3)
    assert calibrate_no_match(NearestCrops(NAMES, best_SQ, own_Q), [], *bounds) is None, "no answer is known"
    assert calibrate_no_match(NearestCrops(NAMES[:1], best_SQ[:1], own_Q * 0), right, *bounds) is None, "nothing is foreign"
    assert calibrate_no_match(NearestCrops(NAMES, best_SQ[:, :30], own_Q[:30]), right, *bounds) is None, "too few crops"
