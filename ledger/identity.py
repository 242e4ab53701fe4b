"""Ed25519 identities: one private key an organization, in a file that only its owner can read.

A key file is PKCS #8 in PEM, encrypted where the environment variable :data:`PASSPHRASE` was set when it was written.
What rotates and protects key files is in :mod:`ledger.key_files`.
"""

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

PASSPHRASE = "TRUSTCHAIN_KEY_PASSPHRASE"
"""Environment variable with the passphrase of key files; read where a file is read or written, and kept nowhere."""

KEY_ID_DIGITS = 16
"""So much of a key id stands in the name of a retired key's file."""

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
        Where ``<name>.pem`` lies; made with mode 0700 if missing. The file gets mode 0600, and is encrypted where
        :data:`PASSPHRASE` is set.

    Raises
    ------
    LedgerError
        As :func:`load`, or the file cannot be written.
    """
    path = key_path(name, directory)
    if not path.is_symlink() and not path.exists():
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _create(path)
        except OSError as error:
            raise LedgerError(f"{path}: the key cannot be written: {error.strerror}") from None
    return load(name, directory)


def _create(path: Path) -> None:
    pem = encode_key(Ed25519PrivateKey.generate(), passphrase())
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


def load(name: str, directory: str | Path, key_id: str | None = None) -> Identity:
    """Load the key of ``name`` from ``<directory>/<name>.pem``.

    Parameters
    ----------
    name, directory
        As of :func:`load_or_create`.
    key_id
        Take this key, also where it was retired since (``<name>.<key id>.retired.pem``).

    Raises
    ------
    LedgerError
        No such file, a symbolic link, a file that others can read, no Ed25519 key in it, a passphrase that is missing
        or wrong, or no key with that id.
    """
    path = key_path(name, directory)
    if key_id is not None and os.path.lexists(retired_path(name, directory, key_id)):
        path = retired_path(name, directory, key_id)
    identity = Identity(name, read_key(path))
    if key_id is not None and identity.key_id != key_id:
        raise LedgerError(
            f"{path}: is key {identity.key_id[:16]} of {name}; the key {key_id[:16]}, which is needed, is neither here "
            "nor among the retired ones; restore its file, or point to the right key folder"
        )
    return identity


def read_key(path: Path) -> Ed25519PrivateKey:
    """Private key of a file. Raises LedgerError as :func:`load`."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        name = path.stem
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
    key = _decode_key(path, pem)
    if not isinstance(key, Ed25519PrivateKey):
        raise LedgerError(f"{path}: holds a {type(key).__name__}, not an Ed25519 key")
    return key


def is_protected(pem: bytes) -> bool:
    """Whether a key file is encrypted."""
    return b"-----BEGIN ENCRYPTED PRIVATE KEY-----" in pem


def _decode_key(path: Path, pem: bytes) -> object:
    secret = passphrase() if is_protected(pem) else None
    if is_protected(pem) and secret is None:
        raise LedgerError(f"{path}: this key is protected by a passphrase; set {PASSPHRASE} in the environment")
    try:
        return serialization.load_pem_private_key(pem, password=secret)
    except (ValueError, TypeError) as error:
        if secret is not None:
            raise LedgerError(f"{path}: {PASSPHRASE} is not its passphrase, or the file is damaged") from None
        raise LedgerError(f"{path}: holds no readable private key: {error}") from None


def encode_key(key: Ed25519PrivateKey, secret: bytes | None) -> bytes:
    """PKCS #8 in PEM of a private key, encrypted where there is a passphrase."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(secret) if secret else serialization.NoEncryption(),
    )


def passphrase() -> bytes | None:
    """What :data:`PASSPHRASE` holds; None where it is unset or empty."""
    return os.fsencode(os.environ.get(PASSPHRASE, "")) or None


def retired_path(name: str, directory: str | Path, key_id: str) -> Path:
    """File of a retired key of ``name``. Raises LedgerError as :func:`key_path`."""
    return key_path(name, directory).with_name(f"{name}.{key_id[:KEY_ID_DIGITS]}.retired.pem")


def key_path(name: str, directory: str | Path) -> Path:
    """File of the key of ``name``. Raises LedgerError where it is no name of an organization that has a key."""
    if check_name(name).endswith(".retired"):
        raise LedgerError(f"organization name {name!r}: files of that ending are those of retired keys; choose another")
    return Path(directory) / f"{name}.pem"


def public_document(identity: Identity) -> dict[str, str]:
    """What the run publishes of an identity, as ``identities/<name>.json`` in canonical JSON."""
    return {
        "algorithm": "ed25519",
        "key_id": identity.key_id,
        "organization": identity.name,
        "public_key": identity.public_hex,
    }
