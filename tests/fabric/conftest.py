"""A real Fabric network, started once for all tests that need it."""

import os
from collections.abc import Iterator

import pytest

from ledger.fabric import network


@pytest.fixture(scope="session")
def fabric_bin() -> str:
    """Folder with Fabric's programs."""
    folder = os.environ.get("FABRIC_BIN", "")
    if not folder:
        pytest.skip("FABRIC_BIN is not set: it names the folder with Fabric's programs (peer, orderer, ...)")
    return folder


@pytest.fixture(scope="session")
def fabric_network(fabric_bin: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[network.Network]:
    """Two organizations, one orderer, channel and chaincode ``trustchain``, blocks after 200 ms."""
    with network.running(tmp_path_factory.mktemp("fabric") / "network", fabric_bin) as net:
        yield net
