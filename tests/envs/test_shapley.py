import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs import GameError
from envs.shapley import exact_shapley, gtg_shapley, leave_one_out, shapley


def saturating(weights, steepness=1.0):
    return lambda coalition: 1 - math.exp(-steepness * sum(weights[i] for i in coalition))


def table_game(values):
    """Return the game whose coalition values are a list, indexed by bit mask."""
    return lambda coalition: values[sum(1 << i for i in coalition)]


tables = st.integers(1, 5).flatmap(lambda n: st.lists(st.floats(-1, 1), min_size=2**n, max_size=2**n))


@settings(max_examples=60, deadline=None)
@given(tables)
def test_exact_shapley_is_the_mean_over_orders(values):
    count, value = len(values).bit_length() - 1, table_game(values)
    expected = np.zeros(count)
    for order in itertools.permutations(range(count)):
        for position, i in enumerate(order):
            expected[i] += value(frozenset(order[: position + 1])) - value(frozenset(order[:position]))
    found = exact_shapley(value, count)
    np.testing.assert_allclose(found.values, expected / math.factorial(count), atol=1e-12)
    # Efficiency.
    assert found.values.sum() == pytest.approx(values[-1] - values[0], abs=1e-9)
    assert found.evaluations == 2**count


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 2), min_size=2, max_size=6))
def test_symmetry_and_null_player(weights):
    weights = [*weights, weights[0], 0.0]
    values = exact_shapley(saturating(weights), len(weights)).values
    assert values[0] == pytest.approx(values[-2], abs=1e-12)
    assert values[-1] == pytest.approx(0.0, abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=8, max_size=8), st.lists(st.floats(-1, 1), min_size=8, max_size=8))
def test_additivity(first, second):
    both = exact_shapley(table_game([a + b for a, b in zip(first, second, strict=True)]), 3).values
    apart = exact_shapley(table_game(first), 3).values + exact_shapley(table_game(second), 3).values
    np.testing.assert_allclose(both, apart, atol=1e-12)


def test_leave_one_out_in_n_plus_one_evaluations():
    weights = [0.5, 1.0, 0.2]
    found = leave_one_out(saturating(weights), 3)
    whole = 1 - math.exp(-1.7)
    np.testing.assert_allclose(found.values, [whole - (1 - math.exp(-(1.7 - w))) for w in weights])
    assert found.evaluations == 4


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_gtg_is_close_to_exact_on_ten_organizations(seed):
    weights = np.random.default_rng(seed).uniform(0.0, 0.5, 10)
    value = saturating(weights)
    exact, sampled = exact_shapley(value, 10), gtg_shapley(value, 10, seed)
    assert sampled.converged
    assert sampled.permutations % 10 == 0
    assert np.abs(sampled.values - exact.values).max() < 0.15 * exact.values.max()
    longer = gtg_shapley(value, 10, seed, convergence=0.005)
    assert longer.converged
    assert np.abs(longer.values - exact.values).max() < 0.05 * exact.values.max()
    assert sampled.values.sum() == pytest.approx(value(range(10)), abs=0.001)
    assert sampled.evaluations < exact.evaluations


def test_gtg_is_unbiased_without_truncation():
    """Guided orders over whole cycles of leaders: the mean over seeds is the exact value."""
    weights = [0.1, 0.5, 1.0, 2.0]
    exact = exact_shapley(saturating(weights), 4).values
    runs = np.array(
        [
            gtg_shapley(saturating(weights), 4, seed, 0.0, 0.0, convergence=0.0, window=4, max_permutations=8).values
            for seed in range(400)
        ]
    )
    error = runs.std(axis=0) / math.sqrt(len(runs))
    assert (np.abs(runs.mean(axis=0) - exact) < 4 * error).all()
    assert (error < 0.01).all()


def test_gtg_truncates_and_repeats():
    flat = gtg_shapley(lambda coalition: 0.5 + 0.001 * len(coalition), 4, 0)
    assert (flat.values.tolist(), flat.evaluations) == ([0.0] * 4, 2)
    # Any two members reach the whole: orders stop there, so triples are never evaluated.
    pairs = gtg_shapley(lambda coalition: min(len(coalition), 2) / 2, 6, 0)
    assert pairs.evaluations <= 1 + 6 + 15 + 1
    np.testing.assert_allclose(pairs.values.sum(), 1.0)
    again = [gtg_shapley(saturating([0.3] * 9), 9, seed) for seed in (1, 1, 2)]
    assert again[0].values.tolist() == again[1].values.tolist() != again[2].values.tolist()
    stopped = gtg_shapley(saturating([0.3] * 9), 9, 0, convergence=0.0, max_permutations=30)
    assert (stopped.permutations, stopped.converged) == (30, False)


def test_the_default_is_exact_up_to_eight():
    assert shapley(saturating([0.3] * 8), 8, 0).permutations == 0
    assert shapley(saturating([0.3] * 9), 9, 0).permutations > 0


def test_bad_value_functions_are_refused():
    with pytest.raises(GameError, match=r"coalition \[0, 1\] is nan"):
        exact_shapley(lambda coalition: math.nan if len(coalition) == 2 else 0.0, 2)
    with pytest.raises(GameError, match=r"is nan"):
        gtg_shapley(lambda coalition: math.nan, 2, 0)
    with pytest.raises(GameError, match="use gtg_shapley"):
        exact_shapley(lambda coalition: 0.0, 21)
    with pytest.raises(GameError, match="give at least one"):
        leave_one_out(lambda coalition: 0.0, 0)
