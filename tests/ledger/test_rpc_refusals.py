"""Wrong settings, wrong nodes, wrong accounts: each is refused with what to do, and nothing secret is shown."""

import logging
import secrets
import sys
from contextlib import closing

import pytest

pytest.importorskip("web3")

from anvil import CHAIN_ID, Anvil, Between, funded, refusal

from ledger.errors import LedgerError, Unavailable
from ledger.keys_ethereum import LocalKey
from ledger.rpc import read_anchors
from ledger.rpc_chain import RpcChain

PATIENT = 20.0  # seconds; reached only by a test that fails
HEADS = [(bytes([n]) * 32, 100 * n, n, bytes([n - 1]) * 32) for n in range(1, 4)]


@pytest.fixture(scope="module")
def node():
    """A node that mines every transaction at once, and never has the blocks of a test final."""
    node = Anvil("--slots-in-an-epoch", "1000").start()
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


def test_a_wrong_chain_id_is_refused_before_anything_is_signed(node, open_chain):
    chain = open_chain(node, funded(node), chain_id=1)
    for action in (chain.check, chain.update, lambda: chain.anchor(*HEADS[0])):
        with pytest.raises(LedgerError, match="has chain id 31337, not 1"):
            action()
    assert chain.anchors() == []


def test_a_node_of_another_chain_in_mid_run_is_refused(node, open_chain):
    key = funded(node)
    open_chain(node, key).anchor(*HEADS[0])
    other = Anvil("--chain-id", "7").start()
    try:
        with pytest.raises(LedgerError, match="has chain id 7, not 31337"):
            open_chain(other, key).update()
    finally:
        other.kill()


def test_an_empty_account_is_told_what_to_do(node, open_chain):
    key = LocalKey(secrets.token_bytes(32))
    chain = open_chain(node, key)
    with pytest.raises(LedgerError, match=f"account {key.address} on chain 31337 holds 0 gwei.*send it") as refused:
        chain.check()
    assert not isinstance(refused.value, Unavailable)
    node.rpc("anvil_setBalance", key.address, hex(10**18))
    chain.check()


def test_a_contract_at_the_wrong_address_is_refused(node, open_chain):
    nothing = "0x" + "12" * 20
    with pytest.raises(LedgerError, match="no contract at this address"):
        open_chain(node, funded(node), contract=nothing).check()
    node.rpc("anvil_setCode", nothing, "0x6001600101")
    with pytest.raises(LedgerError, match="is another contract"):
        open_chain(node, funded(node), contract=nothing).check()
    with pytest.raises(LedgerError, match="is another contract"):
        read_anchors(node.url, {**_description(node), "contract": nothing})


def test_the_contract_of_another_anchorer_is_refused(node, tmp_path, open_chain):
    owner = funded(node)
    with closing(RpcChain(tmp_path / "owner", node.url, owner, "run", patience_s=PATIENT)) as theirs:
        theirs.anchor(*HEADS[0])
        contract = theirs.describe()["contract"]
    with pytest.raises(LedgerError, match=f"only {owner.address.lower()} may anchor"):
        open_chain(node, funded(node), contract=contract).check()


def test_the_key_of_another_account_is_refused(node, open_chain):
    open_chain(node, funded(node)).anchor(*HEADS[0])
    with pytest.raises(LedgerError, match="use the run's key"):
        open_chain(node, funded(node))


def test_what_is_secret_in_the_address_of_a_node_is_never_shown(node, open_chain, caplog):
    caplog.set_level(logging.DEBUG)

    def hook(request, forward):
        return refusal(request, "project KEY5678 at /v3/KEY5678?token=TOKEN12 has no access", -32600)

    secret = ("user", "PASSWORD", "KEY5678", "TOKEN12")
    with closing(Between(node, hook)) as between, closing(Between(node, lambda r, f: 401)) as closed:
        key = funded(node)
        addresses = [
            f"http://user:PASSWORD@{host}/v3/KEY5678?token=TOKEN12"
            for host in (between.host, closed.host, "127.0.0.1:1", "nowhere.invalid")
        ]
        for address in addresses:
            chain = open_chain(address, key)
            for action in (chain.check, lambda a=address: read_anchors(a, _description(node))):
                with pytest.raises(LedgerError) as refused:
                    action()
                text = repr(refused.value)
                assert not any(word in text for word in secret), text
                assert refused.value.__cause__ is None
    assert between.authorization[-1].startswith("Basic ")
    assert caplog.records
    assert not any(word in caplog.text for word in secret)
    for wrong in ("ws://user:PASSWORD@host", "PASSWORD", "http://", "http://user:PASSWORD@host:port"):
        with pytest.raises(LedgerError, match="node address") as refused:
            open_chain(wrong, key)
        assert "PASSWORD" not in str(refused.value)


def test_an_overloaded_node_is_tried_again_later(node, open_chain):
    answers = (
        lambda request, forward: 429,
        lambda request, forward: 503,
        lambda request, forward: refusal(request, "daily request count exceeded", -32005),
        lambda request, forward: refusal(request, "transaction indexing is in progress"),
    )
    for answer in answers:
        with closing(Between(node, answer)) as busy:
            with pytest.raises(Unavailable, match=r"HTTP (429|503)|exceeded|in progress"):
                open_chain(busy, funded(node)).check()
            with pytest.raises(Unavailable, match=r"HTTP (429|503)|exceeded|in progress"):
                read_anchors(busy.url, _description(node))


def test_what_is_no_node_is_told(node, open_chain):
    for answer in (b"<html>hello</html>", b'{"hello": 1}', b"[]", b'{"jsonrpc": "2.0", "id": 1, "result": "hello"}'):
        with closing(Between(node, lambda request, forward, answer=answer: answer)) as web:
            with pytest.raises(LedgerError, match=r"http://127\.0\.0\.1:\d+"):
                open_chain(web, funded(node)).check()
            with pytest.raises(LedgerError, match=r"http://127\.0\.0\.1:\d+"):
                read_anchors(web.url, _description(node))


def _description(node):
    genesis = node.rpc("eth_getBlockByNumber", "0x0", False)["hash"]
    return {"kind": "rpc", "chain_id": CHAIN_ID, "genesis": genesis, "contract": "0x" + "00" * 20}


def test_without_web3_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "web3", None)
    key = LocalKey(secrets.token_bytes(32))
    with pytest.raises(LedgerError, match=r"pip install 'trustchain-ray\[evm\]'"):
        RpcChain(tmp_path, "http://127.0.0.1:8545", key, "run")
    monkeypatch.setitem(sys.modules, "eth_keys", None)
    with pytest.raises(LedgerError, match=r"pip install 'trustchain-ray\[evm\]'"):
        LocalKey(secrets.token_bytes(32))


@pytest.mark.parametrize("address", ["0x12", "12" * 20, "0x" + "zz" * 20, "0x5FbDB2315678afecb367f032d93F642f64180aA3"])
def test_an_address_that_is_none_or_mistyped_is_refused(tmp_path, address):
    with pytest.raises(LedgerError, match=r"needs 0x and 40 hex digits|its checksum \(EIP-55\) is wrong"):
        RpcChain(tmp_path, "http://127.0.0.1:8545", LocalKey(secrets.token_bytes(32)), "run", contract=address)
