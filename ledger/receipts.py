"""Inclusion receipts: what a person gets at ingestion, and can later check a removal with.

Format
------
A receipt is the canonical JSON of ``{"envelope", "format", "openings"}``.

``envelope``: DSSE, payload type :data:`PAYLOAD_TYPE`, signed by the organization. The payload says run, organization,
time (milliseconds since 1970) and, for each shard that holds records of the person: cohort, split, the shard's root,
the commitments, and the proof of their presence. It tells nobody whose records they are.

``openings``: for each commitment the record and its salt. With them the person sees that the commitments are to their
own records. Nobody else needs them, and on erasure the organization destroys its own copy of the salt;
:func:`without_openings` leaves them out, to show the receipt to others.
"""

import time as clock
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ledger import dsse
from ledger import events as ev
from ledger.audit import Skip
from ledger.canonical import canonical_json, parse_canonical
from ledger.certificate import parse as parse_certificate
from ledger.commitments import Record, commit, opens
from ledger.errors import LedgerError
from ledger.events import Event
from ledger.identity import Identity, check_name, key_id_of
from ledger.manifest_proof import presence
from ledger.manifest_tree import ManifestTree
from ledger.registry import registry_of
from ledger.removal import ORGANIZATION, TRAIN, Removal
from ledger.report import Check, Report
from ledger.shape import DICT, DIGEST, INT, LIST, STR, digests, fields, rows
from ledger.steps import Step, go_through
from ledger.verify_certificate import RunLog, verify_certificate

FORMAT = "trustchain-receipt-1"
PAYLOAD_TYPE = "application/vnd.trustchain.receipt+json"
MAX_BYTES = 1 << 25
"""Largest receipt that is read, 32 MiB."""


@dataclass(frozen=True)
class Entry:
    """Records of the person in one shard.

    Attributes
    ----------
    cohort, split
        The shard, as in its SHARD_MANIFEST event.
    root
        Of the shard when the receipt was made.
    commitments
        In order.
    proof
        That they are under the root.
    """

    cohort: str
    root: str
    commitments: list[str]
    proof: str
    split: str = TRAIN


@dataclass(frozen=True)
class Opening:
    """A record and its salt (64 hex digits): what a commitment is to."""

    commitment: str
    record: Record
    salt: str


@dataclass(frozen=True)
class Receipt:
    """A receipt taken apart; nothing is checked yet."""

    envelope: dsse.Envelope
    run: str
    organization: str
    time: int
    entries: list[Entry]
    openings: list[Opening]


def entry_of(cohort: str, tree: ManifestTree, commitments: Iterable[str], split: str = TRAIN) -> Entry:
    """What a receipt says of one shard. Raises LedgerError where a commitment is not in the shard."""
    wanted = sorted(set(commitments))
    if missing := [commitment for commitment in wanted if commitment not in tree]:
        raise LedgerError(f"receipt: commitment {missing[0]} is not in the shard of cohort {cohort!r}")
    return Entry(cohort, tree.root, wanted, tree.proof(wanted), split)


def opening_of(salt: bytes, record: Record) -> Opening:
    """The opening of a record's commitment. Raises LedgerError as :func:`ledger.commitments.commit`."""
    return Opening(commit(salt, record), dict(record), salt.hex())


def issue(
    identity: Identity, run: str, entries: Sequence[Entry], openings: Sequence[Opening] = (), time: int | None = None
) -> bytes:
    """Make a receipt.

    Parameters
    ----------
    identity
        The organization that holds the records.
    run
        Id of the run.
    entries
        One for each shard that holds records of the person.
    openings
        One for each commitment, or none where the person has the records and salts in another way.
    time
        Milliseconds since 1970; default now.

    Returns
    -------
    bytes
        The receipt, for the person alone: its openings hold the records.

    Raises
    ------
    LedgerError
        No entry, or a record that JSON cannot hold.
    """
    if not entries:
        raise LedgerError("receipt: there is no record to confirm")
    content = {
        "entries": [vars(entry) for entry in entries],
        "organization": identity.name,
        "run": run,
        "time": clock.time_ns() // 1_000_000 if time is None else time,
    }
    envelope = dsse.sign(canonical_json(content), PAYLOAD_TYPE, identity)
    return _encode(envelope, openings)


def without_openings(data: bytes) -> bytes:
    """The receipt without records and salts, to show to others. Raises LedgerError if it is malformed."""
    return _encode(parse(data).envelope, ())


def is_receipt(data: bytes) -> bool:
    """Whether a file looks like a receipt, by its beginning."""
    head, _, rest = data.partition(b'"format":"')
    return head.startswith(b'{"envelope":{"payload":') and rest.startswith(FORMAT.encode() + b'"')


