"""Calibration error: by hand, and near zero where outcomes are drawn with the probabilities that were said."""

import numpy as np
import pytest

from jobs.evaluation.calibration import expected_calibration_error, reliability


def test_by_hand() -> None:
    bins = reliability(np.array([0.9, 0.9, 0.9, 0.9, 0.2, 0.2]), np.array([True, True, True, False, True, False]))
    assert [(one.num, one.accuracy) for one in bins] == [(2, 0.5), (4, 0.75)]
    assert expected_calibration_error(bins) == pytest.approx((2 * 0.3 + 4 * 0.15) / 6)


def test_honest_probabilities_have_none_and_certainty_is_the_last_bin() -> None:
    random = np.random.default_rng(1)
    probs = random.uniform(0, 1, 20_000)
    assert expected_calibration_error(reliability(probs, random.uniform(0, 1, 20_000) < probs)) < 0.02
    assert expected_calibration_error(reliability(probs, random.uniform(0, 1, 20_000) < probs**3)) > 0.2
    (sure,) = reliability(np.ones(3), np.ones(3, bool))
    assert (sure.num, sure.confidence, sure.accuracy) == (3, 1.0, 1.0)
