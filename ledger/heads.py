"""Signed tree heads, and the store of those that were anchored."""

import time as clock
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ledger import dsse
from ledger.canonical import canonical_json, is_digest, parse_canonical
from ledger.errors import LedgerError
from ledger.identity import Identity
from ledger.public import Anchor, Receipt

PAYLOAD_TYPE = "application/vnd.trustchain.treehead+json"

NO_ROOT = bytes(32)
"""``prev`` of the first anchor."""


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
    time
        Milliseconds since 1970, by the coordinator's clock.
    """

    run: str
    size: int
    root: str
    seq: int
    prev: str
    time: int


def sign_head(identity: Identity, run: str, size: int, root: bytes, seq: int, prev: bytes) -> dsse.Envelope:
    """Sign a tree head, now."""
    head = TreeHead(run, size, root.hex(), seq, prev.hex(), clock.time_ns() // 1_000_000)
    return dsse.sign(canonical_json(asdict(head)), PAYLOAD_TYPE, identity)


def read_head(envelope: dsse.Envelope, keys: Mapping[str, str]) -> TreeHead:
    """Check a signed tree head. Raises LedgerError if it is malformed or the signature does not hold."""
    payload, _ = dsse.verify(envelope, keys)
    if envelope["payloadType"] != PAYLOAD_TYPE:
        raise LedgerError(f"tree head: payload type is {envelope['payloadType']!r}")
    content = parse_canonical(payload)
    kinds = {"run": str, "size": int, "root": str, "seq": int, "prev": str, "time": int}
    if not isinstance(content, dict) or {name: type(value) for name, value in content.items()} != kinds:
        raise LedgerError(f"tree head: needs exactly {', '.join(kinds)}")
    if not is_digest(content["root"]) or not is_digest(content["prev"]):
        raise LedgerError("tree head: root and prev must be 64 hex digits")
    return TreeHead(**content)


@dataclass
class AnchorStore:
    """Content of ``ledger/anchors.json``: the chain; anchored heads and receipts, oldest first."""

    run: str
    chain: dict[str, Any]
    entries: list[tuple[dsse.Envelope, Receipt]]

    def to_bytes(self) -> bytes:
        """Canonical JSON of the store."""
        anchors = [{"head": head, "receipt": asdict(receipt)} for head, receipt in self.entries]
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
    kinds = {"tx": str, "block": int, "block_hash": str, "gas_used": int, "status": str}
    entries: list[tuple[dsse.Envelope, Receipt]] = []
    for number, entry in enumerate(content["anchors"], 1):
        if not isinstance(entry, dict) or entry.keys() != {"head", "receipt"}:
            raise LedgerError(f"anchor store: entry {number} needs exactly head and receipt")
        receipt = entry["receipt"]
        if not isinstance(receipt, dict) or {name: type(value) for name, value in receipt.items()} != kinds:
            raise LedgerError(f"anchor store: the receipt of entry {number} needs exactly {', '.join(kinds)}")
        entries.append((entry["head"], Receipt(**receipt)))
    return AnchorStore(content["run"], content["chain"], entries)


def matches(head: TreeHead, receipt: Receipt, anchor: Anchor) -> bool:
    """Whether a stored head and receipt are what the chain says."""
    return (head.seq, head.size, head.root, head.prev) == (
        anchor.seq,
        anchor.size,
        anchor.root.hex(),
        anchor.prev.hex(),
    ) and receipt == anchor.receipt
