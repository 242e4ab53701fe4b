"""Certificates, receipts and lineage on the command line, with the run, a bundle, or nothing beside them."""

import json
import shutil
import subprocess
import sys

import pytest
from fake_run import COHORT
from removal_run import Ask, CohortRun, RemovalRun, record, removal_run

from ledger import bundle, layout
from ledger.cli import main
from ledger.receipts import entry_of, issue, opening_of
from ledger.verify import verify_run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> RemovalRun:
    return removal_run(tmp_path_factory.mktemp("documents"))


@pytest.fixture
def files(made, tmp_path):
    """The certificate in its run; certificate, receipt and keys elsewhere."""
    (inside,) = (made.run.dir / layout.CERTIFICATES).glob("*.json")
    for name, data in (("certificate.json", made.certificate), ("receipt.json", made.receipt)):
        (tmp_path / name).write_bytes(data)
    (tmp_path / "keys.json").write_text(json.dumps(made.keys))
    return {"inside": inside, **{name: tmp_path / f"{name}.json" for name in ("certificate", "receipt", "keys")}}


def verified(capsys, *arguments) -> dict[str, str]:
    """Status by check; the exit status must fit."""
    capsys.readouterr()
    status = main(["verify", "--json", *map(str, arguments)])
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert status == (0 if report["ok"] else 1)
    return {"kind": report["kind"], **{check["name"]: check["status"] for check in report["checks"]}}


def test_a_certificate_is_checked_by_itself_or_with_the_run(made, files, capsys, tmp_path):
    alone = verified(capsys, files["certificate"], "--trust", files["keys"])
    assert (alone["kind"], alone["signatures"], alone["closure"]) == ("certificate", "ok", "skipped")
    assert verified(capsys, files["inside"])["closure"] == "ok"  # the run is found by itself
    assert verified(capsys, files["certificate"], "--run", made.run.dir, "--min-auditors", 1)["closure"] == "ok"
    assert verified(capsys, files["certificate"], "--run", made.run.dir, "--min-auditors", 2)["signatures"] == "fail"
    bundle.export(made.run.dir, tmp_path / "whole.tar")
    assert verified(capsys, files["certificate"], "--run", tmp_path / "whole.tar")["closure"] == "ok"
    assert main(["verify", str(files["inside"])]) == 0
    assert "artifacts that depend on the records, computed again from the log" in capsys.readouterr().out


def test_a_damaged_certificate_is_no_certificate(files, capsys):
    data = bytearray(files["certificate"].read_bytes())
    for place in (1, 5, 100, len(data) // 2, len(data) - 1):
        changed = bytearray(data)
        changed[place] ^= 1
        files["certificate"].write_bytes(changed)
        assert "fail" in verified(capsys, files["certificate"]).values(), place
    files["certificate"].write_bytes(data[:-5])
    assert verified(capsys, files["certificate"])["form"] == "fail"


def test_a_run_whose_log_does_not_hold_is_no_witness_of_a_certificate(made, files, capsys, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(made.run.dir, run)
    manifest = run / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b'"version":1', b'"version":2'))
    assert verified(capsys, files["certificate"], "--run", run) == {"kind": "certificate", "run": "fail"}
    bundle.export(made.run.dir, tmp_path / "few.tar", types=["UNLEARN_EXEC"])
    assert verified(capsys, files["certificate"], "--run", tmp_path / "few.tar")["run"] == "fail"


def test_a_person_checks_a_receipt(made, files, capsys, tmp_path):
    before = verified(capsys, files["receipt"], "--trust", files["keys"])
    assert (before["kind"], before["signature"], before["removal"]) == ("receipt", "ok", "skipped")
    after = verified(capsys, files["receipt"], "--trust", files["keys"], "--certificate", files["certificate"])
    assert (after["removal"], after["log"]) == ("ok", "skipped")
    for arguments in (("--run", made.run.dir), ("--certificate", files["inside"])):
        assert set(verified(capsys, files["receipt"], *arguments).values()) == {"receipt", "ok"}
    entry = entry_of(COHORT, made.trees["bank"], [made.commitment("bank-5")])
    opening = opening_of(made.salts["bank-5"], record("bank-5"))
    files["receipt"].write_bytes(issue(made.run.identities["bank"], made.run.run, [entry], [opening]))
    assert verified(capsys, files["receipt"], "--run", made.run.dir)["removal"] == "ok"  # it is in
    wrong = verified(capsys, files["receipt"], "--run", made.run.dir, "--certificate", files["certificate"])
    assert wrong["removal"] == "fail"  # which does not remove it
    few = verified(capsys, files["receipt"], "--run", made.run.dir, "--min-auditors", 2)
    assert few["removal"] == "fail"


