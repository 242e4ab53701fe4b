"""Fabric's own ``peer`` command line, as tests see the network without our client."""

import base64
import json
import os
import subprocess
from pathlib import Path

from ledger.fabric.network import Network
from ledger.fabric.network.layout import CHAINCODE, CHANNEL, domain

ORDERER_TLS = "organizations/ordererOrganizations/example.com/tlsca/tlsca.example.com-cert.pem"


class Refused(Exception):
    """What the command line printed when it failed."""


def _run(net: Network, who: str, arguments: list[str], at: str | None = None) -> str:
    organization, _, user = who.partition("/")
    environment = {**os.environ, **net.environment(organization, user or "User1")}
    if at is not None:
        environment["CORE_PEER_ADDRESS"] = net.layout.addresses[at]
        environment["CORE_PEER_TLS_ROOTCERT_FILE"] = str(tls_root(net, at))
    command = ["peer", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode != 0:
        raise Refused(done.stderr)
    return done.stdout.rstrip("\n")


def tls_root(net: Network, peer: str) -> Path:
    """TLS authority of a peer."""
    name = domain(f"org{peer[-1]}")
    return Path(net.layout.organization_dir(f"org{peer[-1]}")) / "tlsca" / f"tlsca.{name}-cert.pem"


def submit(
    net: Network, who: str, *call: str, endorsers: tuple[str, ...] = ("peer1", "peer2"), transient: str | None = None
) -> None:
    """Submit a transaction as ``org1/User1``, endorsed by these peers, and wait for its commit on them."""
    arguments = [
        "chaincode", "invoke", "-C", CHANNEL, "-n", CHAINCODE, "-c", json.dumps({"Args": call}), "--waitForEvent",
        "-o", net.layout.addresses["orderer"], "--tls", "--cafile", str(net.folder / ORDERER_TLS),
    ]  # fmt: skip
    for peer in endorsers:
        arguments += ["--peerAddresses", net.layout.addresses[peer], "--tlsRootCertFiles", str(tls_root(net, peer))]
    if transient is not None:
        arguments += ["--transient", json.dumps({"value": base64.b64encode(transient.encode()).decode()})]
    _run(net, who, arguments)


def query(net: Network, who: str, *call: str, at: str | None = None) -> str:
    """Result of a transaction, from the organization's own peer or from another."""
    return _run(net, who, ["chaincode", "query", "-C", CHANNEL, "-n", CHAINCODE, "-c", json.dumps({"Args": call})], at)
