"""The fixed-point merge: exact, and the same bits in any order, chunking or number of threads."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from trustchain_ray import merge
from trustchain_ray.errors import TrustChainError
from trustchain_ray.merge import _CHUNK, FRACTION_BITS, LIMIT, apply_step, weighted_sum

values = st.floats(-LIMIT, LIMIT, width=32)


def reference(terms: list[np.ndarray], weights: list[int]) -> tuple[list[int], int]:
    """The sum in Python's integers; rounding half to even, as IEEE does."""
    divisor = math.gcd(*weights)
    scaled = [[round(float(x) * 2**FRACTION_BITS) for x in term] for term in terms]
    sums = [sum(w // divisor * row[i] for w, row in zip(weights, scaled, strict=True)) for i in range(len(scaled[0]))]
    return sums, sum(weights) // divisor


def random_terms(count: int, size: int, seed: int = 0) -> list[np.ndarray]:
    draws = np.random.default_rng(seed)
    scale = draws.choice([1e-8, 1e-3, 1.0, 20.0], (count, size))
    return list(np.clip(draws.standard_normal((count, size)) * scale, -LIMIT, LIMIT).astype(np.float32))


@settings(deadline=None)
@given(st.data(), st.integers(1, 5), st.integers(1, 20))
def test_it_is_the_sum_of_integers_in_any_order(data: st.DataObject, count: int, size: int):
    terms = [data.draw(arrays(np.float32, size, elements=values)) for _ in range(count)]
    weights = data.draw(st.lists(st.integers(1, 10**5), min_size=count, max_size=count))
    sums, total = weighted_sum(terms, weights)
    assert ([int(x) for x in sums], total) == reference(terms, weights)
    order = data.draw(st.permutations(range(count)))
    shuffled, _ = weighted_sum([terms[i] for i in order], [weights[i] for i in order])
    assert shuffled.tobytes() == sums.tobytes()


@pytest.mark.parametrize("size", [0, 1, _CHUNK - 1, _CHUNK, _CHUNK + 1, 2 * _CHUNK, 3 * _CHUNK + 7])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_and_chunks_change_no_bit(size: int, threads: int):
    terms, weights = random_terms(4, size), [3, 1, 700, 12]
    scaled = [np.rint(t.astype(np.float64) * 2**FRACTION_BITS).astype(np.int64) for t in terms]
    expected = sum(w * s for w, s in zip(weights, scaled, strict=True))
    sums, total = weighted_sum(terms, weights, threads)
    assert (sums.dtype, total) == (np.float64, 716)
    np.testing.assert_array_equal(sums.astype(np.int64), expected)
    base = random_terms(1, size, seed=1)[0]
    moved = apply_step(base, terms, weights, 0.7, threads)
    assert moved.dtype == np.float32
    assert moved.tobytes() == apply_step(base, terms[::-1], weights[::-1], 0.7).tobytes()


@settings(deadline=None)
@given(st.lists(st.integers(1, 50), min_size=2, max_size=6), st.data())
def test_leaving_one_out_equals_never_adding_it(weights: list[int], data: st.DataObject):
    terms = random_terms(len(weights) + 2, 30)
    weights = [1, *weights, 1]  # no common divisor, with or without the one that goes
    gone = data.draw(st.integers(1, len(weights) - 2))
    everything, total = weighted_sum(terms, weights)
    alone, _ = weighted_sum([terms[gone]], [1])
    kept = [i for i in range(len(weights)) if i != gone]
    never, rest = weighted_sum([terms[i] for i in kept], [weights[i] for i in kept])
    assert (everything - weights[gone] * alone).tobytes() == (never + 0.0).tobytes()
    assert rest == total - weights[gone]


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 3, 4, 5, 9])
def test_the_compiled_kernel_gives_the_same_bits(count: int, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("numba")
    terms, weights = random_terms(count, 5000), [3, 1, 700, 12, 1, 1, 9, 44, 5][:count]
    plain = weighted_sum(terms, weights)[0].tobytes(), apply_step(terms[0], terms, weights, 0.7).tobytes()
    monkeypatch.setattr(merge, "_COMPILE_FROM", 0)
    assert plain == (
        weighted_sum(terms, weights, 2)[0].tobytes(),
        apply_step(terms[0], terms, weights, 0.7, 2).tobytes(),
    )


def test_a_common_divisor_of_the_weights_is_taken_out():
    terms = random_terms(3, 40)
    first, total = weighted_sum(terms, [2, 4, 6])
    again, same = weighted_sum(terms, [10**9, 2 * 10**9, 3 * 10**9])
    assert total == same == 6
    assert first.tobytes() == again.tobytes()


def test_the_largest_exact_weight_and_the_first_that_is_not():
    most = 2**53 // (int(LIMIT) * 2**FRACTION_BITS) - 1
    extreme = np.float32([LIMIT, -LIMIT, LIMIT - 2**-18, 2.0**-FRACTION_BITS])
    sums, _ = weighted_sum([extreme, extreme], [most - 1, 1])
    assert [int(x) for x in sums] == reference([extreme, extreme], [most - 1, 1])[0]
    with pytest.raises(TrustChainError, match=rf"add up to {most + 1}: .*federation\.weights=equal"):
        weighted_sum([extreme, extreme], [most, 1])


@pytest.mark.parametrize(("terms", "weights"), [(0, []), (1, [0]), (2, [3, -1])])
def test_weights_must_be_positive(terms: int, weights: list[int]):
    with pytest.raises(TrustChainError, match="positive weights"):
        weighted_sum(random_terms(terms, 3), weights)


def test_a_step_goes_from_the_base_to_the_mean():
    base, terms = random_terms(1, 200, seed=2)[0], random_terms(3, 200)
    mean = (terms[0].astype(float) + 2 * terms[1].astype(float) + 5 * terms[2].astype(float)) / 8
    np.testing.assert_allclose(apply_step(base, terms, [1, 2, 5], 1.0), base + mean, atol=2e-7, rtol=1e-6)
    np.testing.assert_allclose(apply_step(base, terms, [1, 2, 5], 0.5), base + mean / 2, atol=2e-7, rtol=1e-6)
    np.testing.assert_array_equal(apply_step(base, terms, [1, 2, 5], 0.0), base)
