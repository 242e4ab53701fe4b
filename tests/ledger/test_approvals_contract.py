"""Releases and revocations on the consortium's contract: approvals that members hand to each other as files."""

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("web3")

from anvil import Anvil, account, funded
from consortium import KEYS, PATIENT, deploy, submit
from voters import Removed, removed_run, vote

from ledger.canonical import canonical_json, parse_canonical
from ledger.contract_approvals import ContractBallot
from ledger.decisions import (
    NONE,
    PROPOSED,
    RELEASE,
    RELEASED,
    REVOCATION,
    REVOKED,
    UNRELEASED,
    Decision,
    Standing,
    of_model,
)
from ledger.errors import LedgerError, Unavailable
from ledger.federation import Federation
from ledger.keys_ethereum import LocalKey

ADDRESSES = [key.address.lower() for key in KEYS]


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
    return removed_run(tmp_path_factory.mktemp("removed"), node, contract)


class Members:
    """The members at one folder; `approve` gives where the decision stands, and what the call did."""

    def __init__(self, node: Anvil, contract: str, removed: Removed, folder: Path) -> None:
        self.node, self.contract, self.removed, self.folder = node, contract, removed, folder
        self.revoke = of_model(removed.log, REVOCATION, removed.old)
        self.release = of_model(removed.log, RELEASE)

    def approve(self, key: LocalKey, decision: Decision, folder: Path | None = None) -> tuple[Standing, list[str]]:
        return vote(self.node, self.contract, folder or self.folder, self.removed.log, decision, key)

    def look(self, decision: Decision) -> Standing:
        federation = Federation(self.node.url, self.contract)
        return ContractBallot(federation, self.folder, self.removed.log, decision).standing()

    def file(self, decision: Decision, member: int) -> Path:
        kind = "release" if decision.kind == RELEASE else "revoke"
        return self.folder / f"{kind}-{decision.digest}" / f"{ADDRESSES[member]}.json"


@pytest.fixture
def members(node: Anvil, contract: str, removed: Removed, tmp_path: Path) -> Iterator[Members]:
    snapshot = node.rpc("evm_snapshot")
    yield Members(node, contract, removed, tmp_path / "approvals")
    node.rpc("evm_revert", snapshot)


def test_the_member_who_completes_the_threshold_sends(members: Members) -> None:
    assert members.look(members.revoke) == Standing(NONE, [], 2)
    now, done = members.approve(KEYS[0], members.revoke)
    assert now == Standing(PROPOSED, [ADDRESSES[0]], 2)
    assert done == [f"approved by {KEYS[0].address}"]
    now, done = members.approve(KEYS[2], members.revoke)
    assert now.state == REVOKED
    assert len(done) == 2
    assert "sent in transaction 0x" in done[1]
    release = Federation(members.node.url, members.contract).release_of(bytes.fromhex(members.removed.old))
    assert release is not None
    assert release.revoked
    assert members.approve(KEYS[1], members.revoke) == (Standing(REVOKED), [])


def test_a_second_call_of_a_member_changes_nothing(members: Members) -> None:
    members.approve(KEYS[0], members.revoke)
    before = members.file(members.revoke, 0).read_bytes()
    assert members.approve(KEYS[0], members.revoke) == (Standing(PROPOSED, [ADDRESSES[0]], 2), [])
    assert members.file(members.revoke, 0).read_bytes() == before
    assert members.look(members.revoke).missing == 1


def test_a_release_names_an_anchored_part_of_the_log_with_the_model_in_it(members: Members) -> None:
    for key in KEYS[:2]:
        now, _ = members.approve(key, members.release)
    assert now.state == RELEASED
    release = Federation(members.node.url, members.contract).release_of(bytes.fromhex(members.removed.new))
    log = members.removed.log
    assert release is not None
    assert log.tree is not None
    assert members.release.event < release.size <= log.tree.size
    assert release.root == log.tree.root(release.size)


def test_members_who_proposed_at_the_same_time_agree_on_one_proposal(members: Members, tmp_path: Path) -> None:
    """Each proposed in a copy of the folder that lacked the other's file."""
    for number in (0, 1):
        members.approve(KEYS[number], members.revoke, tmp_path / str(number))
        shutil.copytree(tmp_path / str(number), members.folder, dirs_exist_ok=True)
    assert len(members.look(members.revoke).votes) == 1
    done = [members.approve(KEYS[number], members.revoke)[1] for number in (0, 1)]
    assert sorted(map(len, done)) == [0, 2]  # the one whose proposal is left signs the other, and sends
    assert members.look(members.revoke).state == REVOKED


def test_what_was_sent_meanwhile_is_no_error(members: Members, monkeypatch: pytest.MonkeyPatch) -> None:
    members.approve(KEYS[0], members.revoke)
    real = Federation.submit

    def first_comes_another(self: Federation, *arguments: Any) -> Any:
        real(self, *arguments)
        return real(self, *arguments)

    monkeypatch.setattr(Federation, "submit", first_comes_another)
    now, done = members.approve(KEYS[1], members.revoke)
    assert (now.state, len(done)) == (REVOKED, 1)


