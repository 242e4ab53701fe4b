"""The command line of a stranger: ``verify``, ``lineage``, ``export``, ``serve``, ``witness``."""

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ledger import bundle, layout, lineage
from ledger.canonical import is_digest
from ledger.errors import LedgerError
from ledger.identity import load
from ledger.private import PrivateChain
from ledger.report import Check, Kind, Report
from ledger.serve import Server, serve_run
from ledger.verify import verify_run
from ledger.verify_document import kind_of, verify_document
from ledger.verify_trust import read_trust
from ledger.witness import Witness
from ledger.witness_server import serve_witness


def add_verify_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of :func:`run_verify`."""
    parser.add_argument("target", metavar="RUN", help="a run directory, a bundle, a certificate, or a receipt")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--partial", action="store_true", help="the directory is a part of a run: files may be missing")
    parser.add_argument("--trust", metavar="FILE", help="keys that you know: identity documents, or a table of keys")
    parser.add_argument("--model", metavar="DIR", help="a model of your own that is to be the released one")
    parser.add_argument(
        "--min-witnesses", type=int, default=0, metavar="N", help="organizations that must have cosigned (default: 0)"
    )
    parser.add_argument(
        "--min-auditors", type=int, default=0, metavar="N",
        help="organizations that must have counter-signed a certificate (default: 0)",
    )  # fmt: skip
    parser.add_argument("--run", metavar="RUN", help="of a certificate or receipt: its run, or a bundle of the log")
    parser.add_argument(
        "--certificate", action="append", default=[], metavar="FILE",
        help="of a receipt: a certificate of removal; may be repeated",
    )  # fmt: skip
    parser.add_argument("--rpc-url", metavar="URL", help="a node of the public chain to compare with")
    fabric = parser.add_argument_group("compare with the private chain, for its members")
    fabric.add_argument("--fabric-profile", metavar="FILE", help="connection profile of Hyperledger Fabric")
    fabric.add_argument("--fabric-msp", metavar="DIR", help="MSP folder of the client")
    fabric.add_argument("--fabric-organization", metavar="NAME", help="organization of the profile (default: its own)")
    fabric.add_argument("--fabric-channel", metavar="NAME", default="trustchain", help="default: %(default)s")
    fabric.add_argument("--fabric-chaincode", metavar="NAME", default="trustchain", help="default: %(default)s")


def run_verify(
    arguments: argparse.Namespace, more: Callable[[Report], Mapping[str, Any]] | None = None
) -> int:
    """Check a run, a bundle, a certificate or a receipt, and print what was checked.

    Parameters
    ----------
    arguments
        Of :func:`add_verify_arguments`.
    more
        Checks more: it is called with the report, and adds to it. What it returns goes into the JSON object, too.

    Returns
    -------
    int
        0: nothing is wrong; 1: something is, and it is named; 2: there is nothing to check, or wrong usage.
    """
    target = Path(arguments.target)
    if not target.exists():
        return _usage(f"{target}: is not there; name a run directory or a bundle file")
    if target.is_dir() and not any((target / name).exists() for name in (layout.MANIFEST, layout.LOG, layout.ANCHORS)):
        return _usage(f"{target}: there is no run here ({layout.MANIFEST} and {layout.LOG} are missing)")
    if bool(arguments.fabric_profile) != bool(arguments.fabric_msp):
        return _usage("--fabric-profile and --fabric-msp go together")
    for name, count in (("--min-witnesses", arguments.min_witnesses), ("--min-auditors", arguments.min_auditors)):
        if count < 0:
            return _usage(f"{name} is not below 0")
    try:
        trust = read_trust(arguments.trust) if arguments.trust else None
        kind = kind_of(target)
    except LedgerError as error:
        return _usage(str(error))
    if problem := _misplaced(arguments, kind):
        return _usage(problem)
    on_check = None if arguments.json else _print_check
    if kind in ("run", "bundle"):
        report = _verify_run(arguments, on_check, trust)
    else:
        report = verify_document(
            target,
            on_check,
            run=arguments.run,
            certificates=arguments.certificate,
            trust=trust,
            min_auditors=arguments.min_auditors,
            rpc_url=arguments.rpc_url,
        )
    known = len(report.checks)
    extra = more(report) if more is not None else {}
    if arguments.json:
        print(json.dumps({**report.to_dict(), **extra}))
    else:
        for check in report.checks[known:]:
            _print_check(check)
        _print_summary(report)
    return 0 if report.ok else 1


def _misplaced(arguments: argparse.Namespace, kind: Kind) -> str | None:
    """What is wrong with the options for this kind of target."""
    for name in (arguments.run, *arguments.certificate):
        if name is not None and not Path(name).exists():
            return f"{name}: is not there"
    for option, given, kinds in (
        ("--run", arguments.run, ("certificate", "receipt")),
        ("--certificate", arguments.certificate, ("receipt",)),
        ("--partial", arguments.partial, ("run", "bundle")),
        ("--model", arguments.model, ("run", "bundle")),
        ("--min-witnesses", arguments.min_witnesses, ("run", "bundle")),
        ("--fabric-profile", arguments.fabric_profile, ("run", "bundle")),
    ):
        if given and kind not in kinds:
            return f"{option} does not go with a {kind}, which {arguments.target} is"
    return None


def _verify_run(
    arguments: argparse.Namespace, on_check: Callable[[Check], None] | None, trust: dict[str, str] | None
) -> Report:
    return verify_run(
        arguments.target,
        on_check,
        partial=arguments.partial,
        trust=trust,
        model=arguments.model,
        min_witnesses=arguments.min_witnesses,
        min_auditors=arguments.min_auditors,
        rpc_url=arguments.rpc_url,
        fabric=_fabric(arguments) if arguments.fabric_profile else None,
    )


def verify_command(run_dir: str, as_json: bool) -> int:
    """:func:`run_verify` of a run directory, with nothing but the run itself to compare with."""
    parser = argparse.ArgumentParser()
    add_verify_arguments(parser)
    return run_verify(parser.parse_args([run_dir, *(["--json"] if as_json else [])]))


def _fabric(arguments: argparse.Namespace) -> Callable[[str], PrivateChain]:
    def opened(run: str) -> PrivateChain:
        from ledger.fabric.chain import FabricChain

        return FabricChain(
            arguments.fabric_profile,
            arguments.fabric_msp,
            run,
            organization=arguments.fabric_organization,
            channel=arguments.fabric_channel,
            chaincode=arguments.fabric_chaincode,
        )

    return opened


def _print_check(check: Check) -> None:
    print(f"{check.status:<8} {check.name:<13} {check.detail}", flush=True)


def _print_summary(report: Report) -> None:
    for title, lines in (("checked", report.checked), ("not checked", report.not_checked)):
        if lines:
            print(f"\n{title}:")
            print("\n".join(f"  - {line}" for line in lines))
    count = {kind: sum(check.status == kind for check in report.checks) for kind in ("ok", "skipped", "fail")}
    print(f"\nchecks: {count['ok']} ok, {count['skipped']} skipped, {count['fail']} failed")
    if report.failure is not None:
        print(f"NOT VERIFIED: {report.failure.detail}")
    else:
        print("VERIFIED" + (", except what is not checked above" if report.not_checked else ""))


def add_export_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of :func:`run_export`."""
    parser.add_argument("run", metavar="RUN", help="run directory")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="the bundle to write")
    parser.add_argument(
        "--event", type=int, action="append", metavar="INDEX", help="only this event, with its proof; may be repeated"
    )
    parser.add_argument(
        "--type", action="append", default=[], metavar="TYPE", help="only events of this type; may be repeated"
    )
    parser.add_argument("--model", action="store_true", help="put the model's files in, not only their digests")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")


