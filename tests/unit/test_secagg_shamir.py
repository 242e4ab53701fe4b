"""Secret sharing: enough shares give the secret, fewer give nothing."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from trustchain_ray.errors import TrustChainError
from trustchain_ray.secure_aggregation.shamir import PRIME, SHARE_BYTES, combine, split, weights_at_zero


@settings(max_examples=40, deadline=None)
@given(st.binary(min_size=32, max_size=32), st.data())
def test_any_threshold_of_shares_gives_the_secret_back(secret: bytes, data: st.DataObject):
    points = data.draw(st.lists(st.integers(1, 200), min_size=1, max_size=9, unique=True))
    threshold = data.draw(st.integers(1, len(points)))
    entropy = np.random.default_rng(data.draw(st.integers(0, 1000))).bytes
    shares = split(secret, points, threshold, entropy)
    chosen = data.draw(st.permutations(points))[:threshold]
    assert combine({point: shares[point] for point in chosen}) == secret
    assert {len(share) for share in shares.values()} == {SHARE_BYTES}


def test_the_largest_secret_fits_the_field():
    assert 2**256 < PRIME < 2**264
    shares = split(b"\xff" * 32, [1, 2, 3], 3, np.random.default_rng(0).bytes)
    assert combine(shares) == b"\xff" * 32


def test_one_share_too_few_is_consistent_with_every_secret():
    shares = split(bytes(range(32)), [1, 2, 3, 4], 4, np.random.default_rng(0).bytes)
    known = {point: shares[point] for point in (1, 2, 3)}
    for guess in (bytes(32), b"\x01" * 32, b"\xff" * 32):
        # The one value at point 4 with which the known shares would give the guess: there always is one.
        weights = dict(zip((1, 2, 3, 4), weights_at_zero([1, 2, 3, 4]), strict=True))
        rest = int.from_bytes(guess, "big") - sum(weights[p] * int.from_bytes(s, "big") for p, s in known.items())
        fourth = rest * pow(weights[4], -1, PRIME) % PRIME
        assert combine({**known, 4: fourth.to_bytes(SHARE_BYTES, "big")}) == guess


@pytest.mark.parametrize("secret", [bytes(32), b"\xff" * 32], ids=["zeros", "ones"])
def test_shares_below_the_threshold_are_uniform_and_independent(secret: bytes):
    entropy = np.random.default_rng(7).bytes
    dealt = [split(secret, [1, 2, 3], 3, entropy) for _ in range(4096)]
    low = np.array([[deal[1][-1] & 15, deal[2][-1] & 15] for deal in dealt])
    joint = np.bincount(low[:, 0] * 16 + low[:, 1], minlength=256)
    assert chisquare(joint).pvalue > 1e-4
    assert {combine(deal) for deal in dealt} == {secret}


def test_a_changed_share_gives_another_secret_or_none():
    shares = split(bytes(32), [1, 2, 3], 3, np.random.default_rng(0).bytes)
    for point, bit in itertools.product(shares, (0, 100, 250)):
        changed = int.from_bytes(shares[point], "big") ^ 1 << bit
        assert combine({**shares, point: changed.to_bytes(SHARE_BYTES, "big")}) != bytes(32)


@pytest.mark.parametrize(("secret", "threshold"), [(bytes(31), 2), (bytes(33), 2), (bytes(32), 0), (bytes(32), 4)])
def test_what_cannot_be_split_is_refused(secret: bytes, threshold: int):
    with pytest.raises(TrustChainError, match=r"cannot be split into 3 shares"):
        split(secret, [1, 2, 3], threshold, np.random.default_rng(0).bytes)
