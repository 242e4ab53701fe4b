"""The coordinator's side of a session: it collects, closes stages, and learns the sum alone."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from ledger.canonical import sha256_hex
from ledger.identity import COORDINATOR, Identity
from trustchain_ray.errors import TrustChainError
from trustchain_ray.secure_aggregation.errors import Misbehaved, TooFew
from trustchain_ray.secure_aggregation.fixed_point import decode, reduced_weights
from trustchain_ray.secure_aggregation.masks import agree
from trustchain_ray.secure_aggregation.messages import Buffers, Content, Message, Statement, check_buffers, state
from trustchain_ray.secure_aggregation.session import Session
from trustchain_ray.secure_aggregation.stages import (
    ENCRYPTED_BYTES,
    INPUT,
    KEYS,
    REVEAL,
    SHARES,
    STAGES,
    Stage,
    check_public_keys,
    list_kind,
    read_member,
)
from trustchain_ray.secure_aggregation.unmask import read_shares, unmask


@dataclass(frozen=True)
class Result:
    """What a session gives.

    Attributes
    ----------
    sums : float64 array ``(n,)`` of integers, the bits that ``merge.weighted_sum`` gives for the same members.
    total : sum of their weights without their common divisor, as ``weighted_sum`` gives it.
    weights : of the members in the sum, as they stated them.
    inputs : SHA-256 of each one's masked input (little-endian uint64).
    dropped : members that are not in the sum, sorted.
    transcript : digest over all that was said, 64 hex digits; all members that stayed have the same.
    """

    sums: np.ndarray
    total: int
    weights: dict[str, int]
    inputs: dict[str, str]
    dropped: list[str]
    transcript: str


class Server:
    """The coordinator in one session. Use it from one thread at a time.

    ``open`` gives the first messages. Then, for each stage: hand over with ``receive`` what members answer, and send
    out what ``close`` gives. `result` is there after the last ``close``.

    Attributes
    ----------
    stage : the open stage; None before and after.
    waiting : members of it that have not answered.
    result : the sum.
    """

    stage: str | None = None
    result: Result | None = None

    def __init__(
        self, session: Session, identity: Identity, weights: Mapping[str, int] | None = None, threads: int = 0
    ) -> None:
        """Prepare a session.

        Parameters
        ----------
        identity : of the coordinator, as the session names it.
        weights : what each member must state, as it signed it before; who is not in it may state any.
        threads : for unmasking; 0: all cores for a large sum.
        """
        if identity.name != COORDINATOR or identity.public_hex != session.coordinator:
            raise TrustChainError("secure aggregation: the session is to be run by its coordinator's identity")
        self.session, self._identity, self._threads = session, identity, threads
        self._weights = weights or {}
        self._closed: dict[str, Stage] = {}
        self._total = np.zeros(session.size, np.uint64)
        self._ciphertexts: dict[str, Buffers] = {}
        self._revealed: dict[str, dict[str, bytes]] = {}

    @property
    def waiting(self) -> list[str]:
        """Members of the open stage that have not answered, sorted."""
        return [name for name in self._expected if name not in self._statements] if self.stage else []

    def open(self) -> dict[str, Message]:
        """The announcement, by receiver."""
        if self.stage is not None or self._closed:
            raise TrustChainError("secure aggregation: the session was opened before; the next attempt is a new one")
        announcement = self.session.announce(self._identity)
        self._begin(KEYS, self.session.digest, list(self.session.names))
        return {name: Message(announcement) for name in self.session.names}

    def receive(self, name: str, message: Message) -> None:
        """Take a member's answer. The same answer again changes nothing; one that is refused neither.

        Parameters
        ----------
        name : who delivered it.

        Raises
        ------
        Misbehaved
            It does not hold, came too late, or is not the first answer of this member.
        """
        if self.stage is None:
            raise Misbehaved(name, "sent a message when no stage was open")
        content = read_member(message.statement, name, self.session, self.stage, self._after, self._expected)
        if content.sender != name:
            raise Misbehaved(name, f"delivered a statement of {content.sender}")
        before = self._statements.get(name)
        if before is not None:
            if before.digest == message.statement.digest:
                return
            raise Misbehaved(name, f"signed two different {self.stage}: the second is refused")
        check_buffers(content, message.buffers)
        if self.stage == KEYS:
            self._check_keys(content)
        elif self.stage == SHARES:
            if any(memoryview(data).nbytes != ENCRYPTED_BYTES for data in message.buffers.values()):
                raise Misbehaved(name, f"encrypted shares that are not {ENCRYPTED_BYTES} bytes for each holder")
            self._ciphertexts[name] = message.buffers
        elif self.stage == INPUT:
            self._add(name, message.buffers)
        elif self.stage == REVEAL:
            self._revealed[name] = read_shares(name, bytes(message.buffers["shares"]), self._closed)
        self._statements[name], self._contents[name] = message.statement, content

    def close(self) -> dict[str, Message]:
        """Close the stage: the next messages, by receiver.

        Raises
        ------
        TooFew
            Fewer answers than the threshold; the stage stays open.
        Misbehaved
            A member's shares do not give back its secret (last stage).
        TrustChainError
            The weights are too large for an exact sum, or the sum is not one of updates.
        """
        if self.stage is None:
            raise TrustChainError("secure aggregation: no stage is open")
        if len(self._statements) < self.session.threshold:
            missing = set(self.session.names) - set(self._statements)
            raise TooFew(self.stage, len(self._statements), self.session.threshold, missing)
        body: dict[str, object] = {"statements": {name: s.digest for name, s in self._statements.items()}}
        if self.stage == KEYS:
            reduced_weights(_weights(self._contents))
        sums, total = None, 0
        if self.stage == REVEAL:
            sums, total = self._sum()
            body["sum"] = sha256_hex(sums.astype("<i8").tobytes())
        statement = state(self._identity, list_kind(self.stage), self.session.digest, self._after, body, {})
        stage, closed = self.stage, Stage(self._statements, self._contents, body, statement.digest)
        self._closed[stage] = closed
        members = tuple(closed.statements[name] for name in closed.names)
        messages = {name: Message(statement, members, self._for(name)) for name in closed.names}
        self._ciphertexts.clear()
        if sums is not None:
            self.stage, self.result = None, self._result(sums, total, statement.digest)
        else:
            self._begin(STAGES[STAGES.index(stage) + 1], statement.digest, closed.names)
        return messages

    def _begin(self, stage: str, after: str, expected: list[str]) -> None:
        self.stage, self._after, self._expected = stage, after, expected
        self._statements: dict[str, Statement] = {}
        self._contents: dict[str, Content] = {}

    def _check_keys(self, content: Content) -> None:
        """Refuse keys that would stop every other member, and a weight other than the one signed before."""
        weight = content.body["weight"]
        if weight != (signed := self._weights.get(content.sender, weight)):
            raise Misbehaved(content.sender, f"stated the weight {weight}; it signed {signed} before")
        check_public_keys({**self._contents, content.sender: content})
        probe = X25519PrivateKey.generate()
        for field in ("mask_key", "share_key"):
            if agree(probe, bytes.fromhex(content.body[field])) is None:
                raise Misbehaved(content.sender, "sent a public key of low order, with which every secret is zero")

    def _add(self, name: str, buffers: Buffers) -> None:
        values = memoryview(buffers["values"])
        if values.nbytes != 8 * self.session.size:
            raise Misbehaved(
                name, f"sent a masked input of {values.nbytes} bytes, not 8 for each of {self.session.size} values"
            )
        np.add(self._total, np.frombuffer(values, "<u8"), out=self._total)

    def _for(self, name: str) -> Buffers:
        """What of the open stage's buffers is for one member: the shares that others encrypted for it."""
        return {owner: buffers[name] for owner, buffers in sorted(self._ciphertexts.items()) if owner != name}

    def _sum(self) -> tuple[np.ndarray, int]:
        unmask(self._total, self.session, self._closed, self._revealed, self._threads)
        reduced = reduced_weights(_weights(self._closed[KEYS].contents))
        return decode(self._total, {name: reduced[name] for name in self._closed[INPUT].names})

    def _result(self, sums: np.ndarray, total: int, transcript: str) -> Result:
        weights, inputs = _weights(self._closed[KEYS].contents), self._closed[INPUT].contents
        return Result(
            sums=sums,
            total=total,
            weights={name: weights[name] for name in sorted(inputs)},
            inputs={name: inputs[name].buffers["values"] for name in sorted(inputs)},
            dropped=sorted(set(self.session.names) - set(inputs)),
            transcript=transcript,
        )


def _weights(keys: Mapping[str, Content]) -> dict[str, int]:
    return {name: content.body["weight"] for name, content in keys.items()}
