import pytest
from fake_run import RUN, FakeRun

from ledger import checkpoint, merkle
from ledger.canonical import canonical_json, sha256_hex
from ledger.errors import LedgerError
from ledger.identity import COORDINATOR
from ledger.log import SqliteLog
from ledger.sqlite_chain import SqliteChain


@pytest.fixture
def run(tmp_path):
    return FakeRun(tmp_path / "run", tmp_path / "keys")


@pytest.fixture
def chain(tmp_path):
    chain = SqliteChain(SqliteLog(tmp_path / "log.sqlite", RUN), tmp_path / "private.sqlite")
    yield chain
    chain.close()


def leaves(envelopes):
    return [canonical_json(envelope) for envelope in envelopes]


def test_a_batch_is_appended_once_and_proved(run, chain):
    batch = leaves(run.opening() + run.round(1))
    assert chain.append_batch(0, batch[:3]) == 3
    assert chain.append_batch(0, batch) == len(batch)  # a retry that goes on
    assert chain.append_batch(2, batch[2:5]) == len(batch)
    assert chain.read(1, 2) == batch[1:3]
    tree = merkle.MerkleLog()
    for leaf in batch:
        tree.append(merkle.leaf_hash(leaf))
    proof = chain.prove(2, len(batch))
    merkle.verify_inclusion(merkle.leaf_hash(batch[2]), 2, len(batch), proof, tree.root())


def test_gaps_other_events_and_events_out_of_place_are_refused(run, chain):
    batch = leaves(run.opening() + run.round(1))
    chain.append_batch(0, batch[:4])
    with pytest.raises(LedgerError, match="cannot start at 5"):
        chain.append_batch(5, batch[5:])
    with pytest.raises(LedgerError, match="event 3 is already another"):
        chain.append_batch(3, batch[4:5])
    with pytest.raises(LedgerError, match="stands in the log at another place"):
        chain.append_batch(4, [batch[3]])
    assert chain.size() == 4


def test_heads_only_grow(run, chain):
    batch = leaves(run.opening() + run.round(1))
    key = run.coordinator
    tree = merkle.MerkleLog()
    for leaf in batch:
        tree.append(merkle.leaf_hash(leaf))
    small, large = (checkpoint.sign(key, RUN, size, tree.root(size)) for size in (4, len(batch)))
    with pytest.raises(LedgerError, match="no coordinator is registered"):
        chain.put_head(small, [])
    chain.append_batch(0, batch[:4])
    with pytest.raises(LedgerError, match="the log has 4"):
        chain.put_head(large, [])
    chain.put_head(small, [])
    chain.put_head(small, [])
    chain.append_batch(4, batch[4:])
    with pytest.raises(LedgerError):
        chain.put_head(checkpoint.sign(key, RUN, len(batch), bytes(32)), tree.consistency_proof(4))
    with pytest.raises(LedgerError):
        chain.put_head(checkpoint.sign(run.identities["bank"], RUN, len(batch), tree.root()), [])
    chain.put_head(large, tree.consistency_proof(4))
    with pytest.raises(LedgerError, match="after one of"):
        chain.put_head(small, [])
    assert chain.head() == large


def test_a_purged_value_leaves_its_hash_and_no_byte(chain, tmp_path):
    value = b"the salted name of a person " * 400  # more than a page
    digest = chain.put_private("requests", "r1", value)
    assert (tmp_path / "private.sqlite").stat().st_mode & 0o777 == 0o600
    assert chain.get_private("requests", "r1") == value
    assert b"the salted name" in (tmp_path / "private.sqlite").read_bytes()
    chain.purge_private("requests", "r1")
    assert chain.private_hash("requests", "r1") == digest == sha256_hex(value)
    with pytest.raises(LedgerError, match="was purged"):
        chain.get_private("requests", "r1")
    assert b"the salted name" not in (tmp_path / "private.sqlite").read_bytes()
    with pytest.raises(LedgerError, match="no such value"):
        chain.purge_private("requests", "r2")
    assert chain.private_hash("requests", "r2") == ""


def test_a_subscriber_goes_on_after_its_cursor(run, chain, tmp_path):
    batch = leaves(run.opening())
    chain.append_batch(0, batch)
    seen = chain.subscribe(tmp_path / "cursor", wait_s=0.1)
    first, second = next(seen), next(seen)
    seen.close()  # the second was not finished: it comes again
    assert (first.block, second.block) == (0, 1)
    assert [event.block for event in chain.subscribe(tmp_path / "cursor", wait_s=0.1)] == [1, 2, 3]
    assert list(chain.subscribe(tmp_path / "cursor", wait_s=0.1)) == []


def test_a_run_is_opened_on_one_set_of_terms(chain):
    chain.open_run(COORDINATOR, 2, ["Org1MSP", "Org2MSP"])
    chain.open_run(COORDINATOR, 2, ["Org2MSP", "Org1MSP"])
    with pytest.raises(LedgerError, match="other terms"):
        chain.open_run(COORDINATOR, 1, ["Org1MSP", "Org2MSP"])
