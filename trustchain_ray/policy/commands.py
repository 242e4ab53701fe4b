"""`trustchain policy train` and `trustchain policy evaluate`."""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from trustchain_ray.errors import TrustChainError, UsageError

EXAMPLES = """examples:
  trustchain policy train -c configs/quickstart.yaml
  trustchain policy train -c configs/quickstart.yaml --surface surface.json --out policies/measured --json
  trustchain policy train --resume policies/measured
  trustchain policy evaluate policies/measured
"""
REPORT, CONFIG = "report.json", "config.yaml"
COLUMNS = (
    ("NashConv", "nash_conv", ".2%"),
    ("welfare", "welfare", ".4f"),
    ("anarchy", "price_of_anarchy", ".3f"),
    ("quality", "quality", ".4f"),
    ("effort", "participation", ".0%"),
    ("rational", "individual_rationality", ".0%"),
    ("budget", "budget_balance", "+.4f"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the actions `train` and `evaluate`; `run` carries out what was parsed."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    form = argparse.RawDescriptionHelpFormatter
    about = "learn one Q-policy an organization, and judge them against the exact oracles"
    train = actions.add_parser("train", help=about, description=about, epilog=EXAMPLES, formatter_class=form)
    train.add_argument(
        "-c", "--config", action="append", default=[], metavar="FILE", help="YAML file; several are merged in order"
    )
    train.add_argument("overrides", nargs="*", metavar="key=value", help="dotted overrides, applied last")
    train.add_argument("--surface", metavar="FILE", help="measured response surface (default: participation.surface)")
    train.add_argument("--out", metavar="DIR", help="folder of the policies (default: <run.dir>/<run.name>-policy)")
    train.add_argument("--resume", metavar="DIR", help="go on with a learning from its last checkpoint")
    train.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    about = "judge learned policies against the exact oracles"
    evaluate = actions.add_parser("evaluate", help=about, description=about, epilog=EXAMPLES, formatter_class=form)
    evaluate.add_argument("folder", metavar="DIR", help="folder of the policies")
    evaluate.add_argument(
        "-c", "--config", action="append", default=[], metavar="FILE", help="judge them in this configuration's game"
    )
    evaluate.add_argument("--json", action="store_true", help="print one JSON object as the last line")


def run(arguments: argparse.Namespace) -> int:
    """Carry out an action; the exit code is 1 where NashConv is above `participation.max_nash_conv`."""
    report = _train(arguments) if arguments.action == "train" else _evaluate(arguments)
    print(table(report))
    if arguments.json:
        print(json.dumps(report, allow_nan=False))
    if report["accepted"]:
        return 0
    found = report["policies"]["learned"]["nash_conv"]
    print(
        f"error: NashConv is {found:.2%} of the payoff range, participation.max_nash_conv allows "
        f"{report['max_nash_conv']:.2%}; learn longer (participation.learning.env_steps) or with another seed",
        file=sys.stderr,
    )
    return 1


def table(report: dict[str, Any]) -> str:
    """Return the figures of the policies as a text table."""
    oracles = report["oracles"]
    price = oracles["price_of_anarchy"]
    lines = [
        "",
        f"{report['payoff']}, {len(report['organizations'])} organizations, {report['horizon']} rounds; "
        f"{oracles['pure_equilibria']} pure equilibria, optimal welfare {oracles['welfare_optimum']:.4f}, "
        f"price of anarchy {'-' if price is None else f'{price:.3f}'}",
        "",
        f"{'policy':<10}" + "".join(f"{title:>10}" for title, _, _ in COLUMNS),
    ]
    for name, row in report["policies"].items():
        cells = ("-" if row[key] is None else format(row[key], form) for _, key, form in COLUMNS)
        lines.append(f"{name:<10}" + "".join(f"{cell:>10}" for cell in cells))
    return "\n".join(lines)


def _train(arguments: argparse.Namespace) -> dict[str, Any]:
    from trustchain_ray.cluster import cluster
    from trustchain_ray.config_files import load_config, to_yaml
    from trustchain_ray.policy.assess import assess
    from trustchain_ray.policy.game import build_game, load_game, record_counts, save_game
    from trustchain_ray.policy.learn import learn
    from trustchain_ray.run_directory import RunDirectory, new_run

    if arguments.resume:
        if arguments.config or arguments.overrides or arguments.out or arguments.surface:
            raise UsageError("--resume goes on with the folder's own configuration; leave -c, --surface and --out out")
        folder = RunDirectory.open(Path(arguments.resume))
        config = load_config([str(folder.path / CONFIG)], [])
        game = load_game(folder.path)
    else:
        if not arguments.config:
            raise UsageError("name a configuration: trustchain policy train -c configs/quickstart.yaml")
        config = load_config(arguments.config, arguments.overrides)
        if arguments.surface:
            config.participation.surface = os.path.abspath(arguments.surface)
        game = build_game(config, config.participation, record_counts(config))
        path = Path(arguments.out) if arguments.out else new_run(config.run.dir, f"{config.run.name}-policy")
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UsageError(f"{path} exists already; go on with it by --resume {path}, or choose another --out")
        path.mkdir(parents=True, exist_ok=True)
        folder = RunDirectory(path)
        folder.lock()
        save_game(game, folder.path)
        folder.write(CONFIG, to_yaml(config).encode())
    try:
        if (folder.path / REPORT).is_file():
            _progress(f"{folder.path} is complete")
            return dict(json.loads((folder.path / REPORT).read_text(encoding="utf-8")))
        began = time.perf_counter()
        settings = config.participation
        alone = copy.deepcopy(config)
        # Learning is one process, whatever the federation's workers need.
        alone.resources.mode, alone.resources.workers = "pooled", 1
        alone.resources.cpus_per_worker, alone.resources.gpus_per_worker = 1.0, 0.0
        with cluster(alone, 1):
            learned = learn(game, settings.learning, config.run.key, folder.path, _progress, bool(arguments.resume))
        learned.policies.save(folder.path)
        report = assess(game, learned.policies.policies(), config.run.key, settings.max_nash_conv)
        report |= {
            "folder": os.fspath(folder.path),
            "policies_digest": learned.policies.digest(),
            "curve": learned.curve,
            "env_steps_per_second": round(learned.env_steps_per_second),
            "seconds": round(time.perf_counter() - began, 1),
        }
        folder.write(REPORT, (json.dumps(report, indent=1, allow_nan=False) + "\n").encode())
        return report
    finally:
        folder.unlock()


def _evaluate(arguments: argparse.Namespace) -> dict[str, Any]:
    from trustchain_ray.config_files import load_config
    from trustchain_ray.policy.assess import assess
    from trustchain_ray.policy.game import build_game, load_game, record_counts
    from trustchain_ray.policy.q_policies import QPolicies

    folder = Path(arguments.folder)
    if not (folder / CONFIG).is_file():
        raise TrustChainError(f"{folder} holds no policies: it has no {CONFIG}; `trustchain policy train` makes one")
    config = load_config(arguments.config or [str(folder / CONFIG)], [])
    settings = config.participation
    if arguments.config:
        game = build_game(config, settings, record_counts(config))
    else:
        game = load_game(folder)
    learned = QPolicies.load(folder, game)
    report = assess(game, learned.policies(), config.run.key, settings.max_nash_conv)
    return report | {"folder": os.fspath(folder), "policies_digest": learned.digest()}


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
