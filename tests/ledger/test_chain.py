import os
import shutil

import pytest

from ledger.contracts.compile import CONTRACTS, compile_contract, load_artifact
from ledger.embedded import EmbeddedEvm
from ledger.errors import LedgerError
from ledger.public import FINALIZED, Head

MAX_GAS = 45_000


@pytest.fixture(scope="module")
def blocks(tmp_path_factory):
    """A chain with three anchors, closed."""
    folder = tmp_path_factory.mktemp("chain")
    chain = EmbeddedEvm(folder)
    fill(chain, 3)
    chain.close()
    return folder


def root(number):
    return bytes([number]) * 32


def fill(chain, count):
    return [chain.anchor(root(n), 100 * n, n, root(n - 1)) for n in range(1, count + 1)]


@pytest.mark.slow
@pytest.mark.parametrize("name", CONTRACTS)
def test_the_artifact_is_what_the_source_compiles_to(name):
    vyper = pytest.importorskip("vyper")
    artifact = load_artifact(name)
    if artifact["compiler"] != f"vyper {vyper.__version__.split('+')[0]}":
        pytest.skip(f"the artifact is of {artifact['compiler']}")
    assert compile_contract(name) == artifact


def test_anchors_follow_each_other_and_stay_cheap(tmp_path):
    chain = EmbeddedEvm(tmp_path)
    assert chain.head() == Head(0, 0, bytes(32))
    receipts = fill(chain, 4)
    assert chain.head() == Head(4, 400, root(4))
    assert [(a.seq, a.size, a.root, a.prev) for a in chain.anchors()] == [
        (n, 100 * n, root(n), root(n - 1)) for n in range(1, 5)
    ]
    assert [a.receipt for a in chain.anchors()] == receipts
    assert all(receipt.gas_used <= MAX_GAS for receipt in receipts[1:])
    assert {receipt.status for receipt in receipts} == {FINALIZED}
    assert chain.update() == chain.anchors()
    chain.check()
    chain.close()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((root(4), 400, 3, root(3)), "seq is not the next"),
        ((root(4), 400, 5, root(3)), "seq is not the next"),
        ((root(4), 400, 4, root(2)), "prev is not the head"),
        ((root(4), 300, 4, root(3)), "size does not grow"),
        ((root(4), 300, 3, root(2)), "seq is not the next"),
    ],
)
def test_the_contract_refuses_what_does_not_follow(blocks, tmp_path, arguments, reason):
    shutil.copytree(blocks, tmp_path / "chain")
    chain = EmbeddedEvm(tmp_path / "chain")
    with pytest.raises(LedgerError, match=reason):
        chain.anchor(*arguments)
    assert chain.head() == Head(3, 300, root(3))
    chain.anchor(root(4), 400, 4, root(3))
    chain.close()


def test_the_same_anchor_again_changes_nothing(blocks, tmp_path):
    shutil.copytree(blocks, tmp_path / "chain")
    chain = EmbeddedEvm(tmp_path / "chain")
    size = (tmp_path / "chain" / "blocks.log").stat().st_size
    assert chain.anchor(root(3), 300, 3, root(2)) == chain.anchors()[-1].receipt
    assert (tmp_path / "chain" / "blocks.log").stat().st_size == size
    # the contract says so, too: a retry that reaches it is no error and emits nothing
    evm = chain._evm
    data = chain._selector("anchor(bytes32,uint64,uint64,bytes32)")
    data += root(3) + (300).to_bytes(32, "big") + (3).to_bytes(32, "big") + root(2)
    mined = evm.mine(evm.contract, data, 200_000, 10**10, 0)
    assert mined.success
    assert mined.logs == ()
    chain.close()


def test_only_the_anchorer_may_anchor(blocks):
    from ledger.evm import Evm

    chain = EmbeddedEvm(blocks, read_only=True)
    data = chain._selector("anchor(bytes32,uint64,uint64,bytes32)")
    data += root(4) + (400).to_bytes(32, "big") + (4).to_bytes(32, "big") + root(3)
    stranger = Evm(1, bytes([7]) * 32, 0, 30_000_000)
    chain._evm.call(chain._evm.contract, data, 200_000)
    chain._evm.account = stranger.account
    with pytest.raises(LedgerError, match="not the anchorer"):
        chain._evm.call(chain._evm.contract, data, 200_000)


def test_a_later_process_finds_the_anchors(blocks):
    before = (blocks / "blocks.log").read_bytes()
    chain = EmbeddedEvm(blocks, read_only=True)
    assert chain.head() == Head(3, 300, root(3))
    assert len(chain.anchors()) == 3
    assert chain.describe()["kind"] == "embedded"
    assert (blocks / "blocks.log").read_bytes() == before
    assert os.listdir(blocks) == ["blocks.log"]


def test_a_torn_last_block_is_cut_by_the_writer_and_told_by_the_reader(blocks, tmp_path):
    path = tmp_path / "blocks.log"
    path.write_bytes((blocks / "blocks.log").read_bytes()[:-100])
    with pytest.raises(LedgerError, match="block 4 is torn"):
        EmbeddedEvm(tmp_path, read_only=True)
    chain = EmbeddedEvm(tmp_path)
    assert chain.head() == Head(2, 200, root(2))
    chain.anchor(root(3), 300, 3, root(2))
    chain.close()
    assert EmbeddedEvm(tmp_path, read_only=True).head().seq == 3


def test_blocks_with_good_checksums_must_still_follow(blocks, tmp_path):
    from ledger.journal import encode_line, parse_lines

    records, _ = parse_lines((blocks / "blocks.log").read_bytes(), "")
    middle = bytearray(records[2])
    middle[-20] = ord("0") if middle[-20] != ord("0") else ord("1")
    for changed in (
        [records[0], records[2], records[3]],  # one left out
        [*records[:2], bytes(middle), records[3]],  # one changed
        [*records, records[3]],  # one twice
        [*records, b"zz"],
        [*records, b"c0"],
    ):
        (tmp_path / "blocks.log").write_bytes(b"".join(map(encode_line, changed)))
        with pytest.raises(LedgerError, match=r"block \d does not follow"):
            EmbeddedEvm(tmp_path, read_only=True)


def test_one_process_at_a_time(tmp_path):
    chain = EmbeddedEvm(tmp_path)
    with pytest.raises(LedgerError, match="in use"):
        EmbeddedEvm(tmp_path)
    chain.close()


@pytest.mark.slow
def test_a_full_disk_leaves_chain_and_file_together(blocks, tmp_path, monkeypatch):
    shutil.copytree(blocks, tmp_path / "chain")
    chain = EmbeddedEvm(tmp_path / "chain")

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(LedgerError, match="No space left"):
        chain.anchor(root(4), 400, 4, root(3))
    monkeypatch.undo()
    assert chain.head() == Head(3, 300, root(3))
    chain.anchor(root(4), 400, 4, root(3))
    chain.close()
    assert EmbeddedEvm(tmp_path / "chain", read_only=True).head() == Head(4, 400, root(4))
