"""Anchors on a real node: what should happen."""

import secrets
from contextlib import closing

import pytest

pytest.importorskip("web3")

from anvil import CHAIN_ID, Anvil, Between, funded, refusal

from ledger.errors import LedgerError, Unavailable
from ledger.keys_ethereum import LocalKey
from ledger.public import FINALIZED, MINED, NO_BLOCK, PENDING, Head
from ledger.rpc import read_anchors
from ledger.rpc_chain import RpcChain

MAX_GAS, MAX_BYTES = 45_000, 224
PATIENT = 20.0  # seconds; reached only by a test that fails


@pytest.fixture(scope="module")
def node():
    """A node that mines every transaction at once; a block is final when two more follow it."""
    node = Anvil("--slots-in-an-epoch", "1").start()
    yield node
    node.kill()


@pytest.fixture
def still():
    """A node that mines only when told."""
    node = Anvil("--slots-in-an-epoch", "1", "--no-mining").start()
    yield node
    node.kill()


@pytest.fixture
def open_chain(tmp_path):
    """Open the chain of a run as often as needed; the last one is closed."""
    chains = []

    def make(node, key, run="run", **options):
        if chains:
            chains.pop().close()
        options = {"patience_s": PATIENT, **options}
        chains.append(RpcChain(tmp_path / run, getattr(node, "url", node), key, run, **options))
        return chains[-1]

    yield make
    for chain in chains:
        chain.close()


def root(number):
    return bytes([number]) * 32


def heads(first, last):
    return [(root(n), 100 * n, n, root(n - 1)) for n in range(first, last + 1)]


def nonce(node, key):
    return int(node.rpc("eth_getTransactionCount", key.address, "latest"), 16)


def states(chain):
    return [anchor.receipt.status for anchor in chain.anchors()]


def test_anchors_follow_each_other_and_stay_cheap(node, open_chain):
    key = funded(node)
    chain = open_chain(node, key, chain_id=CHAIN_ID)
    receipts = [chain.anchor(*head) for head in heads(1, 4)]
    assert [receipt.status for receipt in receipts] == [MINED] * 4
    assert all(receipt.gas_used <= MAX_GAS for receipt in receipts[1:])
    assert chain.head() == Head(4, 400, root(4))
    assert [(a.root, a.size, a.seq, a.prev) for a in chain.anchors()] == heads(1, 4)
    assert nonce(node, key) == 5  # the contract and four anchors
    sent = node.rpc("eth_getTransactionByHash", receipts[3].tx)
    logged = node.rpc("eth_getTransactionReceipt", receipts[3].tx)["logs"]
    assert len(logged) == 1
    assert len(sent["input"]) // 2 - 1 + len(logged[0]["data"]) // 2 - 1 <= MAX_BYTES


def test_a_stranger_reads_the_same_anchors_without_web3(node, open_chain):
    chain = open_chain(node, funded(node))
    for head in heads(1, 3):
        chain.anchor(*head)
    node.mine(2)
    assert chain.update() == read_anchors(node.url, chain.describe())
    assert states(chain) == [FINALIZED] * 3
    assert chain.describe().keys() == {"kind", "chain_id", "genesis", "contract"}


def test_the_same_head_again_is_the_same_transaction(node, open_chain):
    key = funded(node)
    chain = open_chain(node, key)
    first = [chain.anchor(*head) for head in heads(1, 2)]
    assert [chain.anchor(*head) for head in heads(1, 2)] == first
    chain = open_chain(node, key)
    assert [chain.anchor(*head) for head in heads(1, 2)] == first
    assert nonce(node, key) == 3


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        ((root(3), 300, 4, root(2)), "seq is not the next"),
        ((root(3), 300, 3, root(1)), "prev is not the head"),
        ((root(3), 200, 3, root(2)), "size does not grow"),
        ((root(9), 200, 2, root(1)), "another head of size 200 was signed"),
    ],
)
def test_a_head_that_does_not_follow_is_refused_and_costs_nothing(node, open_chain, head, reason):
    key = funded(node)
    chain = open_chain(node, key)
    for good in heads(1, 2):
        chain.anchor(*good)
    with pytest.raises(LedgerError, match=reason):
        chain.anchor(*head)
    assert nonce(node, key) == 3
    assert chain.anchor(*heads(3, 3)[0]).status == MINED


def test_pending_mined_and_finalized_are_told_apart(still, open_chain):
    key = funded(still)
    chain = open_chain(still, key, patience_s=0.05)
    receipts = [chain.anchor(*head) for head in heads(1, 2)]
    assert [(r.status, r.block, r.block_hash, r.gas_used) for r in receipts] == [(PENDING, 0, NO_BLOCK, 0)] * 2
    assert [a.receipt for a in chain.update()] == receipts
    assert chain.head() == Head(0, 0, bytes(32))
    still.mine()
    chain.update()
    assert states(chain) == [MINED] * 2
    assert [a.receipt.tx for a in chain.anchors()] == [r.tx for r in receipts]
    chain.anchor(*heads(3, 3)[0])
    still.mine(2)
    chain.update()
    assert states(chain) == [FINALIZED, FINALIZED, MINED]
    chain = open_chain(still, key)
    assert states(chain) == [FINALIZED, FINALIZED, MINED]  # known without the node
    still.mine(2)
    chain.update()
    assert states(chain) == [FINALIZED] * 3


def test_confirmations_count_where_the_finalized_tag_is_unknown(node, open_chain):
    def hook(request, forward):
        if "finalized" in request["params"]:
            return refusal(request, "unknown block tag", -32602)
        return forward()

    with closing(Between(node, hook)) as between:
        chain = open_chain(between, funded(node), confirmations=5)
        chain.anchor(*heads(1, 1)[0])
        node.mine(3)
        chain.update()
        assert states(chain) == [MINED]
        assert [a.receipt.status for a in read_anchors(between.url, chain.describe(), confirmations=5)] == [MINED]
        node.mine(1)
        chain.update()
        assert states(chain) == [FINALIZED]
        assert read_anchors(between.url, chain.describe(), confirmations=5) == chain.anchors()


def test_a_chain_without_base_fee_takes_plain_transactions(open_chain):
    old = Anvil("--hardfork", "berlin").start()
    try:
        chain = open_chain(old, funded(old))
        receipts = [chain.anchor(*head) for head in heads(1, 2)]
        assert [receipt.status for receipt in receipts] == [MINED] * 2
        assert int(old.rpc("eth_getTransactionByHash", receipts[0].tx)["type"], 16) == 0
    finally:
        old.kill()


def test_a_lost_journal_is_filled_from_the_contract(node, open_chain):
    key = funded(node)
    before = open_chain(node, key)
    for head in heads(1, 3):
        before.anchor(*head)
    expected, contract = before.update(), before.describe()["contract"]
    again = open_chain(node, key, run="copy", contract=contract.lower())
    assert again.update() == expected
    assert again.describe() == before.describe()
    assert again.anchor(*heads(4, 4)[0]).status == MINED


def test_a_run_can_begin_while_the_node_is_down(open_chain):
    late = Anvil()
    key = LocalKey(secrets.token_bytes(32))
    chain = open_chain(late, key, chain_id=CHAIN_ID)
    assert chain.anchors() == []
    for action in (chain.check, chain.update, lambda: chain.anchor(*heads(1, 1)[0])):
        with pytest.raises(Unavailable, match="does not answer"):
            action()
    late.start()
    try:
        late.rpc("anvil_setBalance", key.address, hex(10**18))
        chain.check()
        assert [chain.anchor(*head).status for head in heads(1, 3)] == [MINED] * 3
    finally:
        late.kill()


def test_one_process_at_a_time(node, tmp_path):
    key = funded(node)
    with closing(RpcChain(tmp_path, node.url, key, "run")), pytest.raises(LedgerError, match="in use"):
        RpcChain(tmp_path, node.url, key, "run")
