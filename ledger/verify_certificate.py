"""Check a certificate of removal: offline, with whatever of keys, log and node the person has."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ledger import certificate as ct
from ledger import checkpoint, dsse, merkle, provenance
from ledger import events as ev
from ledger.audit import Skip
from ledger.certificate import Certificate
from ledger.errors import LedgerError
from ledger.events import Event
from ledger.identity import COORDINATOR, check_name, key_id_of
from ledger.merkle import MerkleLog
from ledger.registry import Registry, registry_of
from ledger.removal import ORGANIZATION, Removal, removed_digest
from ledger.removal_rules import check_claims, check_deletion
from ledger.report import Check, Report
from ledger.steps import Step, go_through
from ledger.verify_closure import check_closure


@dataclass(frozen=True)
class RunLog:
    """The whole log of the run, already verified, its manifest, and its tree (None: not compared with checkpoints)."""

    events: Sequence[Event]
    manifest: Mapping[str, Any]
    tree: MerkleLog | None = None

    @cached_property
    def graph(self) -> provenance.Graph:
        """The provenance graph. Raises LedgerError as :func:`ledger.provenance.from_events`."""
        return provenance.from_events(self.events, self.manifest)


@dataclass
class _State:
    data: bytes
    trust: Mapping[str, str] | None
    log: RunLog | None
    min_auditors: int
    rpc_url: str | None
    read: Certificate | None = None
    events: list[tuple[int, Event]] = field(default_factory=list)  # with their positions
    registry: Registry = field(default_factory=Registry)
    keys: dict[str, list[str]] = field(default_factory=dict)  # in hex by organization, oldest first; none is revoked
    auditors: list[str] = field(default_factory=list)
    head: checkpoint.Checkpoint | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def certificate(self) -> Certificate:
        assert self.read is not None
        return self.read

    @property
    def removal(self) -> Removal:
        return self.certificate.removal

    def of_type(self, kind: str) -> list[tuple[int, Event]]:
        return [(position, event) for position, event in self.events if event.type == kind]


def verify_certificate(
    data: bytes,
    *,
    name: str = "certificate",
    trust: Mapping[str, str] | None = None,
    log: RunLog | None = None,
    min_auditors: int = 0,
    rpc_url: str | None = None,
    on_check: Callable[[Check], None] | None = None,
) -> Report:
    """Check a certificate. Needs neither Ray nor torch, and no network unless ``rpc_url`` is given.

    Parameters
    ----------
    data
        The file.
    name
        Of the file, for the report.
    trust
        Public keys in hex by organization, known from elsewhere.
    log
        The run's log and manifest, verified (:func:`ledger.verify.verify_run`): the closure is computed again from it.
    min_auditors
        Organizations, other than the issuers, that must have counter-signed.
    rpc_url
        A node of the public chain to ask for the anchor. It must answer, then.
    on_check
        Called with each check when it is done.

    Returns
    -------
    Report
        Never raises on what the file holds: that makes a failed check.
    """
    report = Report(name, "certificate")
    go_through(_STEPS, _State(data, trust, log, min_auditors, rpc_url), report, on_check)
    return report


def _check_form(state: _State) -> str:
    state.read = ct.parse(state.data)
    removal = state.removal
    if state.log is not None and removal.run != state.log.manifest.get("run"):
        raise LedgerError(f"is of run {removal.run!r}, the log of {state.log.manifest.get('run')!r}")
    return f"{removal.guarantee} removal by {removal.method} from run {removal.run!r}"


def _check_log(state: _State) -> str:
    """Events of the removal, with the keys that they register."""
    if state.log is not None:
        state.events = list(enumerate(state.log.events))
        state.registry = registry_of(state.removal.run, state.events)
    elif state.certificate.publication is not None:
        state.events = _published_events(state)
    state.keys = {name: keys for name in state.registry.organizations if (keys := state.registry.held(name))}
    _pin(state)
    if state.certificate.publication is not None:
        _check_publication(state)
    elif not state.events:
        raise Skip("it is not published: neither events with proofs nor the run's log are here")
    if state.log is not None and state.head is None:
        return f"the run's own log of {len(state.events)} events is at hand"
    assert state.head is not None
    cosigners = ", ".join(sorted(state.head.cosigners)) or "nobody"
    return f"{len(state.events)} events, in the log of {state.head.size}; its checkpoint is cosigned by {cosigners}"


def _published_events(state: _State) -> list[tuple[int, Event]]:
    assert state.certificate.publication is not None
    selection = state.certificate.publication[1].selection
    state.registry = Registry(state.removal.run)
    found = []
    for proven in selection.events:
        try:
            found.append((proven.index, state.registry.admit_leaf(proven.leaf, proven.index)))
        except LedgerError as error:
            raise LedgerError(f"event {proven.index}: {error}") from None
    return found


def _pin(state: _State) -> None:
    """Keys that the person knows count, and must be those of the run."""
    for name, key in sorted((state.trust or {}).items()):
        if key not in (state.registry.lineage(name) or state.keys.setdefault(name, [key])):
            raise LedgerError(f"the certificate shows another key of {name} than the one that you trust")
    claimed = sorted(set(state.keys) - set(state.trust or {}))
    if claimed:
        state.notes.append(f"the keys of {', '.join(claimed)}: they are the run's own claim; name yours with --trust")


def _check_publication(state: _State) -> None:
    """The coordinator's signature, the checkpoint, and every inclusion proof."""
    assert state.certificate.publication is not None
    envelope, said = state.certificate.publication
    if COORDINATOR not in state.keys:
        raise LedgerError(f"publication: nothing here says what the {COORDINATOR}'s key is; name it with --trust")
    key = state.keys[COORDINATOR][-1]
    dsse.verify(envelope, {key_id_of(key): key})
    if said.certificate != state.certificate.digest:
        raise LedgerError("publication: is of another certificate")
    unregistered = {n: keys[-1] for n, keys in state.keys.items() if n not in state.registry.organizations}
    in_force = {**unregistered, **state.registry.keys_at(checkpoint.parse(said.checkpoint).size)}
    witnesses = {name: known for name, known in in_force.items() if name != COORDINATOR}
    state.head = checkpoint.read(said.checkpoint, state.removal.run, key, witnesses)
    if (said.selection.run, said.selection.size) != (state.removal.run, state.head.size):
        raise LedgerError("publication: the proofs are of another log than the checkpoint")
    tree = state.log.tree if state.log is not None else None
    if tree is not None and tree.size < state.head.size:
        raise LedgerError(f"publication: the log here has {tree.size} events, its checkpoint {state.head.size}")
    if tree is not None and tree.root(state.head.size) != state.head.root:
        raise LedgerError("publication: its checkpoint is of another log than the one here: a split view")
    for proven in said.selection.events:
        leaf = merkle.leaf_hash(proven.leaf)
        merkle.verify_inclusion(leaf, proven.index, state.head.size, proven.proof, state.head.root)