def parse(data: bytes) -> Receipt:
    """Take a receipt apart, strictly, **without** checking anything that it says.

    Raises
    ------
    LedgerError
        Too large, not in canonical form, or not of this format.
    """
    if len(data) > MAX_BYTES:
        raise LedgerError(f"receipt: is larger than {MAX_BYTES} bytes")
    content = fields(parse_canonical(data), {"envelope": DICT, "format": STR, "openings": LIST}, "receipt")
    if content["format"] != FORMAT:
        raise LedgerError(f"receipt: is of format {content['format'][:80]!r}, not {FORMAT!r}")
    openings = rows(content["openings"], {"commitment": DIGEST, "record": DICT, "salt": DIGEST}, "openings")
    payload, kind, _, _ = dsse.payload_of(content["envelope"])
    if kind != PAYLOAD_TYPE:
        raise LedgerError(f"receipt: payload type is not {PAYLOAD_TYPE!r}")
    said = fields(parse_canonical(payload), {"entries": LIST, "organization": STR, "run": STR, "time": INT}, "receipt")
    kinds = {"cohort": STR, "commitments": LIST, "proof": STR, "root": DIGEST, "split": STR}
    entries = [Entry(**row) for row in rows(said["entries"], kinds, "entries")]
    for entry in entries:
        if not digests(entry.commitments, "commitments"):
            raise LedgerError("receipt: an entry names no record")
    check_name(said["organization"])
    return Receipt(
        content["envelope"], said["run"], said["organization"], said["time"], entries,
        [Opening(**row) for row in openings],
    )  # fmt: skip


def _encode(envelope: dsse.Envelope, openings: Sequence[Opening]) -> bytes:
    listed = [{**vars(opening), "record": dict(opening.record)} for opening in openings]
    return canonical_json({"envelope": envelope, "format": FORMAT, "openings": listed})


@dataclass
class _State:
    data: bytes
    trust: Mapping[str, str]
    log: RunLog | None
    certificates: Sequence[bytes]
    of_run: Sequence[bytes]
    min_auditors: int
    read: Receipt | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def receipt(self) -> Receipt:
        assert self.read is not None
        return self.read

    def shard_roots(self, entry: Entry) -> list[str]:
        """Roots of an entry's shard, in order, as the log has them."""
        events: Sequence[Event] = self.log.events if self.log is not None else ()
        slot = (self.receipt.organization, entry.cohort, entry.split)
        return [
            event.body["root"]
            for event in events
            if event.type == ev.SHARD_MANIFEST
            and (event.organization, event.body["cohort"], event.body["split"]) == slot
        ]


def check_receipt(
    data: bytes,
    *,
    name: str = "receipt",
    trust: Mapping[str, str] | None = None,
    log: RunLog | None = None,
    certificates: Sequence[bytes] = (),
    of_run: Sequence[bytes] = (),
    min_auditors: int = 0,
    on_check: Callable[[Check], None] | None = None,
) -> Report:
    """Check a receipt, and whether its records are in the run now, or were removed.

    Parameters
    ----------
    data
        The file.
    name
        Of the file, for the report.
    trust
        Public keys in hex by organization, known from elsewhere.
    log
        The run's log and manifest, verified.
    certificates
        Certificates by which the records are said to be removed: what they do not remove is a failure.
    of_run
        All other certificates of removals from the run. Each is verified with the same keys and log.
    min_auditors
        Organizations, other than the issuers, that must have counter-signed each of them.
    on_check
        Called with each check when it is done.

    Returns
    -------
    Report
        Never raises on what the files hold: that makes a failed check.
    """
    report = Report(name, "receipt")
    go_through(_STEPS, _State(data, trust or {}, log, certificates, of_run, min_auditors), report, on_check)
    return report


def _check_form(state: _State) -> str:
    state.read = parse(state.data)
    receipt = state.receipt
    if state.log is not None and state.log.manifest.get("run") != receipt.run:
        raise LedgerError(f"is of run {receipt.run!r}, the log of {state.log.manifest.get('run')!r}")
    count = sum(len(entry.commitments) for entry in receipt.entries)
    for entry in receipt.entries:
        found = presence(entry.proof, entry.commitments, entry.root)
        if not all(found.values()):
            raise LedgerError(f"cohort {entry.cohort!r}: a commitment is not under root {entry.root[:16]}")
    return f"{count} records in {len(receipt.entries)} shards of {receipt.organization}, run {receipt.run!r}"


def _check_signature(state: _State) -> str:
    receipt = state.receipt
    events: Sequence[Event] = state.log.events if state.log is not None else ()
    registry = registry_of(receipt.run, enumerate(events))
    shown, known = registry.lineage(receipt.organization), state.trust.get(receipt.organization)
    if known is not None and shown and known not in shown:
        raise LedgerError(f"the run shows another key of {receipt.organization} than the one that you trust")
    keys = registry.held(receipt.organization) if shown else [known] if known is not None else []
    if not keys and (state.trust or state.log is not None):
        raise LedgerError(f"is of {receipt.organization}, which neither the log nor your keys know")
    if not keys:
        raise Skip(f"nothing here says what the key of {receipt.organization} is; name it with --trust")
    dsse.verify(receipt.envelope, {key_id_of(key): key for key in keys})
    if known is None:
        state.notes.append(f"the key of {receipt.organization}: it is the run's own claim")
    return f"signed by {receipt.organization}"


