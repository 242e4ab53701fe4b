"""A sweep from its configuration to its results. Read :func:`sweep` as a table of contents."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from envs import GameConfig
from trustchain_ray.cluster import cluster
from trustchain_ray.config import Config
from trustchain_ray.config_files import load_config, to_yaml
from trustchain_ray.errors import TrustChainError, UsageError
from trustchain_ray.policy.game import build_game, record_counts
from trustchain_ray.sweep.points import Point, grid, label, short_names
from trustchain_ray.sweep.store import Store
from trustchain_ray.sweep.trial import POINT, Row, Task, bundles, check_runnable, run_trial

Progress = Callable[[str], None]
Games = dict[str, GameConfig]


@dataclass(frozen=True)
class Swept:
    """A finished sweep.

    Attributes
    ----------
    points
        All points of the grid.
    rows
        Finished repeats of each point, by its name.
    failed
        Why points failed, by their names.
    worked
        Points that this command worked on.
    seconds
        Of this command.
    """

    points: list[Point]
    rows: dict[str, list[Row]]
    failed: dict[str, str] = field(default_factory=dict)
    worked: int = 0
    seconds: float = 0.0


def sweep(store: Store, progress: Progress) -> Swept:
    """Do what is not done yet, on a cluster; results do not depend on order, concurrency or interruptions.

    Raises
    ------
    UsageError
        A parameter or a point that cannot be: nothing was started.
    TrustChainError
        Ray Tune stopped before all points were tried; what is finished is kept.
    """
    began = time.perf_counter()
    config = load_config([store.config_file], [])
    points = grid(config, store.config_file)
    games = build_games(points)
    rows = {point.name: list(store.load(point.name, games[point.name].digest())) for point in points}
    todo = [point for point in points if len(rows[point.name]) < config.sweep.repeats]
    if len(todo) < len(points):
        progress(f"{len(points) - len(todo)} of {len(points)} points are finished already")
    failed: dict[str, str] = {}
    if todo:
        keeper = _Keeper(store, todo, rows, failed, progress)
        with cluster(_largest(config, todo, games), 1):
            _tune(config, store, todo, games, keeper)
        lost = [p for p in todo if len(rows[p.name]) < p.config.sweep.repeats and p.name not in failed]
        if lost:
            raise TrustChainError(
                f"the sweep stopped before {len(lost)} of {len(points)} points were finished; go on with "
                f"--resume {store.path}"
            )
    return Swept(points, rows, failed, len(todo), round(time.perf_counter() - began, 3))


def build_games(points: Sequence[Point]) -> Games:
    """Return the game of each point, so that impossible ones are refused before anything starts.

    Raises
    ------
    UsageError
        A point that cannot be played, with its values.
    """
    counts: dict[str, dict[str, int]] = {}
    games = {}
    for point in points:
        check_runnable(point.config)
        own = Config(run=type(point.config.run)(key=point.config.run.key), data=point.config.data)
        holders = to_yaml(own)  # records are read once for all points that hold the same
        try:
            if holders not in counts:
                counts[holders] = record_counts(point.config)
            games[point.name] = build_game(point.config, point.config.participation, counts[holders])
        except TrustChainError as error:
            raise UsageError(f"the point {label(point.values)}: {error}") from None
    return games


def _tune(config: Config, store: Store, todo: list[Point], games: Games, keeper: _Keeper) -> None:
    """Run the trials with Ray Tune; its own bookkeeping is thrown away, the rows are the store's."""
    # Tune's loggers would write every row once more, as CSV, JSON and event files.
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    # Its table of all trials, once more every few seconds.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    # A first Ctrl-C ends this command like any other one.
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    from ray import tune

    class Reporting(tune.Callback):
        """Hands what trials report to the keeper."""

        def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
            keeper.keep(trial.config[POINT], result["rows"], result["failed"])

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            keeper.give_up(trial.config[POINT])

    tasks = [Task(p.name, p.config, games[p.name], tuple(keeper.rows[p.name])) for p in todo]
    needs = [bundles(task.config, len(task.game.names)) for task in tasks]
    trainable = tune.with_resources(
        tune.with_parameters(run_trial, tasks=tasks, folder=os.fspath(store.work)),
        lambda space: tune.PlacementGroupFactory([dict(bundle) for bundle in needs[space[POINT]]]),
    )
    folder = store.path / "tune"
    shutil.rmtree(folder, ignore_errors=True)
    with _quiet():
        tune.Tuner(
            trainable,
            param_space={POINT: tune.grid_search(list(range(len(tasks))))},
            tune_config=tune.TuneConfig(
                max_concurrent_trials=config.sweep.concurrent or None,
                # A learning's process is used again, so that its libraries are imported once.
                reuse_actors=config.sweep.task == "policy",
            ),
            run_config=tune.RunConfig(
                name="sweep",
                storage_path=os.fspath(folder),
                failure_config=tune.FailureConfig(max_failures=config.sweep.restarts),
                callbacks=[Reporting()],
                verbose=0,
            ),
        ).fit()
    shutil.rmtree(folder, ignore_errors=True)


class _Keeper:
    """Keeps rows as they come, and says where the sweep stands."""

    def __init__(
        self, store: Store, todo: list[Point], rows: dict[str, list[Row]], failed: dict[str, str], progress: Progress
    ) -> None:
        self.store, self.todo, self.rows, self.failed, self.progress = store, todo, rows, failed, progress
        self.began = time.perf_counter()
        self.ended: set[str] = set()

    def keep(self, number: int, rows: list[Row], failed: str) -> None:
        """Keep the rows that a trial reported."""
        point = self.todo[number]
        if len(rows) > len(self.rows[point.name]):
            self.rows[point.name] = rows
            self.store.save(point.name, point.values, rows)
        if failed:
            self.failed[point.name] = failed
        if failed or len(rows) >= point.config.sweep.repeats:
            self._end(point, failed)

    def give_up(self, number: int) -> None:
        """Note that a trial's process died more often than `sweep.restarts` allows."""
        point = self.todo[number]
        reason = f"its process died more than sweep.restarts={point.config.sweep.restarts} times"
        self.failed.setdefault(point.name, reason)
        self._end(point, self.failed[point.name])

    def _end(self, point: Point, failed: str) -> None:
        if point.name in self.ended:
            return
        self.ended.add(point.name)
        done, count = len(self.ended), len(self.todo)
        left = (time.perf_counter() - self.began) / done * (count - done)
        verdict = f"failed: {failed}" if failed else "done"
        self.progress(f"{done}/{count}  {label(point.values)}  {verdict}  about {left:.0f} s left")


def _largest(config: Config, todo: list[Point], games: Games) -> Config:
    """A configuration whose workers are as large as the largest trial: what a local cluster has to hold."""
    needs = [bundles(point.config, len(games[point.name].names)) for point in todo]
    asked = {kind: max(sum(b.get(kind, 0.0) for b in need) for need in needs) for kind in ("CPU", "GPU")}
    large = copy.deepcopy(config)
    large.resources.mode, large.resources.workers = "pooled", 1
    large.resources.cpus_per_worker, large.resources.gpus_per_worker = asked["CPU"], asked["GPU"]
    return large


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what Tune says of metrics and checkpoints that this sweep does not use."""
    loggers = [logging.getLogger(name) for name in ("ray", "ray.tune")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def parameters_line(points: Sequence[Point]) -> str:
    """Return how many values each parameter has, in one line."""
    names = short_names(list(points[0].values))
    counts = {key: len({json.dumps(p.values[key]) for p in points}) for key in names}
    return " x ".join(f"{names[key]} ({count})" for key, count in counts.items())
