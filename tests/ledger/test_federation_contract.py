"""The consortium contract on a real node: who may decide what, and how rewards are paid."""

import json
import secrets
from contextlib import closing
from dataclasses import replace

import pytest

pytest.importorskip("web3")

from anvil import CHAIN_ID, Anvil, account, funded
from consortium import COORDINATOR, KEYS, NAMES, PATIENT, deploy, founders, hexed, submit
from eth_account import Account

from ledger.approvals import Approval, approve, check_approval, new_proposal, read_proposal
from ledger.canonical import sha256_hex
from ledger.errors import LedgerError
from ledger.federation import Federation, member
from ledger.keys_ethereum import CURVE_ORDER
from ledger.public import MINED
from ledger.rpc import read_anchors
from ledger.rpc_chain import RpcChain

RUN = "run-1"
MODEL = secrets.token_bytes(32)


@pytest.fixture(scope="module")
def node():
    node = Anvil().start()
    yield node
    node.kill()


@pytest.fixture(scope="module")
def deployed(node):
    return deploy(node)


@pytest.fixture
def consortium(node, deployed):
    """The consortium as it was deployed; what a test does to it is undone."""
    snapshot = node.rpc("evm_snapshot")
    yield Federation(node.url, deployed, funded(node), patience_s=PATIENT)
    node.rpc("evm_revert", snapshot)


def raw_submit(consortium, proposal, approvals):
    """Past the checks of the client: what the contract itself says."""
    function = {"SetThreshold": "set_threshold"}[proposal.kind]
    rows = [(a.member, a.signature) for a in approvals]
    consortium._call(function, *proposal.values(), rows)


def anchored(node, consortium, tmp_path, run=RUN, count=1):
    """A run of the coordinator whose log is the consortium's."""
    chain = RpcChain(tmp_path / run, node.url, COORDINATOR, run, contract=consortium.contract, patience_s=PATIENT)
    with closing(chain):
        for n in range(1, count + 1):
            assert chain.anchor(bytes([n]) * 32, 100 * n, n, bytes([n - 1]) * 32).status == MINED
        return chain.describe(), chain.update()


def test_the_founders_stand_in_the_contract(consortium):
    consortium.check()
    assert consortium.threshold() == 2
    assert consortium.members() == founders()
    assert consortium.is_coordinator(COORDINATOR.address)
    assert not consortium.is_coordinator(KEYS[0].address)


@pytest.mark.parametrize(
    ("names", "accounts", "threshold", "reason"),
    [
        (("a", "b"), (0, 1), 0, "threshold out of range"),
        (("a", "b"), (0, 1), 3, "threshold out of range"),
        (("a", "a"), (0, 1), 1, "key has an owner"),
        (("a", "b"), (0, 0), 1, "is a member"),
        ((), (), 1, "needs 1 to 32 members"),
    ],
)
def test_founders_that_make_no_sense_are_refused(node, names, accounts, threshold, reason):
    wrong = [
        member(account(n).address, name, sha256_hex(name.encode())) for n, name in zip(accounts, names, strict=True)
    ]
    with pytest.raises(LedgerError, match=reason):
        Federation.deploy(node.url, account(3), wrong, threshold, patience_s=PATIENT)


def test_a_run_anchors_in_a_log_of_the_consortium(node, consortium, tmp_path):
    description, anchors = anchored(node, consortium, tmp_path, count=3)
    assert description["contract"] == consortium.log_of(RUN)
    assert read_anchors(node.url, description) == anchors
    assert consortium.log_of("another run") is None
    # a second process, without the journal, finds the log open
    with closing(
        RpcChain(tmp_path / "copy", node.url, COORDINATOR, RUN, contract=consortium.contract, patience_s=PATIENT)
    ) as chain:
        assert chain.update() == anchors
        assert chain.anchor(b"\4" * 32, 400, 4, b"\3" * 32).status == MINED


def test_who_is_no_coordinator_needs_the_members_to_open_a_log(node, consortium, tmp_path):
    key = funded(node)
    with closing(
        RpcChain(tmp_path, node.url, key, RUN, contract=consortium.contract, patience_s=PATIENT)
    ) as chain:
        with pytest.raises(LedgerError, match="is no coordinator and run 'run-1' has no log"):
            chain.check()
        submit(consortium, "OpenLog", {"run": "0x" + sha256_hex(RUN.encode()), "anchorer": key.address})
        chain.check()
        assert chain.anchor(b"\1" * 32, 10, 1, bytes(32)).status == MINED
        assert chain.describe()["contract"] == consortium.log_of(RUN)
    other = funded(node)
    with (
        closing(RpcChain(tmp_path / "b", node.url, other, RUN, contract=consortium.contract)) as chain,
        pytest.raises(LedgerError, match=f"only {key.address.lower()} may anchor"),
    ):
        chain.check()


