"""``verify RUN [--json]``: what a stranger runs."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from ledger import layout
from ledger.verify import Check, verify_run


def verify_command(run_dir: str, as_json: bool) -> int:
    """Check a run and print what was checked.

    Parameters
    ----------
    run_dir
        The run directory.
    as_json
        Print one JSON object instead of lines.

    Returns
    -------
    int
        0: nothing is wrong; 1: something is, and it is named; 2: there is no run.
    """
    path = Path(run_dir)
    if not path.is_dir():
        print(f"{run_dir}: is not a directory; name a run directory", file=sys.stderr)
        return 2
    if not (path / layout.MANIFEST).exists() and not (path / layout.LOG).exists():
        print(
            f"{run_dir}: there is no run here ({layout.MANIFEST} and {layout.LOG} are missing)",
            file=sys.stderr,
        )
        return 2
    report = verify_run(path, None if as_json else _print_check)
    if as_json:
        print(json.dumps(report.to_dict()))
        return 0 if report.ok else 1
    count = {kind: sum(check.status == kind for check in report.checks) for kind in ("ok", "skipped", "fail")}
    print(f"\nchecks: {count['ok']} ok, {count['skipped']} skipped, {count['fail']} failed")
    if report.failure is not None:
        print(f"NOT VERIFIED: {report.failure.detail}")
        return 1
    print("VERIFIED" + (", except what is skipped above" if count["skipped"] else ""))
    return 0


def _print_check(check: Check) -> None:
    print(f"{check.status:<8} {check.name:<11} {check.detail}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``python -m ledger``; returns the exit status (2 also for wrong usage)."""
    parser = argparse.ArgumentParser(prog="python -m ledger", description="Check what a run claims.")
    commands = parser.add_subparsers(dest="command", required=True)
    verify = commands.add_parser("verify", help="check a run directory")
    verify.add_argument("run", help="the run directory")
    verify.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args(argv)
    return verify_command(arguments.run, arguments.json)
