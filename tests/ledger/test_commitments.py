import hashlib
import hmac
import os
import sqlite3
import stat
from pathlib import Path

import pytest

from ledger.commitments import commit, content_tag, find_content, fresh_salt, opens
from ledger.errors import LedgerError
from ledger.salts import SaltStore

SALT = bytes(range(32))
RECORD = {"id": "r1", "subject": "Ann", "prompt": "How are you?", "answer": "Fine", "label": -1}
IDS = [f"record {i}" for i in range(300)]


@pytest.fixture
def store(tmp_path: Path) -> SaltStore:
    return SaltStore(tmp_path / "salts" / "bank.sqlite", "run-1", "bank")


def reopened(store: SaltStore) -> SaltStore:
    return SaltStore(store.path, "run-1", "bank")


def bytes_on_disk(store: SaltStore) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(store.path.parent.iterdir()))


def test_a_commitment_is_the_hmac_of_the_canonical_record():
    text = b'trustchain.record.v1\n{"answer":"Fine","id":"r1","label":-1,"prompt":"How are you?","subject":"Ann"}'
    assert commit(SALT, RECORD) == hmac.new(SALT, text, hashlib.sha256).hexdigest()


def test_only_the_salt_and_the_record_open_a_commitment():
    commitment = commit(SALT, RECORD)
    assert opens(commitment, SALT, RECORD)
    assert not opens(commitment, fresh_salt(), RECORD)
    assert not opens(commitment, SALT, {**RECORD, "answer": "fine"})
    assert not opens(commitment.upper(), SALT, RECORD)


@pytest.mark.parametrize("salt", [b"", bytes(31), bytes(33)])
def test_a_salt_of_another_length_is_refused(salt):
    # HMAC pads keys with zeros: SALT[:31] and SALT[:31] + b"\0" would commit alike.
    with pytest.raises(LedgerError, match="not 32"):
        commit(salt, RECORD)


def test_another_organization_finds_the_same_content_under_the_request_key():
    key = fresh_salt()
    tag = content_tag(key, {"prompt": "Is  caf\u00e9 open?\n", "answer": "yes"})
    holdings = {
        "b2": {"prompt": "Is cafe\u0301 open?", "answer": "yes"},
        "b1": {"prompt": "Is caf\u00e9 open?", "answer": " yes"},
        "b3": {"prompt": "Is caf\u00e9 open?", "answer": "no"},
    }
    assert find_content(key, [tag], holdings) == ["b1", "b2"]
    assert find_content(fresh_salt(), [tag], holdings) == []


def test_a_content_tag_is_no_commitment():
    content = {"prompt": "a", "answer": "b"}
    assert content_tag(SALT, content) != commit(SALT, content)


def test_salts_stay_the_same_and_are_all_different(store):
    salts = store.salts(IDS)
    assert len(set(salts.values())) == len(IDS)
    assert all(len(salt) == 32 for salt in salts.values())
    store.close()
    again = reopened(store)
    assert again.salts(IDS) == salts
    assert again.known(["record 5", "nobody"]) == {"record 5": salts["record 5"]}
    assert len(again) == len(IDS)


def test_nobody_else_can_read_the_file(store):
    store.salts(IDS)
    for path in store.path.parent.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    store.close()
    os.chmod(store.path, 0o640)
    with pytest.raises(LedgerError, match="chmod 600"):
        reopened(store)


def test_another_runs_or_organizations_salts_are_refused(store):
    store.close()
    for run, organization in (("run-2", "bank"), ("run-1", "clinic")):
        with pytest.raises(LedgerError, match="holds the salts of bank in run 'run-1'"):
            SaltStore(store.path, run, organization)