def test_a_revocation_of_what_was_never_released_there_needs_nothing(
    node: Anvil, removed: Removed, tmp_path: Path
) -> None:
    empty = Members(node, deploy(node), removed, tmp_path)
    assert empty.approve(KEYS[0], empty.revoke) == (Standing(UNRELEASED), [])
    with pytest.raises(LedgerError, match=r"run 'test-run' has no log there"):
        empty.approve(KEYS[0], empty.release)


def test_a_stranger_is_refused_and_writes_nothing(members: Members) -> None:
    with pytest.raises(LedgerError, match=f"account {account(3).address} is no member of the consortium"):
        members.approve(account(3), members.revoke)
    assert not members.folder.exists()


def changed(path: Path, **changes: Any) -> None:
    path.write_bytes(canonical_json({**parse_canonical(path.read_bytes()), **changes}))


def flipped(path: Path) -> None:
    signature = parse_canonical(path.read_bytes())["signature"]
    changed(path, signature=signature[:10] + ("0" if signature[10] != "0" else "1") + signature[11:])


def message(path: Path, **values: str) -> None:
    proposal = parse_canonical(path.read_bytes())["proposal"]
    changed(path, proposal={**proposal, "message": {**proposal["message"], **values}})


DAMAGES = (
    (flipped, "the signature is of"),
    (lambda path: changed(path, member=account(3).address), "is no member of the consortium"),
    (lambda path: changed(path, member=ADDRESSES[1]), "the signature is of"),
    (lambda path: changed(path, signature="0xzz"), "the signature is not hex"),
    (lambda path: changed(path, format="another"), "is of format 'another'"),
    (lambda path: message(path, reason="0x" + "ab" * 32), "the reason is not event"),
    (lambda path: message(path, model="0x" + "ab" * 32), "is not the Revoke of model"),
    (lambda path: path.write_bytes(b"[1]"), "approval"),
    (lambda path: path.write_bytes(b" " * (1 << 17)), "is larger than"),
    (lambda path: (path.unlink(), path.symlink_to("/dev/zero")), "is not a regular file"),
)


def test_a_wrong_file_of_another_member_is_named_and_nothing_is_approved(members: Members) -> None:
    members.approve(KEYS[0], members.revoke)
    path = members.file(members.revoke, 0)
    good = path.read_bytes()
    for damage, reason in DAMAGES:
        path.unlink()
        path.write_bytes(good)
        damage(path)
        with pytest.raises(LedgerError, match=reason) as refused:
            members.approve(KEYS[1], members.revoke)
        assert str(refused.value).startswith(f"{path}: ")
        assert "take the file away" in str(refused.value)
    assert not members.file(members.revoke, 1).exists()


def test_a_release_with_another_root_or_beyond_the_own_copy_is_refused(members: Members) -> None:
    members.approve(KEYS[0], members.release)
    path = members.file(members.release, 0)
    good = path.read_bytes()
    for values, reason in (
        ({"root": "0x" + "ab" * 32}, "a split view"),
        ({"size": "9999"}, "an old copy"),
        ({"size": str(members.release.event)}, "is not about a part of run"),
        ({"run": "0x" + "ab" * 32}, "is not about a part of run"),
    ):
        path.write_bytes(good)
        message(path, **values)
        with pytest.raises(LedgerError, match=reason):
            members.approve(KEYS[1], members.release)


def test_an_expired_approval_does_not_count_and_is_given_anew(
    members: Members, monkeypatch: pytest.MonkeyPatch
) -> None:
    members.approve(KEYS[0], members.revoke)
    later = time.time() + 8 * 24 * 3600
    monkeypatch.setattr(time, "time", lambda: later)
    assert members.look(members.revoke) == Standing(NONE, [], 2)
    now, done = members.approve(KEYS[0], members.revoke)
    assert (now.votes, len(done)) == ([ADDRESSES[0]], 1)


def test_an_approval_for_another_contract_is_refused(members: Members, node: Anvil) -> None:
    members.approve(KEYS[0], members.revoke)
    other = Federation(node.url, deploy(node), funded(node), patience_s=PATIENT)
    domain = {**json.loads(members.file(members.revoke, 0).read_bytes())["proposal"]["domain"]}
    domain["verifyingContract"] = other.contract
    proposal = {**parse_canonical(members.file(members.revoke, 0).read_bytes())["proposal"], "domain": domain}
    changed(members.file(members.revoke, 0), proposal=proposal)
    with pytest.raises(LedgerError, match=f"is for {other.contract}"):
        members.approve(KEYS[1], members.revoke)


def test_a_higher_threshold_asks_for_more_members(members: Members, node: Anvil) -> None:
    submit(Federation(node.url, members.contract, funded(node), patience_s=PATIENT), "SetThreshold", {"threshold": 3})
    for count, key in enumerate(KEYS[:2], 1):
        assert members.approve(key, members.revoke)[0].missing == 3 - count
    assert members.approve(KEYS[2], members.revoke)[0].state == REVOKED


def test_a_node_that_is_down_is_said(removed: Removed, contract: str, tmp_path: Path) -> None:
    node = Anvil().start()
    node.kill()
    with pytest.raises(Unavailable, match="does not answer"):
        vote(node, contract, tmp_path, removed.log, of_model(removed.log, REVOCATION, removed.old), KEYS[0])
