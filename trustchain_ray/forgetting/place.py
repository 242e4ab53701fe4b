"""Where a removal is carried out: in the command's own process, as long as no cluster would end it sooner."""

import json
import os
from collections.abc import Mapping, Sequence

from ledger.removal import EXACT_METHODS
from trustchain_ray import engines
from trustchain_ray.begun import Begun
from trustchain_ray.cluster import is_given
from trustchain_ray.config import Config
from trustchain_ray.forgetting.job import Job, jobs_of
from trustchain_ray.run_directory import RunDirectory

CLUSTER_S = 15.0
"""Starting Ray, the organizations and their workers takes about so long."""


def is_local(begun: Begun) -> bool:
    """Whether all organizations keep their salts on this machine, so that a withdrawal needs no cluster."""
    pinned = begun.config.resources.pin_organizations
    return not pinned and all(begun.keeps(name) for name in begun.manifest["organizations"])


def step_seconds(run: RunDirectory, steps: Mapping[str, Sequence[Mapping[str, int]]]) -> float:
    """Seconds of a training step, as the run's rounds took them or an earlier removal knew them; 0: unknown.

    Parameters
    ----------
    steps
        Recorded steps by organization, for every cohort and round (from 1).
    """
    seconds, counted, path = 0.0, 0, run.path / "metrics.jsonl"
    rounds = max(map(len, steps.values()), default=0)
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        row = json.loads(line) if line.endswith("}") else {}
        if row.get("training_seconds") and row["round"] <= rounds:
            seconds += row["training_seconds"]
            counted += sum(sum(rows[row["round"] - 1].values()) for rows in steps.values())
    if counted:
        return seconds / counted
    return next((float(job.facts["step_s"]) for job in reversed(jobs_of(run)) if "step_s" in job.facts), 0.0)


def trains_here(config: Config, job: Job) -> bool:
    """Whether one worker in this process is through with a removal before the workers of a cluster that has to be
    started first. Where a cluster is given, or workers have GPUs or other engines, they train."""
    if is_given(config) or config.resources.gpus_per_worker or engines.choose(config) != "torch":
        return False
    if job.method not in EXACT_METHODS:
        return True  # one organization after the other, wherever they are
    # a cohort's members train at once, each at its own worker
    rows = [
        [steps for name, steps in row.items() if name not in job.left]
        for cohort, first in job.cohorts.items()
        if cohort not in job.dropped
        for row in job.steps[cohort][first - 1 : job.rounds]
    ]
    side_by_side = min(max(map(len, rows), default=1), max(1, (os.cpu_count() or 1) // config.training.threads))
    if config.resources.mode == "pooled":
        side_by_side = min(side_by_side, config.resources.workers)
    count, seconds = sum(map(sum, rows)), float(job.facts.get("step_s", "0"))
    if side_by_side == 1 or not count:
        return True
    return seconds > 0 and count * seconds * (1 - 1 / side_by_side) <= CLUSTER_S
