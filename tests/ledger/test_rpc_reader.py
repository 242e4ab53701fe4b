"""The reader that a stranger's verifier uses, against a real node and against nodes that lie."""

import subprocess
import sys
import threading
from contextlib import closing

import pytest

pytest.importorskip("web3")

from anvil import Anvil, Between, funded, refusal

from ledger.errors import LedgerError, Unavailable
from ledger.jsonrpc import JsonRpc
from ledger.rpc import read_anchors
from ledger.rpc_chain import RpcChain

COUNT = 5


@pytest.fixture(scope="module")
def node():
    node = Anvil("--slots-in-an-epoch", "1").start()
    yield node
    node.kill()


@pytest.fixture(scope="module")
def log(node, tmp_path_factory):
    """Description and anchors of a log whose anchors lie twenty blocks apart."""
    with closing(RpcChain(tmp_path_factory.mktemp("log"), node.url, funded(node), "run", patience_s=20)) as chain:
        for n in range(1, COUNT + 1):
            chain.anchor(bytes([n]) * 32, 100 * n, n, bytes([n - 1]) * 32)
            node.mine(20)
        return chain.describe(), chain.update()


def read_through(node, log, hook, **options):
    with closing(Between(node, hook)) as between:
        return read_anchors(between.url, log[0], **options)


def test_it_needs_nothing_but_the_standard_library(node, log):
    code = (
        "import sys\n"
        "from ledger.rpc import read_anchors\n"
        f"anchors = read_anchors({node.url!r}, {log[0]!r})\n"
        "heavy = {'web3', 'eth_utils', 'eth_keys', 'requests', 'rlp'} & set(sys.modules)\n"
        "print(len(anchors), sorted(heavy))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert run.stdout.strip() == f"{COUNT} []", run.stderr


@pytest.mark.parametrize(
    "message",
    ["query returned more than 10000 results", "exceed maximum block range: 30", "Log response size exceeded"],
)
def test_a_node_with_small_ranges_is_asked_in_small_ranges(node, log, message):
    asked = []

    def hook(request, forward):
        if request["method"] == "eth_getLogs":
            query = request["params"][0]
            asked.append(int(query["toBlock"], 16) - int(query["fromBlock"], 16) + 1)
            if asked[-1] > 30:
                return refusal(request, message)
        return forward()

    assert read_through(node, log, hook) == log[1]
    assert len(asked) > 3


def test_a_node_that_is_asked_too_often_is_not_asked_more(node, log):
    asked = []

    def hook(request, forward):
        if request["method"] == "eth_getLogs":
            asked.append(request)
            return refusal(request, "request rate limit exceeded", -32005)
        return forward()

    with pytest.raises(Unavailable, match="rate limit exceeded"):
        read_through(node, log, hook)
    assert len(asked) == 1


def test_another_error_of_a_node_is_not_taken_for_a_range_limit(node, log):
    def hook(request, forward):
        return refusal(request, "method not found", -32601) if request["method"] == "eth_getLogs" else forward()

    with pytest.raises(LedgerError, match="eth_getLogs: method not found"):
        read_through(node, log, hook)


def test_a_node_without_batches_is_asked_one_by_one(node, log):
    with closing(Between(node, lambda request, forward: forward(), batches=False)) as between:
        assert read_anchors(between.url, log[0]) == log[1]


def changed(method, change):
    """A node that lies about one method."""

    def hook(request, forward):
        reply = forward()
        if request["method"] == method:
            reply["result"] = change(reply["result"])
        return reply

    return hook


def without(place):
    return lambda logs: logs[:place] + logs[place + 1 :]


def other_root(logs):
    logs[-1]["data"] = "0x" + "77" * 32 + logs[-1]["data"][66:]
    return logs


def other_hash(receipt):
    return {**receipt, "blockHash": "0x" + "00" * 32}


@pytest.mark.parametrize(
    ("hook", "reason"),
    [
        (changed("eth_getLogs", without(0)), "event 1 is anchor 2 .* one is missing"),
        (changed("eth_getLogs", without(2)), "event 3 is anchor 4 .* one is missing"),
        (changed("eth_getLogs", without(COUNT - 1)), "the head of contract .* is not its last event"),
        (changed("eth_getLogs", other_root), "the head of contract .* is not its last event"),
        (changed("eth_getLogs", lambda logs: logs[::-1]), "one is missing"),
        (changed("eth_getLogs", lambda logs: [{**logs[0], "topics": []}]), "not one of the anchor contract"),
        (changed("eth_getLogs", lambda logs: [{**logs[0], "data": "0x12"}]), "not one of the anchor contract"),
        (changed("eth_getLogs", lambda logs: "0x"), "not a list of events"),
        (changed("eth_getTransactionReceipt", other_hash), "was reorganised while it was read"),
        (changed("eth_getTransactionReceipt", lambda receipt: None), "was reorganised while it was read"),
        (changed("eth_getCode", lambda code: "0x"), "no contract at this address"),
        (changed("eth_getCode", lambda code: code[:-130] + "00" + code[-128:]), "is another contract"),
        (changed("eth_chainId", lambda number: "0x1"), "has chain id 1, the run is on 31337"),
        (changed("eth_blockNumber", lambda number: None), "where hex digits are due"),
        (changed("eth_blockNumber", lambda number: "0x"), "where a number is due"),
        (changed("eth_getCode", lambda code: "0x123"), "where bytes are due"),
    ],
)
def test_a_node_that_lies_is_found_out(node, log, hook, reason):
    with pytest.raises(LedgerError, match=reason):
        read_through(node, log, hook)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"genesis": "0x" + "00" * 32}, "its genesis block is"),
        ({"chain_id": 1}, "the run is on 1"),
        ({"contract": "0x12"}, "needs kind 'rpc' and the contract's address"),
        ({"contract": None}, "needs kind 'rpc' and the contract's address"),
        ({"kind": "embedded"}, "needs kind 'rpc'"),
    ],
)
def test_a_description_of_something_else_is_refused(node, log, change, reason):
    with pytest.raises(LedgerError, match=reason):
        read_anchors(node.url, {**log[0], **change})


def test_a_redirection_is_not_followed(node, log):
    with pytest.raises(LedgerError, match="HTTP 307"):
        read_through(node, log, lambda request, forward: 307)


def test_a_node_that_does_not_answer_is_unavailable(log):
    with pytest.raises(Unavailable, match=r"http://127\.0\.0\.1:1: does not answer"):
        read_anchors("http://127.0.0.1:1", log[0])


def test_a_node_that_takes_too_long_is_unavailable(node, log):
    release = threading.Event()

    def hook(request, forward):
        release.wait(20)
        return forward()

    try:
        with pytest.raises(Unavailable, match="timed out"):
            read_through(node, log, hook, timeout_s=0.2)
    finally:
        release.set()


def test_deep_json_is_refused(node, log):
    with pytest.raises(LedgerError, match="not JSON"):
        read_through(node, log, lambda request, forward: b"[" * 100_000)


def test_errors_carry_the_code_of_the_node(node):
    with pytest.raises(LedgerError, match="eth_nothing") as refused:
        JsonRpc(node.url).call("eth_nothing")
    assert refused.value.code == -32601
