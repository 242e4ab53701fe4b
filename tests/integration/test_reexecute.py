"""Receipt, training, removal, re-execution, attestation: end to end by the command line."""

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from trustchain_ray.cli import main
from trustchain_ray.cohorts import records_of
from trustchain_ray.config_files import load_config
from trustchain_ray.data import load_holdings
from trustchain_ray.keys import derive
from trustchain_ray.sampling import inclusion_steps

pytestmark = pytest.mark.long

ORGANIZATIONS = ("alpha", "beta", "gamma")
COMPLAINTS = {"cardiology": "a racing pulse", "neurology": "a numb hand", "urology": "flank pain"}
PERSON = "person-2-alpha"
ROUNDS, STEPS, RATE = 3, 4, 0.2


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of a configuration: three organizations, two shards each; every update is kept."""
    folder = tmp_path_factory.mktemp("small")
    rows = []
    for organization in ORGANIZATIONS:
        for i in range(20):
            department, complaint = list(COMPLAINTS.items())[i % 3]
            rows.append(
                {
                    "id": f"{organization}-{i}",
                    "subject": f"person-{i % 8}-{organization}",
                    "organization": organization,
                    "prompt": f"Patient {i} of {organization} has {complaint}. Department:",
                    "answer": f" {department}",
                }
            )
    for name, chosen in (("train", rows), ("test", rows[::5]), ("public", rows[:9])):
        write_rows(folder / f"{name}.jsonl", chosen)
    path = folder / "small.yaml"
    path.write_text(
        f"""
run: {{name: again, key: again}}
model:
  max_length: 48
  made: {{hidden: 32, layers: 1, heads: 2, intermediate: 64, vocabulary: 320, warmup_steps: 2, warmup_batch: 8}}
  lora: {{rank: 4, alpha: 8, targets: [q_proj, v_proj]}}
data: {{train: train.jsonl, test: test.jsonl, public: public.jsonl, columns: {{subject: subject}}}}
training: {{engine: torch, batch_size: 8, sampling_rate: {RATE}, lr: 1.0e-2}}
federation: {{rounds: {ROUNDS}, local_steps: {STEPS}, cohorts: by_shard, shards_per_organization: 2, weights: equal,
             keep_updates: all}}
resources: {{mode: pooled, workers: 1}}
"""
    )
    return str(path)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


class Here:
    """The command line in this process: what needs no cluster is quicker here."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def run(self, *arguments: str, code: int = 0) -> tuple[str, str]:
        assert main(list(arguments)) == code
        said = self.capsys.readouterr()
        return said.out, said.err