def _check_signatures(state: _State) -> str:
    issuers = state.removal.issuers
    if not issuers or issuers != sorted({check_name(name) for name in issuers}):
        raise LedgerError("issuers: names nobody, or is not in order of names")
    if not state.keys:
        raise Skip("nothing here says what the organizations' keys are; name them with --trust")
    organizations = {key_id_of(key): name for name, keys in state.keys.items() for key in keys}
    by_id = {key_id_of(key): key for keys in state.keys.values() for key in keys}
    signers = [organizations[dsse.verify(envelope, by_id)[1]] for envelope in state.certificate.signatures]
    if missing := sorted(set(issuers) - set(signers)):
        raise LedgerError(f"is not signed by {', '.join(missing)}, whose records it is about")
    state.auditors = sorted(set(signers) - set(issuers))
    counted = [name for name in state.auditors if state.trust is None or name in state.trust]
    if len(counted) < state.min_auditors:
        raise LedgerError(f"is counter-signed by {len(counted)} organizations that count, not {state.min_auditors}")
    return f"issued by {', '.join(issuers)}; counter-signed by {', '.join(state.auditors) or 'nobody'}"


def _check_closure(state: _State) -> str:
    """The closure is the one that the log gives, and each new artifact was logged after the withdrawal."""
    removal = state.removal
    if state.log is None:
        raise Skip(f"it needs the run's log; the certificate names {len(removal.closure)} artifacts")
    found = check_closure(removal, state.log.graph, _withdrawal(state))
    if any(shard.round > 1 for shard in removal.shards):
        state.notes.append("that no earlier round used the records: only who holds the sampling key can see it")
    return found


def _withdrawal(state: _State) -> int:
    wanted = {request.request for request in state.removal.requests}
    found = [(p, e) for p, e in state.of_type(ev.UNLEARN_WITHDRAWN) if wanted & set(e.body["requests"])]
    if uncovered := wanted - {request for _, event in found for request in event.body["requests"]}:
        raise LedgerError(f"the log has no UNLEARN_WITHDRAWN of request {min(uncovered)[:16]}")
    return max(position for position, _ in found)


