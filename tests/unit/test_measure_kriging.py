"""Predicted qualities: on known surfaces, what the standard errors promise and how they fail loudly."""

import itertools

import numpy as np
import pytest

from trustchain_ray.errors import TrustChainError
from trustchain_ray.measure.kriging import fit

GRID = np.array([p for p in itertools.product((0.0, 0.5, 1.0), repeat=4) if any(p)])
RANKS = (4, 8, 16)


def truth(efforts: np.ndarray, rank: int, shape: np.ndarray) -> np.ndarray:
    """A saturating surface with unequal organizations."""
    return 0.05 + 0.8 * (1.0 - np.exp(-(efforts @ shape) * rank / (rank + 4)))


def measured(seed: int, noise: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(efforts, ranks, noisy quality) of 24 random points a rank, the shape, and which grid rows they are."""
    draws = np.random.default_rng(seed)
    shape = draws.uniform(0.1, 0.8, 4)
    rows = draws.permutation(len(GRID))[:24]
    efforts = np.concatenate([GRID[rows]] * len(RANKS))
    ranks = np.repeat(RANKS, 24)
    quality = np.concatenate([truth(GRID[rows], rank, shape) for rank in RANKS])
    return efforts, ranks, quality + noise * draws.standard_normal(len(quality)), shape, rows


@pytest.mark.slow
def test_two_standard_errors_hold_nine_in_ten_held_out_points():
    inside, errors = [], []
    for seed in range(5):
        efforts, ranks, quality, shape, rows = measured(seed, 0.02)
        model = fit(efforts, ranks, quality, np.full(len(quality), 0.02), 0.05, "key")
        held_out = np.delete(GRID, rows, axis=0)
        for rank in RANKS:
            predicted, error = model.predict(held_out, rank)
            distance = np.abs(predicted - truth(held_out, rank, shape))
            inside += list(distance <= 2 * error)
            errors += list(distance)
    assert np.mean(inside) >= 0.9
    assert np.mean(errors) < 0.02  # sharper than one measurement


@pytest.mark.slow
def test_an_exact_measurement_is_reproduced_and_the_same_key_gives_the_same_bits():
    efforts, ranks, quality, _, _ = measured(7, 0.0)
    first, second = (fit(efforts, ranks, quality, np.full(len(quality), 1e-4), 0.05, "key") for _ in range(2))
    predicted, error = first.predict(efforts[:24], 4)
    assert predicted == pytest.approx(quality[:24], abs=0.01)
    assert np.array_equal(predicted, second.predict(efforts[:24], 4)[0])
    assert (error > 0).all()


def test_far_from_all_measurements_the_error_grows():
    efforts, ranks, quality, _, _ = measured(3, 0.01)
    few = efforts[:, 3] == 0.0  # organization 3 was never measured
    model = fit(efforts[few], ranks[few], quality[few], np.full(few.sum(), 0.01), 0.05, "key")
    _, known = model.predict(np.array([[1.0, 1.0, 1.0, 0.0]]), 8)
    _, unknown = model.predict(np.array([[1.0, 1.0, 1.0, 1.0]]), 8)
    assert unknown > 2 * known


def test_the_untrained_model_has_its_own_quality_without_error():
    efforts, ranks, quality, _, _ = measured(4, 0.01)
    model = fit(efforts, ranks, quality, np.full(len(quality), 0.01), 0.05, "key")
    predicted, _ = model.predict(np.zeros((1, 4)), 8)
    assert predicted == pytest.approx([0.05])


def test_too_few_points_predict_nothing():
    with pytest.raises(TrustChainError, match="--coalitions"):
        fit(GRID[:3], np.full(3, 4), np.full(3, 0.5), np.full(3, 0.01), 0.05, "key")
