"""A measurement from its settings to its surface. Read :func:`measure` as a table of contents."""

import json
import time
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from envs.shapley import EXACT_LIMIT, Coalition, shapley
from envs.surface import MeasuredSurface, SurfacePoint
from ledger.canonical import canonical_json, sha256_hex
from trustchain_ray import __version__
from trustchain_ray.config import Config
from trustchain_ray.errors import TrustChainError
from trustchain_ray.keys import derive
from trustchain_ray.measure.bench import Bench, Progress, Result, Settings, Table, bench, config_digest
from trustchain_ray.measure.estimate import HOW
from trustchain_ray.measure.grid import MAX_POINTS, Efforts, Point, joint_efforts
from trustchain_ray.measure.kriging import Kriging, fit
from trustchain_ray.measure.store import Store


@dataclass(frozen=True)
class Measured:
    """A finished measurement: the surface, Shapley values by rank, and what a script needs."""

    surface: MeasuredSurface
    contributions: dict[int, Result]
    summary: Result


def measure(config: Config, settings: Settings, store: Store, progress: Progress, workers: int = 0) -> Measured:
    """Measure a surface, or go on with one: whatever the store holds is not trained again.

    Parameters
    ----------
    workers : trainers side by side; 0: as many as fit into the CPUs (and GPUs) that are free.

    Raises
    ------
    TrustChainError
        Anything the person who runs it can act on; finished trainings are kept.
    """
    began = time.perf_counter()
    with bench(config, settings, store, progress, workers) as at:
        names, key = at.names, config.run.key
        joint = joint_efforts(names, settings.efforts, settings.coalitions, key)
        progress(
            f"{len(names)} organizations, ranks {list(settings.ranks)}, {len(joint)} joint efforts a rank, "
            f"{settings.repeats} repeats, {settings.mode}, {at.trainers.count} trainer(s)"
        )
        at.value([Point(e, rank, k) for rank in settings.ranks for k in range(settings.repeats) for e in joint])
        table = at.tabulate(joint)
        model = _fill(table, joint, settings, names, key, progress)
        contributions = {rank: _contributions(at, table, model, rank) for rank in settings.ranks}
    points = [table[key] for key in sorted(table, key=lambda key: (key[1], key[0]))]
    surface = _surface(config, settings, points, at)
    summary = {
        "mode": settings.mode,
        "points": len(points),
        "measured": sum(1 for point in points if point.measurements["measured"]),
        "digest": surface.provenance["digest"],
        "leave_one_out": model.leave_one_out if model else None,
        "validated_on": surface.provenance["validation"],
        "trained": at.trained,
        "seconds": round(time.perf_counter() - began, 3),
    }
    return Measured(surface, contributions, summary)


def _fill(
    table: Table,
    joint: list[Efforts],
    settings: Settings,
    names: list[str],
    key: str,
    progress: Progress,
) -> Kriging | None:
    """Predict the joint efforts that were not measured into the table; the model, or None where all were measured."""
    count = len(settings.efforts) ** len(names) - 1
    if len(joint) == count:
        return None
    model = fit_table(table, key)
    if count * len(settings.ranks) > MAX_POINTS:
        progress(f"{count} joint efforts a rank: the unmeasured ones are not listed in the surface")
        return model
    everything = joint_efforts(names, settings.efforts, "all", key)
    for rank in settings.ranks:
        missing = [efforts for efforts in everything if (efforts, rank) not in table]
        quality, errors = model.predict(np.array(missing, float), rank)
        measured = [point for (_, at), point in table.items() if at == rank]
        records = float(np.sqrt(np.mean([_error(point, "records") ** 2 for point in measured])))
        for efforts, value, error in zip(missing, quality.tolist(), errors.tolist(), strict=True):
            measurements: dict[str, float | None] = {
                "measured": 0,
                "standard_error_training": error,
                "standard_error_records": records,
                "epsilon": None,
            }
            table[efforts, rank] = SurfacePoint.at_rank(
                [float(e) for e in efforts], rank, value, float(np.hypot(error, records)), measurements
            )
    return model


