"""The command line of `trustchain receipt`."""

import argparse
import json
from pathlib import Path

from ledger.canonical import sha256_hex
from ledger.removal import RECORD, SUBJECT
from trustchain_ray.errors import UsageError

EXAMPLES = """examples:
  trustchain receipt runs/small --organization hospital_a --subject p-0042 -o p-0042.receipt
  trustchain receipt runs/small --organization hospital_a --record r-17 r-18
  trustchain verify p-0042.receipt --run runs/small      (before a removal, and after it)

The organization issues it, where its records and its key lie. The file is for the person alone: it holds the records
and their salts. It shows that the records are in the run, and after a removal that they are gone.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("run", metavar="RUN", help="run directory")
    parser.add_argument("--organization", required=True, metavar="NAME", help="who holds the records, and signs")
    whose = parser.add_mutually_exclusive_group(required=True)
    whose.add_argument("--subject", metavar="ID", help="all records of a person")
    whose.add_argument("--record", metavar="ID", nargs="+", help="single records")
    parser.add_argument("-o", "--output", metavar="FILE", help="default: receipt-<first digits of its SHA-256>.json")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")


def run(arguments: argparse.Namespace) -> int:
    """Run the verb. Raises UsageError, TrustChainError."""
    folder = Path(arguments.run).resolve()
    if arguments.output is not None:
        _check_output(Path(arguments.output), folder)
    from trustchain_ray.forgetting.receipt import issue_receipt, write_receipt

    scope, ids = (SUBJECT, [arguments.subject]) if arguments.subject is not None else (RECORD, arguments.record)
    data, records = issue_receipt(folder, arguments.organization, scope, ids)
    path = Path(arguments.output or f"receipt-{sha256_hex(data)[:12]}.json")
    if arguments.output is None:
        _check_output(path, folder)
    write_receipt(path, data)
    print(f"{path}: {records} records, signed by {arguments.organization}; for the person alone")
    print(f"next    trustchain verify {path} --run {arguments.run}")
    if arguments.json:
        print(json.dumps({"receipt": str(path), "organization": arguments.organization, "records": records}))
    return 0


def _check_output(path: Path, run: Path) -> None:
    """Nothing is overwritten, and no record goes into the run directory, which others get. Raises UsageError."""
    if path.exists():
        raise UsageError(f"{path} exists already; choose another file with -o")
    if path.resolve().is_relative_to(run):
        raise UsageError(f"{path} lies in the run directory, which others can read; choose another file with -o")
