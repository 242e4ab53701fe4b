"""The lower bound on epsilon from one run: its formula, its confidence, and what it says of known mechanisms."""

import math

import numpy as np
import pytest
from scipy.stats import binom

from trustchain_ray.errors import TrustChainError
from trustchain_ray.privacy.audit import epsilon_bound, one_run, p_value


def test_the_bound_is_that_of_the_paper() -> None:
    assert epsilon_bound(1000, 100, 75, 1e-4) == pytest.approx(0.673, abs=5e-4)  # 2305.08846, appendix D


def test_without_delta_it_is_a_binomial_tail() -> None:
    for epsilon in (0.0, 0.5, 3.0):
        tail = binom.sf(69, 100, 1 / (1 + math.exp(-epsilon)))
        assert p_value(400, 100, 70, epsilon, 0.0) == pytest.approx(tail)
    rate = 0.05 ** (1 / 50)  # all of 50 right: rate^50 = 1 - confidence
    assert epsilon_bound(50, 50, 50, 0.0) == pytest.approx(math.log(rate / (1 - rate)), abs=1e-6)


def test_delta_adds_what_the_theorem_says() -> None:
    # one guess, right: P[B >= 1] = q, and alpha = P[1 > B >= 0] = 1 - q
    rate = 1 / (1 + math.exp(-1.0))
    assert p_value(10, 1, 1, 1.0, 1e-3) == pytest.approx(rate + 2 * 10 * 1e-3 * (1 - rate))
    assert p_value(10, 5, 0, 1.0, 1e-3) == 1.0


def test_guessing_shows_nothing_and_more_right_guesses_show_more() -> None:
    assert epsilon_bound(200, 100, 50, 0.0) == 0.0
    bounds = [epsilon_bound(200, 100, right, 1e-5) for right in range(50, 101, 5)]
    assert bounds == sorted(bounds)
    assert bounds[-1] > 3
    assert epsilon_bound(200, 100, 90, 0.0) > epsilon_bound(200, 100, 90, 1e-3) > epsilon_bound(2000, 100, 90, 1e-3)
    assert epsilon_bound(200, 100, 90, 1e-5, 0.9) > epsilon_bound(200, 100, 90, 1e-5, 0.99)


@pytest.mark.parametrize("epsilon", [0.5, 2.0])
def test_randomized_response_is_seldom_above_its_epsilon_and_not_far_below(epsilon: float) -> None:
    draws, bounds = np.random.default_rng(1), []
    for _ in range(60):
        included = draws.random(600) < 0.5
        told = draws.random(600) < 1 / (1 + math.exp(-epsilon))
        bounds.append(one_run(np.where(told, included, ~included).astype(float), included, 0.0).epsilon)
    assert sum(bound > epsilon for bound in bounds) <= 6  # 3 are expected at most
    assert np.mean(bounds) > 0.6 * epsilon


def test_scores_in_any_unit_give_the_same_bound_and_their_sign_matters() -> None:
    draws = np.random.default_rng(2)
    included = draws.random(300) < 0.5
    scores = draws.normal(size=300) + 1.5 * included
    found = one_run(scores, included, 1e-5)
    assert 0 < found.epsilon < 4
    assert one_run(np.exp(3 * scores), included, 1e-5) == found
    assert one_run(-scores, included, 1e-5).epsilon == 0.0
    assert one_run(np.zeros(300), included, 1e-5).epsilon == 0.0


@pytest.mark.parametrize(
    ("scores", "included", "message"),
    [
        ([1.0] * 7, [True] * 7, "7 canaries can show nothing"),
        ([1.0] * 9, [True] * 8, "9 scores of canaries, and 8 of them"),
        ([float("nan")] * 9, [True] * 9, "not finite"),
    ],
)
def test_what_cannot_be_audited_is_refused(scores: list[float], included: list[bool], message: str) -> None:
    with pytest.raises(TrustChainError, match=message):
        one_run(scores, np.asarray(included), 1e-5)


def test_impossible_numbers_are_refused() -> None:
    with pytest.raises(TrustChainError, match="6 right of 5 guesses"):
        p_value(10, 5, 6, 1.0, 0.0)
    with pytest.raises(TrustChainError, match="confidence 1 must be between"):
        epsilon_bound(10, 5, 5, 0.0, 1.0)
