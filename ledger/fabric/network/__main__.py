"""``python -m ledger.fabric.network up|down|status|profile --dir DIR``."""

import argparse
import os
import sys
import time
from pathlib import Path

from ledger.errors import LedgerError
from ledger.fabric.network import material
from ledger.fabric.network.layout import CONTAINERS, NODES, ORGANIZATIONS
from ledger.fabric.network.network import STATE, Network, programs_from


def parser() -> argparse.ArgumentParser:
    """Arguments of the program."""
    main = argparse.ArgumentParser(
        prog="python -m ledger.fabric.network",
        description="A Fabric network of two organizations, from the programs in FABRIC_BIN, without docker.",
    )
    verbs = main.add_subparsers(dest="verb", required=True, metavar="up|down|status|profile")
    up = verbs.add_parser("up", help="make a network and start it")
    up.add_argument("--batch-timeout", default="200ms", metavar="TIME", help="wait of the orderer for a block to fill")
    up.add_argument("--mutual-tls", action="store_true", help="peers demand a certificate of their clients")
    up.add_argument(
        "--coordinator-role", action="store_true",
        help="whoever runs rounds needs trustchain.role=coordinator in the certificate",
    )  # fmt: skip
    up.add_argument("--restart", action="store_true", help="start the network that lies in DIR, with its data")
    down = verbs.add_parser("down", help="end the processes of the network; its data stays")
    status = verbs.add_parser("status", help="which processes run")
    profile = verbs.add_parser("profile", help="write profiles for the containers of compose.yaml, which work in DIR")
    for verb in (up, down, status, profile):
        verb.add_argument("--dir", required=True, type=Path, metavar="DIR", help="folder of the network")
    return main


def main(arguments: list[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    options = parser().parse_args(arguments)
    try:
        if options.verb == "up":
            _up(options)
        elif options.verb == "down":
            Network.open(options.dir).stop()
        elif options.verb == "profile":
            for organization in ORGANIZATIONS:
                material.issue_coordinator(options.dir, organization)
            material.write_profiles(options.dir, CONTAINERS, host="localhost")
        else:
            return _status(options.dir)
    except LedgerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _up(options: argparse.Namespace) -> None:
    begin = time.monotonic()
    if options.restart and (options.dir / STATE).exists():
        network = Network.open(options.dir, programs_from(os.environ))
        network.stop()
        network.restart()
    else:
        network = Network.create(
            options.dir, programs_from(os.environ), options.batch_timeout, options.mutual_tls, options.coordinator_role
        )
    print(f"network ready in {time.monotonic() - begin:.1f} s")
    for organization in ORGANIZATIONS:
        print(f"  {organization}: profile {network.profile(organization)}, MSP {network.msp(organization, 'User1')}")


def _status(folder: Path) -> int:
    """Print a line a node; 0 if all of them run, else 3."""
    network = Network.open(folder)
    for node in NODES:
        print(f"{node:<11} {network.layout.addresses[node]:<22} {'runs' if network.alive(node) else 'does not run'}")
    return 0 if all(network.alive(node) for node in NODES) else 3


if __name__ == "__main__":
    sys.exit(main())
