"""Commitments to records: what may leave an organization in place of a record.

Format
------
``commitment = HMAC-SHA256(salt, "trustchain.record.v1\\n" || canonical JSON of the record)``, 64 hex digits.
The salt is 32 bytes of the operating system's generator, one for each record, kept by the organization outside the run
(:mod:`ledger.salts`). With salt and record anybody can check it; without the salt nobody can tell it from random bytes,
however few records are possible. Destroying the salt therefore turns every copy of the commitment, on whatever chain,
into noise.

Two organizations that hold the same record have different salts for it, so that their commitments cannot be compared.
For that, a request to forget carries **content tags**:
``tag = HMAC-SHA256(request key, "trustchain.content.v1\\n" || canonical JSON of the content)``.
The request key is 32 fresh bytes for each request, and goes with it to the organizations that must look, never to the
log or to a chain. Who reads the log can therefore test no guess, and the tags of two requests cannot be linked. An
organization that gets the request compares them with its own records. It can also test guesses: that is not avoidable
where it must find out by itself whether it holds the record. The holder should send tags only to organizations that are
bound to erase what they find.
"""

import hashlib
import hmac
import secrets
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

from ledger.canonical import canonical_json, is_digest
from ledger.errors import LedgerError

RECORD_TAG = b"trustchain.record.v1\n"
CONTENT_TAG = b"trustchain.content.v1\n"
"""Domain tags: a commitment can be taken for no content tag, nor for another hash."""

SALT_BYTES = 32
"""One length only: HMAC pads shorter keys with zeros, so that two salts could make the same commitment."""

Record = Mapping[str, Any]
"""A record as JSON: strings, integers, lists of them; floats are written as strings."""


def fresh_salt() -> bytes:
    """A new salt or request key: 32 bytes of the operating system's generator."""
    return secrets.token_bytes(SALT_BYTES)


def commit(salt: bytes, record: Record) -> str:
    """Commit to a record.

    Parameters
    ----------
    salt
        32 bytes, of :func:`fresh_salt`.
    record
        Everything that training can read of it.

    Returns
    -------
    str
        64 hex digits. Hiding while the salt is secret, binding by the collision resistance of SHA-256.

    Raises
    ------
    LedgerError
        The salt has another length, or the record is not canonical JSON.
    """
    return _keyed(salt, RECORD_TAG, dict(record))


def opens(commitment: str, salt: bytes, record: Record) -> bool:
    """Whether ``commitment`` is that of ``record`` under ``salt``. Raises LedgerError as :func:`commit`."""
    return is_digest(commitment) and hmac.compare_digest(commit(salt, record), commitment)


def content_tag(key: bytes, content: Mapping[str, str]) -> str:
    """Tag under which another organization finds the same content.

    Parameters
    ----------
    key
        Request key, 32 bytes, of :func:`fresh_salt`; never used for a second request.
    content
        Text fields without the record's id and subject, which differ between organizations. Spelling that readers do
        not see is evened out: Unicode NFC, runs of white space as one blank, none at the ends.

    Returns
    -------
    str
        64 hex digits.

    Raises
    ------
    LedgerError
        The key has another length, or a field is not a string.
    """
    if not all(isinstance(text, str) for text in content.values()):
        raise LedgerError("content tag: every field of the content must be a string")
    even = {name: " ".join(unicodedata.normalize("NFC", text).split()) for name, text in content.items()}
    return _keyed(key, CONTENT_TAG, even)


def find_content(key: bytes, tags: Iterable[str], holdings: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Ids of own records whose content another organization's request names.

    Parameters
    ----------
    key, tags
        Of the request.
    holdings
        Content by record id, with the same fields as the requester's.

    Returns
    -------
    list of str
        Sorted.

    Raises
    ------
    LedgerError
        As :func:`content_tag`.
    """
    wanted = frozenset(tags)
    return sorted(name for name, content in holdings.items() if content_tag(key, content) in wanted)


def _keyed(key: bytes, tag: bytes, value: dict[str, Any]) -> str:
    if len(key) != SALT_BYTES:
        raise LedgerError(f"commitment: the key has {len(key)} bytes, not {SALT_BYTES}")
    return hmac.new(key, tag + canonical_json(value), hashlib.sha256).hexdigest()