def test_a_coordinator_opens_a_log_once(consortium, node):
    coordinator = Federation(node.url, consortium.contract, COORDINATOR, patience_s=PATIENT)
    log = coordinator.open_log(RUN, KEYS[0].address)
    assert log == consortium.log_of(RUN)
    with pytest.raises(LedgerError, match="run has a log"):
        coordinator.open_log(RUN, KEYS[1].address)
    with pytest.raises(LedgerError, match="not a coordinator"):
        consortium.open_log("run-2", KEYS[1].address)
    submit(consortium, "SetCoordinator", {"account": COORDINATOR.address, "allowed": False})
    with pytest.raises(LedgerError, match="not a coordinator"):
        coordinator.open_log("run-2", KEYS[1].address)


def test_the_typed_data_is_what_a_wallet_signs(consortium):
    proposal = consortium.propose("SetThreshold", {"threshold": 1})
    wallet = Account.sign_typed_data(account(0)._key.to_bytes(), full_message=proposal.typed_data())
    assert approve(proposal, KEYS[0]).signature == bytes(wallet.signature)


def test_a_member_reads_what_it_would_sign(consortium):
    fields = {"id": hexed(MODEL), "root": hexed(MODEL), "total": 10**19, "expiry": 2**33}
    proposal = consortium.propose("Settle", fields)
    sent = json.loads(json.dumps(proposal.typed_data()))
    assert read_proposal(sent) == proposal
    for change in (
        {"domain": {**sent["domain"], "name": "Another"}},
        {"types": {**sent["types"], "Settle": sent["types"]["Settle"][::-1]}},
        {"message": {**sent["message"], "more": "1"}},
        {"message": {**sent["message"], "total": "ten"}},
        {"primaryType": "Permit"},
        {"domain": None},
    ):
        with pytest.raises(LedgerError, match=r"typed data|proposal 'Settle'"):
            read_proposal({**sent, **change})
    with pytest.raises(LedgerError, match="is no proposal"):
        read_proposal([])


def test_approvals_come_in_any_order_and_anybody_sends_them(consortium):
    submit(consortium, "SetThreshold", {"threshold": 3}, [KEYS[2], KEYS[0]])
    assert consortium.threshold() == 3
    with pytest.raises(LedgerError, match="too few approvals"):
        submit(consortium, "SetThreshold", {"threshold": 1}, [KEYS[2], KEYS[0]])
    submit(consortium, "SetThreshold", {"threshold": 1}, KEYS)
    assert consortium.threshold() == 1


def test_an_approval_counts_once(consortium):
    proposal = consortium.propose("SetThreshold", {"threshold": 2})
    approvals = [approve(proposal, key) for key in KEYS]
    consortium.submit(proposal, approvals[:2])
    with pytest.raises(LedgerError, match="approval spent"):
        consortium.submit(proposal, approvals[:2])
    with pytest.raises(LedgerError, match="approval spent"):
        consortium.submit(proposal, approvals[1:])


def test_an_approval_expires(consortium, node):
    proposal = consortium.propose("SetThreshold", {"threshold": 1}, valid_s=100)
    approvals = [approve(proposal, key) for key in KEYS]
    node.rpc("evm_increaseTime", 200)
    node.mine()
    with pytest.raises(LedgerError, match="approval expired"):
        consortium.submit(proposal, approvals)


def ascending(approvals):
    return sorted(approvals, key=lambda approval: int(approval.member, 16))


def high_s(approval):
    r, s, v = approval.signature[:32], int.from_bytes(approval.signature[32:64], "big"), approval.signature[64]
    return replace(approval, signature=r + (CURVE_ORDER - s).to_bytes(32, "big") + bytes([55 - v]))


