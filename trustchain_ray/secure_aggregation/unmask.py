"""From the masked sum and the revealed shares to the sum: a function of what was said, which anyone can repeat."""

from collections.abc import Mapping

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from trustchain_ray.secure_aggregation.errors import Misbehaved
from trustchain_ray.secure_aggregation.masks import Mask, agree, apply_masks, pair_mask, public_bytes, self_mask
from trustchain_ray.secure_aggregation.session import Session
from trustchain_ray.secure_aggregation.shamir import SHARE_BYTES, combine
from trustchain_ray.secure_aggregation.stages import INPUT, KEYS, MASK_KEY, SEED, SHARES, Stage, commitment


def read_shares(holder: str, data: bytes, closed: Mapping[str, Stage]) -> dict[str, bytes]:
    """The shares that a holder revealed, by owner, if each is the one its owner committed to.

    Parameters
    ----------
    data : the buffer of its reveal: 33 bytes for each member that dealt shares, in the order of their names.
    closed : the stages before.

    Raises
    ------
    Misbehaved
        Wrong length, or another share.
    """
    dealt, present, context = closed[SHARES], closed[INPUT].statements, closed[KEYS].digest
    if len(data) != SHARE_BYTES * len(dealt.names):
        raise Misbehaved(holder, f"revealed {len(data)} bytes of shares, not {SHARE_BYTES} for each of {dealt.names}")
    shares = {}
    for i, owner in enumerate(dealt.names):
        share = data[i * SHARE_BYTES : (i + 1) * SHARE_BYTES]
        secret = SEED if owner in present else MASK_KEY
        if commitment(context, owner, holder, secret, share) != dealt.contents[owner].body["shares"][holder][secret]:
            raise Misbehaved(holder, f"revealed a share of {owner} that is not the one that {owner} committed to")
        shares[owner] = share
    return shares


def unmask(
    total: np.ndarray,
    session: Session,
    closed: Mapping[str, Stage],
    revealed: Mapping[str, Mapping[str, bytes]],
    threads: int = 0,
) -> None:
    """Take all masks off a sum of masked inputs, in place.

    Parameters
    ----------
    total : uint64 array ``(n,)``, the sum mod 2**64 of the inputs of ``closed["input"]``.
    revealed : at least as many holders' shares as the threshold, as :func:`read_shares` gives them.

    Raises
    ------
    Misbehaved
        A member's shares do not give back the secret that it published a commitment or a public key of.
    """
    keys, dealt, present = closed[KEYS], closed[SHARES], closed[INPUT].names
    holders = sorted(revealed)[: session.threshold]
    masks: list[Mask] = []
    for owner in dealt.names:
        secret = combine({session.points[holder]: revealed[holder][owner] for holder in holders})
        if owner in present:
            published = dealt.contents[owner].body["seed"]
            if secret is None or commitment(keys.digest, owner, owner, SEED, secret) != published:
                raise _inconsistent(owner)
            masks.append(self_mask(secret, keys.digest, owner))
        else:
            if secret is None or _public(secret) != keys.contents[owner].body["mask_key"]:
                raise _inconsistent(owner)
            masks += _pair_masks(secret, owner, present, keys)
    apply_masks(total, [(key, -sign) for key, sign in masks], threads)


def _pair_masks(secret: bytes, owner: str, present: list[str], keys: Stage) -> list[Mask]:
    """The masks between a member that dropped out and those whose input arrived, as the latter applied them."""
    private = X25519PrivateKey.from_private_bytes(secret)
    masks = []
    for peer in present:
        shared = agree(private, bytes.fromhex(keys.contents[peer].body["mask_key"]))
        if shared is None:
            raise Misbehaved(peer, "sent a public key of low order")
        masks.append(pair_mask(shared, keys.digest, peer, owner))
    return masks


def _public(secret: bytes) -> str:
    return public_bytes(X25519PrivateKey.from_private_bytes(secret)).hex()


def _inconsistent(owner: str) -> Misbehaved:
    return Misbehaved(
        owner, "dealt shares that do not give back its secret: there is no sum; repeat the round without this member"
    )
