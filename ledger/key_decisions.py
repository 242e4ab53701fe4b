"""Files in which organizations collect their approvals before a lost or stolen key is revoked, or a new one admitted.

Canonical JSON of ``{"admission", "approvals", "decision", "format"}``: the decision as it is signed
(:func:`ledger.key_events.decision`), the approvals so far, and for an admission (else null) what the organization
itself says: the document of its new key, the proof of possession, and the REGISTER event that follows.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ledger import key_events
from ledger.canonical import canonical_json, parse_canonical, sha256_hex, write_atomic
from ledger.dsse import Envelope
from ledger.errors import LedgerError
from ledger.events import KEY_ADMITTED, KEY_REVOKED, REGISTER, make_event
from ledger.identity import COORDINATOR, Identity, public_document
from ledger.registry import Registry
from ledger.shape import DICT, DIGEST, LIST, STR, fields, rows

FORMAT = "trustchain-key-decision-1"

_DECISION = {"key_id": DIGEST, "new_key_id": STR, "organization": STR, "reason": STR, "run": STR}
_ADMISSION = {"document": DICT, "possession": STR, "register": DICT}


@dataclass(frozen=True)
class KeyDecision:
    """A decision on its way.

    Attributes
    ----------
    decision
        Of :func:`ledger.key_events.decision`.
    approvals
        Of :func:`ledger.key_events.approve`.
    admission
        ``document``, ``possession`` and ``register`` of the new key; None: a revocation.
    """

    decision: Mapping[str, str]
    approvals: tuple[Mapping[str, str], ...] = ()
    admission: Mapping[str, Any] | None = None

    def to_bytes(self) -> bytes:
        """Canonical JSON of the file."""
        content = {"admission": self.admission, "approvals": list(self.approvals), "decision": dict(self.decision)}
        return canonical_json({**content, "format": FORMAT})

    def events(self, coordinator: Identity) -> list[Envelope]:
        """What the coordinator logs: KEY_REVOKED, or KEY_ADMITTED and the organization's REGISTER."""
        said, approvals = self.decision, [dict(entry) for entry in self.approvals]
        body: dict[str, Any] = {"organization": said["organization"], "reason": said["reason"], "approvals": approvals}
        if self.admission is None:
            return [make_event(coordinator, said["run"], KEY_REVOKED, {**body, "key_id": said["key_id"]})]
        body |= {
            "replaces": said["key_id"],
            "key_id": said["new_key_id"],
            "public_key": self.admission["document"]["public_key"],
            "possession": self.admission["possession"],
        }
        return [make_event(coordinator, said["run"], KEY_ADMITTED, body), self.admission["register"]]


def propose_revocation(registry: Registry, organization: str, reason: str) -> KeyDecision:
    """Propose to revoke the key of an organization that is in force. Raises LedgerError where there is none."""
    _check_concerned(registry, organization)
    if organization in registry.revoked:
        raise LedgerError(f"run {registry.run!r}: the key of {organization} is revoked already")
    key_id = registry.organizations[organization]
    return KeyDecision(key_events.decision(registry.run or "", organization, key_id, reason))


def propose_admission(registry: Registry, new: Identity, reason: str) -> KeyDecision:
    """Propose the new key of an organization whose old one was revoked; the organization itself does it.

    Raises
    ------
    LedgerError
        Its key was not revoked, or the new key was in the run before.
    """
    _check_concerned(registry, new.name)
    if new.name not in registry.revoked:
        raise LedgerError(f"run {registry.run!r}: the key of {new.name} is not revoked; a rotation needs no approvals")
    if new.key_id in registry.keys:
        raise LedgerError(f"key {new.key_id[:16]} was in the run before; make one: trustchain keys rotate {new.name}")
    run, replaces = registry.run or "", registry.organizations[new.name]
    document = public_document(new)
    body = {name: document[name] for name in ("key_id", "organization", "public_key")}
    register = make_event(new, run, REGISTER, {**body, "document": sha256_hex(canonical_json(document))})
    admission = {
        "document": document, "possession": key_events.possession(new, run, replaces), "register": register,
    }  # fmt: skip
    return KeyDecision(key_events.decision(run, new.name, replaces, reason, new.key_id), (), admission)


def approve(decision: KeyDecision, identity: Identity) -> KeyDecision:
    """Add an organization's approval. Raises LedgerError where its approval cannot count."""
    if identity.name in (decision.decision["organization"], COORDINATOR):
        raise LedgerError(f"{identity.name} does not approve this: other organizations of the run do")
    kept = [entry for entry in decision.approvals if entry["keyid"] != identity.key_id]
    entries = [*kept, key_events.approve(identity, decision.decision)]
    return replace(decision, approvals=tuple(sorted(entries, key=lambda entry: entry["keyid"])))


def read_decision(path: str | Path) -> KeyDecision:
    """Read a file of :func:`write_decision`; no signature is checked. Raises LedgerError."""
    try:
        content = parse_canonical(Path(path).read_bytes().strip())
        said = fields(content, {"admission": "dict?", "approvals": LIST, "decision": DICT, "format": STR}, "decision")
        if said["format"] != FORMAT:
            raise LedgerError(f"is of format {said['format'][:80]!r}, not {FORMAT!r}")
        decision = fields(said["decision"], _DECISION, "decision")
        if (said["admission"] is None) != (decision["new_key_id"] == ""):
            raise LedgerError("an admission names its new key, a revocation names none")
        if said["admission"] is not None:
            document = fields(said["admission"], _ADMISSION, "admission")["document"]
            if document.get("key_id") != decision["new_key_id"]:
                raise LedgerError("admission: the document is of another key than the decision")
        approvals = rows(said["approvals"], {"keyid": DIGEST, "sig": STR}, "approvals")
    except OSError as error:
        raise LedgerError(f"{path}: cannot be read: {error.strerror}") from None
    except LedgerError as error:
        raise LedgerError(f"{path}: {error}") from None
    return KeyDecision(decision, tuple(approvals), said["admission"])


def write_decision(decision: KeyDecision, path: str | Path) -> None:
    """Write the file whole. Raises LedgerError."""
    write_atomic(path, decision.to_bytes() + b"\n")


def _check_concerned(registry: Registry, organization: str) -> None:
    if organization == COORDINATOR or organization not in registry.organizations:
        known = ", ".join(sorted(name for name in registry.organizations if name != COORDINATOR))
        raise LedgerError(f"run {registry.run!r}: has no organization {organization!r}; there are {known}")
