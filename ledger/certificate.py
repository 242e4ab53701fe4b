"""Certificates of removal: an in-toto statement in a DSSE envelope, and its place in the log.

Format
------
A certificate is the canonical JSON of ``{"envelope", "format", "publication"}``.

``envelope``: DSSE, payload type ``application/vnd.in-toto+json``. The payload is the canonical JSON of an in-toto
Statement v1 (:mod:`ledger.removal`); its subjects are the new model and the recomputed artifacts. Signed by every
issuer; organizations that re-executed the removal add signatures over the same payload (:func:`counter_sign`), so that
any in-toto tool reads them all.

``publication`` (null before it is logged): an envelope of the coordinator over what only exists after the statement was
signed: the digest of the statement, events of the log with inclusion proofs, the checkpoint of their log, and the
public chain's receipt. So each byte of the file is under a signature.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ledger import dsse
from ledger.canonical import canonical_json, parse_canonical, sha256_hex
from ledger.errors import LedgerError
from ledger.identity import Identity
from ledger.removal import Removal, read_statement, statement_of
from ledger.shape import DICT, DIGEST, LIST, STR, fields, rows
from ledger.verify_events import Selection, parse_selection

FORMAT = "trustchain-certificate-1"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
PUBLICATION_TYPE = "application/vnd.trustchain.publication+json"

MAX_BYTES = 1 << 26
"""Largest certificate that is read, 64 MiB."""
MAX_SIGNATURES = 100

@dataclass(frozen=True)
class Publication:
    """Where a certificate stands in the log, and its log on the public chain.

    Attributes
    ----------
    certificate
        SHA-256 of the statement.
    selection
        REGISTER, KEY_*, RUN_MANIFEST, UNLEARN_* and MODEL_REVOKED events of this removal, each with an inclusion proof.
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


def is_certificate(data: bytes) -> bool:
    """Whether a file looks like a certificate, by its beginning."""
    head, _, rest = data.partition(b'"format":"')
    return head.startswith(b'{"envelope":{"payload":') and rest.startswith(FORMAT.encode() + b'"')


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
    removal = read_statement(statement)
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