def run_export(arguments: argparse.Namespace) -> int:
    """Write a bundle; 0, or 2 if it cannot be written."""
    try:
        made = bundle.export(
            arguments.run, arguments.output, arguments.event, arguments.type, model=arguments.model
        )
    except LedgerError as error:
        return _usage(str(error))
    if arguments.json:
        print(json.dumps({"file": arguments.output, "files": made.files, "events": made.events, "size": made.size}))
    else:
        print(f"{arguments.output}: {made.events} of {made.size} events, {len(made.files)} files")
        print(f"next    python -m ledger verify {arguments.output}")
    return 0


def add_serve_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of :func:`run_serve`."""
    parser.add_argument("run", metavar="RUN", help="run directory")
    _add_address(parser)


def run_serve(arguments: argparse.Namespace) -> int:
    """Serve a run's log until interrupted; 0, or 2 if that cannot be done."""
    try:
        server = serve_run(arguments.run, arguments.host, arguments.port)
    except LedgerError as error:
        return _usage(str(error))
    return _serve(server, "/checkpoint")


def add_witness_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of :func:`run_witness`."""
    parser.add_argument(
        "--identity", nargs=2, required=True, metavar=("DIR", "NAME"), help="key folder and name of the organization"
    )
    parser.add_argument("--state", required=True, metavar="DIR", help="where the witness keeps what it cosigned")
    parser.add_argument(
        "--log", action="append", required=True, metavar="RUN=KEY", help="a run, and its coordinator's key in hex"
    )
    _add_address(parser)


def run_witness(arguments: argparse.Namespace) -> int:
    """Cosign checkpoints of some logs until interrupted; 0, or 2 if that cannot be done."""
    logs: dict[str, str] = {}
    for text in arguments.log:
        run, _, key = text.rpartition("=")
        if not run or not is_digest(key):
            return _usage(f"--log {text}: needs RUN=KEY, with a public key of 64 hex digits")
        logs[run] = key
    folder, name = arguments.identity
    try:
        server = serve_witness(Witness(load(name, folder), arguments.state), logs, arguments.host, arguments.port)
    except LedgerError as error:
        return _usage(str(error))
    return _serve(server, "/add-checkpoint")


def _add_address(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=0, help="port (default: a free one)")


def _serve(server: Server, path: str) -> int:
    print(f"{server.url}{path}", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()
    server.server_close()
    return 0


def _usage(message: str) -> int:
    print(message, file=sys.stderr)
    return 2


COMMANDS: list[
    tuple[str, str, Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], int]]
] = [
    ("verify", "check a run, a bundle, a certificate or a receipt", add_verify_arguments, run_verify),
    ("lineage", "what a run's artifacts were computed from", lineage.add_arguments, lineage.run),
    ("export", "write a bundle: what a stranger needs, in one file", add_export_arguments, run_export),
    ("serve", "serve a run's log over HTTP, for reading (C2SP tlog-tiles)", add_serve_arguments, run_serve),
    ("witness", "cosign checkpoints that are consistent (C2SP tlog-witness)", add_witness_arguments, run_witness),
]
"""Name, help, arguments, and what runs: the same for every program that offers these commands."""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``python -m ledger``; returns the exit status (2 also for wrong usage)."""
    parser = argparse.ArgumentParser(prog="python -m ledger", description="Check what a run claims.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text, add_arguments, run in COMMANDS:
        command = commands.add_parser(name, help=text, description=text)
        add_arguments(command)
        command.set_defaults(run_command=run)
    arguments = parser.parse_args(argv)
    status: int = arguments.run_command(arguments)
    return status
