"""`trustchain keys` as a person uses it."""

import json
from pathlib import Path

import pytest
from fake_run import FakeRun, whole_run

from ledger.events import KEY_ADMITTED, KEY_REVOKED
from ledger.identity import PASSPHRASE
from ledger.log import SqliteLog
from trustchain_ray.cli import main

CONFIG = "model: {base: some/model}\ndata: {train: records.jsonl}\nledger: {public: {kind: none}}\n"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRUSTCHAIN_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def run(home: Path, tmp_path: Path) -> FakeRun:
    """A sealed run of bank and clinic, whose keys are in the key folder."""
    made = whole_run(tmp_path / "run", home / "keys", rounds=1, anchored=False)
    (tmp_path / "run" / "config.yaml").write_text(CONFIG)
    return made


def keys(*words: str | Path) -> int:
    return main(["keys", *map(str, words)])


def test_list_protect_rotate(run: FakeRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    assert keys("protect", "bank") == 1
    assert PASSPHRASE in capsys.readouterr().err
    monkeypatch.setenv(PASSPHRASE, "open sesame")
    assert keys("protect", "bank") == 0
    assert keys("rotate", "bank") == 0
    assert keys("rotate", "coordinator") == 0
    assert "keeps the key of its log" in capsys.readouterr().out
    assert keys("list", "--json") == 0
    out = capsys.readouterr().out
    assert "open sesame" not in out
    rows = json.loads(out.splitlines()[-1])
    assert rows["bank"] == {
        "key_id": rows["bank"]["key_id"], "protected": True, "retired": [run.identities["bank"].key_id[:16]],
    }  # fmt: skip
    assert rows["clinic"]["protected"] is False
    monkeypatch.delenv(PASSPHRASE)
    assert keys("rotate", "bank") == 1
    assert "protected by a passphrase" in capsys.readouterr().err


def test_a_consortium_from_its_founding_to_an_admission(
    run: FakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "consortium.json"
    for name in ("bank", "clinic", "coordinator"):
        assert keys("document", name) == 0
        (tmp_path / f"{name}.json").write_text(capsys.readouterr().out)
    new = ["consortium", "new", file, "--name", "care", "--threshold", "1"]
    new += ["--coordinator", tmp_path / "coordinator.json"]
    new += ["--member", f"bank={tmp_path / 'bank.json'}", "--member", f"clinic={tmp_path / 'clinic.json'}"]
    assert keys(*new) == 0
    assert keys(*new) == 2, "a document is not overwritten"
    assert main(["verify", str(run.dir), "--trust", str(file)]) == 2, "nobody signed it"
    assert keys("consortium", "sign", file, "--as", "bank") == 0
    assert "1 more of bank, clinic" in capsys.readouterr().out
    assert keys("consortium", "sign", file, "--as", "clinic") == 0
    propose = ["consortium", "propose", file]
    assert keys(*propose, "admit", f"bank={tmp_path / 'bank.json'}") == 2
    assert keys(*propose, "admit", f"lab={tmp_path / 'bank.json'}") == 2, "the document is of bank"
    assert keys(*propose, "remove", "lab") == 2
    assert keys(*propose, "threshold", "3") == 1
    assert keys(*propose, "remove", "clinic") == 0
    assert keys("consortium", "sign", file, "--as", "clinic") == 0
    capsys.readouterr()
    assert keys("consortium", "show", file, "--json") == 0
    shown = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (list(shown["members"]), shown["missing"]) == (["bank"], 0)


def test_a_run_is_verified_with_the_keys_of_its_consortium(run: FakeRun, tmp_path: Path):
    from ledger import consortium as papers

    members = {name: run.identities[name].public_hex for name in ("bank", "clinic")}
    made = papers.found("care", 1, members, run.coordinator.public_hex)
    for name in members:
        made = papers.sign(made, run.identities[name])
    papers.write(made, tmp_path / "consortium.json")
    (run.dir / "config.yaml").write_text("rounds: 3\nledger:\n  anchor_every: 1\n")  # as it was sealed
    assert main(["verify", str(run.dir), "--trust", str(tmp_path / "consortium.json")]) == 0


def test_a_lost_key_is_revoked_and_replaced(run: FakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    revocation, admission = tmp_path / "revocation.json", tmp_path / "admission.json"
    assert keys("revoke", tmp_path, "bank", "--reason", "stolen", "-o", revocation) == 2
    assert keys("revoke", run.dir, "bank", "--reason", "stolen", "-o", revocation) == 0
    assert keys("enact", run.dir, revocation) == 1
    assert "0 of 1 other organizations approve; 1 must" in capsys.readouterr().err
    assert keys("approve", revocation, "--as", "bank") == 1
    assert keys("approve", revocation, "--as", "clinic") == 0
    assert "revokes key" in capsys.readouterr().out
    assert keys("enact", run.dir, revocation) == 0
    assert (run.dir / "ledger" / "seal.json").is_file(), "it is sealed again"
    assert keys("rotate", "bank") == 0
    assert keys("readmit", run.dir, "bank", "--reason", "shown in person", "-o", admission) == 0
    assert keys("approve", admission, "--as", "clinic") == 0
    assert keys("enact", run.dir, admission) == 0
    log = SqliteLog(run.dir / "ledger" / "log.sqlite", read_only=True)
    try:
        assert [len(list(log.events(kind))) for kind in (KEY_REVOKED, KEY_ADMITTED)] == [1, 1]
        assert log.registry.revoked == []
    finally:
        log.close()
