"""Masks: equal at both ends, bound to their purpose, and the same bits in any split of the work."""

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from trustchain_ray.secure_aggregation.masks import (
    _BLOCK,
    agree,
    apply_masks,
    decrypt,
    derive_key,
    encrypt,
    pair_mask,
    public_bytes,
    self_mask,
)


def private(seed: int) -> X25519PrivateKey:
    return X25519PrivateKey.from_private_bytes(bytes([seed]) * 32)


def test_the_stream_is_that_of_aes_256_in_counter_mode():
    # AES-256 of 0 and of 1 under the zero key, from the specification of GCM (McGrew and Viega), test case 13.
    values = np.zeros(4, np.uint64)
    apply_masks(values, [(bytes(32), 1)])
    assert values.tobytes().hex() == "dc95c078a2408989ad48a21492842087" + "530f8afbc74536b9a963b4f1c4cb738b"


def test_the_masks_of_a_pair_cancel():
    values = np.arange(1001, dtype=np.uint64)
    one, two = values.copy(), values.copy()
    secret = agree(private(1), public_bytes(private(2)))
    assert secret == agree(private(2), public_bytes(private(1)))
    apply_masks(one, [pair_mask(secret, "c", "amber", "birch")])
    apply_masks(two, [pair_mask(secret, "c", "birch", "amber")])
    assert not (one == values).any()
    np.testing.assert_array_equal(one + two, 2 * values)


@pytest.mark.parametrize("size", [1, 2, 3, _BLOCK - 1, _BLOCK, _BLOCK + 1, 2 * _BLOCK, 5 * _BLOCK + 7])
@pytest.mark.parametrize("threads", [0, 2, 3])
def test_threads_and_blocks_change_no_bit(size: int, threads: int):
    masks = [(bytes([i]) * 32, sign) for i, sign in enumerate((1, -1, 1))]
    whole, parts = np.zeros(5 * _BLOCK + 7, np.uint64), np.zeros(size, np.uint64)
    apply_masks(whole, masks)
    apply_masks(parts, masks, threads)
    np.testing.assert_array_equal(parts, whole[:size])


def test_a_mask_taken_away_leaves_the_values():
    values = np.array([0, 1, 2**64 - 1, 2**63], np.uint64)
    masked = values.copy()
    key, sign = self_mask(bytes(32), "c", "amber")
    apply_masks(masked, [(key, sign)])
    assert not (masked == values).any()
    apply_masks(masked, [(key, -sign)])
    np.testing.assert_array_equal(masked, values)


def test_each_purpose_pair_and_session_has_its_own_key():
    keys = [
        derive_key(bytes(32), context, purpose, names)
        for context in ("round 1", "round 2")
        for purpose in ("pair mask", "shares")
        for names in (("amber", "birch"), ("birch", "amber"), ("amber", "cedar"), ("ab", "c"), ("a", "bc"))
    ]
    assert len(set(keys)) == len(keys) == 20


@pytest.mark.parametrize("point", [bytes(32), b"\x01" + bytes(31), (2**255 - 19).to_bytes(32, "little")])
def test_a_point_of_low_order_gives_no_secret(point: bytes):
    assert agree(private(1), point) is None


def test_shares_open_only_under_their_key_and_in_their_session():
    sealed = encrypt(bytes(32), b"shares", "round 1")
    assert decrypt(bytes(32), sealed, "round 1") == b"shares"
    assert decrypt(bytes(32), sealed, "round 2") is None
    assert decrypt(b"\x01" * 32, sealed, "round 1") is None
    assert decrypt(bytes(32), sealed[:-1] + bytes([sealed[-1] ^ 1]), "round 1") is None
    assert decrypt(bytes(32), b"", "round 1") is None
