"""Key files of an organization: rotate a key, keep the retired ones, put a passphrase on them and take it off.

A rotated key lies on as ``<name>.<first 16 digits of its key id>.retired.pem``: what it signed stays checkable with the
public key, but a run that was begun with it can only learn of the new key by a statement that the old one signs.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ledger.canonical import fsync_directory, write_atomic
from ledger.errors import LedgerError
from ledger.identity import (
    KEY_ID_DIGITS,
    PASSPHRASE,
    Identity,
    encode_key,
    is_protected,
    key_path,
    load,
    passphrase,
    read_key,
    retired_path,
)


def rotate(name: str, directory: str | Path) -> tuple[Identity, Identity]:
    """Give an organization a new key; the old one is kept as a retired one.

    Cut short at any point, either the old key is still the key, or the new one is, and the old one is retired.

    Parameters
    ----------
    name, directory
        As of :func:`ledger.identity.load`. The new file is encrypted where the passphrase is set.

    Returns
    -------
    tuple
        The old identity and the new one.

    Raises
    ------
    LedgerError
        As :func:`ledger.identity.load`; the old key is protected and no passphrase would protect the new one; or the
        files cannot be written.
    """
    path = key_path(name, directory)
    with _writing(path):
        old = load(name, directory)
        # The same bytes under a second name: there is no moment at which the old key is in no file.
        with contextlib.suppress(FileExistsError):
            os.link(path, retired_path(name, directory, old.key_id))
        fsync_directory(path.parent)
        write_atomic(path, encode_key(Ed25519PrivateKey.generate(), passphrase()), 0o600)
    return old, load(name, directory)


def protect(name: str, directory: str | Path, remove: bool = False) -> list[Path]:
    """Encrypt the key files of an organization, the retired ones too, or take the passphrase off.

    Parameters
    ----------
    name, directory
        As of :func:`ledger.identity.load`.
    remove
        Write the files without encryption.

    Returns
    -------
    list
        The files that were written; those that are as wanted are left alone.

    Raises
    ------
    LedgerError
        No passphrase is set, it is not that of a file, or a file cannot be read or written. All files are read before
        the first one is written.
    """
    secret = passphrase()
    if secret is None:
        raise LedgerError(f"{key_path(name, directory)}: set {PASSPHRASE} to the passphrase, in the environment alone")
    path = key_path(name, directory)
    with _writing(path):
        keys = {file: read_key(file) for file in (path, *retired_files(name, directory))}
        changed = [file for file in keys if is_protected(file.read_bytes()) == remove]
        for file in changed:
            write_atomic(file, encode_key(keys[file], None if remove else secret), 0o600)
    return changed


def retired_files(name: str, directory: str | Path) -> list[Path]:
    """Files of the retired keys of an organization, in order of their names."""
    digits = "[0-9a-f]" * KEY_ID_DIGITS
    return sorted(key_path(name, directory).parent.glob(f"{name}.{digits}.retired.pem"))


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """One writer of a key folder at a time; failures of the file system name the file."""
    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise LedgerError(f"{path.parent}: is no key folder: {error.strerror}") from None
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    except OSError as error:
        raise LedgerError(f"{path}: the key cannot be written: {error.strerror}") from None
    finally:
        os.close(folder)
