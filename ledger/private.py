"""What the ledger needs of a private chain."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ledger.errors import LedgerError


class Conflict(LedgerError):
    """Another transaction changed what this one had read, and came first; nothing of this one was done.

    Read again, then decide whether the call still makes sense.
    """


@dataclass(frozen=True)
class ChainEvent:
    """Something that a transaction on the chain announced.

    Attributes
    ----------
    block
        Number of the block.
    tx
        Id of the transaction.
    name, payload
        What happened, and JSON about it: ``events`` with ``{"count","run","start"}``, ``head`` with
        ``{"root","run","size"}``.
    """

    block: int
    tx: str
    name: str
    payload: bytes


class PrivateChain(Protocol):
    """The log of one run, held together by its organizations, with what belongs to it.

    Every method raises :class:`~ledger.errors.Unavailable` while the chain does not answer, :class:`Conflict`
    where another transaction came first, and a plain LedgerError for what is refused for good.
    """

    def open_run(self, coordinator: str, k: int, msps: Sequence[str]) -> None:
        """Make the caller the run's sequencer; ``k`` of the members ``msps`` approve releases. Again: no-op."""
        ...

    def size(self) -> int:
        """Number of leaves that the chain holds."""
        ...

    def append_batch(self, start: int, leaves: Sequence[bytes]) -> int:
        """Append leaves at position ``start`` and return the new size.

        Leaves that are there already and equal are skipped, so that a call may be repeated; different ones, and a
        gap before ``start``, are refused.
        """
        ...

    def read(self, start: int, count: int) -> list[bytes]:
        """Leaves ``[start, start + count)``, fewer where the log ends."""
        ...

    def prove(self, index: int, size: int) -> list[bytes]:
        """RFC 9162 inclusion proof of leaf ``index`` in the first ``size``, computed from what the chain holds."""
        ...

    def put_head(self, note: str, proof: Sequence[bytes]) -> None:
        """Store a signed checkpoint with its consistency proof from the one before. Again: no-op."""
        ...

    def head(self) -> str | None:
        """The last signed checkpoint."""
        ...

    def put_private(self, collection: str, key: str, value: bytes) -> str:
        """Hand private UTF-8 text to the members of a collection; return the SHA-256 (hex) that all members see.

        The hash stays in the chain's history when the value is purged: the value must carry a salt of its own.
        """
        ...

    def get_private(self, collection: str, key: str) -> bytes:
        """A private value. Raises LedgerError where there is none, or the caller is no member."""
        ...

    def purge_private(self, collection: str, key: str) -> None:
        """Remove the current and all former values from every peer."""
        ...

    def private_hash(self, collection: str, key: str) -> str:
        """SHA-256 (hex) of a private value; empty if there is none."""
        ...

    def subscribe(self, cursor: str | Path, wait_s: float | None = None) -> Iterator[ChainEvent]:
        """Events after those that the file ``cursor`` says were handled, oldest first, then new ones.

        An event counts as handled, and the cursor moves, when the next is asked for: after a crash the last one
        comes again. The iterator ends when nothing came for ``wait_s`` seconds (default: never). It raises
        Unavailable where the chain is lost; subscribe again, with the same cursor.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """Kind, channel, contract: enough for a stranger to find the log again, and nothing secret."""
        ...

    def close(self) -> None:
        """Give up connections."""
        ...