@pytest.fixture
def here(command: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Here:
    monkeypatch.setenv("TRUSTCHAIN_HOME", str(command.home))
    return Here(capsys)


def as_json(command: Any, *arguments: str, code: int = 0) -> dict[str, Any]:
    out, _ = command.run(*arguments, "--json", code=code)
    said: dict[str, Any] = json.loads(out.splitlines()[-1])
    return said


def check_of(report: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(check for check in report["checks"] if check["name"] == name)
    return found


def test_a_removal_is_confirmed_re_executed_and_attested(
    command: Any, here: Here, small: str, tmp_path: Path
) -> None:
    run = str(tmp_path / "run")
    command.train("-c", small, "--run", run)
    receipt = receipts_are_for_the_person_alone(here, run, tmp_path)
    training_is_done_again(command, here, run)
    removed = as_json(command, "unlearn", run, "--subject", PERSON, "--no-evaluate")
    the_person_sees_the_removal(here, run, receipt, removed["certificate"], tmp_path)
    another_organization_attests(command, here, run, removed)
    a_changed_record_is_found(command, here, run, small, removed)


def receipts_are_for_the_person_alone(here: Here, run: str, tmp_path: Path) -> str:
    receipt = tmp_path / "person.receipt"
    said = as_json(here, "receipt", run, "--organization", "alpha", "--subject", PERSON, "-o", str(receipt))
    assert said["records"] == 4  # alpha-2, alpha-10 and alpha-18 for training, alpha-10 among the test records
    assert stat.S_IMODE(receipt.stat().st_mode) == 0o600
    assert "alpha-2" in receipt.read_text()
    for arguments, message in (
        (("--subject", "nobody"), "subject 'nobody' is not held by organization 'alpha'"),
        (("--record", "beta-1"), "record 'beta-1' is not held by organization 'alpha'"),
        (("--record", "alpha-1", "-o", f"{run}/it"), "lies in the run directory"),
        (("--record", "alpha-1", "-o", str(receipt)), "exists already"),
    ):
        _, err = here.run("receipt", run, "--organization", "alpha", *arguments, code=2)
        assert message in err
    report = as_json(here, "verify", str(receipt), "--run", run)
    assert check_of(report, "log")["status"] == "ok"
    assert "records are in the run, none is removed" in check_of(report, "removal")["detail"]
    return str(receipt)


def training_is_done_again(command: Any, here: Here, run: str) -> None:
    for arguments, message in (
        (("--reexecute", "--attest", "delta"), "delta: is not in the run"),
        (("--reexecute", "merges", "--attest", "gamma"), "needs training to be done again"),
        (("--reexecute", "2"), "a share above 0"),
        (("--attest", "gamma"), "add --reexecute"),
    ):
        _, err = here.run("verify", run, *arguments, code=2)
        assert message in err
    report = as_json(command, "verify", run, "--reexecute")
    again = report["reexecution"]
    assert (again["updates"], again["merges"], again["left_out"]) == (18, 6, 0)
    assert (again["steps"], again["same"], again["first_difference"]) == (18 * STEPS, True, None)
    assert check_of(report, "re-execution")["status"] == "ok"


def the_person_sees_the_removal(here: Here, run: str, receipt: str, certificate: str, tmp_path: Path) -> None:
    for place in (("--run", run), ("--certificate", certificate)):
        report = as_json(here, "verify", receipt, *place)
        assert "records are removed" in check_of(report, "removal")["detail"]
    for arguments in (("--subject", PERSON), ("--record", "alpha-2")):
        where = str(tmp_path / "none")
        _, err = here.run("receipt", run, "--organization", "alpha", *arguments, "-o", where, code=2)
        assert "was removed from" in err


def another_organization_attests(command: Any, here: Here, run: str, removed: dict[str, Any]) -> None:
    _, err = here.run("verify", run, "--reexecute", "--attest", "alpha", code=2)
    assert "issued the certificate itself" in err
    report = as_json(command, "verify", run, "--reexecute", "--attest", "gamma")
    again = report["reexecution"]
    assert again["same"] is True
    assert again["steps"] == removed["steps_replayed"] + 2 * STEPS  # what beta and gamma kept is trained again, too
    assert list(again["attested"].values()) == ["same"]
    assert check_of(as_json(here, "verify", run, "--min-auditors", "1"), "seal")["status"] == "ok"
    report = as_json(here, "verify", removed["certificate"], "--min-auditors", "1")
    assert "counter-signed by gamma" in check_of(report, "signatures")["detail"]
    assert f"{again['steps']} steps re-executed by gamma" in check_of(report, "events")["detail"]
    report = as_json(here, "verify", run, "--reexecute", "merges")
    assert (report["reexecution"]["merges"], report["reexecution"]["same"]) == (again["merges"], True)
    (cohort,) = removed["cohorts"]
    an_update_that_was_not_kept_is_left_out(here, run, cohort, again["merges"])


def an_update_that_was_not_kept_is_left_out(here: Here, run: str, cohort: str, merges: int) -> None:
    kept = Path(run) / f"rounds/000{ROUNDS}/updates/{cohort}/beta.safetensors"
    aside = kept.rename(kept.with_suffix(".aside"))
    again = as_json(here, "verify", run, "--reexecute", "merges")["reexecution"]
    assert (again["merges"], again["left_out"]) == (merges - 1, 1)
    aside.rename(kept)


def a_changed_record_is_found(command: Any, here: Here, run: str, small: str, removed: dict[str, Any]) -> None:
    config = load_config([small], [])
    ((cohort, first),) = removed["cohorts"].items()
    name, step = first_use(config, cohort, (first - 1) * STEPS)
    path = Path(config.data.train)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    changed = [{**row, "prompt": "Something else entirely:"} if row["id"] == name else row for row in rows]
    write_rows(path, changed)
    _, err = here.run("receipt", run, "--organization", "beta", "--record", name, "-o", f"{path}.receipt", code=1)
    assert f"its records of cohort '{cohort}' are not those of the run's log" in err
    report = as_json(command, "verify", run, "--reexecute", "all", "--attest", "beta", code=1)
    found = report["reexecution"]["first_difference"]
    assert (found["organization"], found["cohort"]) == ("beta", cohort)
    assert (found["round"], found["step"]) == (step // STEPS + 1, step % STEPS + 1)
    assert found["text"] in report["failure"]["detail"]
    assert list(report["reexecution"]["attested"].values()) == [found["text"]]
    report = as_json(here, "verify", removed["certificate"], code=1)
    assert "beta re-executed it and got something else" in report["failure"]["detail"]


def first_use(config: Any, cohort: str, begin: int) -> tuple[str, int]:
    """A record of beta in a cohort that is used in the latest step possible, and the first step from `begin` on."""
    held = load_holdings(config, "beta").train
    key = derive(config.run.key, "sampling", "beta")
    used = {}
    for i in records_of(config.federation, config.run.key, "beta", cohort, held):
        steps = [s for s in inclusion_steps(key, held[i].id, RATE, ROUNDS * STEPS) if s >= begin]
        if steps:
            used[held[i].id] = min(steps)
    name = max(used, key=lambda name: used[name])
    return name, used[name]
