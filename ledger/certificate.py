"""Certificates of removal: an in-toto statement in a DSSE envelope, and its place in the log.

Format
------
A certificate is the canonical JSON of ``{"envelope", "format", "publication"}``.

``envelope``: DSSE, payload type ``application/vnd.in-toto+json``. The payload is the canonical JSON of an in-toto
Statement v1 with predicate type :data:`PREDICATE_TYPE`; its predicate is :class:`Removal`, its subjects are the new
model and the recomputed artifacts. Signed by every issuer; organizations that re-executed the removal add signatures
over the same payload (:func:`counter_sign`), so that any in-toto tool reads them all.

``publication`` (null before it is logged): an envelope of the coordinator over what only exists after the statement was
signed: the digest of the statement, events of the log with inclusion proofs, the checkpoint of their log, and the
public chain's receipt. So each byte of the file is under a signature.

Numbers that are not integers stand as strings. Records appear only as commitments whose salts were destroyed.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ledger import dsse
from ledger.canonical import canonical_json, parse_canonical, sha256_hex
from ledger.errors import LedgerError
from ledger.identity import Identity
from ledger.shape import DICT, DIGEST, INT, LIST, STR, fields, rows
from ledger.verify_events import Selection, parse_selection

FORMAT = "trustchain-certificate-1"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://trustchain-ray.org/unlearning/v1"
PUBLICATION_TYPE = "application/vnd.trustchain.publication+json"

MAX_BYTES = 1 << 26
"""Largest certificate that is read, 64 MiB."""
MAX_SIGNATURES = 100

EXACT_BITWISE, EXACT_DISTRIBUTION = "EXACT_BITWISE", "EXACT_DISTRIBUTION"
CERTIFIED, APPROXIMATE = "CERTIFIED", "APPROXIMATE"
GUARANTEES = (EXACT_BITWISE, EXACT_DISTRIBUTION, CERTIFIED, APPROXIMATE)

RECORD, SUBJECT, ORGANIZATION = "record", "subject", "organization"
SCOPES = (RECORD, SUBJECT, ORGANIZATION)

EXACT_METHODS = ("replay", "drop", "retrain")
METHODS = (*EXACT_METHODS, "perturb", "ascent", "graddiff", "npo", "simnpo")

BITWISE, TOLERANCE = "bitwise", "tolerance"
"""Reproducibility classes: replayed in the hardware class of the run, or in another one."""

TRAIN, TEST = "train", "test"


@dataclass(frozen=True)
class Removed:
    """Records of one shard that a request takes out.

    Attributes
    ----------
    cohort, split
        The shard: cohort and ``train``, or an empty cohort and ``test``.
    commitments
        In order, none twice; empty where a whole organization leaves.
    """

    cohort: str
    commitments: list[str]
    split: str = TRAIN


@dataclass(frozen=True)
class Request:
    """A request that this removal serves.

    Attributes
    ----------
    request
        Random id, 64 hex digits: it says nothing about the person.
    organization
        Whose records they are.
    scope
        One of :data:`SCOPES`.
    """

    request: str
    organization: str
    scope: str
    removed: list[Removed]


@dataclass(frozen=True)
class Shard:
    """A shard before and after.

    Attributes
    ----------
    round
        The first round that may have read one of the records; what came before stays.
    proof
        Of :meth:`~ledger.manifest_tree.ManifestTree.deletion_proof`; empty where the whole shard goes.
    """

    organization: str
    cohort: str
    old_root: str
    new_root: str
    round: int
    proof: str
    split: str = TRAIN


@dataclass(frozen=True)
class Entry:
    """A node of the closure (:func:`ledger.provenance.closure`): its digests before and after (None: dropped)."""

    kind: str
    name: str
    old: str
    new: str | None


@dataclass(frozen=True)
class Start:
    """The adapter from which a cohort was replayed: that of a round before the first use, 0 for the initial one."""

    cohort: str
    round: int
    digest: str


@dataclass(frozen=True)
class Removal:
    """The predicate of a certificate.

    Attributes
    ----------
    run
        Id of the run.
    issuers
        Who must sign, in order of names: the organizations whose records they were, or the coordinator for one that
        left.
    guarantee, method
        One of :data:`GUARANTEES`, of :data:`METHODS`.
    reproducibility
        ``class`` (:data:`BITWISE`, :data:`TOLERANCE`) and ``environments``, digests by organization.
    participation
        ``recorded``: the replay took each organization's effort from the log.
    noise
        ``none``, or ``fresh`` where privacy noise was drawn anew.
    digests
        Of ``manifest``, ``code``, ``base`` and whatever else the run committed to.
    keys
        Commitments to keys by purpose: SHA-256 of the run's key derivations, of a fresh noise key.
    steps
        ``replayed`` and ``total`` training steps, over all members.
    privacy
        Rows of ``organization``, ``epsilon_before``, ``epsilon_after``, ``delta``.
    cost, timings, checks
        Figures as strings: shares, seconds, metrics.
    model
        ``old`` and ``new`` digest.
    withdrawn
        Digests of all models that must not be used any more, in order.
    """

    run: str
    issuers: list[str]
    guarantee: str
    method: str
    reproducibility: dict[str, Any]
    digests: dict[str, str]
    keys: dict[str, str]
    requests: list[Request]
    shards: list[Shard]
    closure: list[Entry]
    start: list[Start]
    steps: dict[str, int]
    model: dict[str, str]
    withdrawn: list[str]
    privacy: list[dict[str, str]] = field(default_factory=list)
    cost: dict[str, str] = field(default_factory=dict)
    timings: dict[str, str] = field(default_factory=dict)
    checks: dict[str, str] = field(default_factory=dict)
    noise: str = "none"
    participation: str = "recorded"


@dataclass(frozen=True)
class Publication:
    """Where a certificate stands in the log, and its log on the public chain.

    Attributes
    ----------
    certificate
        SHA-256 of the statement.
    selection
        REGISTER, RUN_MANIFEST, UNLEARN_* and MODEL_REVOKED events of this removal, each with an inclusion proof.
    checkpoint
        Of the log of the proofs, with cosignatures of witnesses.
    chain, receipt
        The public chain and the anchor's receipt, as in :class:`ledger.heads.AnchorStore`; empty where there is none.
    """

    certificate: str
    selection: Selection
    checkpoint: str
    chain: dict[str, Any] = field(default_factory=dict)
    receipt: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Certificate:
    """A certificate taken apart; no signature is checked yet.

    Attributes
    ----------
    statement
        The signed bytes.
    removal
        What they say.
    signatures
        One envelope for each signature, as :func:`ledger.dsse.verify` takes it.
    publication
        The coordinator's envelope, and what it holds.
    """

    statement: bytes
    removal: Removal
    signatures: list[dsse.Envelope]
    publication: tuple[dsse.Envelope, Publication] | None

    @property
    def digest(self) -> str:
        """SHA-256 of the statement: what UNLEARN_EXEC and UNLEARN_ATTEST name."""
        return sha256_hex(self.statement)


def removed_digest(removed: Iterable[Removed]) -> str:
    """What an UNLEARN_REQUEST event says in place of the commitments: SHA-256 of their canonical JSON."""
    return sha256_hex(canonical_json([asdict(entry) for entry in removed]))


def build(removal: Removal, signers: Sequence[Identity]) -> bytes:
    """Make a certificate that is not logged yet.

    Parameters
    ----------
    removal
        What was done.
    signers
        The issuers; others can sign later (:func:`counter_sign`).

    Returns
    -------
    bytes
        The certificate. The same removal and signers make the same bytes.

    Raises
    ------
    LedgerError
        A value that JSON cannot hold (a float), no signer, one twice, or a certificate that is too large.
    """
    statement = statement_of(removal)
    if not signers or len({identity.key_id for identity in signers}) != len(signers):
        raise LedgerError("certificate: needs at least one signer, and none twice")
    envelope = dsse.sign(statement, PAYLOAD_TYPE, signers[0])
    for identity in signers[1:]:
        envelope["signatures"] += dsse.sign(statement, PAYLOAD_TYPE, identity)["signatures"]
    return _encode(envelope, None)


def counter_sign(data: bytes, identity: Identity) -> bytes:
    """Add a signature over the same statement; whoever signed already is not added twice.

    Raises
    ------
    LedgerError
        The certificate is malformed. Its content is **not** checked: that is for the signer to do first.
    """
    certificate = parse(data)
    content = parse_canonical(data)
    present = {envelope["signatures"][0]["keyid"] for envelope in certificate.signatures}
    if identity.key_id not in present:
        content["envelope"]["signatures"] += dsse.sign(certificate.statement, PAYLOAD_TYPE, identity)["signatures"]
    return _encode(content["envelope"], content["publication"])


def publish(
    data: bytes,
    coordinator: Identity,
    selection: Selection,
    checkpoint: str,
    chain: Mapping[str, Any] | None = None,
    receipt: Mapping[str, Any] | None = None,
) -> bytes:
    """The certificate with its place in the log; an older one is replaced. Raises LedgerError if it is malformed."""
    content = {
        "certificate": parse(data).digest,
        "chain": dict(chain or {}),
        "checkpoint": checkpoint,
        "receipt": dict(receipt or {}),
        "selection": selection.to_dict(),
    }
    envelope = dsse.sign(canonical_json(content), PUBLICATION_TYPE, coordinator)
    return _encode(parse_canonical(data)["envelope"], envelope)


def statement_of(removal: Removal) -> bytes:
    """The in-toto statement, in canonical JSON. Raises LedgerError on a value that JSON cannot hold."""
    subject: list[dict[str, Any]] = [{"name": "model", "digest": {"sha256": removal.model["new"]}}]
    subject += [
        {"name": f"{entry.kind} {entry.name}", "digest": {"sha256": entry.new}}
        for entry in removal.closure
        if entry.new is not None and entry.kind not in ("model", "shard")
    ]
    return canonical_json(
        {
            "_type": STATEMENT_TYPE,
            "predicate": asdict(removal),
            "predicateType": PREDICATE_TYPE,
            "subject": subject,
        }
    )


def is_certificate(data: bytes) -> bool:
    """Whether a file looks like a certificate, by its first bytes."""
    return data.startswith(b'{"envelope":{"payload":')


def parse(data: bytes) -> Certificate:
    """Take a certificate apart, strictly; nothing that it says is checked, nor any signature.

    Raises
    ------
    LedgerError
        Too large, not in canonical form, or not of this format.
    """
    if len(data) > MAX_BYTES:
        raise LedgerError(f"certificate: is larger than {MAX_BYTES} bytes")
    content = fields(parse_canonical(data), {"envelope": DICT, "format": STR, "publication": "dict?"}, "certificate")
    if content["format"] != FORMAT:
        raise LedgerError(f"certificate: is of format {content['format'][:80]!r}, not {FORMAT!r}")
    signatures = _single(content["envelope"])
    statement = dsse.payload_of(signatures[0])[0]
    if signatures[0]["payloadType"] != PAYLOAD_TYPE:
        raise LedgerError(f"certificate: payload type is not {PAYLOAD_TYPE!r}")
    removal = _read_statement(statement)
    publication = None
    if content["publication"] is not None:
        publication = (content["publication"], _read_publication(content["publication"]))
    return Certificate(statement, removal, signatures, publication)


def _encode(envelope: dsse.Envelope, publication: dsse.Envelope | None) -> bytes:
    envelope["signatures"].sort(key=lambda signature: signature["keyid"])
    data = canonical_json({"envelope": envelope, "format": FORMAT, "publication": publication})
    if len(data) > MAX_BYTES:
        raise LedgerError(f"certificate: {len(data)} bytes; a certificate may have {MAX_BYTES}: split the batch")
    return data


def _single(envelope: dict[str, Any]) -> list[dsse.Envelope]:
    """One envelope for each signature, in order of key ids, none twice."""
    fields(envelope, {"payload": STR, "payloadType": STR, "signatures": LIST}, "certificate: envelope")
    lines = rows(envelope["signatures"], {"keyid": STR, "sig": STR}, "certificate: signatures")
    if not 0 < len(lines) <= MAX_SIGNATURES:
        raise LedgerError(f"certificate: needs 1 to {MAX_SIGNATURES} signatures, not {len(lines)}")
    ids = [line["keyid"] for line in lines]
    if ids != sorted(set(ids)):
        raise LedgerError("certificate: signatures are not in order of key ids, or one occurs twice")
    return [{**envelope, "signatures": [line]} for line in lines]


_PREDICATE = {
    "run": STR, "issuers": LIST, "guarantee": STR, "method": STR, "reproducibility": DICT, "digests": DICT,
    "keys": DICT, "requests": LIST, "shards": LIST, "closure": LIST, "start": LIST, "steps": DICT, "model": DICT,
    "withdrawn": LIST, "privacy": LIST, "cost": DICT, "timings": DICT, "checks": DICT, "noise": STR,
    "participation": STR,
}  # fmt: skip
_REQUEST = {"request": DIGEST, "organization": STR, "scope": STR, "removed": LIST}
_REMOVED = {"cohort": STR, "split": STR, "commitments": LIST}
_SHARD = {
    "organization": STR, "cohort": STR, "split": STR, "old_root": DIGEST, "new_root": DIGEST, "round": INT,
    "proof": STR,
}  # fmt: skip
_ENTRY = {"kind": STR, "name": STR, "old": DIGEST, "new": "digest?"}
_START = {"cohort": STR, "round": INT, "digest": DIGEST}
_PRIVACY = {"organization": STR, "epsilon_before": STR, "epsilon_after": STR, "delta": STR}


def _read_statement(data: bytes) -> Removal:
    kinds = {"_type": STR, "predicate": DICT, "predicateType": STR, "subject": LIST}
    content = fields(parse_canonical(data), kinds, "statement")
    if (content["_type"], content["predicateType"]) != (STATEMENT_TYPE, PREDICATE_TYPE):
        raise LedgerError(f"statement: is not an in-toto Statement v1 of {PREDICATE_TYPE}")
    said = fields(content["predicate"], _PREDICATE, "predicate")
    requests = [
        Request(**{**row, "removed": [Removed(**entry) for entry in rows(row["removed"], _REMOVED, "removed")]})
        for row in rows(said["requests"], _REQUEST, "requests")
    ]
    fields(said["reproducibility"], {"class": STR, "environments": DICT}, "reproducibility")
    fields(said["steps"], {"replayed": INT, "total": INT}, "steps")
    fields(said["model"], {"old": DIGEST, "new": DIGEST}, "model")
    rows(said["privacy"], _PRIVACY, "privacy")
    removal = Removal(
        **{
            **said,
            "requests": requests,
            "shards": [Shard(**row) for row in rows(said["shards"], _SHARD, "shards")],
            "closure": [Entry(**row) for row in rows(said["closure"], _ENTRY, "closure")],
            "start": [Start(**row) for row in rows(said["start"], _START, "start")],
        }
    )
    if statement_of(removal) != data:
        raise LedgerError("statement: its subjects are not the new model and the recomputed artifacts of its closure")
    return removal


def _read_publication(envelope: dsse.Envelope) -> Publication:
    payload, kind, _, _ = dsse.payload_of(envelope)
    if kind != PUBLICATION_TYPE:
        raise LedgerError(f"publication: payload type is not {PUBLICATION_TYPE!r}")
    said = fields(
        parse_canonical(payload),
        {"certificate": DIGEST, "chain": DICT, "checkpoint": STR, "receipt": DICT, "selection": DICT},
        "publication",
    )
    try:
        selection = parse_selection(canonical_json(said["selection"]))
    except LedgerError as error:
        raise LedgerError(f"publication: selection: {error}") from None
    return Publication(**{**said, "selection": selection})
