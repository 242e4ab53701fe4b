"""The command line of `trustchain measure`: arguments, progress, and a short table at the end."""

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trustchain_ray.errors import UsageError

if TYPE_CHECKING:
    from trustchain_ray.config import Config
    from trustchain_ray.measure.bench import Settings
    from trustchain_ray.measure.surface import Measured

EXAMPLES = """examples:
  trustchain measure -c configs/quickstart.yaml --ranks 4,8,16 --coalitions 24 --out surfaces/quickstart.json
  trustchain measure -c configs/quickstart.yaml federation.cohorts=by_organization --ranks 4,8,16
  trustchain measure -c configs/sentiment.yaml --efforts 0,1 --ranks 8 --coalitions 40
  trustchain measure --resume surfaces/quickstart.json
"""
DESCRIPTION = (
    "Train real LoRA adapters over ranks, coalitions and efforts, and write the response surface that participation "
    "policies are learned on. merged: each organization trains alone, a coalition's model is a merge (N trainings a "
    "rank and effort). federated: a real federation for every joint effort. auto: merged where the run's model is a "
    "merge (federation.cohorts by_organization or by_both), else federated. Joint efforts that are not measured "
    "(--coalitions K) are predicted with a standard error."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the verb."""
    parser.add_argument(
        "-c", "--config", action="append", default=[], metavar="FILE", help="YAML file; several are merged in order"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="dotted overrides, applied last")
    parser.add_argument("--ranks", metavar="R,R", help="LoRA ranks (default: model.lora.rank)")
    parser.add_argument("--efforts", metavar="E,E", help="efforts in [0, 1] (default: 0,1/2,1)")
    parser.add_argument(
        "--coalitions",
        metavar="all|K",
        help="joint efforts to measure: all, or K of them a rank (the whole, each alone and all but each first)",
    )
    parser.add_argument("--mode", choices=("auto", "merged", "federated"), help="how a coalition's model is trained")
    parser.add_argument("--repeats", type=int, metavar="R", help="trainings of each point, by other keys (default: 2)")
    parser.add_argument("--metric", help="accuracy (default) | token_accuracy | likelihood, exp(-mean loss)")
    parser.add_argument(
        "--validation",
        choices=("auto", "validation", "public", "tests"),
        help="records that value a model: data.validation, data.public, or the test records of all (default: the "
        "first of them that is configured, but not public records that the base was trained on)",
    )
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="trainers (default: as many as fit)")
    parser.add_argument("--out", metavar="FILE", help="the surface (default: <run.dir>/<run.name>-surface.json)")
    parser.add_argument("--resume", metavar="FILE", help="go on with this surface; options given are changed")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")


def run(arguments: argparse.Namespace) -> int:
    """Measure, write the surface, print the table.

    Raises
    ------
    UsageError
        A wrong flag, key or value: nothing was trained.
    """
    from trustchain_ray.config_files import load_config
    from trustchain_ray.measure.bench import Settings
    from trustchain_ray.measure.store import Store, free_name
    from trustchain_ray.measure.surface import measure, write

    if arguments.resume:
        if arguments.config or arguments.overrides or arguments.out:
            raise UsageError("--resume goes on with the surface's own configuration; leave -c, --out and overrides out")
        out = Path(arguments.resume)
        store = Store.open(out)
    else:
        if not arguments.config:
            raise UsageError("name a configuration: trustchain measure -c configs/quickstart.yaml")
        config = load_config(arguments.config, arguments.overrides)
        settings = settings_of(arguments, config)
        out = Path(arguments.out) if arguments.out else free_name(config.run.dir, f"{config.run.name}-surface")
        refuse_impossible(config, settings)
        store = Store.create(out, config, settings.as_json())
    try:
        if arguments.resume:
            config = load_config([store.config_file], [])
            settings = settings_of(arguments, config, Settings.from_json(store.settings()))
            refuse_impossible(config, settings)
            store.keep_settings(settings.as_json())
        measured = measure(config, settings, store, _progress, arguments.workers)
        write(measured, out)
    finally:
        store.close()
    print(table(measured, out))
    if arguments.json:
        shapley = {str(rank): found for rank, found in measured.contributions.items()}
        print(json.dumps({"surface": str(out), **measured.summary, "shapley": shapley}))
    return 0


def settings_of(arguments: argparse.Namespace, config: "Config", begun: "Settings | None" = None) -> "Settings":
    """Settings from what was given, else from the begun surface, else the defaults.

    Raises
    ------
    UsageError
        A value that cannot be.
    """
    from trustchain_ray.measure.bench import MERGING, Settings
    from trustchain_ray.measure.estimate import METRICS
    from trustchain_ray.measure.grid import parse_efforts, parse_ranks

    steps = config.federation.local_steps
    given: dict[str, Any] = {
        name: getattr(arguments, name)
        for name in ("coalitions", "mode", "repeats", "metric", "validation")
        if getattr(arguments, name) is not None
    }
    if arguments.ranks:
        given["ranks"] = parse_ranks(arguments.ranks)
    if arguments.efforts:
        given["efforts"] = parse_efforts(arguments.efforts, steps)
    if given.get("mode", "" if begun else "auto") == "auto":
        given["mode"] = "merged" if config.federation.cohorts in MERGING else "federated"
    if given.get("repeats", 1) < 1:
        raise UsageError(f"--repeats {given['repeats']}: give at least 1")
    if arguments.workers < 0:
        raise UsageError(f"--workers {arguments.workers}: give at least 1, or leave it out")
    if given.get("metric", METRICS[0]) not in METRICS:
        raise UsageError(f"--metric {given['metric']}: choose one of {', '.join(METRICS)}")
    if begun is not None:
        return dataclasses.replace(begun, **given)
    defaults = {"ranks": (config.model.lora.rank,), "efforts": parse_efforts("0,1/2,1", steps)}
    return Settings(**{**defaults, **given})


def refuse_impossible(config: "Config", settings: "Settings") -> None:
    """Raise what can be known before anything starts.

    Raises
    ------
    UsageError
        One organization, no validation records, own ranks, a rule in the mode `merged`, too many joint efforts.
    """
    from trustchain_ray.data import organization_names
    from trustchain_ray.measure.grid import check_measurable, joint_efforts
    from trustchain_ray.measure.validation import choose_source

    check_measurable(config, settings.mode)
    choose_source(config, settings.validation)
    joint_efforts(organization_names(config), settings.efforts, settings.coalitions, config.run.key)


def table(measured: "Measured", out: Path) -> str:
    """Quality of the whole federation and Shapley values, a line a rank."""
    surface, names = measured.surface, measured.surface.organizations
    full = {p.ranks[0]: p for p in surface.points if p.efforts == (max(p.efforts),) * len(names) and any(p.efforts)}
    width = max(9, *map(len, names)) + 2
    head = f"{'rank':>5}{'untrained':>11}{'whole':>9}{'± error':>9}{'seconds':>9}{'bytes':>12}"
    lines = ["", head + "".join(f"{name:>{width}}" for name in names)]
    for rank, found in measured.contributions.items():
        point = full.get(rank)
        error = f"{point.standard_error:.4f}" if point else "-"
        cost = point.measurements if point else {}
        seconds, size = cost.get("seconds"), cost.get("update_bytes")
        lines.append(
            f"{rank:>5}{found['untrained']:>11.4f}{found['whole']:>9.4f}{error:>9}"
            f"{'-' if seconds is None else f'{seconds:.1f}':>9}{'-' if size is None else f'{size:.0f}':>12}"
            + "".join(f"{value:>+{width}.4f}" for value in found["values"].values())
        )
    first = next(iter(measured.contributions.values()))
    summary = measured.summary
    lines += [
        f"columns of names: Shapley values ({first['method']}) of {surface.metric} at full effort, from "
        f"{first['evaluations']} coalitions, {first['predicted']} of them predicted",
        "",
        f"surface  {out}  {summary['points']} points, {summary['measured']} measured ({summary['mode']}), "
        f"validated on {summary['validated_on']}",
        f"digest   {summary['digest']}",
    ]
    cohorts, own = surface.provenance["cohorts"], surface.provenance["cohorts_of_the_run"]
    if cohorts != own:
        lines.append(
            f"note     these are merges of organizations that trained alone; this run trains with cohorts: {own}, "
            "whose models differ; --mode federated measures those"
        )
    return "\n".join(lines)


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
