"""Verification of the log: signatures, hashes, and the links between events."""

from itertools import zip_longest
from typing import Any

from ledger import events as ev
from ledger import layout, merkle
from ledger.audit import Audit, Fault, Links, Skip
from ledger.errors import LedgerError
from ledger.events import Event, Registry
from ledger.log import SqliteLog
from ledger.merkle import MerkleLog
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
    audit.run, audit.keys, audit.organizations = registry.run or "", registry.keys, registry.organizations
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
    """Rounds in order; each base the adapter before it; each input an update its organization signed."""
    if not audit.whole_log or not audit.manifest:
        audit.links = _stated(audit)
        chosen = bool(audit.events) and not audit.whole_log
        raise Skip("only chosen events are here" if chosen else "it needs the whole log and the manifest")
    state = _LinkState(audit)
    for position, event in enumerate(audit.events):
        try:
            state.see(event)
        except LedgerError as error:
            raise Fault(layout.LOG, f"event {position}: {error}") from None
    links = state.finished()
    audit.links = links
    count = sum(len(chain) for chain in links.merges.values())
    cohorts = len(links.merges)
    return f"{count} merges of {state.inputs} updates in {cohorts} cohorts, up to round {links.last_round}"


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
    return links


class _LinkState:
    def __init__(self, audit: Audit) -> None:
        self.manifest = audit.manifest
        self.links = Links(merges={name: [] for name in audit.manifest["cohorts"]})
        self.inputs = 0
        self._last_checkpoint = -1
        self._complete: Event | None = None
        # (organization, round, cohort, base, update, weight)
        self._updates = {
            (
                e.organization,
                e.body["round"],
                e.body["cohort"],
                e.body["base"],
                e.body["update"],
                e.body["weight"],
            )
            for e in audit.events
            if e.type == ev.UPDATE
        }
        # (organization, round, cohort, update); None: whatever it sent
        self._refused = {
            (e.body["organization"], e.body["round"], e.body["cohort"], e.body.get("update"))
            for e in audit.events
            if e.type == ev.REFUSED
        }

    def see(self, event: Event) -> None:
        if event.type == ev.MERGE:
            self._merge(event)
        elif event.type == ev.CHECKPOINT:
            self._last_checkpoint = max(self._last_checkpoint, event.body["round"])
            self.links.checkpoints[event.body["file"]] = event
        elif event.type == ev.MODEL_RELEASE:
            self._release(event)
        elif event.type == ev.RUN_COMPLETE:
            self._complete = event

    def finished(self) -> Links:
        self.links.last_round = max((c[-1].body["round"] for c in self.links.merges.values() if c), default=0)
        if self._complete is not None:
            said, release = self._complete.body, self.links.release
            if release is None or release.body["model_digest"] != said["model_digest"]:
                raise Fault(layout.LOG, "RUN_COMPLETE names another model than the last MODEL_RELEASE")
            if said["rounds"] < self.links.last_round:
                raise Fault(
                    layout.LOG,
                    f"RUN_COMPLETE counts {said['rounds']} rounds, merges go to {self.links.last_round}",
                )
        return self.links

    def _merge(self, event: Event) -> None:
        body = event.body
        round_, cohort = body["round"], body["cohort"]
        where = f"MERGE of cohort {cohort!r} in round {round_}"
        members = self.manifest["cohorts"].get(cohort)
        if members is None:
            raise LedgerError(f"{where}: the manifest has no such cohort")
        chain = self.links.merges[cohort]
        # A resumed run repeats the rounds after its last checkpoint: the later attempt counts.
        while chain and chain[-1].body["round"] >= round_ > self._last_checkpoint:
            chain.pop()
        if chain and chain[-1].body["round"] >= round_:
            raise LedgerError(f"{where}: comes after round {chain[-1].body['round']}, which is finished")
        base = self._adapter(cohort)
        if body["base"] != base:
            raise LedgerError(f"{where}: starts from {body['base'][:16]}, the adapter before it is {base[:16]}")
        seen: set[str] = set()
        for entry in body["inputs"]:
            organization, update = entry["organization"], entry["update"]
            if organization not in members:
                raise LedgerError(f"{where}: {organization} is not a member of the cohort")
            if organization in seen:
                raise LedgerError(f"{where}: {organization} is merged twice")
            seen.add(organization)
            slot = (organization, round_, cohort)
            if (*slot, update) in self._refused or (*slot, None) in self._refused:
                raise LedgerError(f"{where}: takes an update of {organization} that was refused")
            if (*slot, body["base"], update, entry["weight"]) not in self._updates:
                raise LedgerError(f"{where}: {organization} signed no update {update[:16]} of that base and weight")
            self.inputs += 1
        chain.append(event)

    def _adapter(self, cohort: str) -> str:
        """Digest of the cohort's newest adapter."""
        chain = self.links.merges[cohort]
        digest: str = chain[-1].body["adapter"] if chain else self.manifest["initial"][cohort]
        return digest

    def _release(self, event: Event) -> None:
        for cohort, digest in event.body["adapters"].items():
            if cohort not in self.links.merges:
                raise LedgerError(f"MODEL_RELEASE: the manifest has no cohort {cohort!r}")
            if digest != self._adapter(cohort):
                raise LedgerError(
                    f"MODEL_RELEASE: holds {digest[:16]} of cohort {cohort!r}, its newest adapter is "
                    f"{self._adapter(cohort)[:16]}"
                )
        self.links.release = event