def fit_table(table: Table, key: str) -> Kriging:
    """The kriging model of the measured points of a table."""
    measured = [(key_, point) for key_, point in table.items() if key_[1] and point.measurements["measured"]]
    empty = next(point.quality for (_, rank), point in table.items() if rank == 0)
    return fit(
        np.array([efforts for (efforts, _), _ in measured], float),
        np.array([rank for (_, rank), _ in measured]),
        np.array([point.quality for _, point in measured]),
        np.array([_error(point, "training") for _, point in measured]),
        empty,
        key,
    )


def _error(point: SurfacePoint, part: str) -> float:
    return float(point.measurements[f"standard_error_{part}"] or 0.0)


def _contributions(at: Bench, table: Table, model: Kriging | None, rank: int) -> Result:
    """Shapley values of the organizations at full effort and one rank: exact up to eight, GTG-Shapley beyond.

    Merges that the surface does not list are valued for it; federations that were not measured are predicted.
    """
    settings, count = at.settings, len(at.names)
    top, out = settings.efforts[-1], Fraction(0)
    if settings.mode == "merged" and count <= EXACT_LIMIT:  # all of them are needed: side by side
        corners = joint_efforts(at.names, (out, top), "all", at.config.run.key)
        at.value([Point(efforts, rank, repeat) for efforts in corners for repeat in range(settings.repeats)])
    predicted = 0

    def value(coalition: Coalition) -> float:
        nonlocal predicted
        efforts = tuple(top if i in coalition else out for i in range(count))
        point = table.get((efforts, rank if coalition else 0))
        if point is not None and point.measurements["measured"]:
            return point.quality
        if settings.mode == "merged":
            return at.quality(efforts, rank)
        assert model is not None  # all were measured otherwise
        predicted += 1
        return float(model.predict(np.array([efforts], float), rank)[0][0])

    seed = int.from_bytes(derive(at.config.run.key, "measure", "shapley", rank)[:4], "big")
    found = shapley(value, count, seed)
    return {
        "values": dict(zip(at.names, found.values.tolist(), strict=True)),
        "method": "exact" if count <= EXACT_LIMIT else "gtg",
        "predicted": predicted,
        "evaluations": found.evaluations,
        "untrained": value(frozenset()),
        "whole": value(frozenset(range(count))),
        "converged": found.converged,
    }


def _surface(config: Config, settings: Settings, points: list[SurfacePoint], at: Bench) -> MeasuredSurface:
    """The surface with its provenance; its digest covers everything but what a clock or a memory counter says."""
    made, names = at.made, at.names
    records = " ".join(f"{name}:{made['records'][name]}" for name in names)
    provenance = {
        "tool": f"trustchain-ray {__version__}",
        "mode": settings.mode,
        "cohorts": at.cohorts,
        "cohorts_of_the_run": config.federation.cohorts,
        "config": config_digest(config),
        "key": sha256_hex(derive(config.run.key, "commitment")),
        "base": made["base"],
        "records": records,
        "training_records": made["training_records"],
        "validation": f"{at.source}: {made['validated_on']} records",
        "validation_records": made["validation_records"],
        "settings": json.dumps(settings.as_json(), sort_keys=True),
        "environment": json.dumps(made["environment"], sort_keys=True),
        "standard_error": HOW,
    }
    content = [
        [*map(repr, p.efforts), *p.ranks, repr(p.quality), repr(p.standard_error), p.measurements["measured"]]
        for p in points
    ]
    provenance["digest"] = sha256_hex(canonical_json({"provenance": provenance, "points": content, "names": names}))
    return MeasuredSurface(tuple(names), settings.metric, tuple(points), provenance)


def write(measured: Measured, out: Path) -> None:
    """Write the surface beside its work folder."""
    try:
        measured.surface.save(out)
    except OSError as error:
        raise TrustChainError(f"{out} cannot be written: {error.strerror or error}") from None
