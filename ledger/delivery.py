"""Deliveries: bring what the log has to a chain, in order and once, whatever the chain does meanwhile."""

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ledger import heads
from ledger.errors import LedgerError, Unavailable
from ledger.private import Conflict, PrivateChain
from ledger.public import FINALIZED, PENDING, Anchor, PublicChain, Receipt

if TYPE_CHECKING:
    from ledger.service import LedgerService

FIRST_DELAY_S, LONGEST_DELAY_S = 0.25, 30.0
"""Wait after a first failure, doubled at each further one up to the longest."""

POLL_S = 1.0
"""How often the finality of anchors is asked for."""

BATCH = 1000
"""Events in one call of a private chain."""


class Delivery(ABC):
    """One chain's backlog, worked off by one thread at a time.

    Attributes
    ----------
    error
        Why the last step failed; None: it did not.
    refused
        Whether the chain answered that it never will: somebody has to act. It is still tried again, rarely.
    known
        Whether the chain was found to be this run's since it last failed.
    """

    def __init__(self, service: "LedgerService") -> None:
        self._service = service
        self.error: str | None = None
        self.refused = False
        self.known = False
        self._delay = 0.0
        self._not_before = 0.0
        self._wake = threading.Event()

    @abstractmethod
    def backlog(self) -> int:
        """How much the chain does not have yet."""

    @abstractmethod
    def close(self) -> None:
        """Give up the connection."""

    @abstractmethod
    def _compare(self) -> None:
        """First contact: chain and run must belong together."""

    @abstractmethod
    def _deliver(self) -> bool:
        """One piece of work; whether there was any."""

    def connect(self) -> None:
        """Make the first contact now, so that a wrong setting shows before the run.

        Raises
        ------
        Unavailable
            The chain does not answer now.
        LedgerError
            It refuses, or it is not this run's.
        """
        if not self.known:
            self._compare()
            self.known = True

    def step(self) -> bool:
        """Do one piece of work, unless it is too early to try again.

        Returns
        -------
        bool
            Whether something was brought further. False and :attr:`error` set: the chain failed.
        """
        if time.monotonic() < self._not_before:
            return False
        try:
            self.connect()
            moved = self._deliver()
        except LedgerError as error:
            # another transaction that came first, of another run too, is no refusal: compare, then go on
            self.refused, self.error = not isinstance(error, (Unavailable, Conflict)), str(error)
            self.known = False
            longest = LONGEST_DELAY_S
            self._delay = min(max(self._delay * 2, FIRST_DELAY_S), longest)
            self._not_before = time.monotonic() + self._delay
            return False
        self.error, self.refused, self._delay = None, False, 0.0
        return moved

    def work(self, closing: threading.Event) -> None:
        """Steps until ``closing`` is set: the body of a delivery's thread."""
        while not closing.is_set():
            if not self.step():
                self._wake.wait(self._delay or POLL_S)
                self._wake.clear()

    def waiting(self) -> bool:
        """Whether the first contact has neither succeeded nor failed yet."""
        return not self.known and self.error is None

    def wake(self) -> None:
        """There is something new to deliver."""
        self._wake.set()

    def status(self) -> dict[str, Any]:
        """``backlog``, ``error``, ``refused``."""
        return {"backlog": self.backlog(), "error": self.error, "refused": self.refused}


