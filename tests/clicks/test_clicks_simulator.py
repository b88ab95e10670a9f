"""Shoppers with known wishes: the learned ranking finds them out from clicks, if position bias is taken into account."""

import numpy as np
import pytest

from jobs.clicks.lambdamart import lambda_gradients, train_ranker
from jobs.clicks.propensity import propensities
from jobs.clicks.replay import replay
from jobs.clicks.sessions import Sessions
from jobs.config import TrainRankerConfig
from jobs.evaluation.click_simulator import World, make_world, recovered, simulate
from serve.ranking.ranker import Ranker

LENGTH, EXPONENT = 20, 1.0
CONFIG = TrainRankerConfig(threads=1)


@pytest.fixture(scope="module")
def clicks() -> Sessions:
    """20,000 answers in visual order, a tenth of them drawn by lot."""
    world = make_world(1000, LENGTH, seed=1).repeated(20)
    return simulate(world, world.visual_SL, EXPONENT, shuffled_frac=0.1, seed=3)


@pytest.fixture(scope="module")
def unseen() -> World:
    """Queries that nobody clicked on."""
    return make_world(400, LENGTH, seed=2)


def scores(ranker: Ranker, features_SLF: np.ndarray) -> np.ndarray:
    """(S, L)."""
    return ranker.scores(features_SLF.reshape(-1, features_SLF.shape[2])).reshape(features_SLF.shape[:2])


def test_position_bias_is_measured(clicks: Sessions) -> None:
    curve = propensities(clicks, exponent=0.0, floor=0.03)
    truth = np.maximum(1 / np.arange(1, LENGTH + 1) ** EXPONENT, 0.03)
    assert np.abs(curve - truth).max() < 0.08


@pytest.mark.slow
def test_the_truth_is_recovered_only_with_inverse_propensity(clicks: Sessions, unseen: World) -> None:
    curve = propensities(clicks, CONFIG.propensity_exponent, CONFIG.min_propensity)
    learned = recovered(unseen, scores(train_ranker(clicks, curve, CONFIG), unseen.features_SLF))
    biased = recovered(unseen, scores(train_ranker(clicks, np.ones(LENGTH), CONFIG), unseen.features_SLF))
    hand_set = recovered(unseen, unseen.hand_set_SL)
    assert learned >= 0.9 and learned > hand_set > biased and biased < 0.9


def test_replay_tells_a_better_order_from_a_worse_one(clicks: Sessions) -> None:
    world = make_world(1000, LENGTH, seed=1).repeated(20)
    logged = simulate(world, world.visual_SL, EXPONENT, shuffled_frac=0.0, seed=4)
    curve = np.maximum(1 / np.arange(1, LENGTH + 1) ** EXPONENT, 0.03)
    order = np.argsort(-world.visual_SL, axis=1, kind="stable")
    wanted = np.take_along_axis(world.wanted_SL, order, 1)
    assert replay(logged, wanted, curve, seed=0).is_better
    assert not replay(logged, -wanted, curve, seed=0).is_better
    assert not replay(logged, np.random.default_rng(0).random(wanted.shape), curve, seed=0).is_better


def test_the_gradient_is_that_of_the_pairwise_loss() -> None:
    """Numerically, with the ranks (and so the DCG weights) held still."""
    rng = np.random.default_rng(0)
    scores_SL, weights_SL = rng.normal(size=(3, 5)), rng.integers(0, 2, (3, 5)) * rng.random((3, 5))
    shown_SL = rng.random((3, 5)) < 0.8
    scores_SL[~shown_SL] = -np.inf
    weights_SL[~shown_SL] = 0
    gradient, second = lambda_gradients(scores_SL, weights_SL, shown_SL)
    ranks = np.argsort(np.argsort(-scores_SL, axis=1), axis=1)
    discounts = 1 / np.log2(2.0 + ranks)

    def loss(values: np.ndarray) -> float:
        total = 0.0
        for s in range(3):
            for i in np.flatnonzero(shown_SL[s]):
                for j in np.flatnonzero(shown_SL[s]):
                    weight = weights_SL[s, i] * abs(discounts[s, i] - discounts[s, j])
                    total += weight * np.log1p(np.exp(-2.0 * (values[s, i] - values[s, j])))
        return total

    for s, i in zip(*np.nonzero(shown_SL), strict=True):
        up, down = scores_SL.copy(), scores_SL.copy()
        up[s, i] += 1e-5
        down[s, i] -= 1e-5
        assert gradient[s, i] == pytest.approx((loss(up) - loss(down)) / 2e-5, abs=1e-6)
    assert (second > 0).all() and (gradient[~shown_SL] == 0).all()
