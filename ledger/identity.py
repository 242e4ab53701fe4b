"""Ed25519 identities: one private key an organization, in a file that only its owner can read."""

import contextlib
import os
import re
import secrets
import stat
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ledger.canonical import fsync_directory, sha256_hex
from ledger.errors import LedgerError

COORDINATOR = "coordinator"
"""Name of the identity that runs rounds, signs tree heads and seals."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


def check_name(name: object) -> str:
    """Return ``name`` if it is a valid organization name, else raise LedgerError."""
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        raise LedgerError(
            f"organization name {name!r}: use 1 to 64 letters, digits, '_', '.', '-'; start with a letter or digit"
        )
    return name


def key_id_of(public_hex: str) -> str:
    """Key id of a public key: SHA-256 of its 32 raw bytes, in hex."""
    return sha256_hex(bytes.fromhex(public_hex))


@dataclass(frozen=True)
class Identity:
    """A named Ed25519 key pair. The private key is never shown, and cannot be pickled.

    Attributes
    ----------
    name
        The organization.
    """

    name: str
    _private: Ed25519PrivateKey = field(repr=False, compare=False)

    @cached_property
    def public_hex(self) -> str:
        """The raw public key, 64 hex digits."""
        raw = self._private.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        return raw.hex()

    @cached_property
    def key_id(self) -> str:
        """SHA-256 of the raw public key, 64 hex digits."""
        return key_id_of(self.public_hex)

    def sign(self, payload: bytes) -> bytes:
        """Ed25519 signature of ``payload``, 64 bytes (RFC 8032: the same bytes give the same signature)."""
        return self._private.sign(payload)


def load_or_create(name: str, directory: str | Path) -> Identity:
    """Load the key of ``name``, making it first if there is none.

    Two processes that race get the same key: the file appears whole, under its name, exactly once.

    Parameters
    ----------
    name
        Organization; see :func:`check_name`.
    directory
        Where ``<name>.pem`` lies; made with mode 0700 if missing. The file gets mode 0600.

    Raises
    ------
    LedgerError
        As :func:`load`, or the file cannot be written.
    """
    path = _key_path(name, directory)
    if not path.is_symlink() and not path.exists():
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _create(path)
        except OSError as error:
            raise LedgerError(f"{path}: the key cannot be written: {error.strerror}") from None
    return load(name, directory)


def _create(path: Path) -> None:
    pem = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())
        # A link fails where the name exists: the first process wins, the others load its key.
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        os.unlink(temporary)
    fsync_directory(path.parent)


def load(name: str, directory: str | Path) -> Identity:
    """Load the key of ``name`` from ``<directory>/<name>.pem``.

    Raises
    ------
    LedgerError
        No such file, a symbolic link, a file that others can read, or no Ed25519 key in it.
    """
    path = _key_path(name, directory)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise LedgerError(f"{path}: {name} has no key here; register it first, or point to its key folder") from None
    except OSError as error:
        if path.is_symlink():
            raise LedgerError(f"{path}: is a symbolic link; put the key file itself there") from None
        raise LedgerError(f"{path}: the key cannot be read: {error.strerror}") from None
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise LedgerError(f"{path}: is not a regular file")
        if mode & 0o077:
            raise LedgerError(
                f"{path}: others can read this private key (mode {stat.S_IMODE(mode):04o}); run: chmod 600 {path}"
            )
        pem = os.read(descriptor, 65536)
    finally:
        os.close(descriptor)
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as error:
        raise LedgerError(f"{path}: holds no readable private key: {error}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise LedgerError(f"{path}: holds a {type(key).__name__}, not an Ed25519 key")
    return Identity(name, key)


def _key_path(name: str, directory: str | Path) -> Path:
    return Path(directory) / f"{check_name(name)}.pem"


def public_document(identity: Identity) -> dict[str, str]:
    """What the run publishes of an identity, as ``identities/<name>.json`` in canonical JSON."""
    return {
        "algorithm": "ed25519",
        "key_id": identity.key_id,
        "organization": identity.name,
        "public_key": identity.public_hex,
    }
