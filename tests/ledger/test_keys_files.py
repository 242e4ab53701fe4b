"""Key files: a passphrase on them, rotation, and nothing of a secret in any message."""

import os
import stat
from pathlib import Path

import pytest

from ledger.errors import LedgerError
from ledger.identity import PASSPHRASE, is_protected, load, load_or_create
from ledger.key_files import protect, retired_files, rotate

SECRET = "a long passphrase nobody guesses"


@pytest.fixture
def protected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Key id of a protected key of `bank` in the test's folder; the passphrase is set."""
    monkeypatch.setenv(PASSPHRASE, SECRET)
    return load_or_create("bank", tmp_path).key_id


def modes(folder: Path) -> set[int]:
    return {stat.S_IMODE(path.stat().st_mode) for path in folder.glob("*.pem")}


def test_a_new_key_is_encrypted_where_a_passphrase_is_set(protected: str, tmp_path: Path):
    pem = (tmp_path / "bank.pem").read_bytes()
    assert is_protected(pem)
    assert b"-----BEGIN PRIVATE KEY-----" not in pem
    assert load("bank", tmp_path).key_id == protected


@pytest.mark.parametrize("given", [None, "", "another"])
def test_a_missing_or_wrong_passphrase_is_one_message_without_it(
    protected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str | None
):
    monkeypatch.delenv(PASSPHRASE) if given is None else monkeypatch.setenv(PASSPHRASE, given)
    with pytest.raises(LedgerError, match=r"bank\.pem.*TRUSTCHAIN_KEY_PASSPHRASE") as caught:
        load("bank", tmp_path)
    assert caught.value.__cause__ is None
    assert not {SECRET, "another"} & set(str(caught.value).split())
    with pytest.raises(LedgerError, match=PASSPHRASE):
        load_or_create("bank", tmp_path)  # and no new key takes its place
    assert is_protected((tmp_path / "bank.pem").read_bytes())


def test_a_plain_key_loads_whatever_the_passphrase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made = load_or_create("bank", tmp_path)
    monkeypatch.setenv(PASSPHRASE, SECRET)
    assert load("bank", tmp_path).key_id == made.key_id


def test_protecting_keeps_the_key_and_taking_it_off_does_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made = load_or_create("bank", tmp_path)
    old, new = rotate("bank", tmp_path)
    assert old.key_id == made.key_id
    monkeypatch.setenv(PASSPHRASE, SECRET)
    files = [tmp_path / "bank.pem", *retired_files("bank", tmp_path)]
    assert protect("bank", tmp_path) == files
    assert protect("bank", tmp_path) == []
    assert all(is_protected(path.read_bytes()) for path in files)
    assert modes(tmp_path) == {0o600}
    assert load("bank", tmp_path).key_id == new.key_id
    assert protect("bank", tmp_path, remove=True) == files
    monkeypatch.delenv(PASSPHRASE)
    assert load("bank", tmp_path, old.key_id).public_hex == old.public_hex
    with pytest.raises(LedgerError, match=PASSPHRASE):
        protect("bank", tmp_path)


def test_a_wrong_passphrase_takes_nothing_off(protected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    before = (tmp_path / "bank.pem").read_bytes()
    monkeypatch.setenv(PASSPHRASE, "another")
    for action in (lambda: protect("bank", tmp_path, remove=True), lambda: rotate("bank", tmp_path)):
        with pytest.raises(LedgerError, match="not its passphrase"):
            action()
    assert (tmp_path / "bank.pem").read_bytes() == before
    assert os.listdir(tmp_path) == ["bank.pem"]


def test_rotation_makes_a_new_key_and_keeps_the_old_one(protected: str, tmp_path: Path):
    old, new = rotate("bank", tmp_path)
    assert (old.key_id, old.key_id == new.key_id) == (protected, False)
    assert load("bank", tmp_path).key_id == new.key_id
    assert load("bank", tmp_path, new.key_id).key_id == new.key_id
    assert load("bank", tmp_path, old.key_id).sign(b"x") == old.sign(b"x")
    assert sorted(os.listdir(tmp_path)) == [f"bank.{old.key_id[:16]}.retired.pem", "bank.pem"]
    assert modes(tmp_path) == {0o600}
    assert all(is_protected(path.read_bytes()) for path in tmp_path.glob("*.pem"))
    with pytest.raises(LedgerError, match="neither here nor among the retired ones"):
        load("bank", tmp_path, "0" * 64)


def test_a_rotation_that_dies_leaves_a_whole_key(tmp_path: Path, killed_after):
    first = load_or_create("bank", tmp_path)
    step = 0
    while killed_after(lambda: rotate("bank", tmp_path), step):
        step += 1
        now = load("bank", tmp_path)
        assert load("bank", tmp_path, first.key_id).key_id == first.key_id, "the first key was lost"
        if now.key_id != first.key_id:
            break
    assert step >= 3, "it died at no write"


def test_only_key_folders_and_names_are_taken(tmp_path: Path):
    with pytest.raises(LedgerError, match="is no key folder"):
        rotate("bank", tmp_path / "nowhere")
    with pytest.raises(LedgerError, match="has no key here"):
        rotate("bank", tmp_path)
    with pytest.raises(LedgerError, match="those of retired keys"):
        load_or_create(f"bank.{'0' * 16}.retired", tmp_path)
