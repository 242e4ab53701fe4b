"""An organization's side of a session (Bonawitz et al., 1611.04482, figure 4, against an active coordinator)."""

import secrets
from collections.abc import Callable, Mapping

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from ledger.canonical import sha256_hex
from ledger.identity import COORDINATOR, Identity
from trustchain_ray.errors import TrustChainError
from trustchain_ray.secure_aggregation.errors import Misbehaved
from trustchain_ray.secure_aggregation.fixed_point import check_update, encode, reduced_weights
from trustchain_ray.secure_aggregation.masks import (
    agree,
    apply_masks,
    decrypt,
    derive_key,
    encrypt,
    pair_mask,
    public_bytes,
    self_mask,
)
from trustchain_ray.secure_aggregation.messages import Buffers, Message, Statement, state
from trustchain_ray.secure_aggregation.session import Session
from trustchain_ray.secure_aggregation.shamir import SECRET_BYTES, SHARE_BYTES, Entropy, split
from trustchain_ray.secure_aggregation.stages import (
    ALIVE,
    INPUT,
    KEYS,
    MASK_KEY,
    REVEAL,
    SEED,
    SHARES,
    Stage,
    check_public_keys,
    commitment,
    read_list,
)


class Client:
    """One member in one session. It answers each message of the coordinator once; after one that it refuses, none.

    Attributes
    ----------
    transcript : digest over all that was said, 64 hex digits, once the session is over.
    result : SHA-256 of the sum as little-endian int64, as the coordinator states it, once the session is over.
    revealed : whether a share was given away. Only a member that has revealed nothing may join another attempt of the
        same merge with other members: the difference of two sums can be one update.
    """

    transcript: str | None = None
    result: str | None = None
    revealed = False

    def __init__(
        self,
        identity: Identity,
        registered: Mapping[str, str],
        update: np.ndarray,
        weight: int,
        threads: int = 0,
        entropy: Entropy = secrets.token_bytes,
        may_reveal: Callable[[list[str]], None] = lambda names: None,
    ) -> None:
        """Take an update to a session.

        Parameters
        ----------
        registered : public keys (hex) of all organizations and of the coordinator, by name, as the log has them.
        update : float32 array ``(n,)``, at most 64 in magnitude.
        weight : of the update in the merge, from 1; it is public.
        threads : for masking; 0: all cores for a large update.
        entropy : random bytes; only tests give another.
        may_reveal : called with the members of the sum before a share is given away; it raises to keep them.
        """
        if weight < 1:
            raise TrustChainError(f"secure aggregation: {identity.name} has the weight {weight}; weights are positive")
        self._identity, self._name = identity, identity.name
        self._registered, self._update, self._weight = registered, update, weight
        self._threads, self._entropy, self._may_reveal = threads, entropy, may_reveal
        self._steps = [self._join, self._share, self._mask, self._confirm, self._reveal, self._finish]
        self._said: dict[str, Statement] = {}
        self._closed: dict[str, Stage] = {}
        self._held: dict[str, tuple[bytes, bytes]] = {}

    def answer(self, message: Message) -> Message | None:
        """The member's next message; None after the last of the coordinator.

        Raises
        ------
        Misbehaved
            The message, or another member's statement in it, does not hold; this member goes no further.
        TrustChainError
            An update that cannot be summed, or a session that is over for this member.
        """
        if not self._steps:
            raise TrustChainError(
                f"secure aggregation: the session is over for {self._name}: it answers every message once, and none "
                "after one that it refused"
            )
        steps, self._steps = self._steps, []  # an error ends the session: nothing is ever said twice
        reply = steps[0](message)
        self._steps = steps[1:]
        return reply

    def _join(self, message: Message) -> Message:
        self._session = session = Session.read(message.statement, self._registered)
        if session.members.get(self._name) != self._identity.public_hex:
            raise Misbehaved(COORDINATOR, f"announced a session to {self._name} that is without its key")
        check_update(self._update, session.size)
        self._after = session.digest
        self._mask_key = X25519PrivateKey.from_private_bytes(self._entropy(SECRET_BYTES))
        self._share_key = X25519PrivateKey.from_private_bytes(self._entropy(SECRET_BYTES))
        body = {
            "mask_key": public_bytes(self._mask_key).hex(),
            "share_key": public_bytes(self._share_key).hex(),
            "weight": self._weight,
        }
        return self._say(KEYS, body)

    def _share(self, message: Message) -> Message:
        keys = self._listen(KEYS, message, self._session.names)
        check_public_keys(keys.contents)
        self._weights = reduced_weights({name: content.body["weight"] for name, content in keys.contents.items()})
        self._context = keys.digest
        self._seed = self._entropy(SECRET_BYTES)
        points = {name: self._session.points[name] for name in keys.names}
        dealt = [
            split(secret, list(points.values()), self._session.threshold, self._entropy)
            for secret in (self._mask_key.private_bytes_raw(), self._seed)
        ]
        committed, buffers = {}, {}
        for holder, point in points.items():
            pair = dealt[MASK_KEY][point], dealt[SEED][point]
            committed[holder] = [
                commitment(self._context, self._name, holder, secret, pair[secret]) for secret in (MASK_KEY, SEED)
            ]
            if holder == self._name:
                self._held[holder] = pair
            else:
                key = self._channel(self._name, holder)
                buffers[holder] = encrypt(key, pair[MASK_KEY] + pair[SEED], self._context)
        seed = commitment(self._context, self._name, self._name, SEED, self._seed)
        return self._say(SHARES, {"seed": seed, "shares": committed}, buffers)

    def _mask(self, message: Message) -> Message:
        shares = self._listen(SHARES, message, self._closed[KEYS].names)
        peers = [name for name in shares.names if name != self._name]
        if message.buffers.keys() != set(peers):
            raise Misbehaved(COORDINATOR, f"withheld shares from {self._name}")
        masks = [self_mask(self._seed, self._context, self._name)]
        for peer in peers:
            self._held[peer] = self._open(peer, shares, bytes(message.buffers[peer]))
            secret = self._agree(self._mask_key, peer, "mask_key")
            masks.append(pair_mask(secret, self._context, self._name, peer))
        values = encode(self._update, self._weights[self._name])
        apply_masks(values, masks, self._threads)
        del self._mask_key, self._share_key, self._seed, self._update  # nothing that follows needs them
        return self._say(INPUT, {}, {"values": values.astype("<u8", copy=False).data.cast("B")})

    def _confirm(self, message: Message) -> Message:
        self._listen(INPUT, message, self._closed[SHARES].names)
        return self._say(ALIVE, {})

    def _reveal(self, message: Message) -> Message:
        self._listen(ALIVE, message, self._closed[INPUT].names)
        present = self._closed[INPUT].statements
        self._may_reveal(sorted(present))
        # One of the two, never both: with both, the coordinator could unmask the member's own input.
        shares = [self._held[n][SEED if n in present else MASK_KEY] for n in self._closed[SHARES].names]
        self._held.clear()
        self.revealed = True
        return self._say(REVEAL, {}, {"shares": b"".join(shares)})

    def _finish(self, message: Message) -> None:
        reveals = self._listen(REVEAL, message, self._closed[ALIVE].names)
        self.transcript, self.result = reveals.digest, reveals.body["sum"]

    def _say(self, stage: str, body: Mapping[str, object], buffers: Buffers | None = None) -> Message:
        buffers = buffers or {}
        statement = state(self._identity, stage, self._session.digest, self._after, body, buffers)
        self._said[stage] = statement
        return Message(statement, buffers=buffers)

    def _listen(self, stage: str, message: Message, expected: list[str] | tuple[str, ...]) -> Stage:
        """The coordinator's list of a stage, if it is sound and this member is in it."""
        closed = read_list(message, self._session, stage, self._after, expected)
        own = closed.statements.get(self._name)
        if own is None or own.digest != self._said[stage].digest:
            raise Misbehaved(COORDINATOR, f"left the {stage} of {self._name} out: they were late, or were withheld")
        self._closed[stage], self._after = closed, closed.digest
        return closed

    def _agree(self, private: X25519PrivateKey, peer: str, field: str) -> bytes:
        secret = agree(private, bytes.fromhex(self._closed[KEYS].contents[peer].body[field]))
        if secret is None:
            raise Misbehaved(peer, "sent a public key of low order, with which every secret is zero")
        return secret

    def _channel(self, owner: str, holder: str) -> bytes:
        """The key under which `owner` encrypts its shares for `holder`; this member is one of them."""
        secret = self._agree(self._share_key, holder if owner == self._name else owner, "share_key")
        return derive_key(secret, self._context, "shares", (owner, holder))

    def _open(self, owner: str, shares: Stage, ciphertext: bytes) -> tuple[bytes, bytes]:
        """The shares of `owner` for this member, if they are those that it committed to."""
        content = shares.contents[owner]
        if sha256_hex(ciphertext) != content.buffers[self._name]:
            raise Misbehaved(COORDINATOR, f"altered the shares of {owner} for {self._name}")
        opened = decrypt(self._channel(owner, self._name), ciphertext, self._context)
        if opened is None:
            raise Misbehaved(owner, f"encrypted shares for {self._name} that do not open")
        pair = opened[:SHARE_BYTES], opened[SHARE_BYTES:]
        made = [commitment(self._context, owner, self._name, secret, pair[secret]) for secret in (MASK_KEY, SEED)]
        if len(opened) != 2 * SHARE_BYTES or made != content.body["shares"][self._name]:
            raise Misbehaved(owner, f"sent {self._name} other shares than it committed to")
        return pair
