"""Training and valuing the points of a surface: what is missing goes to the trainers, what is done is in the store."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import ray
from omegaconf import OmegaConf

from envs.surface import SurfacePoint
from ledger.canonical import sha256_hex
from trustchain_ray import __version__
from trustchain_ray.base import prepare_base
from trustchain_ray.cluster import cluster
from trustchain_ray.config import Config, SourceConfig
from trustchain_ray.config_files import to_yaml
from trustchain_ray.data import organization_names
from trustchain_ray.measure.estimate import Estimate, estimate, training_errors
from trustchain_ray.measure.grid import Efforts, Point, check_measurable
from trustchain_ray.measure.store import Store
from trustchain_ray.measure.trainer import Job, Trainers
from trustchain_ray.measure.validation import choose_source

MERGING = ("by_organization", "by_both")  # cohorts of which a coalition's model is a merge by definition
Progress = Callable[[str], None]
Result = dict[str, Any]
Table = dict[tuple[Efforts, int], SurfacePoint]


@dataclass(frozen=True)
class Settings:
    """What to measure. `mode` is `merged` or `federated`; `coalitions` is `all` or a number of joint efforts."""

    ranks: tuple[int, ...]
    efforts: tuple[Fraction, ...]
    coalitions: str = "all"
    mode: str = "merged"
    repeats: int = 2
    metric: str = "accuracy"
    validation: str = "auto"

    def as_json(self) -> Result:
        return {**dataclasses.asdict(self), "efforts": [str(effort) for effort in self.efforts]}

    @classmethod
    def from_json(cls, values: Result) -> "Settings":
        efforts = tuple(Fraction(text) for text in values["efforts"])
        return cls(**{**values, "ranks": tuple(values["ranks"]), "efforts": efforts})


@contextlib.contextmanager
def bench(config: Config, settings: Settings, store: Store, progress: Progress, workers: int = 0) -> Iterator["Bench"]:
    """Trainers on the cluster with everything set up; see :func:`measure`."""
    config = _pooled(config, max(1, workers))
    check_measurable(config, settings.mode)
    names = organization_names(config)
    source = choose_source(config, settings.validation)
    with cluster(config, len(names)):
        base = prepare_base(config, store.run, progress)
        count = workers or _room(config)
        with Trainers(config, base, names, source, count) as trainers:
            yield Bench(config, settings, store, trainers, source, progress)


class Bench:
    """Trains and values points through the trainers, and keeps every result in the store."""

    def __init__(
        self,
        config: Config,
        settings: Settings,
        store: Store,
        trainers: Trainers,
        source: str,
        progress: Progress,
    ) -> None:
        self.config, self.settings, self.store, self.trainers = config, settings, store, trainers
        self.names, self.source, self.progress = trainers.names, source, progress
        self.made = trainers.describe()
        store.agree(_identity(config, self.made))
        self.cohorts = cohorts_measured(config, settings.mode)
        self.trained = 0  # trainings and valuations that this command did itself
        untrained = f"untrained {settings.ranks[0]}"
        if store.load(untrained) is None:
            arguments = (self.cohorts, settings.ranks[0])
            trainers.work([Job(untrained, "untrained", arguments, self._keeper(untrained))])
        self.untrained: Result = self._kept(untrained)

    def value(self, points: list[Point]) -> None:
        """Train and value every point that is not in the store."""
        if self.settings.mode == "federated":
            missing = [point for point in points if self.store.load(self.name(point)) is None]
            self._work(
                Job(self.name(p), "federated", (self.cohorts, p.rank, p.repeat, p.efforts), self._keeper(self.name(p)))
                for p in sorted(missing, key=lambda p: p.rank)  # a trainer builds its model once a rank
            )
            return
        pairs = sorted({(p.rank, p.repeat, i, e) for p in points for i, e in enumerate(p.efforts) if e})
        wanted = {pair: self._alone(*pair) for pair in pairs}
        self._work(
            Job(name, "alone", (self.cohorts, rank, repeat, self.names[i], effort), self._keeper(name))
            for (rank, repeat, i, effort), name in wanted.items()
            if self.store.load(name) is None
        )
        for rank, repeat in sorted({(p.rank, p.repeat) for p in points}):
            missing = [
                p for p in points if (p.rank, p.repeat) == (rank, repeat) and self.store.load(self.name(p)) is None
            ]
            if not missing:
                continue
            alone = {
                (self.names[i], effort): self._kept(name, states=True)
                for (r, k, i, effort), name in wanted.items()
                if (r, k) == (rank, repeat)
            }
            shared = ray.put(alone)
            self._work(
                Job(self.name(p), "merged", (self.cohorts, rank, repeat, shared, p.efforts), self._keeper(self.name(p)))
                for p in missing
            )

    def tabulate(self, joint: list[Efforts]) -> Table:
        """Measured points by (efforts, rank), the empty coalition at rank 0 among them."""
        nobody = tuple(Fraction(0) for _ in self.names)
        table = {(nobody, 0): self._point(nobody, 0, self._estimate([self.untrained]), 0.0, {})}
        for rank in self.settings.ranks:
            results = {e: [self._result(Point(e, rank, k)) for k in range(self.settings.repeats)] for e in joint}
            estimates = {e: self._estimate(found) for e, found in results.items()}
            errors = training_errors(list(estimates.values()))
            for efforts, error in zip(joint, errors, strict=True):
                costs = _mean_costs(results[efforts])
                table[efforts, rank] = self._point(efforts, rank, estimates[efforts], error, costs)
        return table

    def estimate(self, repeats: list[Point]) -> Estimate:
        """Estimate of one joint effort from valued repeats."""
        return self._estimate([self._result(point) for point in repeats])

    def quality(self, efforts: Efforts, rank: int) -> float:
        """Quality of one joint effort, measured now if it was not before."""
        points = [Point(efforts, rank, k) for k in range(self.settings.repeats)]
        self.value(points)
        return self.estimate(points).quality

    def name(self, point: Point) -> str:
        return f"{self.settings.mode} {self.cohorts} {point.text()}"

    def _alone(self, rank: int, repeat: int, organization: int, effort: Fraction) -> str:
        return f"alone {self.cohorts} rank {rank} repeat {repeat} {self.names[organization]} effort {effort}"

    def _result(self, point: Point) -> Result:
        """Blocks and costs of a point; those of a merge are the sums over what was trained alone."""
        result = self._kept(self.name(point))
        if self.settings.mode == "federated":
            return result
        parts = [
            self._kept(self._alone(point.rank, point.repeat, i, effort))
            for i, effort in enumerate(point.efforts)
            if effort
        ]
        return {
            **result,
            **{key: sum(part[key] for part in parts) for key in ("seconds", "bytes", "records")},
            **{key: max(part[key] for part in parts) for key in ("slowest", "peak_memory", "peak_gpu_memory")},
        }

    def _estimate(self, results: list[Result]) -> Estimate:
        return estimate(self.settings.metric, [result["blocks"] for result in results])

    def _point(
        self, efforts: Efforts, rank: int, found: Estimate, training_error: float, costs: dict[str, float]
    ) -> SurfacePoint:
        error = float(np.hypot(training_error, found.records_error))
        measurements: dict[str, float | None] = {
            "measured": 1,
            "repeats": found.repeats,
            "standard_error_training": training_error,
            "standard_error_records": found.records_error,
            "loss": found.loss,
            "epsilon": None,
            **costs,
        }
        return SurfacePoint.at_rank([float(e) for e in efforts], rank, found.quality, error, measurements)

    def _keeper(self, name: str) -> Callable[[Result], None]:
        def keep(result: Result) -> None:
            self.store.save(name, result)

        return keep

    def _kept(self, name: str, states: bool = False) -> Result:
        result = self.store.load(name, states)
        assert result is not None, name
        return result

    def _work(self, jobs: Iterable[Job]) -> None:
        """Do jobs; a line of progress for each, but not for more than a few hundred."""
        todo = list(jobs)
        every, began = max(1, len(todo) // 100), time.perf_counter()
        finished = 0

        def shown(job: Job) -> Job:
            def done(result: Result) -> None:
                nonlocal finished
                job.done(result)
                finished += 1
                self.trained += 1
                if finished % every == 0 or finished == len(todo):
                    left = (time.perf_counter() - began) / finished * (len(todo) - finished)
                    self.progress(f"{finished}/{len(todo)}  {job.what}  about {left:.0f} s left")

            return dataclasses.replace(job, done=done)

        self.trainers.work(shown(job) for job in todo)


def cohorts_measured(config: Config, mode: str) -> str:
    """The cohorts that a mode trains: the run's own, or for merges of another one, `by_organization`."""
    own = config.federation.cohorts
    return own if mode == "federated" or own in MERGING else "by_organization"