def _check_events(state: _State) -> str:
    """Requests, withdrawal, execution, attestations and revocations, as the log has them."""
    removal, digest = state.removal, state.certificate.digest
    if not state.events:
        raise Skip("no event of the removal is here")
    stated = [event for _, event in state.of_type(ev.RUN_MANIFEST)]
    if stated and stated[0].body["manifest"] != removal.digests["manifest"]:
        raise LedgerError("digests: the manifest is not the one of the run")
    asked = reversed(state.of_type(ev.UNLEARN_REQUEST))  # the first one of an id counts
    logged = {event.body["request"]: (position, event) for position, event in asked}
    until = _withdrawal(state)
    for request in removal.requests:
        position, event = logged.get(request.request, (0, None))
        if event is None:
            raise LedgerError(f"the log has no UNLEARN_REQUEST {request.request[:16]}")
        signers = {request.organization, COORDINATOR} if request.scope == ORGANIZATION else {request.organization}
        said = (event.body["organization"], event.body["scope"], event.body["removed"])
        if event.organization not in signers or said != (
            request.organization, request.scope, removed_digest(request.removed),
        ):  # fmt: skip
            raise LedgerError(f"request {request.request[:16]}: is not what {event.organization} asked for")
        if position > until:
            raise LedgerError(f"request {request.request[:16]}: came after the withdrawal")
    executed = [(p, e) for p, e in state.of_type(ev.UNLEARN_EXEC) if e.body["certificate"] == digest]
    if not executed:
        raise LedgerError("the log has no UNLEARN_EXEC of this certificate")
    body = executed[0][1].body
    if (body["requests"], body["guarantee"], body["old_model_digest"], body["new_model_digest"]) != (
        [request.request for request in removal.requests], removal.guarantee, removal.model["old"],
        removal.model["new"],
    ):  # fmt: skip
        raise LedgerError("UNLEARN_EXEC: says something else than the certificate")
    if (body["steps_replayed"], body["steps_total"]) != (removal.steps["replayed"], removal.steps["total"]):
        raise LedgerError("UNLEARN_EXEC: counts other steps than the certificate")
    revoked = {event.body["model_digest"] for _, event in state.of_type(ev.MODEL_REVOKED)}
    if kept := sorted(set(removal.withdrawn) - revoked):
        raise LedgerError(f"the log has no MODEL_REVOKED of model {kept[0][:16]}")
    return f"{len(removal.requests)} requests, executed by event {executed[0][0]}; {_attested(state)}"


def _attested(state: _State) -> str:
    said = [e for _, e in state.of_type(ev.UNLEARN_ATTEST) if e.body["certificate"] == state.certificate.digest]
    for event in said:
        if event.body["result"] != "same":
            raise LedgerError(f"{event.organization} re-executed it and got something else: {event.body['result']}")
        if event.organization in state.removal.issuers:
            raise LedgerError(f"{event.organization} attests its own removal")
    steps = sum(event.body["steps"] for event in said)
    if not said:
        state.notes.append("that the replay gives these digests: nobody attests to have re-executed it")
    return f"{steps} steps re-executed by {', '.join(sorted({e.organization for e in said})) or 'nobody'}"


def _check_anchor(state: _State) -> str:
    publication = state.certificate.publication
    if publication is None or state.head is None or not publication[1].chain:
        raise Skip("it names no anchor")
    said = publication[1]
    if state.rpc_url is None:
        raise Skip(f"it names {said.receipt.get('tx') or 'no transaction yet'}; ask a node with --rpc-url")
    from ledger.rpc import read_anchors

    for anchor in read_anchors(state.rpc_url, said.chain):
        if (anchor.size, anchor.root) == (state.head.size, state.head.root):
            return f"the chain has it as anchor {anchor.seq}, of {anchor.size} events: {anchor.receipt.status}"
    raise LedgerError(f"the chain has no anchor of the log of {state.head.size} events")


_STEPS = [
    Step("form", _check_form, "the file is a certificate of removal in its one form"),
    Step("log", _check_log, "its events are signed, and have their place in the log that the checkpoint names"),
    Step("signatures", _check_signatures, "the organizations whose records were removed signed it"),
    Step("statement", lambda state: check_claims(state.removal), "it claims no more than its method gives"),
    Step("deletion", lambda state: check_deletion(state.removal),
         "the records were in the shards before, and only they are gone"),
    Step("events", _check_events, "request, withdrawal, execution and revocation were logged, and say the same"),
    Step("closure", _check_closure, "everything that depended on the records was replaced or dropped"),
    Step("anchor", _check_anchor, "the public chain has the checkpoint"),
]  # fmt: skip
"""Each may rely on those before it."""
