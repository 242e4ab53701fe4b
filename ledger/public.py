"""What the ledger needs of a public chain."""

from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Receipt:
    """A transaction that a chain has taken in.

    Attributes
    ----------
    tx, block_hash
        Hex with 0x.
    block
        Number of the block.
    gas_used
        Gas of the transaction.
    status
        ``FINAL`` on a chain of one node; chains with reorganisations also tell PENDING and MINED.
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
    """One anchor as the chain's events tell it."""

    seq: int
    size: int
    root: bytes
    prev: bytes
    receipt: Receipt


class PublicChain(Protocol):
    """A chain with the anchor contract on it."""

    def anchor(self, root: bytes, size: int, seq: int, prev: bytes) -> Receipt:
        """Anchor a tree head; the current head once more is no error. Raises LedgerError if refused."""
        ...

    def head(self) -> Head:
        """The newest anchor."""
        ...

    def anchors(self) -> list[Anchor]:
        """All anchors, oldest first."""
        ...

    def describe(self) -> dict[str, Any]:
        """Kind, chain id, contract: enough for a stranger to find the anchors again."""
        ...

    def close(self) -> None:
        """Give up files and connections."""
        ...
