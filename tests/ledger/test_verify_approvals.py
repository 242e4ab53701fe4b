"""What a verifier who may ask the chains learns of the members' decisions."""

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("web3")
pytest.importorskip("grpc", reason="pip install 'trustchain-ray[fabric]'")

from anvil import Anvil
from consortium import KEYS, deploy
from fabric_consortium import MSPS, Consortium
from removal_run import removal_run
from voters import Removed, removed_run, vote

from ledger.decisions import CERTIFICATE, REVOCATION, Decision, newest_certificate, of_model
from ledger.errors import LedgerError
from ledger.fabric.approvals import FabricBallot
from ledger.report import Check, Report
from ledger.rpc_federation import read_releases
from ledger.verify import verify_run


@pytest.fixture(scope="module")
def node() -> Iterator[Anvil]:
    node = Anvil().start()
    yield node
    node.kill()


@pytest.fixture(scope="module")
def contract(node: Anvil) -> str:
    return deploy(node)


@pytest.fixture(scope="module")
def removed(node: Anvil, contract: str, tmp_path_factory: pytest.TempPathFactory) -> Removed:
    return removed_run(tmp_path_factory.mktemp("verified"), node, contract)


@pytest.fixture
def consortium(tmp_path: Path) -> Iterator[Consortium]:
    made = Consortium(tmp_path)
    made.opened()
    yield made
    made.close()


def found(report: Report) -> Check:
    return next(check for check in report.checks if check.name == "approvals")


def everybody(consortium: Consortium, *decisions: Decision) -> None:
    for decision in decisions:
        for msp in MSPS:
            FabricBallot(consortium.chain(msp), decision, "a reason").approve(lambda what: None)


def test_without_a_chain_the_line_says_how_to_ask(removed: Removed) -> None:
    check = found(verify_run(removed.run.dir))
    assert check.status == "skipped"
    assert "--fabric-profile or --rpc-url" in check.detail


def test_a_run_from_which_nothing_was_removed_has_no_such_line(run_dir: Path) -> None:
    assert "approvals" not in {check.name for check in verify_run(run_dir).checks}


def test_the_private_chain_says_what_is_approved_and_what_is_not(removed: Removed, consortium: Consortium) -> None:
    def verified() -> Report:
        return verify_run(removed.run.dir, fabric=lambda run: consortium.chain(run=run))

    report = verified()
    assert found(report).status == "ok"
    assert "0 of 1 certificates approved, 0 of 1 withdrawn models revoked" in found(report).detail
    digest = newest_certificate(removed.log)
    assert any(f"approve certificate {digest[:16]}: on the private chain nobody did" in x for x in report.not_checked)
    assert any(f"that model {removed.old[:16]} is revoked" in line for line in report.not_checked)

    FabricBallot(consortium.chain(), Decision(CERTIFICATE, digest, 0), "").approve(lambda what: None)
    assert any("on the private chain Org1MSP did" in line for line in verified().not_checked)
    everybody(consortium, Decision(CERTIFICATE, digest, 0), of_model(removed.log, REVOCATION, removed.old))
    report = verified()
    assert "1 of 1 certificates approved, 1 of 1 withdrawn models revoked" in found(report).detail
    assert not any("private chain" in line and "certificate" in line for line in report.not_checked)


def test_a_model_that_the_members_revoked_and_the_run_still_releases_is_a_fault(
    removed: Removed, consortium: Consortium
) -> None:
    everybody(consortium, Decision(REVOCATION, removed.new, 0))
    report = verify_run(removed.run.dir, fabric=lambda run: consortium.chain(run=run))
    assert report.failure is not None
    assert report.failure.name == "approvals"
    assert f"releases model {removed.new[:16]}, which the private chain has as revoked" in report.failure.detail


def test_the_contract_that_made_the_log_is_asked_by_the_log_alone(
    node: Anvil, contract: str, removed: Removed, tmp_path: Path
) -> None:
    report = verify_run(removed.run.dir, rpc_url=node.url)
    assert found(report).detail == "the consortium's contract has 0 of 1 withdrawn models revoked"
    assert any(f"{removed.old[:16]} is revoked: the contract has it as released" in x for x in report.not_checked)
    snapshot = node.rpc("evm_snapshot")
    for key in KEYS[:2]:
        vote(node, contract, tmp_path, removed.log, of_model(removed.log, REVOCATION, removed.old), key)
    report = verify_run(removed.run.dir, rpc_url=node.url)
    assert found(report).detail == "the consortium's contract has 1 of 1 withdrawn models revoked"
    assert not any(removed.old[:16] in line for line in report.not_checked)
    node.rpc("evm_revert", snapshot)


def test_a_log_of_the_runs_own_has_no_members_to_ask(tmp_path: Path) -> None:
    made = removal_run(tmp_path)
    check = found(verify_run(made.run.dir, rpc_url="http://127.0.0.1:1"))
    assert (check.status, "--rpc-url" in check.detail) == ("skipped", True)


def test_models_are_read_from_the_contract_that_has_the_log_under_the_runs_name(node: Anvil, removed: Removed) -> None:
    chain = removed.run.service.public.chain.describe()
    assert read_releases(node.url, chain, "another-run", [removed.old]) is None
    models = read_releases(node.url, chain, removed.run.run, [removed.old, removed.new, "ab" * 32])
    assert models == {removed.old: "released", removed.new: "not released", "ab" * 32: "not released"}
    with pytest.raises(LedgerError, match="there is no contract at this address"):
        read_releases(node.url, {**chain, "contract": "0x" + "ab" * 20}, removed.run.run, [])
