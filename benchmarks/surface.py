"""Does a surface predict the real federation? Measured on some joint efforts, checked on others with other keys.

    python -m benchmarks.surface quickstart --ranks 4 8 16 --coalitions 24 --held-out 60 \\
        --work /tmp/quickstart

The surface is that of `trustchain measure --coalitions K`: some points measured, the others predicted with a standard
error. Held-out (coalition, rank, effort) points are drawn among the predicted ones, and each is trained for real
with a key that the surface has not seen. A prediction hits where it lies within two standard errors, those of the
prediction and of the held-out training together. Both are valued on the same validation records, so the error over
records is left out: it would make hitting easier.

The work folder keeps every training: a run that was ended goes on.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import parser, table, write
from envs.surface import SurfacePoint
from trustchain_ray.config_files import load_config
from trustchain_ray.keys import generator
from trustchain_ray.measure.bench import Bench, Settings, bench, cohorts_measured
from trustchain_ray.measure.grid import Point, parse_efforts
from trustchain_ray.measure.store import Store, work_folder
from trustchain_ray.measure.surface import measure

ROOT = Path(__file__).parents[1]


def main() -> None:
    arguments = parser("surface", __doc__)
    arguments.add_argument("name", help="a configuration in configs/")
    arguments.add_argument("--ranks", type=int, nargs="+", required=True)
    arguments.add_argument("--efforts", default="0,1/2,1")
    arguments.add_argument("--coalitions", default="24", help="joint efforts measured, a rank")
    arguments.add_argument("--mode", choices=["merged", "federated"], default="federated")
    arguments.add_argument("--metric", default="accuracy")
    arguments.add_argument("--repeats", type=int, default=2)
    arguments.add_argument("--held-out", type=int, default=60, help="held-out points, over all ranks")
    arguments.add_argument("--held-out-repeats", type=int, default=1)
    arguments.add_argument("--skip", type=int, default=0, help="held-out points left out: the model was chosen on them")
    arguments.add_argument("--merges", action="store_true", help="also say how far merges are from the federation")
    arguments.add_argument("--work", type=Path, required=True)
    arguments.add_argument("overrides", nargs="*", metavar="key=value")
    options = arguments.parse_intermixed_args()
    config = load_config([str(ROOT / "configs" / f"{options.name}.yaml")], options.overrides)
    efforts = parse_efforts(options.efforts, config.federation.local_steps)
    settings = Settings(
        tuple(options.ranks), efforts, options.coalitions, options.mode, options.repeats, options.metric
    )
    begun = (work_folder(options.work) / "config.yaml").is_file()
    store = Store.open(options.work) if begun else Store.create(options.work, config, settings.as_json())
    try:
        measured = measure(config, settings, store, print)
        predicted = [point for point in measured.surface.points if not point.measurements["measured"]]
        draws = generator(config.run.key, "benchmark", "held-out")
        chosen = draws.permutation(len(predicted))[options.skip : options.skip + options.held_out]
        points = [predicted[int(i)] for i in chosen]
        with bench(config, settings, store, print) as at:
            rows = held_out(at, points, options.held_out_repeats, spread_of_training(measured.surface.points))
            merged = merges(at, points) if options.merges else None
    finally:
        store.close()
    result = {
        "config": f"configs/{options.name}.yaml",
        "overrides": options.overrides,
        "settings": settings.as_json(),
        "skipped": options.skip,
        "cohorts": cohorts_measured(config, options.mode),
        "summary": measured.summary,
        "shapley": {str(rank): found for rank, found in measured.contributions.items()},
        "held_out": verdict(rows),
        "merges": merged,
        "rows": rows,
    }
    write(options.out, result)
    print(table(list(result["held_out"]), [[f"{value:.4g}" for value in result["held_out"].values()]]))
    if merged:
        print(table(list(merged), [[f"{value:.4g}" for value in merged.values()]]))


def spread_of_training(points: tuple[SurfacePoint, ...]) -> dict[int, float]:
    """Standard deviation of one training by rank, from the measured points' standard errors over repeats."""
    found: dict[int, list[float]] = {}
    for point in points:
        if point.measurements["measured"] and any(point.efforts):
            error, repeats = point.measurements["standard_error_training"], point.measurements["repeats"]
            found.setdefault(max(point.ranks), []).append(float(error or 0.0) ** 2 * float(repeats or 1))
    return {rank: math.sqrt(sum(values) / len(values)) for rank, values in found.items()}


def held_out(at: Bench, points: list[SurfacePoint], repeats: int, spread: dict[int, float]) -> list[dict[str, Any]]:
    """Train the points for real, with keys after those of the surface; prediction and truth of each."""
    first = at.settings.repeats
    joint = [tuple(level(at, effort) for effort in point.efforts) for point in points]
    todo = [
        Point(efforts, max(point.ranks), first + k)
        for efforts, point in zip(joint, points, strict=True)
        for k in range(repeats)
    ]
    at.value(todo)
    rows = []
    for efforts, point in zip(joint, points, strict=True):
        rank = max(point.ranks)
        found = at.estimate([Point(efforts, rank, first + k) for k in range(repeats)])
        predicted_error = float(point.measurements["standard_error_training"] or 0.0)
        error = math.hypot(predicted_error, spread[rank] / math.sqrt(repeats))
        rows.append(
            {
                "efforts": [str(e) for e in efforts],
                "rank": rank,
                "predicted": point.quality,
                "predicted_error": predicted_error,
                "federation": found.quality,
                "standard_errors": abs(point.quality - found.quality) / error,
            }
        )
    return rows


def merges(at: Bench, points: list[SurfacePoint]) -> dict[str, float]:
    """How far merges of organizations that trained alone are from the federations of the same points and keys."""
    settings = Settings(**{**vars(at.settings), "mode": "merged"})
    other = Bench(at.config, settings, at.store, at.trainers, at.source, at.progress)
    pairs = []
    for point in points:
        efforts = tuple(level(at, effort) for effort in point.efforts)
        one = [Point(efforts, max(point.ranks), at.settings.repeats)]
        other.value(one)
        pairs.append((other.estimate(one).quality, at.estimate(one).quality))
    merged, federated = np.array(pairs).T
    return {
        "mean_merged": float(merged.mean()),
        "mean_federated": float(federated.mean()),
        "root_mean_square_difference": float(np.sqrt(np.mean((merged - federated) ** 2))),
        "correlation": float(np.corrcoef(merged, federated)[0, 1]),
    }


def level(at: Bench, effort: float) -> Any:
    """The exact effort level of a number in a surface."""
    return next(e for e in at.settings.efforts if float(e) == effort)


def verdict(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Share of predictions within two standard errors, and how sharp they are."""
    distance = np.array([row["standard_errors"] for row in rows])
    predicted, truth = (np.array([row[name] for row in rows]) for name in ("predicted", "federation"))
    return {
        "points": len(rows),
        "within_two_standard_errors": float((distance <= 2.0).mean()),
        "within_one_standard_error": float((distance <= 1.0).mean()),
        "root_mean_square_error": float(np.sqrt(np.mean((predicted - truth) ** 2))),
        "median_predicted_error": float(np.median([row["predicted_error"] for row in rows])),
        "spread_of_the_truth": float(truth.std()),
        "explained_variance": float(1.0 - np.mean((predicted - truth) ** 2) / truth.var()),
    }


if __name__ == "__main__":
    main()
