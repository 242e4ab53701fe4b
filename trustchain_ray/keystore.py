"""Where an organization keeps what never leaves it: identity keys and its own adapters."""

import os
from pathlib import Path

from trustchain_ray.config import Config


def home() -> Path:
    """`$TRUSTCHAIN_HOME`, else `~/.trustchain`."""
    return Path(os.environ.get("TRUSTCHAIN_HOME") or Path.home() / ".trustchain")


def keystore(config: Config) -> Path:
    """Folder of identity keys (`run.keystore`)."""
    return Path(config.run.keystore) if config.run.keystore else home() / "keys"


def witness_folder(config: Config) -> Path:
    """Where the organizations of this keystore keep the tree heads that they cosigned, a folder an organization."""
    return keystore(config).parent / "witness"


def personal_folder(config: Config, run: str, organization: str) -> Path:
    """Folder of an organization's own adapter of a run, outside the run directory."""
    root = keystore(config).parent / "personal"
    folder = root / run / organization
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder
