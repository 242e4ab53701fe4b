"""A run that has begun, as it is set up: its configuration, its manifest, and whose salts lie on this machine."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trustchain_ray.config import Config
from trustchain_ray.config_files import load_config
from trustchain_ray.custody import Custody, custody_folder
from trustchain_ray.errors import UsageError
from trustchain_ray.run_directory import RunDirectory


@dataclass(frozen=True)
class Begun:
    """A run that was agreed on; `config` and `manifest` are the run's own."""

    run: RunDirectory
    config: Config
    manifest: dict[str, Any]

    @property
    def custodies(self) -> Path:
        """Folder of the salts that the organizations of this key store keep for the run."""
        return custody_folder(self.config, self.manifest["run"])

    def keeps(self, organization: str) -> bool:
        """Whether an organization keeps its salts of the run here."""
        return (self.custodies / f"{organization}.sqlite").is_file()

    def custody(self, organization: str) -> Custody:
        """What an organization keeps of the run, or would keep, here."""
        return Custody(self.custodies, self.manifest["run"], organization)


def read_begun(run: RunDirectory) -> Begun:
    """Read how a run is set up.

    Raises
    ------
    UsageError
        It is no run, or one that nobody agreed on yet.
    TrustChainError
        Damaged files.
    """
    if not (run.path / "manifest.json").is_file():
        raise UsageError(f"{run.path} is no run that has begun: it has no manifest.json")
    return Begun(run, load_config([str(run.path / "config.yaml")], []), run.read_json("manifest.json"))