def _pooled(config: Config, workers: int) -> Config:
    """The configuration of the simulation: one process a trainer, the deterministic engine."""
    resources = dataclasses.replace(config.resources, mode="pooled", workers=workers)
    engine = "torch" if config.training.engine == "auto" else config.training.engine
    return dataclasses.replace(
        config, resources=resources, training=dataclasses.replace(config.training, engine=engine)
    )


def _room(config: Config) -> int:
    """How many trainers the free resources hold, at least one."""
    free, resources = ray.available_resources(), config.resources
    asked = {"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker}
    return max(1, min((int(free.get(kind, 0.0) / each) for kind, each in asked.items() if each), default=1))


def _identity(config: Config, made: Result) -> Result:
    """What results are a function of: a changed part makes another surface."""
    return {
        "version": __version__,
        "config": config_digest(config),
        "base": made["base"],
        "training_records": made["training_records"],
        "validation_records": made["validation_records"],
        "environment": made["environment"],
    }


def config_digest(config: Config) -> str:
    """SHA-256 of the configuration without what changes no number (names, places, resources, ledger, sweeps) and
    without the places of records and base, which have digests of their own."""
    run = type(config.run)(key=config.run.key)
    labels = {name: SourceConfig(labels=source.labels) for name, source in config.data.organizations.items()}
    data = dataclasses.replace(config.data, train="", test="", public="", validation="", organizations=labels)
    model = dataclasses.replace(config.model, base="")
    parts = dataclasses.replace(
        config, run=run, model=model, data=data, resources=type(config.resources)(), ledger=type(config.ledger)()
    )
    values: Any = OmegaConf.create(to_yaml(parts))
    del values["sweep"], values["participation"]["cost_spread"]
    return sha256_hex(OmegaConf.to_yaml(values).encode())


def _mean_costs(results: list[Result]) -> dict[str, float]:
    """Costs of a training, means over repeats (memory: the largest)."""
    mean = {key: float(np.mean([result[key] for result in results])) for key in ("seconds", "slowest")}
    return {
        "seconds": round(mean["seconds"], 6),
        "slowest_seconds": round(mean["slowest"], 6),
        "update_bytes": float(np.mean([result["bytes"] for result in results])),
        "records_read": float(np.mean([result["records"] for result in results])),
        "peak_memory_bytes": max(result["peak_memory"] for result in results),
        "peak_gpu_memory_bytes": max(result["peak_gpu_memory"] for result in results),
    }
