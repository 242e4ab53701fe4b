"""A run as it stands: its configuration, its base, and the records that were not removed."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trustchain_ray.begun import read_begun
from trustchain_ray.config import Config
from trustchain_ray.data import Holdings, load_holdings, organization_names
from trustchain_ray.errors import TrustChainError
from trustchain_ray.forgetting.amendments import Amendments
from trustchain_ray.run_directory import RunDirectory

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Standing:
    """A run that is read, not changed.

    Attributes
    ----------
    path : the run directory.
    config, manifest : of the run.
    base : folder or hub id of the base model.
    holdings : records by organization, without those that were removed or are being removed.
    left_out : organizations whose records cannot be read here, and why.
    """

    path: Path
    config: Config
    manifest: dict[str, Any]
    base: str
    holdings: dict[str, Holdings]
    left_out: dict[str, str]


def read_standing(folder: str, progress: Progress) -> Standing:
    """Read a run and the records of the organizations whose sources lie on this machine.

    Raises
    ------
    UsageError
        Not a run that has begun.
    TrustChainError
        Damaged files, or no organization's records can be read here.
    """
    begun = read_begun(RunDirectory(Path(folder)))
    run, config = begun.run, begun.config
    amended = Amendments.read(run)
    if amended.unfinished is not None:
        progress(f"removal {amended.unfinished.number} of this run is not finished: its model may still change")
    holdings, left_out = {}, {}
    for name in organization_names(config):
        if name in amended.left:
            continue
        try:
            if amended.known and not begun.keeps(name):
                raise TrustChainError(f"what was removed from it is noted elsewhere (not in {begun.custodies})")
            custody = begun.custody(name)
            holdings[name] = custody.kept(custody.held(load_holdings(config, name)))
        except TrustChainError as error:
            left_out[name] = str(error)
            progress(f"{name} is left out: {error}")
    if not holdings:
        reason = next(iter(left_out.values()), "all of them have left the run")
        raise TrustChainError(f"{folder}: no organization's records can be read here: {reason}")
    base = str(run.path / "base") if config.model.base == "made" else config.model.base
    return Standing(run.path, config, begun.manifest, base, holdings, left_out)
