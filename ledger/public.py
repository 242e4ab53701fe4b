"""What the ledger needs of a public chain."""

from dataclasses import dataclass
from typing import Any, Protocol

PENDING = "PENDING"
"""Signed and kept, but in no block that the node knows."""

MINED = "MINED"
"""In a block that a reorganisation may still take back."""

FINALIZED = "FINALIZED"
"""In a block that the chain does not take back."""

NO_BLOCK = "0x"
"""Block hash of a pending transaction."""


@dataclass(frozen=True)
class Receipt:
    """Where a transaction stands.

    Attributes
    ----------
    tx, block_hash
        Hex with 0x; of a pending one the block hash is :data:`NO_BLOCK`.
    block
        Number of the block; 0 while pending.
    gas_used
        Gas of the transaction; 0 while pending.
    status
        :data:`PENDING`, :data:`MINED` or :data:`FINALIZED`.
    """

    tx: str
    block: int
    block_hash: str
    gas_used: int
    status: str


@dataclass(frozen=True)
class Head:
    """The newest anchor: its number (0: none yet), log size and 32-byte root."""

    seq: int
    size: int
    root: bytes


@dataclass(frozen=True)
class Anchor:
    """One anchor as the chain's events tell it, or as it was sent."""

    seq: int
    size: int
    root: bytes
    prev: bytes
    receipt: Receipt


class PublicChain(Protocol):
    """A chain with the anchor contract on it."""

    def anchor(self, root: bytes, size: int, seq: int, prev: bytes) -> Receipt:
        """Anchor a tree head; the same head once more is the same transaction.

        Raises Unavailable if the chain does not answer (nothing was sent: try again later), LedgerError if
        the head is refused.
        """
        ...

    def update(self) -> list[Anchor]:
        """Look at the chain again and push on what is pending; all anchors, oldest first.

        Raises Unavailable if the chain does not answer or does not take a transaction now, LedgerError if it
        contradicts what was anchored.
        """
        ...

    def anchors(self) -> list[Anchor]:
        """All anchors as last seen, oldest first; pending ones are the last."""
        ...

    def head(self) -> Head:
        """The newest anchor in a block, as last seen."""
        ...

    def describe(self) -> dict[str, Any]:
        """Kind, chain id, genesis, contract: enough for a stranger to find the anchors again.

        What is not known before the first contact is missing; what was told once never changes.
        """
        ...

    def check(self) -> None:
        """Ask whether anchoring can work here. Raises LedgerError with what to do, or Unavailable."""
        ...

    def close(self) -> None:
        """Give up files and connections."""
        ...
