"""Identity documents: what a run publishes of an organization's key, and of those that it had before.

``identities/<name>.json`` in canonical JSON: ``algorithm``, ``key_id``, ``organization``, ``public_key``; after a
rotation ``rotations`` besides, oldest first: each the ``public_key`` before it and the KEY_ROTATION ``event`` that this
key signed.
So the document alone leads from a key that somebody knows to the one in force.
"""

from collections.abc import Mapping
from typing import Any

from ledger import key_events
from ledger.canonical import is_digest, parse_canonical
from ledger.dsse import Envelope
from ledger.errors import LedgerError
from ledger.events import KEY_ROTATION, read_event
from ledger.identity import check_name, key_id_of
from ledger.shape import DICT, DIGEST, rows

_FIELDS = {"algorithm", "key_id", "organization", "public_key"}


def rotated_document(before: Mapping[str, Any], event: Envelope) -> dict[str, Any]:
    """The document of an organization after a rotation.

    Parameters
    ----------
    before
        Its document so far.
    event
        KEY_ROTATION, signed with the key of ``before``.

    Raises
    ------
    LedgerError
        The event is no rotation of that key.
    """
    body = _body_of({"public_key": before["public_key"], "event": event}, before["organization"])
    return {
        "algorithm": "ed25519",
        "key_id": body["key_id"],
        "organization": before["organization"],
        "public_key": body["public_key"],
        "rotations": [*before.get("rotations", []), {"event": event, "public_key": before["public_key"]}],
    }


def read_identity(data: bytes, organization: str | None = None) -> dict[str, Any]:
    """Read an identity document that agrees with itself, its rotations included.

    Parameters
    ----------
    data
        Canonical JSON.
    organization
        Whose it must be; None: anybody's.

    Raises
    ------
    LedgerError
        It is malformed, of another organization, or a rotation does not lead from one key to the next.
    """
    document = parse_canonical(data)
    if not isinstance(document, dict) or document.keys() - {"rotations"} != _FIELDS:
        raise LedgerError("needs exactly algorithm, key_id, organization and public_key, and rotations where there are")
    if document["algorithm"] != "ed25519" or document["organization"] != (organization or document["organization"]):
        raise LedgerError(f"is not the Ed25519 document of {organization or 'an organization'}")
    check_name(document["organization"])
    if not is_digest(document["public_key"]) or document["key_id"] != key_id_of(document["public_key"]):
        raise LedgerError("key_id is not the digest of public_key")
    keys = lineage_of(document)
    if keys[-1] != document["public_key"] or len(set(keys)) != len(keys):
        raise LedgerError("rotations do not lead to public_key, or name a key twice")
    return document


def lineage_of(document: Mapping[str, Any]) -> list[str]:
    """Public keys in hex of a document, oldest first; each rotation is checked. Raises LedgerError."""
    entries = rows(document.get("rotations", []), {"event": DICT, "public_key": DIGEST}, "rotations")
    keys = [entry["public_key"] for entry in entries] + [document["public_key"]]
    for entry, following in zip(entries, keys[1:], strict=True):
        if _body_of(entry, document["organization"])["public_key"] != following:
            raise LedgerError(f"rotations: the key after {entry['public_key'][:16]} is not the one that it signed")
    return keys


def _body_of(entry: Mapping[str, Any], organization: str) -> dict[str, Any]:
    key_id = key_id_of(entry["public_key"])
    event = read_event(entry["event"], {key_id: entry["public_key"]})
    if (event.type, event.organization, event.key_id) != (KEY_ROTATION, organization, key_id):
        raise LedgerError(f"rotations: {event.type} of {event.organization} is no rotation of {organization}'s key")
    body = event.body
    key_events.check_possession(
        event.run, organization, key_id, body["key_id"], body["public_key"], body["possession"]
    )
    return body