def test_a_link_and_a_foreign_file_are_refused(tmp_path, store):
    (tmp_path / "link").symlink_to(store.path)
    with pytest.raises(LedgerError, match="symbolic link"):
        SaltStore(tmp_path / "link", "run-1", "bank")
    (tmp_path / "text").write_bytes(b"no database " * 100)
    (tmp_path / "other").touch()
    sqlite3.connect(tmp_path / "other").execute("CREATE TABLE x (y)").connection.close()
    for name, reason in (("text", "not a readable store"), ("other", "another kind")):
        os.chmod(tmp_path / name, 0o600)
        with pytest.raises(LedgerError, match=reason):
            SaltStore(tmp_path / name, "run-1", "bank")


def test_an_erased_record_gets_no_new_salt_and_is_recognised(store):
    store.salts(IDS)
    assert store.destroy(["record 7", "record 9", "record 7"]) == 2
    assert store.erased(IDS) == {"record 7", "record 9"}
    assert store.known(["record 7"]) == {}
    with pytest.raises(LedgerError, match=r"1 of these records were erased.*'record 7'"):
        store.salts(["record 7", "record 8"])


def test_destroying_twice_changes_nothing_and_an_unknown_id_destroys_nothing(store):
    store.salts(IDS)
    assert store.destroy(["record 1"]) == 1
    assert store.destroy(["record 1"]) == 0
    with pytest.raises(LedgerError, match="'recrod 3'"):
        store.destroy(["record 2", "recrod 3"])
    assert store.known(["record 2"])


def test_no_byte_of_a_destroyed_salt_and_no_id_is_left_on_the_disk(store):
    salts = store.salts(IDS)
    assert all(salt in bytes_on_disk(store) for salt in salts.values())
    gone = IDS[::3]
    store.destroy(gone)
    data = bytes_on_disk(store)
    assert not any(salts[name] in data or salts[name][:16] in data for name in gone)
    assert b"record 299" in data
    store.destroy(IDS)
    data = bytes_on_disk(store)
    assert not any(salt in data for salt in salts.values())
    assert b"record" not in data.replace(b"record TEXT", b"").replace(b"(record", b"")


@pytest.mark.slow
def test_an_erasure_killed_at_any_step_leaves_all_or_none_and_can_be_repeated(store, killed_after):
    salts = store.salts(IDS)
    store.close()
    gone, outcomes = IDS[:120:4], set()

    def erase(at: int) -> None:
        dying = reopened(store)
        count = 0

        def traced(statement: str) -> None:
            nonlocal count
            if not statement.startswith(("SELECT", "PRAGMA")):
                count += 1
            if count == at:
                os._exit(77)

        dying._db.set_trace_callback(traced)
        dying.destroy(gone)

    for at in [*range(1, 5), 32, 33, 34, 60, 90, 91, 92, 93]:  # the statements, up to the clearing of the journal
        killed_after(lambda at=at: erase(at), 10**9)
        after = reopened(store)
        present = set(after.known(gone))
        assert present in (set(), set(gone))
        assert len(after.erased(gone)) == len(gone) - len(present)
        assert not any(salts[name] in bytes_on_disk(after) for name in set(gone) - present)
        outcomes.add(bool(present))
        after.close()
        if not present:
            break
    assert outcomes == {True, False}
    for step in range(3):  # the clearing of the journal itself
        assert killed_after(lambda: reopened(store).destroy(gone), step) in (True, False)
        after = reopened(store)
        assert after.destroy(gone) == 0
        assert not any(salts[name] in bytes_on_disk(after) for name in gone)
        assert set(after.known(IDS)) == set(IDS) - set(gone)
        after.close()


def test_two_processes_at_once_agree_on_the_salts(store, tmp_path):
    store.close()
    children = []
    for number in range(2):
        pid = os.fork()
        if pid == 0:
            salts = reopened(store).salts(IDS)
            (tmp_path / f"{number}").write_bytes(b"".join(salts[name] for name in IDS))
            os._exit(0)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0]
    salts = reopened(store).known(IDS)
    for number in range(2):
        assert (tmp_path / f"{number}").read_bytes() == b"".join(salts[name] for name in IDS)
