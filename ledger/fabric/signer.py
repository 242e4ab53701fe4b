"""The client's identity on a channel: a certificate of its MSP, and the ECDSA key that belongs to it."""

import os
import stat
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from ledger.errors import LedgerError
from ledger.fabric import wire

ORDERS = {
    "secp256r1": 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551,
    "secp384r1": int(
        "ffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf581a0db248b0a77aecec196accc52973", 16
    ),
}
"""Order n of the group of every curve that an MSP accepts here (SEC 2, 2.4.2 and 2.5.1)."""


@dataclass(frozen=True)
class Signer:
    """Signs proposals, envelopes and requests. The private key is never shown, and cannot be pickled.

    Attributes
    ----------
    msp
        MSP id.
    identity
        Serialized identity (msp.SerializedIdentity): MSP id and PEM certificate.
    subject
        Subject of the certificate, for messages.
    """

    msp: str
    identity: bytes
    subject: str
    _key: ec.EllipticCurvePrivateKey = field(repr=False, compare=False)

    def sign(self, message: bytes) -> bytes:
        """ECDSA signature over SHA-256, DER, with the smaller of the two values of s.

        Peers refuse a high s as "access denied", and hash with SHA-256 whatever the curve (bccsp, SHA2 family).
        """
        r, s = decode_dss_signature(self._key.sign(message, ec.ECDSA(hashes.SHA256())))
        order = ORDERS[self._key.curve.name]
        return encode_dss_signature(r, min(s, order - s))


def load_signer(msp_dir: str | Path, msp: str) -> Signer:
    """Read an MSP folder of a user, as cryptogen and fabric-ca-client make it.

    Parameters
    ----------
    msp_dir
        Folder with ``signcerts/`` (one certificate) and ``keystore/`` (its key among others).
    msp
        MSP id, which the folder does not tell.

    Raises
    ------
    LedgerError
        A file is missing or unreadable, the certificate is not valid now, no key belongs to it, others can read
        the key, or it is not ECDSA on P-256 or P-384.
    """
    folder = Path(msp_dir)
    certificates = _files(folder / "signcerts")
    if len(certificates) != 1:
        raise LedgerError(f"{folder / 'signcerts'}: needs exactly one certificate, there are {len(certificates)}")
    pem = _bytes(certificates[0])
    try:
        certificate = x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise LedgerError(f"{certificates[0]}: not a PEM certificate: {error}") from None
    now = datetime.now(UTC)
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        raise LedgerError(
            f"{certificates[0]}: valid from {certificate.not_valid_before_utc:%Y-%m-%d} to "
            f"{certificate.not_valid_after_utc:%Y-%m-%d}, not now; enrol again"
        )
    public = certificate.public_key()
    if not isinstance(public, ec.EllipticCurvePublicKey) or public.curve.name not in ORDERS:
        raise LedgerError(f"{certificates[0]}: Fabric identities are ECDSA on P-256 or P-384 here, this is another key")
    for path in _files(folder / "keystore"):
        key = _private_key(path)
        if isinstance(key, ec.EllipticCurvePrivateKey) and key.public_key() == public:
            identity = wire.SerializedIdentity(mspid=msp, id_bytes=pem).SerializeToString()
            return Signer(msp, identity, certificate.subject.rfc4514_string(), key)
    raise LedgerError(f"{folder / 'keystore'}: holds no key that belongs to {certificates[0].name}")


def tls_pair(msp_dir: str | Path) -> tuple[bytes, bytes] | None:
    """Certificate and key for mutual TLS: ``tls/client.{crt,key}`` beside the MSP folder, as cryptogen writes them.

    Returns None where there is no such folder. Raises LedgerError if a file cannot be read, or others can read
    the key.
    """
    folder = Path(msp_dir).parent / "tls"
    if not (folder / "client.crt").exists():
        return None
    _private_key(folder / "client.key")
    return _bytes(folder / "client.crt"), _bytes(folder / "client.key")


def _files(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    except OSError as error:
        raise LedgerError(f"{folder}: cannot be read: {error.strerror}; give a user's MSP folder") from None


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise LedgerError(f"{path}: cannot be read: {error.strerror}") from None


def _private_key(path: Path) -> object:
    """A private key in PEM; what it says stays out of every message."""
    try:
        mode = stat.S_IMODE(os.stat(path).st_mode)
    except OSError as error:
        raise LedgerError(f"{path}: cannot be read: {error.strerror}") from None
    if mode & 0o077:
        raise LedgerError(f"{path}: others can read this private key (mode {mode:04o}); run: chmod 600 {path}")
    try:
        return serialization.load_pem_private_key(_bytes(path), password=None)
    except (ValueError, TypeError):
        raise LedgerError(f"{path}: holds no readable private key (PEM without a password)") from None
