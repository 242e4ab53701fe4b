"""Verification of the log: signatures, hashes, and the links between events."""

from itertools import zip_longest
from typing import Any

from ledger import events as ev
from ledger import layout, merkle
from ledger.audit import Audit, Fault, Links, Skip
from ledger.errors import LedgerError
from ledger.events import Event
from ledger.links import LinkState
from ledger.log import SqliteLog
from ledger.merkle import MerkleLog
from ledger.registry import Registry
from ledger.verify_events import SELECTION, check_selection


def check_log(audit: Audit) -> str:
    """Every leaf, signature, stored column and stored hash; the root; the seal's root."""
    if audit.has(SELECTION) and audit.lacks(layout.LOG):
        return check_selection(audit)
    audit.need(layout.LOG)
    log = SqliteLog(audit.run_dir / layout.LOG, read_only=True)
    try:
        registry = Registry()
        slots: set[tuple[str, str]] = set()
        leaves: list[bytes] = []
        for position, row in enumerate(log.rows()):
            try:
                audit.events.append(_check_row(position, row, registry))
            except (LedgerError, ValueError, RecursionError) as error:
                raise Fault(layout.LOG, f"event {position}: {error}") from None
            slot = (row[1], row[2])
            if slot in slots:
                raise Fault(layout.LOG, f"event {position}: {row[1]} used key {row[2]!r} before: a replay")
            slots.add(slot)
            leaves.append(merkle.leaf_hash(row[5]))
        audit.merkle = MerkleLog.of(leaves)
        for stored, computed in zip_longest(log.nodes(), audit.merkle.nodes() if slots else ()):
            if stored != computed:
                level, index, _ = computed or stored
                raise Fault(layout.LOG, f"the stored hash at level {level}, {index} is not that of the events")
    finally:
        log.close()
    if not audit.events:
        raise Fault(layout.LOG, "holds no event")
    audit.whole_log = True
    audit.run, audit.registry = registry.run or "", registry
    size, root = audit.merkle.size, audit.merkle.root().hex()
    if audit.seal is not None and (audit.seal.run, audit.seal.size, audit.seal.root) != (
        audit.run,
        size,
        root,
    ):
        raise Fault(layout.SEAL, f"is of another log than this one of {size} events, root {root[:16]}")
    return f"{size} events of run {audit.run!r}, {len(audit.organizations)} keys, root {root}"


def _check_row(position: int, row: tuple[Any, ...], registry: Registry) -> Event:
    index, organization, key, kind, round_, leaf = row
    if index != position or not isinstance(leaf, bytes):
        raise LedgerError(f"is numbered {index}" if index != position else "is not stored as bytes")
    event = registry.admit_leaf(leaf)
    if (organization, key, kind, round_) != (event.organization, event.key, event.type, event.round):
        raise LedgerError("its columns differ from what was signed")
    return event


def check_links(audit: Audit) -> str:
    """Rounds in order; each base the adapter before it; each input an update its organization signed.

    What a removal withdrew is in no release and no later merge, until it is replayed.
    """
    if not audit.whole_log or not audit.manifest:
        audit.links = _stated(audit)
        chosen = bool(audit.events) and not audit.whole_log
        raise Skip("only chosen events are here" if chosen else "it needs the whole log and the manifest")
    state = LinkState(audit.manifest, audit.events)
    for position, event in enumerate(audit.events):
        try:
            state.see(event)
        except LedgerError as error:
            raise Fault(layout.LOG, f"event {position}: {error}") from None
    try:
        links = state.finished(audit.notes.append)
    except LedgerError as error:
        raise Fault(layout.LOG, str(error)) from None
    audit.links = links
    merges = [event for chain in links.merges.values() for event in chain]
    inputs, cohorts = sum(len(event.body["inputs"]) for event in merges), len(links.merges)
    removals = f"; {len(links.executed)} removals" if links.executed else ""
    return f"{len(merges)} merges of {inputs} updates in {cohorts} cohorts, up to round {links.last_round}{removals}"


def _stated(audit: Audit) -> Links:
    """What the events that are here say of files, without how they fit together."""
    links = Links()
    for event in audit.events:
        if event.type == ev.MERGE:
            links.merges.setdefault(event.body["cohort"], []).append(event)
            links.last_round = max(links.last_round, event.body["round"])
        elif event.type == ev.CHECKPOINT:
            links.checkpoints[event.body["file"]] = event
        elif event.type == ev.MODEL_RELEASE:
            links.release = event
    revoked = {event.body["model_digest"] for event in audit.events if event.type == ev.MODEL_REVOKED}
    model = links.release.body["model_digest"] if links.release is not None else ""
    if model in revoked:
        audit.notes.append(f"which model to use: {model[:16]}, the newest here, is revoked")
    return links
