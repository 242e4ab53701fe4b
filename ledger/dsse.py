"""DSSE v1 envelopes (github.com/secure-systems-lab/dsse) with one Ed25519 signature."""

import base64
import binascii
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from ledger.canonical import parse_canonical
from ledger.errors import LedgerError
from ledger.identity import Identity

Envelope = dict[str, Any]


def pae(payload_type: str, payload: bytes) -> bytes:
    """Pre-authentication encoding, the bytes that are signed (DSSE v1, protocol.md)."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def sign(payload: bytes, payload_type: str, identity: Identity) -> Envelope:
    """Wrap ``payload`` in an envelope signed by ``identity``."""
    signature = identity.sign(pae(payload_type, payload))
    return {
        "payload": encode_base64(payload),
        "payloadType": payload_type,
        "signatures": [{"keyid": identity.key_id, "sig": encode_base64(signature)}],
    }


def payload_of(envelope: Envelope) -> tuple[bytes, str, str, bytes]:
    """Take an envelope apart **without** checking its signature.

    Returns
    -------
    tuple
        Payload, payload type, key id, signature.

    Raises
    ------
    LedgerError
        Missing or additional fields, more or fewer signatures than one, base64 that is not canonical.
    """
    if not isinstance(envelope, dict) or envelope.keys() != {"payload", "payloadType", "signatures"}:
        raise LedgerError("envelope: needs exactly payload, payloadType and signatures")
    payload_type, signatures = envelope["payloadType"], envelope["signatures"]
    if not isinstance(payload_type, str):
        raise LedgerError("envelope: payloadType is not a string")
    if not isinstance(signatures, list) or len(signatures) != 1:
        raise LedgerError("envelope: needs exactly one signature")
    signature = signatures[0]
    if not isinstance(signature, dict) or signature.keys() != {"keyid", "sig"}:
        raise LedgerError("envelope: the signature needs exactly keyid and sig")
    if not isinstance(signature["keyid"], str):
        raise LedgerError("envelope: keyid is not a string")
    return (
        decode_base64(envelope["payload"], "payload"),
        payload_type,
        signature["keyid"],
        decode_base64(signature["sig"], "sig"),
    )


_PLAIN = re.compile(
    rb'\{"payload":"([A-Za-z0-9+/=]*)","payloadType":"([A-Za-z0-9.+/-]*)",'
    rb'"signatures":\[\{"keyid":"([0-9a-f]*)","sig":"([A-Za-z0-9+/=]*)"\}\]\}'
)
"""Canonical JSON of an envelope without a character that JSON escapes: every one that :func:`sign` makes."""


def parts_of(data: bytes) -> tuple[bytes, str, str, bytes]:
    """:func:`payload_of` for the canonical JSON of an envelope.

    Raises
    ------
    LedgerError
        As :func:`payload_of`, or it is not canonical JSON.
    """
    match = _PLAIN.fullmatch(data)
    if match is None:
        return payload_of(parse_canonical(data))
    payload, kind, key_id, signature = match.groups()
    return _decode_bytes(payload, "payload"), kind.decode(), key_id.decode(), _decode_bytes(signature, "sig")


def verify(envelope: Envelope, keys: Mapping[str, str]) -> tuple[bytes, str]:
    """Check an envelope.

    Parameters
    ----------
    envelope
        As :func:`sign` makes it.
    keys
        Public keys in hex, by key id.

    Returns
    -------
    tuple
        Payload and the id of the key that signed it.

    Raises
    ------
    LedgerError
        Malformed envelope, unknown key, or a signature that does not hold.
    """
    payload, payload_type, key_id, signature = payload_of(envelope)
    public_hex = keys.get(key_id)
    if public_hex is None:
        raise LedgerError(f"envelope: signed by an unknown key {key_id[:16]!r}; register it first")
    check_signature(public_hex, signature, pae(payload_type, payload))
    return payload, key_id


def check_signature(public_hex: str, signature: bytes, message: bytes) -> None:
    """Raise LedgerError unless ``signature`` is the key's Ed25519 signature of ``message``."""
    try:
        _public_key(public_hex).verify(signature, message)
    except InvalidSignature:
        raise LedgerError("envelope: the signature does not hold: content or signature was changed") from None


@lru_cache(maxsize=4096)
def _public_key(public_hex: str) -> Ed25519PublicKey:
    try:
        return Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_hex))
    except ValueError as error:
        raise LedgerError(f"public key {public_hex[:16]!r}: not an Ed25519 key: {error}") from None


def encode_base64(data: bytes) -> str:
    """Base64, as :func:`decode_base64` takes it."""
    return base64.b64encode(data).decode()


def decode_base64(text: object, what: str) -> bytes:
    """Decode base64; only the one spelling that the encoder writes is accepted. Raises LedgerError naming ``what``."""
    if not isinstance(text, str):
        raise LedgerError(f"envelope: {what} is not a string")
    try:
        return _decode_bytes(text.encode("ascii"), what)
    except UnicodeEncodeError:
        raise LedgerError(f"envelope: {what} is not base64") from None


def _decode_bytes(text: bytes, what: str) -> bytes:
    try:
        data = binascii.a2b_base64(text, strict_mode=True)
    except binascii.Error:
        raise LedgerError(f"envelope: {what} is not base64") from None
    if binascii.b2a_base64(data, newline=False) != text:
        raise LedgerError(f"envelope: {what} is not canonical base64")
    return data