def _check_openings(state: _State) -> str:
    receipt = state.receipt
    committed = {commitment for entry in receipt.entries for commitment in entry.commitments}
    if not receipt.openings:
        raise Skip("records and salts are not here")
    for opening in receipt.openings:
        if not opens(opening.commitment, bytes.fromhex(opening.salt), opening.record):
            raise LedgerError(f"commitment {opening.commitment[:16]} is not to the record that stands beside it")
    opened = {opening.commitment for opening in receipt.openings}
    if opened != committed:
        raise LedgerError(f"{len(committed - opened)} commitments are not opened, {len(opened - committed)} are others")
    return f"{len(opened)} commitments are to the records in the receipt"


def _check_log(state: _State) -> str:
    if state.log is None:
        raise Skip("the run's log is not here")
    for entry in state.receipt.entries:
        if entry.root not in state.shard_roots(entry):
            raise LedgerError(
                f"cohort {entry.cohort!r}: the log has no SHARD_MANIFEST of {state.receipt.organization} with root "
                f"{entry.root[:16]}: the run was not trained on what was confirmed"
            )
    return "the organization committed to these shards in the run's log"


def _check_removal(state: _State) -> str:
    if not state.certificates and not state.of_run and state.log is None:
        raise Skip("no certificate of a removal is given")
    removals: list[Removal] = []
    for data in dict.fromkeys([*state.certificates, *state.of_run]):
        report = verify_certificate(
            data, trust=state.trust or None, log=state.log, min_auditors=state.min_auditors
        )
        if report.failure is not None:
            raise LedgerError(f"a certificate does not hold: {report.failure.name}: {report.failure.detail}")
        removals.append(parse_certificate(data).removal)
        skipped = ", ".join(check.name for check in report.checks if check.status == "skipped")
        if skipped:
            state.notes.append(f"of the certificate: {skipped}")
    total, inside = 0, 0
    for entry in state.receipt.entries:
        if left := set(entry.commitments) - _removed(state, entry, removals):
            count = f"{len(left)} of {len(entry.commitments)}"
            if state.certificates:
                raise LedgerError(f"cohort {entry.cohort!r}: {count} records are not removed by these certificates")
            if not _leads_to_now(state, entry, removals):
                raise Skip(
                    f"cohort {entry.cohort!r}: its shard changed since, and no certificate here says what of {count} "
                    "records became; ask for the certificates, or for a new receipt"
                )
        total, inside = total + len(entry.commitments), inside + len(left)
    if 0 < inside < total:
        return f"of {total} records {total - inside} removed, {inside} in the run"
    return f"all {total} records are " + ("in the run, none is removed" if inside else "removed")


def _leads_to_now(state: _State, entry: Entry, removals: Sequence[Removal]) -> bool:
    """Whether the shard is as the receipt has it, but for what removals took out of it, each from where the last ended.

    What a removal takes out is proved, so that nothing else went."""
    slot, root = (state.receipt.organization, entry.cohort, entry.split), entry.root
    shards = [s for removal in removals if removal.run == state.receipt.run for s in removal.shards]
    steps = {s.old_root: s.new_root for s in shards if (s.organization, s.cohort, s.split) == slot}
    logged = state.shard_roots(entry)
    while root in steps and root != logged[-1]:
        root = steps.pop(root)
    return bool(logged) and root == logged[-1]


def _removed(state: _State, entry: Entry, removals: Sequence[Removal]) -> set[str]:
    """Commitments of an entry that certificates of its run remove."""
    slot = (state.receipt.organization, entry.cohort, entry.split)
    found: set[str] = set()
    roots: set[str] = set()
    for removal in (removal for removal in removals if removal.run == state.receipt.run):
        for request in removal.requests:
            for removed in request.removed:
                if (request.organization, removed.cohort, removed.split) == slot:
                    found.update(entry.commitments if request.scope == ORGANIZATION else removed.commitments)
        for shard in removal.shards:
            if (shard.organization, shard.cohort, shard.split) == slot:
                roots |= {shard.old_root, shard.new_root}
    logged = state.shard_roots(entry)
    if found and logged and logged[-1] not in roots:
        state.notes.append(f"what followed in cohort {entry.cohort!r}: its shard changed after these certificates")
    return found


_STEPS = [
    Step("form", _check_form, "the commitments are in the shards whose roots the receipt names"),
    Step("signature", _check_signature, "the organization signed it"),
    Step("openings", _check_openings, "the commitments are to your records"),
    Step("log", _check_log, "the run was trained on the shards that the receipt names"),
    Step("removal", _check_removal, "where your records stand: in the run, or removed by certificates"),
]
"""Each may rely on those before it."""
