"""The command line: `trustchain VERB`. Verbs load what they need; `verify` needs neither Ray nor torch."""

import argparse
import json
import sys
from typing import Any

from ledger.errors import LedgerError
from trustchain_ray import __version__
from trustchain_ray.errors import TrustChainError

EXAMPLES = """examples:
  trustchain train -c configs/quickstart.yaml
  trustchain train -c configs/quickstart.yaml model.lora.rank=8 federation.rounds=4 --run runs/small
  trustchain train --resume runs/small
  trustchain verify runs/small
"""


def main(argv: list[str] | None = None) -> int:
    """Run one verb; the exit code: 0 done, 1 failed, 2 wrong usage."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.command(arguments))
    except TrustChainError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except LedgerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped. What was finished is kept; go on with `trustchain train --resume RUN`", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="trustchain", description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    train = _verb(verbs, "train", "run a federation", _train, EXAMPLES)
    train.add_argument(
        "-c", "--config", action="append", default=[], metavar="FILE", help="YAML file; several are merged in order"
    )
    train.add_argument("overrides", nargs="*", metavar="key=value", help="dotted overrides, applied last")
    train.add_argument("--run", metavar="DIR", help="run directory (default: the next free <run.dir>/<run.name>)")
    train.add_argument("--resume", metavar="RUN", help="go on with a run from its last finished round")
    train.add_argument("--dry-run", action="store_true", help="print the resolved configuration and stop")
    train.add_argument("--json", action="store_true", help="print one JSON object as the last line")

    verify = _verb(
        verbs,
        "verify",
        "check a run's signatures, log, adapters and anchors",
        _verify,
        "  trustchain verify runs/small --json",
    )
    verify.add_argument("run", metavar="RUN", help="run directory")
    verify.add_argument("--json", action="store_true", help="print one JSON object as the last line")

    doctor = _verb(verbs, "doctor", "say what this machine can do", _doctor, "  trustchain doctor")
    doctor.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    return parser


def _verb(verbs: Any, name: str, text: str, command: Any, examples: str) -> argparse.ArgumentParser:
    if not examples.startswith("examples"):
        examples = f"examples:\n{examples}\n"
    parser: argparse.ArgumentParser = verbs.add_parser(
        name, help=text, description=text, epilog=examples, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.set_defaults(command=command)
    return parser


def _train(arguments: argparse.Namespace) -> int:
    from trustchain_ray.config_files import load_config, to_yaml
    from trustchain_ray.errors import UsageError

    if arguments.resume:
        if arguments.config or arguments.overrides or arguments.run:
            raise UsageError("--resume goes on with the run's own configuration; leave -c, --run and overrides out")
        from trustchain_ray.train import resume

        result = resume(arguments.resume, _progress)
    else:
        if not arguments.config:
            raise UsageError("name a configuration: trustchain train -c configs/quickstart.yaml")
        config = load_config(arguments.config, arguments.overrides)
        if arguments.dry_run:
            print(to_yaml(config), end="")
            return 0
        from trustchain_ray.train import train

        result = train(config, arguments.run, _progress)
    print(_table(result))
    if arguments.json:
        print(json.dumps(result))
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from ledger.cli import verify_command

    return verify_command(arguments.run, arguments.json)


def _doctor(arguments: argparse.Namespace) -> int:
    from trustchain_ray.doctor import examine

    found = examine()
    width = max(map(len, found))
    print("\n".join(f"{name:<{width}}  {value}" for name, value in found.items()))
    if arguments.json:
        print(json.dumps(found))
    return 0


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _table(result: dict[str, Any]) -> str:
    """The short table at the end of a run."""
    lines = ["", f"{'training':<14}" + "".join(f"{metric:>16}" for metric in ("accuracy", "token_accuracy", "loss"))]
    for name, row in result["scores"].items():
        cells = (f"{row[m]:>16.4f}" if m in row else f"{'-':>16}" for m in ("accuracy", "token_accuracy", "loss"))
        lines.append(f"{name:<14}" + "".join(cells))
    anchor = result["anchor"]
    lines += [
        "",
        f"model   {result['model_digest']}  {result['run']}/model",
        f"log     {result['log']['size']} events, root {result['log']['root']}",
        f"anchor  {'tree size {size} in block {block}, {gas_used} gas'.format(**anchor) if anchor else 'none'}",
        f"next    trustchain verify {result['run']}",
    ]
    return "\n".join(lines)
