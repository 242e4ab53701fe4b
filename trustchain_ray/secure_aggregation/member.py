"""An organization in the secure sums of a run: it keeps its updates, and answers the coordinator's messages."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from ledger.identity import Identity
from trustchain_ray.errors import TrustChainError
from trustchain_ray.exchange import NO_REMOVAL
from trustchain_ray.keys import derive
from trustchain_ray.secure_aggregation.client import Client
from trustchain_ray.secure_aggregation.errors import Misbehaved
from trustchain_ray.secure_aggregation.messages import Message
from trustchain_ray.secure_aggregation.revealed import Revealed
from trustchain_ray.secure_aggregation.session import Session


class Answer(TypedDict, total=False):
    """What goes back over the wire: `message`, the bytes (empty: nothing is left to say); or `refused`, why this member
    goes no further, and `party`, who is to answer for it (empty: nobody)."""

    message: bytes
    refused: str
    party: str


@dataclass(frozen=True)
class Held:
    """An update that waits to be summed."""

    number: int
    removal: str
    values: np.ndarray
    weight: int
    digest: str


class SecureMember:
    """The updates of one organization's current round, and its side of their sessions.

    Parameters
    ----------
    secret
        The organization's own, 32 bytes; it never leaves it.
    path
        File of :class:`Revealed`.
    """

    def __init__(self, identity: Identity, run: str, secret: bytes, path: Path) -> None:
        self._identity, self._run, self._secret = identity, run, secret
        self._revealed = Revealed(path)
        self._held: dict[str, Held] = {}
        self._clients: dict[str, Client] = {}

    def begin(self) -> None:
        """A round begins: updates of earlier ones are let go."""
        self._held.clear()
        self._clients.clear()

    def keyed(self, digest: str) -> str:
        """What is stated of an update in place of its digest, 64 hex digits.

        Training is a function of records, base and keys that are known: from the plain digest, who knows all records
        but one could try out the last. The same update has the same keyed digest, so that a re-execution can be
        compared.
        """
        return derive(self._secret, "update", self._run, digest).hex()

    def hold(self, cohort: str, number: int, removal: str | None, values: np.ndarray, weight: int, digest: str) -> None:
        """Keep an update for its session.

        Parameters
        ----------
        removal : in which it is a replay; None: it is of training.
        values : float32 array ``(n,)`` that passed :func:`trustchain_ray.checks.check_values`.
        digest : its keyed digest.
        """
        removal = "" if removal in (None, NO_REMOVAL) else str(removal)
        self._held[cohort] = Held(number, removal, values, weight, digest)

    def join(self, keys: Mapping[str, str], rotated: Mapping[str, Any], cohort: str, data: bytes) -> Answer:
        """Answer the announcement of a session.

        Parameters
        ----------
        keys : public keys (hex) of all parties, by name.
        rotated : identity documents of those that rotated their keys.
        """
        self._clients.pop(cohort, None)
        try:
            held = self._held.get(cohort)
            if held is None:
                raise TrustChainError(f"secure aggregation: {self._identity.name} holds no update of {cohort} any more")
            registered, message = self._revealed.pin(keys, rotated), Message.from_bytes(data)
            session = Session.read(message.statement, registered)
            if (session.run, session.cohort, session.round) != (self._run, cohort, held.number):
                raise TrustChainError(
                    f"secure aggregation: {self._identity.name} holds an update of round {held.number} of {cohort}, "
                    f"the session is of round {session.round} of {session.cohort} in run {session.run}"
                )
            self._clients[cohort] = Client(
                self._identity,
                registered,
                held.values,
                held.weight,
                may_reveal=lambda names: self._revealed.allow(held.digest, held.removal, names),
            )
        except TrustChainError as error:
            return _refusal(error)
        return self.answer(cohort, data)

    def answer(self, cohort: str, data: bytes) -> Answer:
        """Answer the coordinator's next message of the session that was joined."""
        try:
            if cohort not in self._clients:
                raise TrustChainError(f"secure aggregation: {self._identity.name} is in no session of {cohort}")
            reply = self._clients[cohort].answer(Message.from_bytes(data))
        except TrustChainError as error:
            return _refusal(error)
        return {"message": reply.to_bytes() if reply is not None else b""}


def _refusal(error: TrustChainError) -> Answer:
    return {"refused": str(error), "party": error.party if isinstance(error, Misbehaved) else ""}
