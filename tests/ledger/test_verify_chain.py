"""A stranger asks a real node of the public chain about a run's tree heads."""

import shutil

import pytest

pytest.importorskip("web3")

from anvil import CHAIN_ID, Anvil, funded
from fake_run import RUN, FakeRun

from ledger import layout
from ledger.rpc_chain import RpcChain
from ledger.service import LedgerService
from ledger.verify import verify_run


@pytest.fixture(scope="module")
def node():
    """A block is final when two more follow it."""
    node = Anvil("--slots-in-an-epoch", "1").start()
    yield node
    node.kill()


def anchored_run(base, node):
    run = FakeRun(base / "run", base / "keys")
    chain = RpcChain(run.dir / layout.CHAIN, node.url, funded(node), RUN, chain_id=CHAIN_ID, patience_s=20.0)
    run.service = LedgerService(run.dir, RUN, run.coordinator, chain)
    run.service.public.connect()
    run.submit(run.opening())
    run.submit(run.round(1))
    return run


def outcome(report):
    check = next(check for check in report.checks if check.name == "anchors")
    return check.status, check.detail


def test_the_node_says_which_heads_it_has_and_how_final_they_are(tmp_path, node):
    run = anchored_run(tmp_path, node)
    old_copy = shutil.copytree(run.dir, tmp_path / "old")
    run.submit(run.round(2))
    run.submit(run.complete(2))
    run.service.seal()
    status, detail = outcome(verify_run(run.dir))
    assert status == "skipped"
    assert "name a node of the chain with --rpc-url" in detail

    report = verify_run(run.dir, rpc_url=node.url)
    assert report.ok, report.failure
    status, detail = outcome(report)
    assert status == "ok"
    assert detail.startswith("the node has 3 of 3 tree heads: ")
    assert "MINED" in detail
    node.mine(3)
    assert outcome(verify_run(run.dir, rpc_url=node.url)) == ("ok", "the node has 3 of 3 tree heads: 3 FINALIZED")

    report = verify_run(old_copy, rpc_url=node.url)
    assert "lacks 2 tree heads that the chain has: an old copy, or the log was cut" in report.failure.detail


def test_another_chain_is_not_the_runs(tmp_path, node):
    run = anchored_run(tmp_path, node)
    run.service.close()
    assert verify_run(run.dir, rpc_url=node.url).ok
    other = Anvil("--chain-id", str(CHAIN_ID + 1)).start()
    try:
        report = verify_run(run.dir, rpc_url=other.url)
        assert "chain id" in report.failure.detail
    finally:
        other.kill()
    report = verify_run(run.dir, rpc_url=other.url)  # nobody answers there any more
    assert report.failure.name == "anchors"


def test_a_chain_that_lost_the_anchors_is_found(tmp_path):
    node = Anvil("--slots-in-an-epoch", "1").start()
    try:
        before = node.rpc("evm_snapshot")
        run = anchored_run(tmp_path, node)
        run.service.close()
        assert verify_run(run.dir, rpc_url=node.url).ok
        assert node.rpc("evm_revert", before) is True
        report = verify_run(run.dir, rpc_url=node.url)
        assert "there is no contract at this address" in report.failure.detail
    finally:
        node.kill()
