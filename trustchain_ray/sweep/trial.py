"""What a trial of Ray Tune does: all repeats of one point of the grid."""

from __future__ import annotations

import dataclasses
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envs import GameConfig
from trustchain_ray.config import Config
from trustchain_ray.errors import UsageError
from trustchain_ray.keys import derive

POINT = "point"  # the parameter of Tune's own grid: a row of the tasks
Row = dict[str, Any]
Bundle = dict[str, float]


@dataclass(frozen=True)
class Task:
    """A point that is not finished.

    Attributes
    ----------
    name
        Names its folder.
    config, game
        Of the point.
    rows
        Repeats that were finished before.
    """

    name: str
    config: Config
    game: GameConfig
    rows: tuple[Row, ...] = ()


def run_trial(space: dict[str, Any], tasks: Sequence[Task], folder: str) -> None:
    """The function that Tune calls: report the rows so far after each repeat, and why the point failed if it did."""
    from ray import tune

    task = tasks[space[POINT]]
    rows = list(task.rows)
    try:
        for new in repeats(task, Path(folder) / task.name):
            rows += new
            tune.report({"rows": list(rows), "failed": ""})
    except Exception as error:  # one point that cannot be loses no other
        lines = str(error).strip().splitlines()
        tune.report({"rows": list(rows), "failed": lines[0] if lines else type(error).__name__})


def repeats(task: Task, folder: Path) -> Iterator[list[Row]]:
    """Yield the rows of the repeats that are missing, each as soon as it is finished.

    What a learning or a run has written into `folder` is gone on from.
    """
    settings = task.config.sweep
    missing = range(len(task.rows), settings.repeats)
    if settings.task == "train":
        for repeat in missing:
            yield [_train(task, repeat, folder / f"repeat-{repeat}")]
    elif settings.learner == "dqn":
        for repeat in missing:
            yield [_dqn(task, repeat, folder / f"repeat-{repeat}")]
        shutil.rmtree(folder, ignore_errors=True)  # checkpoints
    elif missing:
        yield _tabular(task)


def bundles(config: Config, organizations: int) -> list[Bundle]:
    """Return the resources of a trial, all in one placement group; the first bundle is the trial's own process.

    A federation's workers are taken from the other bundles (see `trustchain_ray.worker_group`), so two trials can
    never each hold half of what both need.
    """
    if config.sweep.task == "policy":
        return [{"CPU": 1.0}]
    resources = config.resources
    worker: Bundle = {"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker}
    count = organizations if resources.mode == "dedicated" else min(resources.workers, organizations)
    own: list[Bundle] = [{}, *[dict(worker) for _ in range(count)]]
    if config.model.base == "made" and resources.cpus_per_worker < 1.0:
        own.append({"CPU": 1.0})  # the task that makes the base
    return own


def check_runnable(config: Config) -> None:
    """Refuse federations whose workers cannot be taken from a trial's placement group.

    Raises
    ------
    UsageError
        Several ranks an organization, or organizations that are pinned to nodes.
    """
    resources = config.resources
    if config.sweep.task == "train" and resources.mode == "dedicated" and resources.workers > 1:
        raise UsageError(
            f"sweep.task=train with resources.workers={resources.workers}: in a sweep an organization has one rank; "
            "set resources.workers=1, or resources.mode=pooled"
        )
    if config.sweep.task == "train" and resources.pin_organizations:
        raise UsageError("sweep.task=train: a sweep simulates; set resources.pin_organizations=false")


def _tabular(task: Task) -> list[Row]:
    """All repeats in one batch of games."""
    from envs.q_learning import QLearningConfig, q_learning
    from trustchain_ray.sweep.outcomes import of_policies

    began, settings = time.perf_counter(), task.config.sweep
    first = task.config.participation.learning.seed
    seed = int.from_bytes(derive(task.config.run.key, "sweep", first)[:4], "big")
    learned = q_learning(task.game, seed, settings.repeats, QLearningConfig(episodes=settings.episodes))
    found = [of_policies(task.game, one.policies()) for one in learned]
    seconds = (time.perf_counter() - began) / len(found)
    return [_row(repeat, task.game, outcomes, seconds) for repeat, outcomes in enumerate(found)]


def _dqn(task: Task, repeat: int, folder: Path) -> Row:
    """One learning by RLlib; its process is used again for the next point, so RLlib is imported once."""
    from trustchain_ray.policy.learn import learn
    from trustchain_ray.sweep.outcomes import of_policies

    began, settings = time.perf_counter(), task.config.participation.learning
    folder.mkdir(parents=True, exist_ok=True)
    of_repeat = dataclasses.replace(settings, seed=settings.seed + repeat)
    learned = learn(task.game, of_repeat, task.config.run.key, folder, lambda line: None, resume=True)
    outcomes = of_policies(task.game, learned.policies.policies())
    return _row(repeat, task.game, outcomes, time.perf_counter() - began)


def _train(task: Task, repeat: int, folder: Path) -> Row:
    """One real federation, begun or gone on with; repeat 0 has the configuration's own key."""
    from trustchain_ray.policy.game import build_game, record_counts
    from trustchain_ray.sweep.outcomes import of_run
    from trustchain_ray.train import resume, train

    config, began = task.config, time.perf_counter()
    if repeat:
        run = dataclasses.replace(config.run, key=f"{config.run.key}/repeat-{repeat}")
        config = dataclasses.replace(config, run=run)
    if (folder / "config.yaml").is_file():
        result = resume(os.fspath(folder), lambda line: None)
    else:
        shutil.rmtree(folder, ignore_errors=True)  # of a kill before the run had begun
        result = train(config, os.fspath(folder), lambda line: None)
    game = build_game(config, config.participation, record_counts(config))
    row = _row(repeat, game, of_run(game, folder, result["scores"]), time.perf_counter() - began)
    return row | {"run": os.fspath(folder), "model_digest": result["model_digest"]}


def _row(repeat: int, game: GameConfig, found: tuple[dict[str, float | None], list[float]], seconds: float) -> Row:
    from trustchain_ray.sweep.outcomes import of_equilibria

    outcomes, efforts = found
    return {
        "repeat": repeat,
        "game": game.digest(),
        "outcomes": outcomes,
        "efforts": dict(zip(game.names, efforts, strict=True)),
        "equilibrium": of_equilibria(game),
        "seconds": round(seconds, 3),
    }
