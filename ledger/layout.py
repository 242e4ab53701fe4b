"""Where things lie in a run directory, and safe ways to look at them."""

import hashlib
import os
import stat
from pathlib import Path, PurePosixPath

from ledger.errors import LedgerError

MANIFEST = "manifest.json"
CONFIG = "config.yaml"
IDENTITIES = "identities"
LEDGER = "ledger"
LOG = "ledger/log.sqlite"
OUTBOX = "ledger/outbox.log"
ANCHORS = "ledger/anchors.json"
PRIVATE = "ledger/private.json"
CHAIN = "ledger/chain"
BLOCKS = "ledger/chain/blocks.log"
SEAL = "ledger/seal.json"
MODEL = "model"
CERTIFICATES = "certificates"
ADAPTER = "model/adapter_model.safetensors"


def inside(run_dir: Path, name: str) -> Path:
    """Path of a regular file of the run, given its name relative to the run directory.

    Raises
    ------
    LedgerError
        The name leaves the directory, the file is missing, or it is not a regular file (a link, a device).
    """
    parts = check_file_name(name)
    path = run_dir
    for part in parts:
        path = path / part
        try:
            mode = os.lstat(path).st_mode
        except OSError:
            raise LedgerError(f"{name}: is missing") from None
        if not (stat.S_ISREG(mode) if path == run_dir / name else stat.S_ISDIR(mode)):
            raise LedgerError(f"{name}: is not a regular file in plain folders")
    return path


def check_file_name(name: str) -> tuple[str, ...]:
    """Parts of the name of a file relative to the run directory. Raises LedgerError if it leaves the directory."""
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\0" in name or str(PurePosixPath(name)) != name:
        raise LedgerError(f"{name!r}: not the name of a file inside the run directory")
    return parts


def read_file(run_dir: Path, name: str) -> bytes:
    """Content of a file of the run. Raises LedgerError as :func:`inside`, or if it cannot be read."""
    path = inside(run_dir, name)
    try:
        return path.read_bytes()
    except OSError as error:
        raise LedgerError(f"{name}: cannot be read: {error.strerror}") from None


def file_digest(run_dir: Path, name: str) -> str:
    """SHA-256 of a file of the run, 64 hex digits. Raises LedgerError as :func:`read_file`."""
    path = inside(run_dir, name)
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise LedgerError(f"{name}: cannot be read: {error.strerror}") from None


def files_under(run_dir: Path, folder: str) -> list[str]:
    """Names (relative to the run directory, sorted) of all in ``folder`` that are not folders."""
    names: list[str] = []
    for parent, folders, files in os.walk(run_dir / folder):
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        names.extend(Path(parent, name).relative_to(run_dir).as_posix() for name in files + links)
    return sorted(names)


def identity_files(run_dir: Path) -> list[str]:
    """Names of the identity documents, relative to the run directory, sorted."""
    return [name for name in files_under(run_dir, IDENTITIES) if name.endswith(".json")]


def certificate_files(run_dir: Path) -> list[str]:
    """Names of the certificates of removals, relative to the run directory, sorted."""
    return [name for name in files_under(run_dir, CERTIFICATES) if name.endswith(".json")]
