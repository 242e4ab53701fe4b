"""Keys that the verifying person knows from elsewhere."""

import json
from pathlib import Path

from ledger.audit import Audit, Fault, Skip
from ledger.canonical import is_digest, refuse_deep
from ledger.consortium import is_consortium, parse
from ledger.errors import LedgerError
from ledger.identity import COORDINATOR, check_name
from ledger.identity_document import read_identity
from ledger.layout import LOG


def check_keys(audit: Audit) -> str:
    """The keys of the run are those that the verifying person knows."""
    trust = audit.options.trust
    if audit.registry.revoked:
        audit.notes.append(f"the keys of {', '.join(audit.registry.revoked)}: revoked, and no other ones admitted")
    if trust is None:
        raise Skip("they are the run's own claim; name those that you know from elsewhere with --trust")
    known = audit.organizations or audit.documents
    if not known:
        raise Skip("no key of the run is here to compare; yours are used")
    rotated: list[str] = []
    for name, key in sorted(trust.items()):
        if name not in known:
            continue
        lineage = audit.lineage(name)
        if key not in lineage:
            raise Fault(LOG, f"the run shows another key of {name} than the one that you trust{_revoked(audit, name)}")
        if key != lineage[-1]:
            rotated.append(name)
    if COORDINATOR not in trust:
        audit.notes.append(f"the key of the {COORDINATOR}: it is the run's own claim, and signs checkpoints and seal")
    claimed = sorted(set(known) - {*trust, COORDINATOR})
    if claimed:
        audit.notes.append(f"the keys of {', '.join(claimed)}: they are the run's own claim")
    pinned = sorted(set(known) & set(trust))
    if not pinned:
        raise Fault(LOG, f"the run has no key of {', '.join(sorted(trust)) or 'anybody that you trust'}")
    shown = f"; rotated since, signed by the key that you trust: {', '.join(rotated)}" if rotated else ""
    return f"{len(pinned)} keys are those that you trust: {', '.join(pinned)}{shown}"


def _revoked(audit: Audit, organization: str) -> str:
    """For a message: where others revoked a key of an organization, and admitted another."""
    places = audit.registry.revoked_at(organization)
    return f": event {places[-1]} revoked one, and others admitted the new one" if places else ""


def read_trust(path: str | Path) -> dict[str, str]:
    """Read keys that somebody trusts.

    Parameters
    ----------
    path
        A folder of identity documents as a run publishes them (``<organization>.json``), one such document, the
        document of a consortium (:mod:`ledger.consortium`), whose version in force counts, or a JSON table of public
        keys in hex by organization.

    Returns
    -------
    dict
        Public keys in hex by organization.

    Raises
    ------
    LedgerError
        It cannot be read, is none of these, or names nobody.
    """
    path = Path(path)
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    keys: dict[str, str] = {}
    for file in files:
        try:
            found = _keys_in(file.read_bytes())
        except OSError as error:
            raise LedgerError(f"{file}: cannot be read: {error.strerror}") from None
        except (LedgerError, ValueError) as error:
            raise LedgerError(f"{file}: names no keys: {error}") from None
        for name, key in found.items():
            if keys.setdefault(name, key) != key:
                raise LedgerError(f"{file}: names another key of {name} than a file before it")
    if not keys:
        raise LedgerError(f"{path}: names no keys; put identity documents there, or a table of public keys")
    return keys


def _keys_in(data: bytes) -> dict[str, str]:
    refuse_deep(data)
    content = json.loads(data)
    if is_consortium(content):
        return parse(data).force.keys
    if isinstance(content, dict) and "public_key" in content:
        document = read_identity(data.strip())
        return {document["organization"]: document["public_key"]}
    if not isinstance(content, dict) or not all(is_digest(key) for key in content.values()):
        raise LedgerError("needs an identity or consortium document, or public keys (64 hex digits) by organization")
    return {check_name(name): key for name, key in content.items()}