class PrivateDelivery(Delivery):
    """Brings the leaves of the log, and the newest head over them, to the private chain."""

    def __init__(self, service: "LedgerService", chain: PrivateChain, approvals: int, members: Sequence[str]) -> None:
        super().__init__(service)
        self.chain, self._approvals, self._members = chain, approvals, members

    def backlog(self) -> int:
        """Events, and the newest head, that the chain does not have."""
        sent = self._service.private_sent()
        return self._service.size() - int(sent["size"]) + bool(self._unsent(sent))

    def close(self) -> None:
        self.chain.close()

    def _compare(self) -> None:
        self.chain.open_run(self._service.log_key, self._approvals, self._members)
        description, size = self.chain.describe(), self.chain.size()
        before = self._service.private_sent()["chain"]
        if before and before != description:
            raise LedgerError(f"private chain: the run was begun on {before}, this is {description}")
        if size > self._service.size():
            raise LedgerError(
                f"private chain: has {size} events of run {self._service.run!r}, the log {self._service.size()}; "
                "is this an old copy of the run?"
            )
        if size and self.chain.read(size - 1, 1) != self._service.leaves(size - 1, 1):
            raise LedgerError(f"private chain: its event {size - 1} of run {self._service.run!r} is not the log's")
        note = self.chain.head()
        bodies = [_body(entry.checkpoint) for _, entry in self._service.signed_heads()]
        if note is not None and _body(note) not in bodies:
            raise LedgerError(f"private chain: its head of run {self._service.run!r} is not one of this log")
        self._service.note_private(description, size, bodies.index(_body(note)) + 1 if note is not None else 0)

    def _deliver(self) -> bool:
        sent = self._service.private_sent()
        size = int(sent["size"])
        leaves = self._service.leaves(size, BATCH)
        if leaves:
            self._service.note_private(sent["chain"], self.chain.append_batch(size, leaves), sent["heads"])
            return True
        head = self._unsent(sent)
        if head is not None:
            seq, size, note = head
            before = self._service.signed_heads()[sent["heads"] - 1][0].size if sent["heads"] else 0
            proof = self._service.consistency_proof(before, size) if before else []
            self.chain.put_head(note, proof)
            self._service.note_private(sent["chain"], sent["size"], seq)
            return True
        return False

    def _unsent(self, sent: Mapping[str, Any]) -> tuple[int, int, str] | None:
        """Number, size and text of the newest head over what the chain has, if the chain lacks it."""
        covered = [(h.seq, h.size, e.checkpoint) for h, e in self._service.signed_heads() if h.size <= sent["size"]]
        return covered[-1] if covered and covered[-1][0] > sent["heads"] else None


class PublicDelivery(Delivery):
    """Anchors every head on the public chain, in order, and follows the anchors until they are final."""

    def __init__(self, service: "LedgerService", chain: PublicChain) -> None:
        super().__init__(service)
        self.chain = chain
        self._next_poll = 0.0

    def backlog(self) -> int:
        """Heads that no block of the chain has."""
        receipts = [entry.receipt for _, entry in self._service.signed_heads()]
        return sum(receipt is None or receipt.status == PENDING for receipt in receipts)

    def close(self) -> None:
        self.chain.close()

    def status(self) -> dict[str, Any]:
        """As of every delivery, and how many anchors are ``pending``, ``mined`` and ``finalized``."""
        states = [entry.receipt.status for _, entry in self._service.signed_heads() if entry.receipt is not None]
        return {**super().status(), **{state.lower(): states.count(state) for state in sorted(set(states))}}

    def _compare(self) -> None:
        self.chain.check()
        self._follow()

    def _deliver(self) -> bool:
        signed = self._service.signed_heads()
        for head, entry in signed:
            if entry.receipt is None:
                receipt = self.chain.anchor(
                    bytes.fromhex(head.root), head.size, head.seq, bytes.fromhex(head.prev)
                )
                self._service.note_receipts(self.chain.describe(), {head.seq: receipt})
                return True
        waiting = any(entry.receipt is not None and entry.receipt.status != FINALIZED for _, entry in signed)
        if waiting and time.monotonic() >= self._next_poll:
            self._next_poll = time.monotonic() + POLL_S
            return self._follow()
        return False

    def _follow(self) -> bool:
        """Compare with what the chain has now; whether anything changed."""
        anchors = self.chain.update()
        signed = self._service.signed_heads()
        if not anchors and not any(entry.receipt for _, entry in signed):
            return False
        known, description = self._service.chain_description(), self.chain.describe()
        if known and known != description:
            raise LedgerError(f"public chain: the run was anchored on {known}, this is {description}")
        receipts: dict[int, Receipt | None] = {}
        for place, (head, entry) in enumerate(signed):
            if place < len(anchors):
                _must_be(head, anchors[place])
                receipts[head.seq] = anchors[place].receipt
            elif entry.receipt is not None:
                if entry.receipt.status == FINALIZED:
                    raise LedgerError(f"public chain: anchor {head.seq} was final and is gone; is it another chain?")
                receipts[head.seq] = None  # a reorganisation took it, and nobody has its transaction: once more
        if len(anchors) > len(signed):
            raise LedgerError(
                f"public chain: has {len(anchors)} anchors, this run signed {len(signed)} heads; is this an old copy?"
            )
        changed = any(entry.receipt != receipts.get(head.seq) for head, entry in signed)
        self._service.note_receipts(description, receipts)
        return changed


def _body(note: str) -> str:
    """What a checkpoint says, without who signed it."""
    return note.partition("\n\n")[0]


def _must_be(head: heads.TreeHead, anchor: Anchor) -> None:
    if not heads.same_head(head, anchor):
        raise LedgerError(f"public chain: its anchor {anchor.seq} is not this run's; who else anchors there?")