@pytest.mark.slow
def test_a_bundle_takes_certificates_along(made, tmp_path):
    bundle.export(made.run.dir, tmp_path / "whole.tar")
    bundle.export(made.run.dir, tmp_path / "few.tar", types=["UNLEARN_EXEC"])
    for name, whole in (("whole.tar", True), ("few.tar", False)):
        report = verify_run(tmp_path / name, min_auditors=1)
        assert report.ok, report.failure
        assert {check.name: check.status for check in report.checks}["certificates"] == "ok"
        assert any(line.startswith("of certificates/") and "closure" in line for line in report.not_checked) != whole
    report = verify_run(tmp_path / "whole.tar", min_auditors=2)
    assert report.failure is not None
    assert report.failure.name == "certificates"


def test_options_that_do_not_fit_are_refused(made, files, capsys):
    for arguments, reason in (
        ((files["certificate"], "--model", made.run.dir), "--model does not go with a certificate"),
        ((files["certificate"], "--certificate", files["certificate"]), "--certificate does not go with"),
        ((made.run.dir, "--run", made.run.dir), "--run does not go with a run"),
        ((files["certificate"], "--run", "nowhere"), "nowhere: is not there"),
        ((files["certificate"], "--min-auditors", -1), "--min-auditors is not below 0"),
    ):
        assert main(["verify", *map(str, arguments)]) == 2
        assert reason in capsys.readouterr().err


@pytest.mark.slow
def test_a_certificate_needs_neither_ray_nor_torch(files):
    script = (
        "import sys; from ledger.cli import main; status = main(['verify', sys.argv[1]]);"
        "print(sorted({'ray', 'torch', 'numpy', 'trustchain_ray', 'envs'} & set(sys.modules)), status)"
    )
    command = [sys.executable, "-c", script, str(files["inside"])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[] 0"


def lineage(capsys, *arguments):
    capsys.readouterr()
    assert main(["lineage", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_lineage_shows_what_was_computed_from_what(made, capsys, tmp_path):
    whole = lineage(capsys, made.run.dir)
    marks = [line.split()[-1] for line in whole.splitlines()]
    assert (marks.count("WITHDRAWN"), marks.count("REVOKED")) == (10, 1)
    digest = made.removal.model["new"]
    one = lineage(capsys, made.run.dir, "--of", digest[:12])
    assert "adapter    all@3" in one.split("artifact:")[0]
    content = json.loads(lineage(capsys, made.run.dir, "--of", digest, "--json"))
    assert [node["kind"] for node in content["artifacts"]] == ["model"]
    assert {"all@0", "all@1", "all@2", "all@3"} <= {node["name"] for node in content["computed_from"]}
    bundle.export(made.run.dir, tmp_path / "whole.tar")
    assert lineage(capsys, tmp_path / "whole.tar") == whole


def test_lineage_says_what_a_removal_would_cost(made, capsys):
    nodes = json.loads(lineage(capsys, made.run.dir, "--closure", "clinic/all", "--json"))["closure"]
    names = [f"{node['kind']} {node['name']}" for node in nodes]
    assert names[0] == "shard clinic/all"
    assert {"adapter all@1", "adapter all@2", "adapter all@3", "model 3"} < set(names)
    assert len(names) == len(set(names))


def test_what_lineage_does_not_know_is_said(made, capsys, tmp_path):
    for arguments, reason in (
        ((made.run.dir, "--of", "0" * 64), "no artifact of the run has digest"),
        ((made.run.dir, "--of", "ab"), "at least 8 hex digits"),
        ((made.run.dir, "--closure", "bank/other"), "no shard 'bank/other'; it has bank/all, clinic/all"),
        ((tmp_path,), "there is no run here"),
    ):
        assert main(["lineage", *map(str, arguments)]) == 2
        assert reason in capsys.readouterr().err


@pytest.mark.slow
def test_a_certificate_of_another_run_is_found(made, tmp_path):
    other = CohortRun(tmp_path / "other", run="other-run")
    other.begin()
    other.finish()
    begun = other.remove([Ask("bank", ["bank-1"])], {COHORT: 3})
    run = tmp_path / "run"
    shutil.copytree(made.run.dir, run)
    shutil.copy(other.certificate_path(begun), run / layout.CERTIFICATES)
    bundle.export(run, tmp_path / "few.tar", types=["UNLEARN_EXEC"])
    for target in (run, tmp_path / "few.tar"):
        report = verify_run(target)
        assert report.failure is not None
        assert "is of run 'other-run', the log of 'test-run'" in report.failure.detail


def test_a_bundle_of_chosen_events_says_that_its_model_is_revoked(tmp_path):
    run = CohortRun(tmp_path)
    run.begin()
    run.finish()
    run.withdraw([Ask("bank", ["bank-1"])], {COHORT: 3})
    run.service.sign_head()
    bundle.export(run.dir, tmp_path / "few.tar", types=["UNLEARN_REQUEST"])
    report = verify_run(tmp_path / "few.tar")
    assert report.ok, report.failure
    assert any("the newest here, is revoked" in line for line in report.not_checked)
