"""A secure sum over parties that may die, hang or cheat: one session after the other, without those who spoiled one."""

import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ray.exceptions import RayError

from ledger.canonical import sha256_hex
from ledger.identity import Identity
from trustchain_ray import calls
from trustchain_ray.calls import reason_of
from trustchain_ray.errors import TrustChainError
from trustchain_ray.secure_aggregation.errors import Misbehaved
from trustchain_ray.secure_aggregation.messages import Message
from trustchain_ray.secure_aggregation.server import Result, Server
from trustchain_ray.secure_aggregation.session import FEWEST, Session, default_threshold
from trustchain_ray.secure_aggregation.stages import KEYS, REVEAL

Call = Callable[[str, str, str, bytes], Any]
"""Calls `secure_join` or `secure_answer` of a member (name, method, cohort, message); gives a reference."""


@dataclass
class SecureSum:
    """What came of the sessions of one merge.

    Attributes
    ----------
    result
        The sum; None: there is none, and `reason` says why.
    attempt, threshold
        Of the last session: how many were before it, and how many members had to stay.
    refused
        By the party that is to answer for it: the digest of what was refused, and why.
    absent
        Why other members are not in the sum.
    late
        References of answers that did not come in time.
    sent
        Bytes of all messages, both ways.
    """

    result: Result | None = None
    attempt: int = 0
    threshold: int = 0
    reason: str = ""
    refused: dict[str, tuple[str, str]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    late: dict[str, Any] = field(default_factory=dict)
    sent: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Attempts:
    """Secure sums of one coordinator.

    Attributes
    ----------
    run
        Id of the run.
    identity
        Of the coordinator.
    keys
        Public keys (hex) of the organizations, by name.
    call
        How a member is reached.
    deadline_s
        Seconds after which a member that has not answered is left out.
    threshold
        Members that must stay to the end; 0, or too low to be safe: more than two thirds.
    """

    run: str
    identity: Identity
    keys: Mapping[str, str]
    call: Call
    deadline_s: float
    threshold: int = 0

    def sum(self, cohort: str, number: int, size: int, weights: Mapping[str, int]) -> SecureSum:
        """Sum the updates of a cohort's members in a round.

        Parameters
        ----------
        number
            The round, from 1.
        size
            Values of an update.
        weights
            Of the members that hold an update, as they signed them.

        Raises
        ------
        TrustChainError
            The weights are too large for an exact sum.
        """
        began, said, left = time.perf_counter(), SecureSum(), set(weights)
        for attempt in itertools.count():
            threshold = max(self.threshold, default_threshold(len(left)))
            if len(left) < max(FEWEST, threshold):
                short = f"{len(left)} members are left, {max(FEWEST, threshold)} are needed"
                said.reason = f"{said.reason}; {short}" if said.reason else f"secure aggregation: {short}"
                break
            members = {name: self.keys[name] for name in sorted(left)}
            session = Session(self.run, cohort, number, attempt, size, threshold, members, self.identity.public_hex)
            said.attempt, said.threshold = attempt, threshold
            one = _Attempt(self, Server(session, self.identity, weights), said)
            out = one.run()
            # Who has given shares away joins no other sum of the same updates: after that there is no next attempt.
            if said.result is not None or one.server.stage == REVEAL or not out:
                break
            left -= out
        said.seconds = time.perf_counter() - began
        return said


class _Attempt:
    """One session, carried between the coordinator and the members."""

    def __init__(self, attempts: Attempts, server: Server, said: SecureSum) -> None:
        self.attempts, self.server, self.said = attempts, server, said
        self.gone: dict[str, str] = {}  # why members are not in the session any more
        self.accused: dict[str, dict[str, str]] = {}  # by party: what members say of it that go no further for it
        self.refused: set[str] = set()

    def run(self) -> set[str]:
        """Carry the session to its end; who is not to be in the next one."""
        said, server = self.said, self.server
        try:
            replies = self._ask("secure_join", server.open())
            while server.stage is not None:
                for name, data in sorted(replies.items()):
                    self._receive(name, data)
                messages = server.close()
                if server.stage is not None:
                    replies = self._ask("secure_answer", messages)
                else:
                    self._end(messages)
        except Misbehaved as error:  # its shares do not give back its secret
            self._refuse(error.party, server.session.digest, str(error))
            said.reason = str(error)
        except TrustChainError as error:
            if server.stage == KEYS and not self.gone and not self.refused:
                raise  # weights that no session can sum
            said.reason = str(error)
        if said.result is None:
            self._blame()
        summed = said.result.weights if said.result is not None else {}
        said.absent |= {name: why for name, why in self.gone.items() if name not in (*summed, *said.refused)}
        return {*self.gone, *self.refused}

    def _ask(self, method: str, messages: Mapping[str, Message]) -> dict[str, bytes]:
        """Send messages out and wait; the answers that came."""
        deadline, references = self.attempts.deadline_s, self._send(method, messages)
        _, late = calls.wait(list(references.values()), deadline)
        replies = {}
        for name, reference in references.items():
            if reference in late:
                self.said.late[name] = reference
                self.gone[name] = f"secure aggregation: no answer within federation.deadline_s={deadline:g}"
                continue
            try:
                answer = calls.get(reference)
            except RayError as error:
                self.gone[name] = f"secure aggregation: {reason_of(error)}"
                continue
            if "message" in answer:
                replies[name] = answer["message"]
                self.said.sent += len(answer["message"])
            else:
                self.gone[name] = str(answer.get("refused"))
                self.accused.setdefault(str(answer.get("party")), {})[name] = self.gone[name]
        return replies

    def _send(self, method: str, messages: Mapping[str, Message]) -> dict[str, Any]:
        sent = {name: message.to_bytes() for name, message in messages.items()}
        self.said.sent += sum(map(len, sent.values()))
        cohort = self.server.session.cohort
        return {name: self.attempts.call(name, method, cohort, data) for name, data in sent.items()}

    def _receive(self, name: str, data: bytes) -> None:
        try:
            self.server.receive(name, Message.from_bytes(data))
        except TrustChainError as error:
            self._refuse(error.party if isinstance(error, Misbehaved) else name, sha256_hex(data), str(error))
            self.refused.add(name)

    def _refuse(self, party: str, what: str, why: str) -> None:
        self.refused.add(party)
        self.said.refused[party] = what, why

    def _blame(self) -> None:
        """Of a member and its accusers one side lies: more accusers are believed than may be dishonest."""
        session = self.server.session
        for party, accusers in self.accused.items():
            if party in session.names and len(accusers) > len(session.names) - session.threshold:
                self._refuse(party, session.digest, next(iter(accusers.values())))
                for name in accusers:
                    self.gone.pop(name, None)

    def _end(self, messages: Mapping[str, Message]) -> None:
        """The sum is there; members are told the end of the transcript, and nobody waits for them."""
        self.said.result, self.said.reason = self.server.result, ""
        self._send("secure_answer", messages)
