import os
import sqlite3
import subprocess
import sys

import pytest

from ledger import events as ev
from ledger.canonical import canonical_json, sha256_hex
from ledger.errors import LedgerError
from ledger.identity import load_or_create, public_document
from ledger.log import SqliteLog
from ledger.merkle import MerkleLog, leaf_hash, verify_consistency, verify_inclusion

RUN = "r"


@pytest.fixture
def bank(tmp_path):
    return load_or_create("bank", tmp_path / "keys")


@pytest.fixture
def clinic(tmp_path):
    return load_or_create("clinic", tmp_path / "keys")


@pytest.fixture
def log(tmp_path):
    log = SqliteLog(tmp_path / "log.sqlite")
    yield log
    log.close()


def register(identity):
    document = public_document(identity)
    body = {name: document[name] for name in ("organization", "key_id", "public_key")}
    return ev.make_event(identity, RUN, ev.REGISTER, {**body, "document": sha256_hex(canonical_json(document))})


def decision(identity, round_, key=None, run=RUN, effort="1"):
    return ev.make_event(identity, run, ev.DECISION, {"round": round_, "effort": effort}, key=key)


def test_batches_are_appended_and_proved(log, bank, clinic):
    assert log.append_batch([register(bank), decision(bank, 1)]) == [0, 1]
    early = log.root()
    envelopes = [register(clinic), *(decision(who, n) for n in range(2, 20) for who in (bank, clinic))]
    assert log.append_batch(envelopes) == list(range(2, 39))
    assert log.size == 39
    oracle = MerkleLog()
    for index in range(log.size):
        oracle.append(leaf_hash(log.leaf(index)))
        assert log.root(index + 1) == oracle.root()
    for index in range(log.size):
        verify_inclusion(leaf_hash(log.leaf(index)), index, 39, log.inclusion_proof(index), log.root())
    verify_consistency(2, early, 39, log.root(), log.consistency_proof(2))
    assert [index for index, _ in log.events(ev.REGISTER)] == [0, 2]
    assert [envelope for _, envelope in log.events()][2:] == envelopes
    assert log.keys() == {who.key_id: who.public_hex for who in (bank, clinic)}


def test_the_log_is_there_after_closing(tmp_path, bank):
    path = tmp_path / "folder" / "log.sqlite"
    log = SqliteLog(path)
    log.append_batch([register(bank), decision(bank, 1)])
    root = log.root()
    log.close()
    assert os.listdir(path.parent) == ["log.sqlite"]
    log = SqliteLog(path, RUN)
    assert (log.size, log.root(), log.keys()) == (2, root, {bank.key_id: bank.public_hex})
    log.append_batch([decision(bank, 2)])
    log.close()
    reader = SqliteLog(path, read_only=True)
    assert (reader.size, reader.root(2)) == (3, root)
    with pytest.raises(LedgerError, match="reading only"):
        reader.append_batch([decision(bank, 3)])
    reader.close()
    assert os.listdir(path.parent) == ["log.sqlite"]


def test_the_same_statement_twice_is_one_event(log, bank):
    first, second = decision(bank, 1), decision(bank, 2)
    assert log.append_batch([register(bank), first]) == [0, 1]
    later = ev.make_event(bank, RUN, ev.DECISION, {"round": 1, "effort": "1"}, time=1)
    assert later != first
    assert log.append_batch([first, second, later, second, register(bank)]) == [1, 2, 1, 2, 0]
    assert log.size == 3


def test_a_key_with_another_body_is_refused(log, bank, clinic):
    log.append_batch([register(bank), register(clinic), decision(bank, 1, key="round-1")])
    with pytest.raises(LedgerError, match=r"DECISION of bank: key 'round-1' is in the log \(event 2\)"):
        log.append_batch([decision(bank, 2), decision(bank, 1, key="round-1", effort="0")])
    with pytest.raises(LedgerError, match="key 'twice'"):
        log.append_batch([decision(bank, 1, key="twice"), decision(bank, 2, key="twice")])
    assert log.size == 3  # nothing of a refused batch stays
    # nobody can squat on another's keys
    assert log.append_batch([decision(clinic, 1, key="round-1", effort="0")]) == [3]


