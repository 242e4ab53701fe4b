"""An audit run by the command line: canaries go through training, the run says what it is, and the audit reads it."""

import json
from pathlib import Path
from typing import Any

import pytest

from trustchain_ray.cli import main

pytestmark = pytest.mark.slow

SETTINGS = (
    "run.name=audit", "privacy.canaries=40", "privacy.dp=record", "privacy.epsilon=3", "privacy.delta=1e-5",
    "privacy.max_removals=0", "training.sampling_rate=0.4", "federation.keep_updates=all", "resources.mode=pooled",
    "ledger.public.kind=none", "data.test=''",
)  # fmt: skip


@pytest.fixture(scope="module")
def audited(command: Any, config: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("runs") / "audit"
    return command.train("-c", config, "--run", str(folder), *SETTINGS)


def evaluated(
    command: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, dict[str, Any], str]:
    monkeypatch.setenv("TRUSTCHAIN_HOME", str(command.home))
    code = main(["evaluate", *arguments, "--privacy", "--json"])
    said = capsys.readouterr()
    assert said.out, said.err
    return code, json.loads(said.out.splitlines()[-1]), said.out


def test_the_bound_of_an_audit_run_is_within_its_account(
    command: Any, audited: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, result, said = evaluated(command, monkeypatch, capsys, audited["run"])
    assert code == 0
    for row in (result["audit"]["all"], *result["audit"]["by_organization"].values()):
        assert 2.9 < row["account"]["epsilon"] <= 3.0
        assert row["kept"] is True
        assert row["bound"]["epsilon"] <= row["account"]["epsilon"]
        assert row["seen"] == "update"
    assert result["audit"]["all"]["canaries"] == 80
    assert 20 < result["audit"]["all"]["included"] < 60
    records = {name: row["members"] + row["others"] for name, row in result["attacks"]["by_organization"].items()}
    assert records == {"alpha": 40, "beta": 40}  # without canaries
    assert "epsilon at least" in said
    assert "ABOVE" not in said


def test_the_run_says_that_it_is_an_audit(command: Any, audited: dict[str, Any], config: str) -> None:
    run = Path(audited["run"])
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["audit"] == {"canaries": 40}
    assert manifest["records"]["alpha"]["all"] > 40
    assert "Not for release" in (run / "model" / "README.md").read_text()
    out, _ = command.run("verify", str(run))
    assert "an audit run with canaries, not for release" in out


@pytest.mark.long
def test_noise_that_is_left_out_is_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from benchmarks.privacy_audit import BROKEN, audit_part

    monkeypatch.setenv("TRUSTCHAIN_HOME", str(tmp_path))
    done: dict[str, Any] = {}
    audit_part(done, lambda: None, 1)
    assert done[f"{BROKEN}/0"]["bound"] > done[f"{BROKEN}/0"]["account"]
    for kind in ("epsilon 3/0", "epsilon 8/0"):
        assert done[kind]["bound"] <= done[kind]["account"]
        assert done[kind]["organizations_above"] == 0
