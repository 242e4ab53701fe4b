"""Reward settlements of the consortium contract on a real node: each is paid once, to whom it belongs."""

import secrets
import time

import pytest

pytest.importorskip("web3")

from anvil import Anvil, account, funded
from consortium import PATIENT, deploy, hexed, submit

from ledger.errors import LedgerError
from ledger.federation import Federation
from ledger.rewards_tree import RewardsTree


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


def settlement(consortium, tree, **change):
    ident = secrets.token_bytes(32)
    fields = {"id": hexed(ident), "root": hexed(tree.root), "total": tree.total, "expiry": int(time.time()) + 10**6}
    submit(consortium, "Settle", {**fields, **change})
    return ident


def balance(node, address):
    return int(node.rpc("eth_getBalance", address, "latest"), 16)


def test_rewards_are_paid_once_to_whom_they_belong(consortium, node):
    accounts = [hexed(secrets.token_bytes(20)) for _ in range(5)]
    tree = RewardsTree({who: 1000 + n for n, who in enumerate(accounts)})
    ident = settlement(consortium, tree)
    assert balance(node, consortium.contract) == tree.total
    for n, who in enumerate(accounts):
        assert not consortium.is_claimed(ident, who)
        consortium.claim(ident, tree, who)
        assert balance(node, who) == 1000 + n
        assert consortium.is_claimed(ident, who)
        with pytest.raises(LedgerError, match="claimed before"):
            consortium.claim(ident, tree, who)
    assert balance(node, consortium.contract) == 0
    assert consortium.settlement_of(ident).remaining == 0


def test_a_claim_that_is_not_in_the_settlement_is_refused(consortium):
    accounts = [hexed(secrets.token_bytes(20)) for _ in range(4)]
    tree = RewardsTree(dict.fromkeys(accounts, 1000))
    ident = settlement(consortium, tree)
    forged = RewardsTree({**dict.fromkeys(accounts, 1000), accounts[0]: 4000})
    with pytest.raises(LedgerError, match="not in the settlement"):
        consortium.claim(ident, forged, accounts[0])
    with pytest.raises(LedgerError, match="not in the settlement"):
        consortium.claim(secrets.token_bytes(32), tree, accounts[0])
    with pytest.raises(LedgerError, match="gets nothing"):
        consortium.claim(ident, tree, "0x" + "99" * 20)


def test_a_settlement_pays_out_of_its_own_money_only(consortium, node):
    accounts = [hexed(secrets.token_bytes(20)) for _ in range(2)]
    tree = RewardsTree(dict.fromkeys(accounts, 1000))
    other = settlement(consortium, tree)
    short = settlement(consortium, tree, total=1500)
    consortium.claim(short, tree, accounts[0])
    with pytest.raises(LedgerError, match="nothing left"):
        consortium.claim(short, tree, accounts[1])
    assert consortium.settlement_of(other).remaining == 2000
    with pytest.raises(LedgerError, match="settled before"):
        settlement(consortium, tree, id=hexed(other))
    with pytest.raises(LedgerError, match="expiry has passed"):
        settlement(consortium, tree, expiry=1)


def test_what_nobody_claims_goes_back_after_the_expiry(consortium, node):
    accounts = [hexed(secrets.token_bytes(20)) for _ in range(2)]
    tree = RewardsTree(dict.fromkeys(accounts, 10**15))
    now = int(node.rpc("eth_getBlockByNumber", "latest", False)["timestamp"], 16)
    ident = settlement(consortium, tree, expiry=now + 1000)
    consortium.claim(ident, tree, accounts[0])
    with pytest.raises(LedgerError, match="not expired"):
        consortium.sweep(ident)
    node.rpc("evm_increaseTime", 2000)
    node.mine()
    funder = consortium.settlement_of(ident).funder
    before = balance(node, funder)
    Federation(node.url, consortium.contract, account(3), patience_s=PATIENT).sweep(ident)
    assert balance(node, funder) == before + 10**15
    for action in (lambda: consortium.sweep(ident), lambda: consortium.claim(ident, tree, accounts[1])):
        with pytest.raises(LedgerError, match="nothing left"):
            action()


def test_a_receiver_that_calls_back_gets_nothing_more(consortium, node):
    """The receiver calls ``claim`` with the calldata in its code when money arrives."""
    thief, honest = hexed(secrets.token_bytes(20)), hexed(secrets.token_bytes(20))
    tree = RewardsTree({thief: 1000, honest: 5000})
    ident = settlement(consortium, tree)
    contract = consortium._node.encode(
        consortium.contract, "Federation", "claim", ident, honest, tree.amount(honest), tree.proof(honest)
    )
    node.rpc("anvil_setCode", thief, caller(consortium.contract, contract))
    node.rpc("eth_call", {"to": thief}, "latest")  # from outside, the same call is good
    with pytest.raises(LedgerError, match="refuse"):
        consortium.claim(ident, tree, thief)  # even a claim that would be good cannot come from within one
    assert not consortium.is_claimed(ident, thief)
    assert consortium.settlement_of(ident).remaining == 6000
    node.rpc("anvil_setCode", thief, "0x")
    consortium.claim(ident, tree, thief)
    consortium.claim(ident, tree, honest)


def caller(address, calldata):
    """Code that calls ``address`` with ``calldata`` and reverts if the call does."""
    size = len(calldata).to_bytes(2, "big")
    head = (
        b"\x61" + size + b"\x61" + b"\x00\x00" + b"\x5f\x39"  # PUSH2 size, PUSH2 offset, PUSH0, CODECOPY
        b"\x5f\x5f\x61" + size + b"\x5f\x5f\x73" + bytes.fromhex(address[2:]) + b"\x5a\xf1"  # CALL
    )
    tail = b"\x61\x00\x00\x57\x5f\x5f\xfd\x5b\x00"  # PUSH2 good, JUMPI, PUSH0, PUSH0, REVERT, JUMPDEST, STOP
    length = len(head) + len(tail)
    head = head[:4] + length.to_bytes(2, "big") + head[6:]
    tail = b"\x61" + (length - 2).to_bytes(2, "big") + tail[3:]
    return "0x" + (head + tail + calldata).hex()


def test_the_rewards_tree_is_openzeppelins():
    # the example of OpenZeppelin's merkle-tree package
    tree = RewardsTree({"0x" + "11" * 20: 5 * 10**18, "0x" + "22" * 20: 25 * 10**17})
    assert tree.root.hex() == "d4dee0beab2d53f2cc83e567171bd2820e49898130a22622b10ead383e90bd77"
    assert [node.hex() for node in tree.proof("0x" + "11" * 20)] == [
        "b92c48e9d7abe27fd8dfd6b5dfdbfb1c9a463f80c712b66f3a5180a090cccafc"
    ]


@pytest.mark.parametrize(
    ("amounts", "reason"),
    [
        ({}, "name at least one account"),
        ({"0x" + "aa" * 20: 1, "0x" + "AA" * 20: 2}, "each account once"),
        ({"0x" + "aa" * 20: 0}, "positive whole numbers"),
        ({"0x" + "aa" * 20: 1.5}, "positive whole numbers"),
        ({"0x" + "aa" * 20: 2**256}, "positive whole numbers"),
        ({"0x12": 1}, "is no account"),
        ({"bank": 1}, "is no account"),
    ],
)
def test_rewards_that_make_no_sense_are_refused(amounts, reason):
    with pytest.raises(LedgerError, match=reason):
        RewardsTree(amounts)
