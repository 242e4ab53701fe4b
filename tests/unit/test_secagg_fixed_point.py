"""The numbers under the masks are those of the plain merge, and cannot overflow."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from trustchain_ray.errors import TrustChainError
from trustchain_ray.merge import FRACTION_BITS, LIMIT, weighted_sum
from trustchain_ray.secure_aggregation.fixed_point import check_update, decode, encode, reduced_weights

NAMES = "abcdef"
values = st.floats(-LIMIT, LIMIT, width=32)


def summed(updates: dict[str, np.ndarray], weights: dict[str, int], everybody: dict[str, int]):
    """The sum of the given updates, encoded with the weights that are reduced over everybody."""
    reduced = reduced_weights(everybody)
    total = np.zeros(len(next(iter(updates.values()))), np.uint64)
    for name, update in updates.items():
        total += encode(update, reduced[name])
    return decode(total, {name: reduced[name] for name in weights})


@pytest.mark.slow
@settings(deadline=None)
@given(st.data(), st.integers(1, 6), st.integers(1, 12))
def test_the_sum_is_that_of_the_plain_merge_also_after_dropouts(data: st.DataObject, count: int, size: int):
    divisor = data.draw(st.sampled_from([1, 6, 1000]))
    everybody = {name: divisor * data.draw(st.integers(1, 1000)) for name in NAMES[:count]}
    left = data.draw(st.lists(st.sampled_from(NAMES[:count]), min_size=1, unique=True))
    updates = {name: data.draw(arrays(np.float32, size, elements=values)) for name in left}
    weights = {name: everybody[name] for name in left}
    sums, total = summed(updates, weights, everybody)
    plain, plain_total = weighted_sum(list(updates.values()), list(weights.values()))
    assert (sums.tobytes(), total) == (plain.tobytes(), plain_total)


def test_the_largest_weight_is_exact_and_one_more_is_refused():
    most = 2**53 // (int(LIMIT) * 2**FRACTION_BITS) - 1
    extreme = np.float32([LIMIT, -LIMIT, LIMIT - 2**-18, 2.0**-FRACTION_BITS, -0.0])
    weights = {"a": most - 1, "b": 1}
    sums, total = summed({"a": extreme, "b": extreme}, weights, weights)
    plain, _ = weighted_sum([extreme, extreme], [most - 1, 1])
    assert (sums.tobytes(), total) == (plain.tobytes(), most)
    with pytest.raises(TrustChainError, match=rf"add up to {most + 1}: .*federation\.weights=equal"):
        reduced_weights({"a": most, "b": 1})
    assert reduced_weights({"a": 10**12, "b": 2 * 10**12}) == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    "update",
    [
        np.zeros(3, np.float64),
        np.zeros(4, np.float32),
        np.zeros((3, 1), np.float32),
        np.float32([0, np.nan, 0]),
        np.float32([0, np.inf, 0]),
        np.float32([0, 0, -np.inf]),
        np.float32([0, 0, np.nextafter(np.float32(LIMIT), np.float32(100))]),
        np.float32([-LIMIT - 1, 0, 0]),
    ],
    ids=["float64", "longer", "two-dimensional", "nan", "infinite", "minus-infinite", "above-64", "below-minus-64"],
)
def test_an_update_that_cannot_be_summed_is_refused(update: np.ndarray):
    with pytest.raises(TrustChainError, match=r"secure aggregation: the update"):
        check_update(update, 3)


def test_a_sum_that_is_not_one_of_updates_is_refused():
    update, weights = np.float32([LIMIT, -LIMIT]), {"a": 4, "b": 6}
    reduced = reduced_weights(weights)
    total = encode(update, reduced["a"]) + encode(update, reduced["b"])
    assert decode(total, reduced)[1] == 5
    for place, beyond in ((0, 1), (1, 2**64 - 1), (0, 2**63)):
        changed = total.copy()
        changed[place] = (int(changed[place]) + beyond) % 2**64
        with pytest.raises(TrustChainError, match=r"not one of valid updates"):
            decode(changed, reduced)
    with pytest.raises(TrustChainError, match=r"not one of valid updates"):
        decode(np.uint64([3]), {"a": 4, "b": 6})  # no multiple of 2