@pytest.mark.parametrize(
    ("forge", "told_by_contract", "told_by_client"),
    [
        (lambda a, stranger: [a[0]], "too few approvals", "too few approvals"),
        (lambda a, stranger: [], "too few approvals", "too few approvals"),
        (lambda a, stranger: [a[0], a[0]], "members not ascending", "members not ascending"),
        (lambda a, stranger: [a[0], stranger], "not a member", "not a member"),
        (lambda a, stranger: [a[0], high_s(a[1])], "signature is not", "upper half"),
        (lambda a, stranger: [a[0], replace(a[1], signature=stranger.signature)], "signature is not", "is of"),
        (lambda a, stranger: [a[0], replace(a[1], signature=bytes(65))], "signature is not", "with v 27 or 28"),
        (lambda a, stranger: [a[0], replace(a[1], signature=a[1].signature[:64])], "signature is not", "not 65 bytes"),
        (lambda a, stranger: [a[0], replace(a[1], signature=bytes(64) + b"\x1b")], "signature is not", "is of nobody"),
    ],
    ids=["one", "none", "twice", "stranger", "high s", "of a stranger", "zeros", "short", "no point"],
)
def test_approvals_that_do_not_hold_are_refused(consortium, forge, told_by_contract, told_by_client):
    proposal = consortium.propose("SetThreshold", {"threshold": 1})
    forged = forge(ascending(approve(proposal, key) for key in KEYS[:2]), approve(proposal, account(3)))
    with pytest.raises(LedgerError, match=told_by_client):
        consortium.submit(proposal, forged)
    with pytest.raises(LedgerError, match=told_by_contract):
        raw_submit(consortium, proposal, ascending(forged))
    assert consortium.threshold() == 2


@pytest.mark.parametrize(
    "change",
    [{"chain_id": 1}, {"contract": "0x" + "12" * 20}, {"fields": {"threshold": 3, "nonce": 1, "deadline": 2**40}}],
    ids=["other chain", "other contract", "other content"],
)
def test_an_approval_is_for_one_proposal_of_one_contract_on_one_chain(consortium, change):
    proposal = consortium.propose("SetThreshold", {"threshold": 1})
    approvals = ascending(approve(replace(proposal, **change), key) for key in KEYS[:2])
    with pytest.raises(LedgerError, match="was it made for this proposal"):
        check_approval(proposal, approvals[0])
    with pytest.raises(LedgerError, match="signature is not the member's"):
        raw_submit(consortium, proposal, approvals)
    if "fields" not in change:
        with pytest.raises(LedgerError, match="proposal SetThreshold: is for"):
            consortium.submit(replace(proposal, **change), approvals)


def test_members_come_and_go(consortium, node):
    new = funded(node)
    fields = {"account": new.address, "name": "0x" + "11" * 32, "keyId": "0x" + "22" * 32, "threshold": 3}
    submit(consortium, "AddMember", fields)
    assert [m.account for m in consortium.members()] == [*(key.address for key in KEYS), new.address]
    for change, reason in (
        ({}, "is a member"),
        ({"account": account(3).address}, "key has an owner"),
        ({"account": account(3).address, "keyId": "0x" + "33" * 32}, "name has an owner"),
        ({"account": account(3).address, "keyId": "0x" + "00" * 32}, "member incomplete"),
    ):
        with pytest.raises(LedgerError, match=reason):
            submit(consortium, "AddMember", {**fields, **change}, KEYS)
    pending = consortium.propose("SetThreshold", {"threshold": 1})
    approvals = [approve(pending, key) for key in (KEYS[0], KEYS[1], new)]
    submit(consortium, "RemoveMember", {"account": KEYS[0].address, "threshold": 2}, KEYS)
    assert [m.account for m in consortium.members()] == [new.address, KEYS[1].address, KEYS[2].address]
    with pytest.raises(LedgerError, match="not a member"):
        consortium.submit(pending, approvals)  # who has left counts no more
    with pytest.raises(LedgerError, match="no such member"):
        submit(consortium, "RemoveMember", {"account": KEYS[0].address, "threshold": 2}, KEYS[1:])
    with pytest.raises(LedgerError, match="threshold out of range"):
        submit(consortium, "RemoveMember", {"account": KEYS[1].address, "threshold": 3}, KEYS[1:])
    # name and key are free again
    back = {"account": account(3).address, "name": "0x" + sha256_hex(NAMES[0].encode()), "threshold": 2}
    submit(consortium, "AddMember", {**back, "keyId": "0x" + sha256_hex(NAMES[0].encode())}, KEYS[1:])


