"""What every member of a cohort has put into its state so far, from the rounds and updates that a run keeps."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from trustchain_ray.adapter import Layout, load_tensors
from trustchain_ray.round_writer import update_file
from trustchain_ray.run_directory import RunDirectory
from trustchain_ray.statements import newest_merges

Sums = dict[str, np.ndarray]


class Contributions:
    """Sums over rounds of server step x share of the merge x update, by cohort and organization.

    They are read from the run directory (`federation.keep_updates: all`), never from what this process saw: a resumed
    run has the same ones, and what a removal replaced counts as it stands now.

    Parameters
    ----------
    step
        `federation.server_step`.
    """

    def __init__(self, run: RunDirectory, step: float) -> None:
        self._run, self._step = run, step
        self._known: dict[str, tuple[int, Sums]] = {}

    def forget(self) -> None:
        """Read everything again when it is next asked for: a removal has changed finished rounds."""
        self._known = {}

    def until(self, number: int, cohort: str, layout: Layout) -> Sums:
        """What each organization put in by round `number`, float32 ``(n,)`` as `layout` packs it; zeros not named.

        Rounds up to `number` must have been written. What an approximate removal merged is nobody's.
        """
        done, sums = self._known.get(cohort, (0, dict[str, np.ndarray]()))
        if done > number:
            done, sums = 0, {}
        for later in range(done + 1, number + 1):
            for name, share in self._shares(later, cohort).items():
                path = self._run.round_folder(later) / update_file(cohort, name)
                if path.is_file():
                    sums[name] = sums.get(name, np.float32(0)) + self.part(share, layout.pack(load_tensors(path)))
        self._known[cohort] = number, sums
        return dict(sums)

    def part(self, share: float, update: np.ndarray) -> np.ndarray:
        """What an update of which so much was taken changes in the state, float32 ``(n,)``."""
        return np.float32(self._step * share) * update

    def _shares(self, number: int, cohort: str) -> dict[str, float]:
        content = self._run.read_json(f"rounds/{number:04d}/round.json")
        merge = newest_merges(content).get(cohort)
        return shares_of(merge["inputs"]) if merge else {}


def shares_of(inputs: list[Mapping[str, Any]]) -> dict[str, float]:
    """How much of each update is in a merge: the `share` of a MERGE's inputs, or else their part of the weight."""
    whole = sum(entry["weight"] for entry in inputs)
    return {entry["organization"]: float(entry.get("share", entry["weight"] / whole)) for entry in inputs}
