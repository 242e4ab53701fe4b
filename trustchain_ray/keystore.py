"""Where an organization keeps what never leaves it: identity keys and its own adapters."""

import os
from pathlib import Path

from ledger.canonical import parse_canonical
from ledger.identity import COORDINATOR, Identity, load, load_or_create, retired_path
from trustchain_ray.config import Config


def home() -> Path:
    """`$TRUSTCHAIN_HOME`, else `~/.trustchain`."""
    return Path(os.environ.get("TRUSTCHAIN_HOME") or Path.home() / ".trustchain")


def keystore(config: Config) -> Path:
    """Folder of identity keys (`run.keystore`)."""
    return Path(config.run.keystore) if config.run.keystore else home() / "keys"


def coordinator_identity(config: Config, run: Path) -> Identity:
    """The coordinator's identity for a run: a run that has begun keeps the key of its log, also after a rotation.

    Raises
    ------
    LedgerError
        As :func:`ledger.identity.load_or_create`.
    """
    folder = keystore(config)
    if (run / "manifest.json").is_file():
        key_id = parse_canonical((run / "identities" / f"{COORDINATOR}.json").read_bytes())["key_id"]
        if (retired := retired_identity(COORDINATOR, folder, key_id)) is not None:
            return retired
    return load_or_create(COORDINATOR, folder)


def retired_identity(name: str, folder: Path, key_id: str) -> Identity | None:
    """A key that was retired since a run registered it; None: it is not among the retired ones. Raises LedgerError."""
    return load(name, folder, key_id) if retired_path(name, folder, key_id).exists() else None


def witness_folder(config: Config) -> Path:
    """Where the organizations of this keystore keep the tree heads that they cosigned, a folder an organization."""
    return keystore(config).parent / "witness"


def personal_folder(config: Config, run: str, organization: str) -> Path:
    """Folder of an organization's own adapter of a run, outside the run directory."""
    root = keystore(config).parent / "personal"
    folder = root / run / organization
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder
