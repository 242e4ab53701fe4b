"""Anchors on a real node: what goes wrong on real chains."""

import contextlib
import os
from contextlib import closing

import pytest

pytest.importorskip("web3")

from anvil import CHAIN_ID, Anvil, Between, account, funded, refusal

from ledger.errors import LedgerError, Unavailable
from ledger.public import FINALIZED, MINED, PENDING
from ledger.rpc import read_anchors
from ledger.rpc_chain import RpcChain
from ledger.rpc_node import Node
from ledger.rpc_transaction import GWEI, Bid, sign_transaction

PATIENT = 20.0  # seconds; reached only by a test that fails
HEADS = [(bytes([n]) * 32, 100 * n, n, bytes([n - 1]) * 32) for n in range(1, 10)]


@pytest.fixture(scope="module")
def node():
    """A node that mines every transaction at once, and never has the blocks of a test final."""
    node = Anvil("--slots-in-an-epoch", "1000").start()
    yield node
    node.kill()


@pytest.fixture
def still():
    """A node that mines only when told."""
    node = Anvil("--slots-in-an-epoch", "1000", "--no-mining").start()
    yield node
    node.kill()


@pytest.fixture
def open_chain(tmp_path):
    """Open the chain of a run as often as needed; the last one is closed."""
    chains = []

    def make(node, key, **options):
        if chains:
            chains.pop().close()
        options = {"patience_s": PATIENT, **options}
        chains.append(RpcChain(tmp_path / "run", getattr(node, "url", node), key, "run", **options))
        return chains[-1]

    yield make
    for chain in chains:
        chain.close()


def nonce(node, key):
    return int(node.rpc("eth_getTransactionCount", key.address, "latest"), 16)


def states(chain):
    return [anchor.receipt.status for anchor in chain.anchors()]


def settle(node, chain, count):
    """Update and mine until all anchors are in blocks."""
    for _ in range(10):
        with contextlib.suppress(Unavailable):
            chain.update()
        if states(chain) == [MINED] * count:
            return
        node.mine()
    raise AssertionError(states(chain))


def foreign(node, key, number, gwei=50):
    """Another transaction of the account: somebody else uses its key."""
    raw, tx = sign_transaction(key, CHAIN_ID, number, key.address, b"", 21_000, Bid(gwei * GWEI, gwei * GWEI))
    node.rpc("eth_sendRawTransaction", "0x" + raw.hex())
    return tx


@pytest.mark.parametrize("depth", [2, 5], ids=["of anchors", "of anchors and contract"])
def test_a_reorganisation_takes_anchors_back_and_the_same_transactions_return(node, open_chain, depth):
    key = funded(node)
    chain = open_chain(node, key)
    first = [chain.anchor(*head) for head in HEADS[:4]]
    node.rpc("anvil_reorg", depth, [])
    node.rpc("anvil_setBalance", key.address, hex(10**18))
    chain.update()
    gone = depth if depth < 5 else 4
    assert states(chain) == [MINED] * (4 - gone) + [PENDING] * gone
    settle(node, chain, 4)
    assert [a.receipt.tx for a in chain.anchors()] == [receipt.tx for receipt in first]
    assert [a.receipt.block_hash for a in chain.anchors()][4 - gone :] != [r.block_hash for r in first][4 - gone :]
    assert nonce(node, key) == 5
    assert chain.anchor(*HEADS[4]).status == MINED
    chain.update()
    assert read_anchors(node.url, chain.describe()) == chain.anchors()


def test_a_reorganisation_that_keeps_the_transactions_moves_their_blocks(node, open_chain):
    key = funded(node)
    chain = open_chain(node, key)
    before = [chain.anchor(*head) for head in HEADS[:2]][-1]
    raw = node.rpc("eth_getRawTransactionByHash", before.tx)
    node.rpc("anvil_reorg", 1, [[raw, 0]])
    chain.update()
    assert states(chain) == [MINED] * 2
    after = chain.anchors()[1].receipt
    assert (after.tx, after.block) == (before.tx, before.block)
    assert after.block_hash != before.block_hash


def test_a_node_that_is_set_back_gets_everything_again(node, open_chain):
    key = funded(node)
    chain = open_chain(node, key)
    chain.anchor(*HEADS[0])
    snapshot = node.rpc("evm_snapshot")
    later = [chain.anchor(*head) for head in HEADS[1:4]]
    node.rpc("evm_revert", snapshot)
    chain = open_chain(node, key)  # and the process that sent them is gone, too
    settle(node, chain, 4)
    assert [a.receipt.tx for a in chain.anchors()][1:] == [receipt.tx for receipt in later]
    assert nonce(node, key) == 5


def test_a_node_that_dies_comes_back_with_its_blocks_and_without_its_pool(tmp_path, open_chain):
    node = Anvil("--state", str(tmp_path / "state.json"))
    node.start()
    try:
        key = account(1)
        chain = open_chain(node, key, patience_s=0.1)
        for head in HEADS[:2]:
            chain.anchor(*head)
        node.rpc("evm_setAutomine", False)
        assert [chain.anchor(*head).status for head in HEADS[2:4]] == [PENDING] * 2
        node.stop()
        with pytest.raises(Unavailable, match="does not answer"):
            chain.update()
        with pytest.raises(Unavailable, match="does not answer"):
            chain.anchor(*HEADS[4])
        assert chain.anchor(*HEADS[3]).status == PENDING  # it is kept: nothing to raise
        node.start()
        settle(node, chain, 4)
        assert chain.anchor(*HEADS[4]).status == MINED
        assert nonce(node, key) == 6
    finally:
        node.kill()


def test_a_development_node_started_afresh_is_another_chain(open_chain):
    node = Anvil()
    node.start("--timestamp", "1700000000")
    try:
        chain = open_chain(node, account())
        chain.anchor(*HEADS[0])
        node.kill()
        node.start("--timestamp", "1700000001")
        with pytest.raises(LedgerError, match=r"genesis block .* another chain, or a development node") as refused:
            chain.update()
        assert not isinstance(refused.value, Unavailable)
    finally:
        node.kill()


def test_a_stuck_transaction_bids_more_with_the_same_nonce(still, open_chain):
    key = funded(still)
    chain = open_chain(still, key, patience_s=0.05, bump_after_s=0)
    first = chain.anchor(*HEADS[0])
    low = still.rpc("eth_getTransactionByHash", first.tx)
    chain.update()
    bumped = chain.anchors()[0].receipt
    high = still.rpc("eth_getTransactionByHash", bumped.tx)
    assert bumped.tx != first.tx
    assert high["nonce"] == low["nonce"]
    for fee in ("maxFeePerGas", "maxPriorityFeePerGas"):
        assert int(high[fee], 16) * 8 >= int(low[fee], 16) * 9
    assert still.rpc("eth_getTransactionByHash", first.tx) is None  # replaced in the pool
    settle(still, chain, 1)
    assert nonce(still, key) == 2


def test_a_rising_base_fee_is_outbid_up_to_the_cap(still, open_chain):
    key = funded(still)
    chain = open_chain(still, key, patience_s=0.05, max_fee_wei=100 * GWEI)
    first = chain.anchor(*HEADS[0])
    limit = int(still.rpc("eth_getTransactionByHash", first.tx)["maxFeePerGas"], 16)
    still.rpc("anvil_dropAllTransactions")
    still.rpc("anvil_setNextBlockBaseFeePerGas", hex(limit * 3))
    still.mine()
    still.rpc("anvil_setNextBlockBaseFeePerGas", hex(limit * 3))
    settle(still, chain, 1)
    assert chain.anchors()[0].receipt.tx != first.tx
    still.rpc("anvil_setNextBlockBaseFeePerGas", hex(300 * GWEI))
    still.mine()
    with pytest.raises(Unavailable, match="more than the cap of 100 gwei"):
        chain.anchor(*HEADS[1])
    assert len(chain.anchors()) == 1  # nothing was signed
    still.rpc("anvil_setNextBlockBaseFeePerGas", hex(GWEI))
    still.mine()
    chain.anchor(*HEADS[1])
    settle(still, chain, 2)


def test_a_replacement_above_the_cap_waits(still, open_chain):
    chain = open_chain(still, funded(still), patience_s=0.05, bump_after_s=0, max_fee_wei=4 * GWEI)
    chain.anchor(*HEADS[0])
    chain.update()
    chain.update()
    with pytest.raises(Unavailable, match="more than the cap of 4 gwei"):
        chain.update()
    assert states(chain) == [PENDING]
    still.mine()
    still.mine()
    assert [a.receipt.status for a in chain.update()] == [MINED]


def test_another_transaction_of_the_account_costs_a_nonce_but_no_anchor(still, open_chain):
    key = funded(still)
    chain = open_chain(still, key, patience_s=0.05)
    chain.anchor(*HEADS[0])
    settle(still, chain, 1)
    for head in HEADS[1:4]:
        chain.anchor(*head)  # nonces 2, 3, 4
    foreign(still, key, 2)
    still.mine()  # 2 is taken away, so 3 and 4 are reverted
    assert nonce(still, key) == 5
    settle(still, chain, 4)
    assert [a.seq for a in read_anchors(still.url, chain.describe())] == [1, 2, 3, 4]
    assert chain.anchor(*HEADS[4]).status == PENDING
    settle(still, chain, 5)


def test_an_opening_that_lost_its_nonce_is_told(still, open_chain):
    key = funded(still)
    chain = open_chain(still, key, patience_s=0.05)
    chain.anchor(*HEADS[0])
    foreign(still, key, 0)
    still.mine()
    with pytest.raises(LedgerError, match=r"opens the run's log lost its nonce .* must belong to this run"):
        chain.update()


def test_a_second_writer_with_the_same_key_is_told(node, tmp_path, open_chain):
    key = funded(node)
    chain = open_chain(node, key)
    chain.anchor(*HEADS[0])
    with closing(RpcChain(tmp_path / "b", node.url, key, "run", contract=chain.describe()["contract"])) as other:
        other.update()
        other.anchor(b"\7" * 32, 150, 2, HEADS[0][0])
    with pytest.raises(LedgerError, match="refuses: seq is not the next"):
        chain.anchor(*HEADS[1])
    assert [a.size for a in chain.update()] == [100, 150]  # it is there to be compared with the run's heads


