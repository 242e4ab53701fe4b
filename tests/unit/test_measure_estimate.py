"""Quality and standard errors from metric sums: against closed forms and simulation."""

import math
from typing import Any

import numpy as np
import pytest

from trustchain_ray.errors import TrustChainError, UsageError
from trustchain_ray.measure.estimate import Estimate, estimate, quality_of, training_errors
from trustchain_ray.metrics import Metrics


def blocks_of(right: np.ndarray, count: int = 20) -> list[dict[str, Any]]:
    """Metric sums of blocks of records, from whether each record was right."""
    parts = [right[i::count] for i in range(count)]
    return [vars(Metrics(len(p), float(len(p)), int(p.sum()), 2 * len(p), 2 * int(p.sum()))) for p in parts]


def test_the_error_over_records_is_the_binomial_one_for_accuracy():
    draws = np.random.default_rng(0)
    found = [estimate("accuracy", [blocks_of(draws.random(400) < 0.7)]) for _ in range(200)]
    expected = math.sqrt(0.7 * 0.3 / 400)
    assert np.mean([one.records_error for one in found]) == pytest.approx(expected, rel=0.05)
    assert np.std([one.quality for one in found]) == pytest.approx(expected, rel=0.15)


def test_repeats_that_agree_on_records_do_not_halve_the_error_over_records():
    right = np.random.default_rng(1).random(400) < 0.5
    once, thrice = (estimate("accuracy", [blocks_of(right)] * repeats) for repeats in (1, 3))
    assert thrice.records_error == pytest.approx(once.records_error)
    assert thrice.variance == 0.0


def test_the_variance_of_repeats_is_their_sample_variance():
    draws = np.random.default_rng(2)
    repeats = [blocks_of(draws.random(100) < share) for share in (0.3, 0.5, 0.9)]
    found = estimate("accuracy", repeats)
    values = [sum(block["correct"] for block in blocks) / 100 for blocks in repeats]
    assert found.quality == pytest.approx(np.mean(values))
    assert found.variance == pytest.approx(np.var(values, ddof=1))
    assert found.repeats == 3


def test_two_repeats_that_tie_do_not_claim_an_error_of_zero():
    tie, apart = Estimate(0.5, 0.0, 0.01, 1.0, 2), Estimate(0.5, 0.02, 0.01, 1.0, 2)
    errors = training_errors([tie, apart])
    assert errors[0] == pytest.approx(math.sqrt(4 * 0.01 / 5 / 2))
    assert errors[1] == pytest.approx(math.sqrt((4 * 0.01 + 0.02) / 5 / 2))


def test_one_repeat_knows_no_error_of_training():
    assert training_errors([Estimate(0.5, 0.0, 0.01, 1.0, 1)] * 3) == [0.0, 0.0, 0.0]


def test_each_metric_is_a_quality_in_the_unit_interval():
    sums = Metrics(records=10, loss=20.0, correct=4, tokens=30, correct_tokens=24)
    assert quality_of("accuracy", sums) == 0.4
    assert quality_of("token_accuracy", sums) == 0.8
    assert quality_of("likelihood", sums) == pytest.approx(math.exp(-2))
    with pytest.raises(UsageError, match="--metric token_accuracy"):
        quality_of("token_accuracy", Metrics(records=10, loss=20.0, correct=4))


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_model_that_diverged_has_no_quality(loss: float):
    with pytest.raises(TrustChainError, match="not finite"):
        quality_of("accuracy", Metrics(records=10, loss=loss, correct=4))
