"""Tree heads: C2SP checkpoints of the log, and the store of those that go to the public chain."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ledger import checkpoint
from ledger.canonical import canonical_json, parse_canonical
from ledger.errors import LedgerError
from ledger.public import FINALIZED, MINED, PENDING, Anchor, Receipt

NO_ROOT = bytes(32)
"""``prev`` of the first anchor."""

_RECEIPT = {"tx": str, "block": int, "block_hash": str, "gas_used": int, "status": str}


@dataclass(frozen=True)
class TreeHead:
    """What the coordinator says of the log at an anchor.

    Attributes
    ----------
    run
        Id of the run.
    size, root
        Number of events, and their RFC 9162 root (64 hex digits).
    seq, prev
        Number of the anchor from 1, and the root of the one before it (zeros for the first).
    cosigners
        Organizations that vouch, as witnesses, that the log only grew, with the time in seconds since 1970.
    """

    run: str
    size: int
    root: str
    seq: int
    prev: str
    cosigners: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """A signed head, and where the public chain has it (None: not sent yet, or there is no chain)."""

    checkpoint: str
    receipt: Receipt | None = None


@dataclass
class AnchorStore:
    """Content of ``ledger/anchors.json``: the chain (empty before the first receipt), and the heads, oldest first."""

    run: str
    chain: dict[str, Any] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)

    def to_bytes(self) -> bytes:
        """Canonical JSON of the store."""
        anchors = [
            {"checkpoint": entry.checkpoint, "receipt": None if entry.receipt is None else asdict(entry.receipt)}
            for entry in self.entries
        ]
        return canonical_json({"anchors": anchors, "chain": self.chain, "run": self.run})


def parse_store(data: bytes) -> AnchorStore:
    """Read an anchor store; its heads are not yet checked. Raises LedgerError if it is malformed."""
    content = parse_canonical(data)
    if not isinstance(content, dict) or content.keys() != {"anchors", "chain", "run"}:
        raise LedgerError("anchor store: needs exactly anchors, chain and run")
    if not isinstance(content["run"], str) or not isinstance(content["chain"], dict):
        raise LedgerError("anchor store: run must be a string and chain a table")
    if not isinstance(content["anchors"], list):
        raise LedgerError("anchor store: anchors must be a list")
    entries: list[Entry] = []
    for number, entry in enumerate(content["anchors"], 1):
        where = f"anchor store: entry {number}"
        if not isinstance(entry, dict) or entry.keys() != {"checkpoint", "receipt"}:
            raise LedgerError(f"{where} needs exactly checkpoint and receipt")
        if not isinstance(entry["checkpoint"], str):
            raise LedgerError(f"{where}: the checkpoint is not a text")
        receipt = entry["receipt"]
        if receipt is None:
            entries.append(Entry(entry["checkpoint"]))
            continue
        if not isinstance(receipt, dict) or {name: type(value) for name, value in receipt.items()} != _RECEIPT:
            raise LedgerError(f"{where}: the receipt needs exactly {', '.join(_RECEIPT)}")
        if receipt["status"] not in (PENDING, MINED, FINALIZED):
            raise LedgerError(f"{where}: unknown status {receipt['status']!r}")
        if entries and entries[-1].receipt is None:
            raise LedgerError(f"{where} has a receipt, the one before it has none")
        entries.append(Entry(entry["checkpoint"], Receipt(**receipt)))
    return AnchorStore(content["run"], content["chain"], entries)


def read_heads(
    store: AnchorStore, log_key: str, witness_keys: Callable[[int], Mapping[str, str]] = lambda size: {}
) -> list[TreeHead]:
    """Check the signatures of all heads of a store and number them.

    Parameters
    ----------
    store
        Of :func:`parse_store`.
    log_key
        The coordinator's public key in hex.
    witness_keys
        Gives, for the size of a head, the public keys in hex of organizations by name: a key that was rotated before
        that size counts no more. Cosignatures of others do not count. Default: none does.

    Raises
    ------
    LedgerError
        A malformed checkpoint, a wrong signature, or another run. Whether sizes and roots are those of the log is for
        the caller to check.
    """
    heads: list[TreeHead] = []
    prev = NO_ROOT.hex()
    for seq, entry in enumerate(store.entries, 1):
        try:
            size = checkpoint.parse(entry.checkpoint).size
            said = checkpoint.read(entry.checkpoint, store.run, log_key, witness_keys(size))
        except LedgerError as error:
            raise LedgerError(f"tree head {seq}: {error}") from None
        heads.append(TreeHead(store.run, said.size, said.root.hex(), seq, prev, dict(said.cosigners)))
        prev = heads[-1].root
    return heads


def same_head(head: TreeHead, anchor: Anchor) -> bool:
    """Whether a head is the one that the chain has at its place."""
    return (head.seq, head.size, head.root, head.prev) == (
        anchor.seq,
        anchor.size,
        anchor.root.hex(),
        anchor.prev.hex(),
    )
