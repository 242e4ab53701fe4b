"""AUC, true-positive rates and their intervals, against their definitions."""

import math

import numpy as np
import pytest
from scipy import stats

from trustchain_ray.errors import TrustChainError
from trustchain_ray.forgetting.metrics import roc
from trustchain_ray.keys import generator


def samples(seed: int, members: int = 23, others: int = 31, ties: bool = False) -> tuple[np.ndarray, np.ndarray]:
    draws = np.random.default_rng(seed)
    x, y = draws.normal(0.8, 1, members), draws.normal(0, 1, others)
    return (np.round(x), np.round(y)) if ties else (x, y)


@pytest.mark.parametrize("ties", [False, True])
def test_auc_and_its_interval_are_delong_s_sums_over_pairs(ties: bool) -> None:
    x, y = samples(0, ties=ties)
    wins = (x[:, None] > y) + 0.5 * (x[:, None] == y)
    variance = wins.mean(1).var(ddof=1) / x.size + wins.mean(0).var(ddof=1) / y.size
    found = roc.auc(x, y)
    assert found.value == pytest.approx(wins.mean())
    assert found.high - found.value == pytest.approx(1.959964 * math.sqrt(variance), rel=1e-5)
    assert found.value - found.low == pytest.approx(found.high - found.value)


@pytest.mark.slow
def test_auc_agrees_with_scikit_learn_on_either_orientation() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    for seed in range(5):
        x, y = samples(seed, ties=bool(seed % 2))
        labels = [1] * x.size + [0] * y.size
        assert roc.auc(x, y).value == pytest.approx(metrics.roc_auc_score(labels, np.concatenate([x, y])))
        # open-unlearning gives holdout records the label 1 and turns the scores round.
        theirs = metrics.roc_auc_score(1 - np.asarray(labels), -np.concatenate([x, y]))
        assert roc.auc(x, y).value == pytest.approx(theirs)
        false, true, _ = metrics.roc_curve(labels, np.concatenate([x, y]), drop_intermediate=False)
        assert roc.rate_at(x, y, 0.1).rate.value == pytest.approx(true[false <= 0.1].max())


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    truth, hits = stats.norm.cdf(0.8 / math.sqrt(2)), 0
    for seed in range(400):
        found = roc.auc(*samples(seed, 60, 60), confidence=0.9)
        hits += found.low <= truth <= found.high
    assert 0.86 <= hits / 400 <= 0.94


def test_a_perfect_separation_is_no_certainty() -> None:
    found = roc.auc([3.0, 4.0, 5.0], [0.0, 1.0, 2.0, 2.5])
    assert (found.value, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(0.025 ** (1 / 3))  # three pairs, all won
    reverse = roc.auc([0.0, 1.0, 2.0, 2.5], [3.0, 4.0, 5.0])
    assert (reverse.value, reverse.low) == (0.0, 0.0)
    assert reverse.high == pytest.approx(1 - 0.025 ** (1 / 3))


def test_all_values_equal_say_nothing() -> None:
    found = roc.auc([1.0] * 10, [1.0] * 10)
    assert found.value == 0.5
    assert found.low < 0.3 < 0.7 < found.high
    at = roc.rate_at([1.0] * 10, [1.0] * 10, 0.1)
    assert (at.rate.value, at.false_positive_rate) == (0.0, 0.0)


def test_infinities_count_by_rank() -> None:
    assert roc.auc([np.inf, 2.0], [-np.inf, 1.0]).value == 1.0


@pytest.mark.parametrize("asked", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("ties", [False, True])
def test_the_rate_is_the_best_of_all_thresholds(asked: float, ties: bool) -> None:
    x, y = samples(3, 40, 120, ties)
    best = max((np.mean(x >= t), np.mean(y >= t)) for t in [*x, np.inf] if np.mean(y >= t) <= asked)
    found = roc.rate_at(x, y, asked)
    assert found.rate.value == pytest.approx(best[0])
    assert found.false_positive_rate == pytest.approx(best[1])
    assert found.false_positive_rate <= asked
    assert found.resolved


def test_too_few_others_cannot_resolve_a_low_rate() -> None:
    x, y = samples(4, 50, 500)
    assert roc.rate_at(x, y, 0.01).resolved
    assert not roc.rate_at(x, y, 0.001).resolved


@pytest.mark.parametrize(("hits", "trials"), [(0, 5), (2, 7), (5, 5), (30, 100)])
def test_the_binomial_interval_leaves_its_tails_out(hits: int, trials: int) -> None:
    low, high = roc.clopper_pearson(hits, trials)
    assert low <= hits / trials <= high
    if hits:
        assert stats.binom.sf(hits - 1, trials, low) == pytest.approx(0.025)
    else:
        assert low == 0
    if hits < trials:
        assert stats.binom.cdf(hits, trials, high) == pytest.approx(0.025)
    else:
        assert high == 1


def test_the_bootstrap_agrees_with_delong_and_comes_from_its_generator() -> None:
    x, y = samples(5, 80, 80)
    first, again = (roc.bootstrap(x, y, generator("key", "bootstrap"), 500) for _ in range(2))
    assert first == again
    exact = roc.auc(x, y)
    assert first.value == pytest.approx(exact.value)
    assert first.low == pytest.approx(exact.low, abs=0.03)
    assert first.high == pytest.approx(exact.high, abs=0.03)


def test_privacy_leakage_is_muse_s() -> None:
    assert roc.privacy_leakage(0.5, 0.5) == 0.0
    assert roc.privacy_leakage(1.0, 0.5) == -100.0  # still known
    assert roc.privacy_leakage(0.4, 0.5) == pytest.approx(20.0)  # pushed too far
    theirs = ((1 - 0.7) - (1 - 0.55)) / (1 - 0.55 + 1e-10) * 100
    assert roc.privacy_leakage(0.7, 0.55) == pytest.approx(theirs)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: roc.auc([], [1.0]), r"members \(forget records\): there are no records"),
        (lambda: roc.auc([1.0], []), r"others \(holdout records\): there are no records"),
        (lambda: roc.auc([math.nan], [1.0]), "not finite"),
        (lambda: roc.auc([1.0], [1.0], confidence=95), "between 0 and 1"),
        (lambda: roc.rate_at([1.0], [1.0], 0.0), "between 0 and 1"),
        (lambda: roc.clopper_pearson(3, 2), "3 hits of 2 trials"),
        (lambda: roc.privacy_leakage(0.5, 1.0), "differ in kind"),
    ],
)
def test_bad_input_is_refused(call, message) -> None:
    with pytest.raises(TrustChainError, match=message):
        call()