def test_bad_events_are_refused_and_leave_no_trace(log, bank, clinic, tmp_path):
    log.append_batch([register(bank)])
    root = log.root()
    impostor = load_or_create("bank", tmp_path / "elsewhere")
    forged = decision(bank, 1)
    forged["signatures"][0]["sig"] = decision(bank, 2)["signatures"][0]["sig"]
    for batch in (
        [decision(clinic, 1)],  # not registered
        [forged],
        [register(impostor)],
        [decision(impostor, 1)],
        [decision(bank, 1, run="another run")],
        [register(clinic), decision(clinic, 1), forged],
    ):
        with pytest.raises(LedgerError):
            log.append_batch(batch)
    assert (log.size, log.root(), log.keys()) == (1, root, {bank.key_id: bank.public_hex})
    with pytest.raises(LedgerError, match="not registered"):
        log.append_batch([decision(clinic, 1)])


def test_a_log_belongs_to_one_run(tmp_path, bank):
    log = SqliteLog(tmp_path / "log.sqlite", "another run")
    with pytest.raises(LedgerError, match="another run"):
        log.append_batch([register(bank)])
    log.close()
    log = SqliteLog(tmp_path / "log.sqlite")
    log.append_batch([register(bank)])
    log.close()
    with pytest.raises(LedgerError, match=r"log\.sqlite: REGISTER of bank: belongs to run"):
        SqliteLog(tmp_path / "log.sqlite", "another run")


def test_one_writer_at_a_time(tmp_path, bank):
    path = tmp_path / "log.sqlite"
    log = SqliteLog(path)
    with pytest.raises(LedgerError, match=f"in use by process {os.getpid()}"):
        SqliteLog(path)
    script = "import sys; from ledger.log import SqliteLog; SqliteLog(sys.argv[1])"
    other = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True)
    assert f"in use by process {os.getpid()}" in other.stderr
    log.append_batch([register(bank)])
    reader = SqliteLog(path, read_only=True)  # a reader beside the writer sees what is committed
    assert reader.size == 1
    reader.close()
    log.close()
    SqliteLog(path).close()


def test_rows_cannot_be_changed_through_sql(log, bank):
    log.append_batch([register(bank), decision(bank, 1)])
    for statement in ("DELETE FROM leaves", "UPDATE leaves SET type='x'", "DELETE FROM nodes"):
        with pytest.raises(sqlite3.Error, match="append-only"):
            log._db.execute(statement)


def test_a_full_disk_is_reported_and_loses_nothing(log, bank):
    log.append_batch([register(bank)])
    pages = log._db.execute("PRAGMA page_count").fetchone()[0]
    log._db.execute(f"PRAGMA max_page_count={pages}")
    batch = [decision(bank, n) for n in range(200)]
    with pytest.raises(LedgerError, match=r"cannot be written: .*full"):
        log.append_batch(batch)
    assert log.size == 1
    log._db.execute("PRAGMA max_page_count=100000")
    assert log.append_batch(batch) == list(range(1, 201))


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "log.sqlite"
    with pytest.raises(LedgerError, match="missing"):
        SqliteLog(path, read_only=True)
    path.write_bytes(b"x" * 5000)
    for read_only in (True, False):
        with pytest.raises(LedgerError, match=r"log\.sqlite: not a readable log"):
            SqliteLog(path, read_only=read_only)
    path.unlink()
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE t (x)")
    other.close()
    with pytest.raises(LedgerError, match="another kind"):
        SqliteLog(path)
    with pytest.raises(LedgerError, match="not a log"):
        SqliteLog(path, read_only=True)
