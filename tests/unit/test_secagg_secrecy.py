"""What one member less than the threshold and the coordinator can compute together: the sum of the others, no more.

They hold all messages, their own secrets, and after the session what was revealed. Whatever masks they know they take
off; what is left of an honest member's input must look like uniform 64-bit numbers, whatever its update is. Seeds are
fixed, so a run is repeatable; the threshold is one false alarm in 10**5 for an ideal source.
"""

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from scipy.stats import chisquare
from secagg_parties import NAMES, Parties, content_of

from trustchain_ray.merge import LIMIT
from trustchain_ray.secure_aggregation.fixed_point import encode, reduced_weights
from trustchain_ray.secure_aggregation.masks import agree, apply_masks, pair_mask, self_mask
from trustchain_ray.secure_aggregation.shamir import SHARE_BYTES, combine

SIZE = 20_000
HONEST, COLLUDERS = ("amber", "birch"), ("cedar", "delta", "ember")  # the threshold of five is four
UPDATES = {
    "zeros": np.zeros(SIZE, np.float32),
    "largest": np.full(SIZE, LIMIT, np.float32),
    "counting": np.linspace(-LIMIT, LIMIT, SIZE, dtype=np.float32),
}


def looks_uniform(values: np.ndarray) -> bool:
    """Chi-square of every byte position, and of neighbouring values' lowest bytes together."""
    columns = [*values.astype("<u8").view(np.uint8).reshape(-1, 8).T]
    columns.append((columns[0][0::2] >> 4) * 16 + (columns[0][1::2] >> 4))
    counts = [np.bincount(column, minlength=256) for column in columns]
    return min(chisquare(count).pvalue for count in counts) > 1e-5


class Collusion:
    """A session of five, and what cedar, delta, ember and the coordinator know of it."""

    def __init__(self, update: np.ndarray, seed: int = 0, late: tuple[str, ...] = (), **fields: object):
        self.parties = parties = Parties(5, SIZE, seed, **fields)
        assert len(COLLUDERS) == parties.session.threshold - 1
        for name in HONEST:
            parties.updates[name][:] = update
        shares = parties.until("shares")
        self.keys = {name: content_of(parties.sent["keys"][name]).body["mask_key"] for name in NAMES[:5]}
        self.private = {name: parties.clients[name]._mask_key for name in COLLUDERS}
        self.seeds = {name: parties.clients[name]._seed for name in HONEST}  # which the colluders do not have
        self.inputs = parties.answers(parties.receive(shares))
        self.context = content_of(next(iter(shares.values()))).after
        arrived = {name: message for name, message in self.inputs.items() if name not in late}
        confirmed = parties.answers(parties.receive(arrived))
        self.reveals = parties.answers(parties.receive(confirmed))

    def input_of(self, name: str) -> np.ndarray:
        return np.frombuffer(self.inputs[name].buffers["values"], "<u8").copy()

    def encoded(self, name: str) -> np.ndarray:
        return encode(self.parties.updates[name], reduced_weights(self.parties.weights)[name])

    def without_colluders_masks(self, name: str) -> np.ndarray:
        """The input of an honest member without the masks that it shares with colluders."""
        values = self.input_of(name)
        for colluder, private in self.private.items():
            secret = agree(private, bytes.fromhex(self.keys[name]))
            key, sign = pair_mask(secret, self.context, name, colluder)
            apply_masks(values, [(key, -sign)])
        return values

    def revealed(self, owner: str) -> bytes:
        """The secret of a member that the revealed shares give."""
        points, place = self.parties.session.points, NAMES.index(owner) * SHARE_BYTES
        holders = sorted(self.reveals)[: self.parties.session.threshold]
        data = {holder: bytes(self.reveals[holder].buffers["shares"]) for holder in holders}
        return combine({points[h]: shares[place : place + SHARE_BYTES] for h, shares in data.items()})


@pytest.mark.parametrize("update", UPDATES.values(), ids=UPDATES)
def test_a_masked_input_is_uniform_to_colluders_whatever_the_update(update: np.ndarray):
    collusion = Collusion(update)
    for name in HONEST:
        assert not looks_uniform(collusion.encoded(name))
        assert looks_uniform(collusion.input_of(name))
        assert looks_uniform(collusion.without_colluders_masks(name))


@pytest.mark.parametrize("update", UPDATES.values(), ids=UPDATES)
def test_after_the_end_colluders_know_the_sum_of_the_others_and_no_more(update: np.ndarray):
    collusion = Collusion(update)
    rest = {}
    for name in HONEST:
        rest[name] = collusion.without_colluders_masks(name)
        key, _ = self_mask(collusion.revealed(name), collusion.context, name)
        apply_masks(rest[name], [(key, -1)])
        assert looks_uniform(rest[name])  # the mask between the two honest members is left
    np.testing.assert_array_equal(
        rest["amber"] + rest["birch"], collusion.encoded("amber") + collusion.encoded("birch")
    )


def test_a_late_input_stays_hidden_by_its_self_mask():
    collusion = Collusion(UPDATES["zeros"], late=("birch",))
    values = collusion.without_colluders_masks("birch")
    # Its mask key is revealed, so that its mask with amber is known too; only its own mask is left.
    private = X25519PrivateKey.from_private_bytes(collusion.revealed("birch"))
    secret = agree(private, bytes.fromhex(collusion.keys["amber"]))
    key, sign = pair_mask(secret, collusion.context, "birch", "amber")
    apply_masks(values, [(key, -sign)])
    assert looks_uniform(values)
    key, sign = self_mask(collusion.seeds["birch"], collusion.context, "birch")
    apply_masks(values, [(key, -sign)])
    np.testing.assert_array_equal(values, collusion.encoded("birch"))


def test_masks_are_fresh_in_every_round():
    first, second = (Collusion(UPDATES["counting"], seed=s, round=s + 1) for s in (0, 1))
    for name in HONEST:
        assert looks_uniform(first.input_of(name) - second.input_of(name))
        assert looks_uniform(first.without_colluders_masks(name) - second.without_colluders_masks(name))


def test_masks_are_bound_to_the_round_even_if_the_randomness_repeats():
    first, second = (Collusion(UPDATES["counting"], seed=0, round=number) for number in (1, 2))
    assert first.keys == second.keys
    for name in HONEST:
        assert looks_uniform(first.input_of(name) - second.input_of(name))
        assert looks_uniform(first.without_colluders_masks(name) - second.without_colluders_masks(name))


def test_inputs_of_different_members_are_independent():
    collusion = Collusion(UPDATES["zeros"])
    assert looks_uniform(collusion.input_of("amber") + collusion.input_of("birch"))
    assert looks_uniform(collusion.input_of("amber") - collusion.input_of("birch"))
