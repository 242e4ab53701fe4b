"""The command line of `trustchain sweep`: arguments, progress, results and a table at the end."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trustchain_ray.errors import UsageError

if TYPE_CHECKING:
    from trustchain_ray.sweep.runner import Swept
    from trustchain_ray.sweep.store import Store

EXAMPLES = """examples:
  trustchain sweep -c configs/sweep.yaml
  trustchain sweep -c configs/sweep.yaml participation.surface=surface.json --out sweeps/measured --json
  trustchain sweep -c configs/sweep.yaml 'sweep.parameters={participation.reward: {from: 1, to: 16, count: 5}}'
  trustchain sweep --resume sweeps/measured
"""
DESCRIPTION = (
    "Learn participation policies, or run real federations, over a grid of any configuration keys (section `sweep`) "
    "with Ray Tune. Ends in a table, CSV, JSON lines and plots with confidence intervals over repeats and the exact "
    "equilibria beside them."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the verb."""
    parser.add_argument(
        "-c", "--config", action="append", default=[], metavar="FILE", help="YAML file; several are merged in order"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="dotted overrides, applied last")
    parser.add_argument("--out", metavar="DIR", help="folder of the results (default: next free <run.dir>/<run.name>)")
    parser.add_argument("--resume", metavar="DIR", help="go on with a sweep: finished points are kept")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")


def run(arguments: argparse.Namespace) -> int:
    """Sweep, write the results, print the table; the exit code is 1 where a point failed.

    Raises
    ------
    UsageError
        A wrong flag, key or value: nothing was started.
    """
    from trustchain_ray.sweep.runner import parameters_line, sweep

    store = _store(arguments)
    try:
        swept = sweep(store, _progress)
        summary = write_results(store, swept)
    except UsageError:
        if not arguments.resume:
            store.discard()
        raise
    finally:
        store.close()
    print(f"\n{parameters_line(swept.points)}: {len(swept.points)} points\n")
    print((store.path / summary["shown"]).read_text(encoding="utf-8"))
    print(f"results  {store.path}  {', '.join(summary['files'])}")
    if arguments.json:
        print(json.dumps(summary))
    for point in swept.points:
        if point.name in swept.failed:
            print(f"error: point {point.number} failed: {swept.failed[point.name]}", file=sys.stderr)
    if swept.failed:
        lost = f"{len(swept.failed)} of {len(swept.points)} points failed"
        print(f"error: {lost}; trustchain sweep --resume {store.path} tries them again", file=sys.stderr)
    return 1 if swept.failed else 0


def write_results(store: "Store", swept: "Swept") -> dict[str, Any]:
    """Write table, CSV, JSON lines and plots; what a script needs to know of the sweep."""
    from trustchain_ray.config_files import load_config
    from trustchain_ray.sweep import plots, summary

    found = summary.results(swept)
    files = {"results.jsonl": summary.to_json_lines(swept), "results.csv": summary.to_csv(swept)}
    files["table.txt"] = summary.table(found) + "\n"
    files["marginals.txt"] = summary.marginals(found) + "\n"
    for name, text in files.items():
        store.write(name, text)
    pictures: list[Path] = []
    if plots.available():
        pictures = plots.plot(found, load_config([store.config_file], []).sweep.axis, store.path / "plots")
    else:
        _progress("no plots: matplotlib is missing (pip install 'trustchain-ray[plots]')")
    return {
        "folder": os.fspath(store.path),
        "points": len(swept.points),
        "finished": len(swept.points) - len(swept.failed),
        "failed": {str(point.number): swept.failed[point.name] for point in swept.points if point.name in swept.failed},
        "worked": swept.worked,
        "seconds": swept.seconds,
        "shown": "table.txt" if len(found) <= summary.MOST_LINES else "marginals.txt",
        "files": [*files, *([f"plots/ ({len(pictures)})"] if pictures else [])],
    }


def _store(arguments: argparse.Namespace) -> "Store":
    from trustchain_ray.config_files import load_config
    from trustchain_ray.run_directory import new_run
    from trustchain_ray.sweep.points import parameters_of
    from trustchain_ray.sweep.store import Store

    if arguments.resume:
        if arguments.config or arguments.overrides or arguments.out:
            raise UsageError("--resume goes on with the sweep's own configuration; leave -c, --out and overrides out")
        return Store.open(Path(arguments.resume))
    if not arguments.config:
        raise UsageError("name a configuration: trustchain sweep -c configs/sweep.yaml")
    config = load_config(arguments.config, arguments.overrides)
    parameters_of(config)
    return Store.create(Path(arguments.out) if arguments.out else new_run(config.run.dir, config.run.name), config)


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
