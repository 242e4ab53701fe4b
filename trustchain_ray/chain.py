"""The verb `chain`: where a run stands on its chains, bring it there, and set up what a consortium shares."""

import argparse
import json
from pathlib import Path
from typing import Any

from ledger import layout
from ledger.cli import add_serve_arguments, run_serve
from trustchain_ray.errors import UsageError

EXAMPLES = """examples:
  trustchain chain status runs/small
  trustchain chain drain runs/small --final 900
  trustchain chain deploy -c chains.yaml --member 0x5B38...ddC4=bank.json --member 0xAb84...5cb2=clinic.json
  trustchain chain serve runs/small --port 8080
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `trustchain chain`."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    status = actions.add_parser("status", help="what the chains have of a run, by the run's own files")
    drain = actions.add_parser("drain", help="bring a run's backlog to its chains, then seal the run again")
    drain.add_argument(
        "--final", type=float, default=0.0, metavar="SECONDS", help="wait so long for the anchors to become final"
    )
    for action in (status, drain):
        action.add_argument("run", metavar="RUN", help="run directory")
    deploy = actions.add_parser("deploy", help="put a consortium's contract on the public chain")
    deploy.add_argument("-c", "--config", action="append", required=True, metavar="FILE", help="YAML file")
    deploy.add_argument("overrides", nargs="*", metavar="key=value", help="dotted overrides, applied last")
    deploy.add_argument(
        "--member",
        action="append",
        required=True,
        metavar="ADDRESS=FILE",
        help="account and identity document (a run's identities/NAME.json) of a founding organization; repeat it",
    )
    deploy.add_argument("--coordinator", default="", metavar="ADDRESS", help="an account that opens runs' logs alone")
    deploy.add_argument("--threshold", type=int, default=0, help="members that must approve (default: a majority)")
    serve = actions.add_parser("serve", help="show a run's log to strangers over HTTP, read-only")
    add_serve_arguments(serve)
    for action in (status, drain, deploy):
        action.add_argument("--json", action="store_true", help="print one JSON object as the last line")


def run(arguments: argparse.Namespace) -> int:
    """Run one action; the exit code."""
    if arguments.action == "serve":
        return run_serve(arguments)
    from trustchain_ray import chain_actions as actions

    if arguments.action == "deploy":
        from trustchain_ray.config_files import load_config

        config = load_config(arguments.config, arguments.overrides)
        result = actions.deploy(config, arguments.member, arguments.threshold, arguments.coordinator)
        done = True
    else:
        path = Path(arguments.run)
        if not (path / layout.LOG).is_file():
            raise UsageError(f"{arguments.run}: there is no run here ({layout.LOG} is missing)")
        result = actions.status(path) if arguments.action == "status" else actions.drain(path, arguments.final)
        done = arguments.action == "status" or bool(result["drained"])
    width = max(map(len, result))
    for name, value in result.items():
        print(f"{name:<{width}}  {_shown(value)}")
    if arguments.json:
        print(json.dumps(result))
    return 0 if done else 1


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "  ".join(f"{name} {item}" for name, item in value.items())
    return str(value)