def test_an_answer_that_is_lost_does_not_anchor_twice(node, open_chain):
    def hook(request, forward):
        reply = forward()
        return 504 if request["method"] == "eth_sendRawTransaction" else reply

    key = funded(node)
    with closing(Between(node, hook)) as between:
        chain = open_chain(between, key, patience_s=0.1)
        assert chain.anchor(*HEADS[0]).status == PENDING
        settle(node, chain, 1)
        assert chain.anchor(*HEADS[1]).tx == chain.anchor(*HEADS[1]).tx
        settle(node, chain, 2)
    assert nonce(node, key) == 3


@pytest.mark.parametrize(
    "words",
    ["already known", "transaction already imported", "AlreadyKnown, transaction is already in the pool"],
)
def test_a_node_that_has_the_transaction_already_is_content(node, open_chain, words):
    def hook(request, forward):
        reply = forward()
        return refusal(request, words) if request["method"] == "eth_sendRawTransaction" else reply

    with closing(Between(node, hook)) as between:
        assert open_chain(between, funded(node)).anchor(*HEADS[0]).status == MINED


def test_an_account_that_ran_dry_goes_on_when_it_has_money_again(node, open_chain):
    key = funded(node)
    chain = open_chain(node, key, patience_s=0.05)
    chain.anchor(*HEADS[0])
    settle(node, chain, 1)
    node.rpc("anvil_setBalance", key.address, "0x1")
    assert chain.anchor(*HEADS[1]).status == PENDING
    with pytest.raises(Unavailable, match=r"cannot pay for anchor 2 .* send it more"):
        chain.update()
    node.rpc("anvil_setBalance", key.address, hex(10**18))
    for head in HEADS[1:3]:
        chain.anchor(*head)
    settle(node, chain, 3)
    assert nonce(node, key) == 4


def test_a_node_that_falls_behind_is_waited_for(open_chain):
    node = Anvil("--slots-in-an-epoch", "1").start()
    try:
        chain = open_chain(node, account())
        chain.anchor(*HEADS[0])
        snapshot = node.rpc("evm_snapshot")
        node.mine(10)
        chain.update()
        assert states(chain) == [FINALIZED]
        node.rpc("evm_revert", snapshot)
        with pytest.raises(Unavailable, match="behind final block"):
            chain.update()
        node.mine(12)
        chain.update()
        assert states(chain) == [FINALIZED]
    finally:
        node.kill()


def test_final_blocks_that_change_are_an_alarm(open_chain):
    node = Anvil("--slots-in-an-epoch", "1").start()
    try:
        chain = open_chain(node, account())
        snapshot = node.rpc("evm_snapshot")
        chain.anchor(*HEADS[0])
        node.mine(5)
        chain.update()
        node.rpc("evm_revert", snapshot)
        node.mine(20)
        with pytest.raises(LedgerError, match="was final and is another now") as refused:
            chain.update()
        assert not isinstance(refused.value, Unavailable)
    finally:
        node.kill()


def test_killed_at_any_step_it_anchors_each_head_once(node, tmp_path, killed_after):
    """Steps are writes to the disk, and the moments just before and just after a transaction is sent."""
    descriptor = os.open(tmp_path, os.O_RDONLY)
    send = Node.send

    def marked(self, raw):
        os.fsync(descriptor)  # a step of its own: the kill comes before the node has the transaction
        answer = send(self, raw)
        os.fsync(descriptor)  # and here after it
        return answer

    step, died = 0, True
    while died:
        key, folder = funded(node), tmp_path / str(step)

        def work(key=key, folder=folder):
            Node.send = marked
            with closing(RpcChain(folder, node.url, key, "run", patience_s=PATIENT)) as chain:
                for head in HEADS[:2]:
                    chain.anchor(*head)
                chain.update()

        died = killed_after(work, step)
        with closing(RpcChain(folder, node.url, key, "run", patience_s=PATIENT)) as chain:
            for head in HEADS[:3]:
                assert chain.anchor(*head).status == MINED, step
            chain.update()
            assert [(a.root, a.size, a.seq, a.prev) for a in chain.anchors()] == HEADS[:3]
            assert read_anchors(node.url, chain.describe()) == chain.anchors()
        assert nonce(node, key) == 4, step  # the contract and three anchors: nothing twice, nothing left out
        step += 1
    assert step > 15


def test_a_damaged_journal_is_told(node, tmp_path):
    key = funded(node)
    with closing(RpcChain(tmp_path, node.url, key, "run", patience_s=PATIENT)) as chain:
        chain.anchor(*HEADS[0])
    path = tmp_path / "transactions.log"
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"nonce":0', b'"nonce":1', 1))
    with pytest.raises(LedgerError, match=r"transactions\.log: record 1 is damaged"):
        RpcChain(tmp_path, node.url, key, "run")
