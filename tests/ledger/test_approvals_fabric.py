"""Decisions of the members on the private chain: votes, conclusion, and the revocation of a model."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("grpc", reason="pip install 'trustchain-ray[fabric]'")
pytest.importorskip("google.protobuf", reason="pip install 'trustchain-ray[fabric]'")

from fabric_consortium import MSPS, Consortium

from ledger.decisions import CERTIFICATE, CONCLUDED, NONE, PROPOSED, REVOCATION, REVOKED, Decision, Standing
from ledger.errors import LedgerError, Unavailable
from ledger.fabric.approvals import FabricBallot
from ledger.fabric.chain import FabricChain
from ledger.private import Conflict

REMOVAL, MODEL = Decision(CERTIFICATE, "ab" * 32, 7), Decision(REVOCATION, "cd" * 32, 5)


@pytest.fixture
def consortium(tmp_path: Path) -> Iterator[Consortium]:
    made = Consortium(tmp_path)
    yield made
    made.close()


def approve(chain: FabricChain, decision: Decision) -> tuple[Standing, list[str]]:
    done: list[str] = []
    return FabricBallot(chain, decision, "MODEL_REVOKED " + "ef" * 32).approve(done.append), done


def test_each_member_votes_once_and_the_last_one_needed_concludes(consortium: Consortium) -> None:
    one, two = consortium.opened(), consortium.chain(MSPS[1])
    assert FabricBallot(one, REMOVAL, "").standing() == Standing(NONE, [], 0)
    waiting = Standing(PROPOSED, ["Org1MSP"], 2)
    assert approve(one, REMOVAL) == (waiting, ["proposed", "approved by Org1MSP"])
    submitted = consortium.gateway.calls["Submit"]
    assert approve(one, REMOVAL) == (waiting, [])
    assert FabricBallot(two, REMOVAL, "").standing() == waiting
    assert consortium.gateway.calls["Submit"] == submitted
    assert waiting.missing == 1
    done = Standing(CONCLUDED, list(MSPS), 2)
    assert approve(two, REMOVAL) == (done, ["approved by Org2MSP", "concluded"])
    assert approve(one, REMOVAL) == (done, [])
    assert done.missing == 0


def test_a_concluded_revocation_revokes_the_model(consortium: Consortium) -> None:
    one, two = consortium.opened(), consortium.chain(MSPS[1])
    approve(one, MODEL)
    assert one.model_status(MODEL.digest) == "unknown"
    now, done = approve(two, MODEL)
    assert (now.state, done) == (REVOKED, ["approved by Org2MSP", "concluded", "revoked"])
    assert one.model_status(MODEL.digest) == "revoked"
    assert approve(one, MODEL) == (now, [])


def test_a_member_whose_predecessor_died_before_the_revocation_makes_it(consortium: Consortium) -> None:
    one, two = consortium.opened(), consortium.chain(MSPS[1])
    approve(one, MODEL)
    two.endorse(MODEL.kind, MODEL.digest)
    two.conclude(MODEL.kind, MODEL.digest)
    assert approve(one, MODEL)[1] == ["revoked"]


def test_members_who_act_at_once_look_again(consortium: Consortium, monkeypatch: pytest.MonkeyPatch) -> None:
    one = consortium.opened()
    submit, lost = one._gateway.submit, ["Propose", "Endorse"]

    def first_comes_another(name: str, *arguments: str, **options: Any) -> bytes:
        if name in lost:
            lost.remove(name)
            raise Conflict(f"{name}: MVCC_READ_CONFLICT")
        return submit(name, *arguments, **options)

    monkeypatch.setattr(one._gateway, "submit", first_comes_another)
    assert approve(one, REMOVAL)[0] == Standing(PROPOSED, ["Org1MSP"], 2)
    assert lost == []


def test_a_member_for_whom_another_always_comes_first_is_told(
    consortium: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = consortium.opened()

    def lost(*arguments: str, **options: Any) -> bytes:
        raise Conflict("MVCC_READ_CONFLICT")

    monkeypatch.setattr(one._gateway, "submit", lost)
    with pytest.raises(Unavailable, match="other members change it all the time"):
        approve(one, REMOVAL)


@pytest.mark.slow
def test_who_is_no_member_of_the_run_is_refused(consortium: Consortium) -> None:
    chain = consortium.chain()
    chain.open_run(consortium.coordinator.public_hex, 1, MSPS[:1])
    chain.propose(REMOVAL.kind, REMOVAL.digest)
    with pytest.raises(LedgerError, match="Org2MSP is not a member of run test-run"):
        approve(consortium.chain(MSPS[1]), REMOVAL)


def test_a_run_that_is_not_on_the_chain_is_an_error_not_an_open_decision(consortium: Consortium) -> None:
    with pytest.raises(LedgerError, match="run test-run: is not open"):
        FabricBallot(consortium.chain(), REMOVAL, "").standing()


def test_a_peer_that_is_down_is_no_missing_proposal(consortium: Consortium) -> None:
    chain = consortium.opened(deadline_s=1.0)
    consortium.gateway.die()
    with pytest.raises(Unavailable):
        chain.find_approval(REMOVAL.kind, REMOVAL.digest)
