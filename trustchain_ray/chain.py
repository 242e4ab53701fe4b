"""The verb `chain`: where a run stands on its chains, bring it there, and set up what a consortium shares."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ledger import layout
from ledger.cli import add_serve_arguments, run_serve
from trustchain_ray.errors import UsageError

if TYPE_CHECKING:
    from trustchain_ray.config import Config

EXAMPLES = """examples:
  trustchain chain status runs/small
  trustchain chain status runs/small -c chains.yaml
  trustchain chain drain runs/small --final 900
  trustchain chain approve runs/small -c chains.yaml
  trustchain chain approve runs/small certificates/0002.json -c chains.yaml --account bank-account.json
  trustchain chain approve small.bundle --release -c chains.yaml --approvals /shared/approvals
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
    status.add_argument(
        "-c", "--config", action="append", default=[], metavar="FILE", help="ask these chains how approvals stand"
    )
    status.add_argument("--approvals", metavar="DIR", help="where members collect approvals (default: RUN/approvals)")
    _add_approve(actions.add_parser("approve", help="approve a removal, a release or a revocation as a member"))
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


def _add_approve(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="run directory, or a bundle of its whole log")
    parser.add_argument(
        "certificate", nargs="?", metavar="CERTIFICATE", help="of the removal to approve (default: the run's newest)"
    )
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--release", action="store_true", help="approve the release of a model instead")
    model.add_argument("--revoke", action="store_true", help="approve the revocation of a model instead")
    parser.add_argument("--model", default="", metavar="DIGEST", help="of that model (default: the newest released)")
    parser.add_argument(
        "-c", "--config", action="append", default=[], metavar="FILE",
        help="your own chains (default: the run's configuration, for who made the run)",
    )  # fmt: skip
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="dotted overrides, applied last")
    parser.add_argument("--account", metavar="FILE", help="encrypted key file of your account (ledger.public.keystore)")
    parser.add_argument("--approvals", metavar="DIR", help="where members collect approvals (default: RUN/approvals)")
    parser.add_argument("--trust", metavar="FILE", help="keys that you know: identity documents, or a table of keys")
    parser.add_argument(
        "--min-auditors", type=int, default=0, metavar="N", help="that must have counter-signed the certificate"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")


def run(arguments: argparse.Namespace) -> int:
    """Run one action; the exit code."""
    if arguments.action == "serve":
        return run_serve(arguments)
    if arguments.action == "approve":
        return _approve(arguments)
    from trustchain_ray import chain_actions as actions

    if arguments.action == "deploy":
        from trustchain_ray.chain_config import load_chains

        config = load_chains(arguments.config, arguments.overrides)
        result = actions.deploy(config, arguments.member, arguments.threshold, arguments.coordinator)
        done = True
    else:
        path = Path(arguments.run)
        if not (path / layout.LOG).is_file():
            raise UsageError(f"{arguments.run}: there is no run here ({layout.LOG} is missing)")
        result = actions.status(path) if arguments.action == "status" else actions.drain(path, arguments.final)
        done = arguments.action == "status" or bool(result["drained"])
        if arguments.action == "status" and arguments.config:
            from trustchain_ray.chain_approvals import standings
            from trustchain_ray.chain_config import load_chains

            result["approvals"] = standings(load_chains(arguments.config), path, _folder(arguments))
    _print(result, arguments.json)
    return 0 if done else 1


def approval_hint(config: "Config", run: str, certificate: str) -> str:
    """The command with which the members approve a removal; empty where the run's chains take no approvals."""
    from trustchain_ray.chain_config import has_contract

    if config.ledger.private.kind != "fabric" and not has_contract(config):
        return ""
    return f"trustchain chain approve {run} {certificate} -c YOUR_CHAINS.yaml"


def _approve(arguments: argparse.Namespace) -> int:
    from ledger.decisions import RELEASE, REVOCATION
    from ledger.verify_trust import read_trust
    from trustchain_ray.chain_approvals import Question, approve
    from trustchain_ray.chain_config import load_chains

    path, about_model = Path(arguments.run), arguments.release or arguments.revoke
    if not path.is_file() and not (path / layout.LOG).is_file():
        raise UsageError(f"{path}: there is no run and no bundle here")
    if (about_model and arguments.certificate) or (arguments.model and not about_model):
        raise UsageError("chain approve: name a certificate, or --release or --revoke with a --model")
    if path.is_file() and not arguments.config:
        raise UsageError("chain approve: with a bundle, name your own chains with -c FILE")
    config = load_chains(arguments.config or [str(path / layout.CONFIG)], arguments.set)
    if arguments.account:
        config.ledger.public.keystore, config.ledger.public.signer = arguments.account, ""
    question = Question(
        Path(arguments.certificate) if arguments.certificate else None,
        RELEASE if arguments.release else REVOCATION if arguments.revoke else "",
        arguments.model,
        read_trust(arguments.trust) if arguments.trust else None,
        arguments.min_auditors,
    )
    result = approve(config, path, question, _folder(arguments), lambda line: print(line, file=sys.stderr, flush=True))
    shown = {"run": result["run"], "missing": f"{result['missing']} approvals", "approvals": result["approvals"]}
    _print(shown, False)
    if not result["done"]:
        print("nothing to do: you approved this before, or it is done")
    if arguments.json:
        print(json.dumps(result))
    return 0


def _folder(arguments: argparse.Namespace) -> Path | None:
    return Path(arguments.approvals) if arguments.approvals else None


def _print(result: dict[str, Any], as_json: bool) -> None:
    width = max(map(len, result))
    for name, value in result.items():
        if name != "approvals":
            print(f"{name:<{width}}  {_shown(value)}")
    if rows := result.get("approvals"):
        from trustchain_ray.chain_approvals import lines_of

        print("\n".join(lines_of(rows)))
    if as_json:
        print(json.dumps(result))


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "  ".join(f"{name} {item}" for name, item in value.items())
    return str(value)