def test_a_model_is_released_and_revoked(node, consortium, tmp_path):
    anchored(node, consortium, tmp_path, count=2)
    run = "0x" + sha256_hex(RUN.encode())
    fields = {"model": hexed(MODEL), "run": run, "size": 200, "root": "0x" + "02" * 32}
    for change, reason in (
        ({"run": "0x" + "77" * 32}, "no such run"),
        ({"size": 201}, "not anchored"),
        ({"size": 0}, "not anchored"),
        ({"root": "0x" + "01" * 32}, "another root is anchored"),
    ):
        with pytest.raises(LedgerError, match=reason):
            submit(consortium, "Release", {**fields, **change})
    assert consortium.release_of(MODEL) is None
    submit(consortium, "Release", fields)
    release = consortium.release_of(MODEL)
    assert (release.run, release.size, release.root, release.revoked) == (run[2:], 200, b"\2" * 32, False)
    with pytest.raises(LedgerError, match="released before"):
        submit(consortium, "Release", fields)
    reason = {"reason": "0x" + "55" * 32}
    with pytest.raises(LedgerError, match="not released"):
        submit(consortium, "Revoke", {"model": "0x" + "66" * 32, **reason})
    submit(consortium, "Revoke", {"model": hexed(MODEL), **reason})
    assert consortium.release_of(MODEL).revoked
    with pytest.raises(LedgerError, match="revoked before"):
        submit(consortium, "Revoke", {"model": hexed(MODEL), **reason})


# Answers isValidSignature(bytes32,bytes) with the word in storage slot 0.
CONTRACT_MEMBER = "0x5f545f5260205ff3"


def test_a_contract_can_be_a_member(consortium, node):
    wallet = "0x" + "ab" * 20
    node.rpc("anvil_setCode", wallet, CONTRACT_MEMBER)
    fields = {"account": wallet, "name": "0x" + "11" * 32, "keyId": "0x" + "22" * 32, "threshold": 2}
    submit(consortium, "AddMember", fields)
    proposal = consortium.propose("SetThreshold", {"threshold": 1})
    approvals = [approve(proposal, KEYS[0]), Approval(wallet, b"whatever the wallet takes")]
    with pytest.raises(LedgerError, match="signature is not the member's"):
        consortium.submit(proposal, approvals)
    node.rpc("anvil_setStorageAt", wallet, "0x0", "0x1626ba7e" + "00" * 28)
    consortium.submit(proposal, approvals)
    assert consortium.threshold() == 1


@pytest.mark.parametrize(
    ("kind", "fields", "reason"),
    [
        ("Nothing", {}, "needs exactly a kind of AddMember"),
        ("SetThreshold", {}, "needs exactly threshold, nonce, deadline"),
        ("SetThreshold", {"threshold": 1, "more": 1}, "needs exactly threshold, nonce, deadline"),
        ("SetThreshold", {"threshold": -1}, "threshold is no uint256"),
        ("SetThreshold", {"threshold": True}, "threshold is no uint256"),
        ("SetCoordinator", {"account": "0x12", "allowed": True}, "account is no address"),
        ("SetCoordinator", {"account": "0x" + "12" * 20, "allowed": 1}, "allowed is no bool"),
        ("Revoke", {"model": "0x" + "zz" * 32, "reason": "0x" + "12" * 32}, "model is no bytes32"),
    ],
)
def test_a_proposal_that_makes_no_sense_is_refused(kind, fields, reason):
    with pytest.raises(LedgerError, match=reason):
        new_proposal(kind, CHAIN_ID, "0x" + "12" * 20, fields)


def test_a_wrong_chain_id_is_refused_before_anything_is_sent(node):
    key = funded(node)
    one = [member(key.address, "bank", sha256_hex(b"bank"))]
    with pytest.raises(LedgerError, match="has chain id 31337, not 1;"):
        Federation.deploy(node.url, key, one, 1, chain_id=1, patience_s=PATIENT)
    assert int(node.rpc("eth_getTransactionCount", key.address, "latest"), 16) == 0
    assert Federation.deploy(node.url, key, one, 1, chain_id=CHAIN_ID, patience_s=PATIENT).threshold() == 1


def test_a_contract_that_is_no_consortium_is_refused(node):
    stranger = Federation(node.url, "0x" + "12" * 20, account(3))
    with pytest.raises(LedgerError, match="is no consortium"):
        stranger.check()
    with pytest.raises(LedgerError, match="is no consortium"):
        stranger.sweep(bytes(32))
    with pytest.raises(LedgerError, match="an account is needed"):
        Federation(node.url, "0x" + "12" * 20)._transact(None, b"")
