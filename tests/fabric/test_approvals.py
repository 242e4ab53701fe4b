"""Decisions of the members on a real channel: the peers of k organizations endorse what concludes them."""

import os
from collections.abc import Callable

import pytest

pytest.importorskip("grpc", reason="pip install 'trustchain-ray[fabric]'")
pytest.importorskip("google.protobuf", reason="pip install 'trustchain-ray[fabric]'")

from removal_run import RemovalRun, removal_run

from ledger.decisions import (
    CERTIFICATE,
    CONCLUDED,
    NONE,
    PROPOSED,
    RELEASE,
    REVOKED,
    Decision,
    Standing,
    of_certificate,
    of_model,
    reason_of,
)
from ledger.errors import LedgerError
from ledger.fabric import network
from ledger.fabric.approvals import FabricBallot
from ledger.fabric.chain import FabricChain
from ledger.verify import verify_run
from ledger.verify_certificate import RunLog
from ledger.verify_document import read_run_log

pytestmark = [pytest.mark.fabric, pytest.mark.timeout(240)]

MSPS = ("Org1MSP", "Org2MSP")


class Channel:
    """Clients of a run on the shared network; the run's own name is used once in a network."""

    def __init__(self, net: network.Network, made: RemovalRun) -> None:
        self.net, self.made = net, made
        self.log: RunLog = read_run_log(made.run.dir)

    def client(self, organization: str, at: str = "", run: str = "") -> FabricChain:
        profile, msp = self.net.profile(at or organization), self.net.msp(organization, "User1")
        return FabricChain(profile, msp, run or self.made.run.run)

    def approve(self, organization: str, decision: Decision) -> tuple[Standing, list[str]]:
        done: list[str] = []
        chain = self.client(organization)
        try:
            reason = f"MODEL_REVOKED {reason_of(self.log, decision)}"
            return FabricBallot(chain, decision, reason).approve(done.append), done
        finally:
            chain.close()


@pytest.fixture(scope="module")
def channel(fabric_network: network.Network, tmp_path_factory: pytest.TempPathFactory) -> Channel:
    made = removal_run(tmp_path_factory.mktemp("approved"))
    channel = Channel(fabric_network, made)
    chain = channel.client("org1")
    chain.open_run(made.run.coordinator.public_hex, 2, MSPS)
    chain.close()
    return channel


def approvals(channel: Channel) -> str:
    fabric: Callable[[str], FabricChain] = lambda run: channel.client("org2", run=run)  # noqa: E731
    report = verify_run(channel.made.run.dir, fabric=fabric)
    return next(check.detail for check in report.checks if check.name == "approvals")


def test_two_organizations_approve_a_removal_and_the_old_model_is_revoked(channel: Channel) -> None:
    decisions = of_certificate(channel.log, channel.made.certificate, "a.json", channel.made.keys)
    for one in decisions:
        now, done = channel.approve("org1", one)
        assert (now, done) == (Standing(PROPOSED, ["Org1MSP"], 2), ["proposed", "approved by Org1MSP"])
        assert channel.approve("org1", one) == (now, [])
    assert "0 of 1 certificates approved, 0 of 1 withdrawn models revoked" in approvals(channel)
    for one in decisions:
        now, done = channel.approve("org2", one)
        assert now == Standing(CONCLUDED if one.kind == CERTIFICATE else REVOKED, list(MSPS), 2)
        assert done == ["approved by Org2MSP", "concluded", "revoked"][: 3 - (one.kind == CERTIFICATE)]
        assert channel.approve("org1", one) == (now, [])
    assert "1 of 1 certificates approved, 1 of 1 withdrawn models revoked" in approvals(channel)


def test_a_release_is_concluded_by_both(channel: Channel) -> None:
    release = of_model(channel.log, RELEASE)
    assert channel.approve("org2", release)[0].missing == 1
    assert channel.approve("org1", release)[0].state == CONCLUDED
    assert channel.client("org1").model_status(release.digest) == "released"


def test_an_organization_that_is_no_member_of_the_run_is_refused(channel: Channel) -> None:
    name, key = f"alone-{os.getpid()}", channel.made.run.coordinator.public_hex
    channel.client("org1", run=name).open_run(key, 1, MSPS[:1])
    stranger = FabricBallot(channel.client("org2", run=name), Decision(CERTIFICATE, "ab" * 32, 0), "")
    assert stranger.standing() == Standing(NONE)
    with pytest.raises(LedgerError, match=f"Org2MSP is not a member of run {name}"):
        stranger.approve(lambda what: None)
