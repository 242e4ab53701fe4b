"""The command line: `trustchain VERB`. Verbs load what they need; `verify` needs neither Ray nor torch."""

import argparse
import json
import sys
from typing import Any

from ledger import cli as ledger_cli
from ledger import lineage
from ledger.errors import LedgerError
from ledger.report import Report
from trustchain_ray import __version__, chain
from trustchain_ray.errors import TrustChainError, UsageError
from trustchain_ray.evaluate import command as evaluation
from trustchain_ray.forgetting import command as forgetting
from trustchain_ray.forgetting import receipt_command as receipt
from trustchain_ray.keys_verb import command as keys
from trustchain_ray.measure import command as measure
from trustchain_ray.policy import commands as policy
from trustchain_ray.privacy import command as privacy
from trustchain_ray.sweep import command as sweep

EXAMPLES = """examples:
  trustchain train -c configs/quickstart.yaml
  trustchain train -c configs/quickstart.yaml model.lora.rank=8 federation.rounds=4 --run runs/small
  trustchain train --resume runs/small
  trustchain verify runs/small
"""

VERIFY = """examples:
  trustchain verify runs/small --json
  trustchain verify runs/small --rpc-url https://a-node.example --min-witnesses 3
  trustchain verify small.bundle --trust consortium.json --model downloaded/model
  trustchain verify runs/small/certificates/0001.json --min-auditors 1
  trustchain verify runs/small --reexecute 0.2 --attest hospital_c
"""
LINEAGE = """examples:
  trustchain lineage runs/small
  trustchain lineage runs/small --of 58ff5721
  trustchain lineage runs/small --closure hospital_a/shard_1
"""
EXPORT = """examples:
  trustchain export runs/small -o small.bundle
  trustchain export runs/small -o release.bundle --type MODEL_RELEASE
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
        print(f"stopped. What was finished is kept; see `trustchain {arguments.verb} --help`", file=sys.stderr)
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

    evaluate = _verb(verbs, "evaluate", "score a model, or what it forgot or leaks", _evaluate, evaluation.EXAMPLES)
    evaluation.add_arguments(evaluate)
    unlearn = _verb(
        verbs, "unlearn", "remove a record, a person or an organization", _unlearn, forgetting.EXAMPLES
    )
    forgetting.add_arguments(unlearn)
    receipts = _verb(verbs, "receipt", "confirm to a person that records are in a run", _receipt, receipt.EXAMPLES)
    receipt.add_arguments(receipts)
    verify = _verb(verbs, "verify", "check what a run or a bundle claims", _verify, VERIFY)
    ledger_cli.add_verify_arguments(verify)
    again = verify.add_argument_group("do the training again, with the organizations and on their records")
    again.add_argument(
        "--reexecute", nargs="?", const="all", metavar="WHAT",
        help="compare digests: all (default) or a random share such as 0.2 of the replayed updates (of all, where "
        "nothing was removed), or merges, which trains nothing",
    )  # fmt: skip
    again.add_argument(
        "--attest", metavar="ORGANIZATION", help="log the outcome, signed by it, and counter-sign the certificates"
    )
    traced = _verb(verbs, "lineage", "what each artifact of a run was computed from", _lineage, LINEAGE)
    lineage.add_arguments(traced)
    export = _verb(verbs, "export", "put what a stranger needs to check a run into one file", _export, EXPORT)
    ledger_cli.add_export_arguments(export)
    chains = _verb(verbs, "chain", "where runs stand on their chains; set chains up", _chain, chain.EXAMPLES)
    chain.add_arguments(chains)
    keyring = _verb(verbs, "keys", "rotate, protect and revoke keys; admit members; TLS", _keys, keys.EXAMPLES)
    keys.add_arguments(keyring)
    measured = _verb(verbs, "measure", "train coalitions and measure what they are worth", _measure, measure.EXAMPLES)
    measure.add_arguments(measured)
    policies = _verb(verbs, "policy", "learn whether to take part, and judge it", _policy, policy.EXAMPLES)
    policy.add_arguments(policies)
    sweeps = _verb(verbs, "sweep", "learn, or train, over a grid of any configuration keys", _sweep, sweep.EXAMPLES)
    sweep.add_arguments(sweeps)

    private = _verb(verbs, "privacy", "what a privacy budget costs", _privacy, privacy.EXAMPLES)
    privacy.add_arguments(private)

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


def _evaluate(arguments: argparse.Namespace) -> int:
    return evaluation.run(arguments)


def _unlearn(arguments: argparse.Namespace) -> int:
    return forgetting.run(arguments)


def _receipt(arguments: argparse.Namespace) -> int:
    return receipt.run(arguments)


def _verify(arguments: argparse.Namespace) -> int:
    if arguments.reexecute is None:
        if arguments.attest:
            raise UsageError("--attest says what a re-execution gave: add --reexecute")
        return ledger_cli.run_verify(arguments)

    def more(report: Report) -> dict[str, Any]:
        from trustchain_ray.forgetting.reexecute import reexecute

        return reexecute(report, arguments.target, arguments.reexecute, arguments.attest, _progress)

    return ledger_cli.run_verify(arguments, more)


def _lineage(arguments: argparse.Namespace) -> int:
    return lineage.run(arguments)


def _export(arguments: argparse.Namespace) -> int:
    return ledger_cli.run_export(arguments)


def _chain(arguments: argparse.Namespace) -> int:
    return chain.run(arguments)


def _keys(arguments: argparse.Namespace) -> int:
    return keys.run(arguments)


def _measure(arguments: argparse.Namespace) -> int:
    return measure.run(arguments)


def _policy(arguments: argparse.Namespace) -> int:
    return policy.run(arguments)


def _sweep(arguments: argparse.Namespace) -> int:
    return sweep.run(arguments)


def _privacy(arguments: argparse.Namespace) -> int:
    return privacy.run(arguments)


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
    place = "tree size {size} in block {block}, {gas_used} gas, {status}".format(**anchor) if anchor else "none"
    lines += [
        "",
        f"model   {result['model_digest']}  {result['run']}/model",
        f"log     {result['log']['size']} events, root {result['log']['root']}",
        f"signed  by {', '.join(['coordinator', *result['witnesses']])}",
        f"anchor  {place}",
    ]
    lines += [f"        {name} did not cosign: {reason}" for name, reason in result["unwilling"].items()]
    for name, state in result["chains"].items():
        if state["backlog"]:
            lines.append(f"        {name} chain lacks {state['backlog']}: {state['error'] or 'no time left'}")
            lines.append(f"        bring it there: trustchain chain drain {result['run']}")
    return "\n".join([*lines, f"next    trustchain verify {result['run']}"])
