"""Verification of single events: each signed, and each proven to be in a log that a checkpoint names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ledger import checkpoint, heads, layout, merkle
from ledger.audit import Audit, Fault
from ledger.canonical import is_digest, parse_canonical
from ledger.errors import LedgerError
from ledger.events import Event, read_leaf
from ledger.identity import COORDINATOR, key_id_of
from ledger.registry import Registry

SELECTION = "events.json"
"""Chosen events with their proofs, in a bundle."""


@dataclass(frozen=True)
class Proven:
    """A leaf, its position, and its inclusion proof."""

    index: int
    leaf: bytes
    proof: list[bytes]


@dataclass(frozen=True)
class Selection:
    """Content of :data:`SELECTION`.

    Attributes
    ----------
    run
        Id of the run.
    size
        Size of the log to whose root the proofs lead: that of the newest tree head.
    events
        In order.
    consistency
        RFC 9162 consistency proofs, from each tree head to the next.
    """

    run: str
    size: int
    events: list[Proven]
    consistency: list[list[bytes]]

    def to_dict(self) -> dict[str, Any]:
        """For canonical JSON."""
        return {
            "consistency": [[digest.hex() for digest in proof] for proof in self.consistency],
            "events": [
                {"index": e.index, "leaf": e.leaf.decode(), "proof": [digest.hex() for digest in e.proof]}
                for e in self.events
            ],
            "run": self.run,
            "size": self.size,
        }


def parse_selection(data: bytes) -> Selection:
    """Read chosen events; nothing is proven yet. Raises LedgerError if it is malformed."""
    content = parse_canonical(data)
    kinds = {"consistency": list, "events": list, "run": str, "size": int}
    if not isinstance(content, dict) or {name: type(value) for name, value in content.items()} != kinds:
        raise LedgerError(f"needs exactly {', '.join(kinds)}")
    events: list[Proven] = []
    for number, entry in enumerate(content["events"]):
        if not isinstance(entry, dict) or {name: type(value) for name, value in entry.items()} != {
            "index": int, "leaf": str, "proof": list,
        }:  # fmt: skip
            raise LedgerError(f"entry {number} needs exactly index, leaf and proof")
        if events and entry["index"] <= events[-1].index:
            raise LedgerError(f"entry {number} is not in order")
        events.append(Proven(entry["index"], entry["leaf"].encode(), _digests(entry["proof"])))
    return Selection(content["run"], content["size"], events, [_digests(proof) for proof in content["consistency"]])


def _digests(values: object) -> list[bytes]:
    if not isinstance(values, list) or not all(is_digest(value) for value in values):
        raise LedgerError("a proof is not a list of digests")
    return [bytes.fromhex(value) for value in values]


def check_selection(audit: Audit) -> str:
    """Every chosen event: its signature, and its place in the log of the newest signed tree head."""
    try:
        selection = parse_selection(layout.read_file(audit.run_dir, SELECTION))
        registry = Registry(selection.run)
        for proven in selection.events:
            try:
                audit.events.append(registry.admit_leaf(proven.leaf, proven.index))
            except LedgerError as error:
                raise LedgerError(f"event {proven.index}: {error}") from None
        audit.run, audit.registry = selection.run, registry
        head = _head(audit, selection)
        for proven in selection.events:
            leaf = merkle.leaf_hash(proven.leaf)
            merkle.verify_inclusion(leaf, proven.index, head.size, proven.proof, bytes.fromhex(head.root))
    except LedgerError as error:
        raise error if isinstance(error, Fault) else Fault(SELECTION, str(error)) from None
    audit.consistency = selection.consistency
    seal = audit.seal
    if seal is not None and (seal.run, seal.size, seal.root) != (head.run, head.size, head.root):
        if seal.run != head.run or seal.size <= head.size:
            raise Fault(layout.SEAL, f"is of another log than tree head {head.seq}")
        audit.notes.append(f"the last {seal.size - head.size} sealed events: no tree head covers them")
    count = len(selection.events)
    audit.notes.append(f"the other {head.size - count} events: they are not here")
    return f"{count} of {head.size} events of run {audit.run!r}, each proven to be under root {head.root}"


def _head(audit: Audit, selection: Selection) -> heads.TreeHead:
    key = audit.public_key(COORDINATOR)
    if key is None:
        raise LedgerError(f"the REGISTER event of {COORDINATOR} is not among the chosen ones")
    try:
        store = heads.parse_store(layout.read_file(audit.run_dir, layout.ANCHORS))
        if store.run != selection.run or not store.entries:
            raise LedgerError(f"is of run {store.run!r}, or has no tree head")
        head = heads.read_heads(store, key)[-1]
    except LedgerError as error:
        raise Fault(layout.ANCHORS, str(error)) from None
    if head.size != selection.size:
        raise LedgerError(f"proofs are for {selection.size} events, the newest tree head is of {head.size}")
    return head


def verify_event(
    leaf: bytes, index: int, proof: Sequence[bytes], note: str, run: str, keys: Mapping[str, str]
) -> tuple[Event, checkpoint.Checkpoint]:
    """Check one event that somebody shows, with its inclusion proof and a checkpoint: nothing else is needed.

    Parameters
    ----------
    leaf
        Leaf of the log: the canonical JSON of the event's envelope.
    index
        Its position.
    proof
        RFC 9162 inclusion proof in the log of the checkpoint.
    note
        The checkpoint, with or without cosignatures.
    run
        Id of the run.
    keys
        Public keys in hex by organization: the coordinator's, the signer's, and those of witnesses that count.

    Returns
    -------
    tuple
        The event, and what the checkpoint says, with the organizations that cosigned it.

    Raises
    ------
    LedgerError
        A signature does not hold, it is of another run, its signer is not among ``keys``, or the proof does not lead
        to the checkpoint's root.
    """
    if COORDINATOR not in keys:
        raise LedgerError(f"event {index}: the key of the {COORDINATOR} is needed")
    said = checkpoint.read(note, run, keys[COORDINATOR], {n: k for n, k in keys.items() if n != COORDINATOR})
    event = read_leaf(leaf, {key_id_of(key): key for key in keys.values()})
    if event.run != run:
        raise LedgerError(f"event {index}: belongs to run {event.run!r}, not {run!r}")
    if event.organization not in keys or key_id_of(keys[event.organization]) != event.key_id:
        raise LedgerError(f"event {index}: is not signed with the key of {event.organization} that you named")
    merkle.verify_inclusion(merkle.leaf_hash(leaf), index, said.size, proof, said.root)
    return event, said
