"""Removal, end to end by the command line: equal to runs that never had the records, certified, resumed when killed."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ledger.verify import verify_run
from trustchain_ray.config_files import load_config
from trustchain_ray.data import load_holdings, organization_names

pytestmark = pytest.mark.slow

ORGANIZATIONS = ("alpha", "beta", "gamma")
COMPLAINTS = {"cardiology": "a racing pulse", "neurology": "a numb hand", "urology": "flank pain"}
REFUSING = """
import sys
from trustchain_ray import checks, cli, federation

def refuse(update, organization, *others):
    if organization == "alpha":
        raise checks.Refused("as if it were forged")
    return accept(update, organization, *others)

accept, federation.check_update = federation.check_update, refuse
sys.exit(cli.main(sys.argv[1:]))
"""
SHARED = "Patient 7 of nowhere has a rash. Department:"


@pytest.fixture(scope="module")
def forgetful(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of a configuration: three organizations, two shards each; one text lies at two of them."""
    folder = tmp_path_factory.mktemp("forgetful")
    rows = []
    for organization in ORGANIZATIONS:
        for i in range(30):
            department, complaint = list(COMPLAINTS.items())[i % 3]
            row = {
                "id": f"{organization}-{i}",
                "subject": f"person-{i % 10}-{organization}" if i else "traveller",
                "organization": organization,
                "prompt": f"Patient {i} of {organization} has {complaint}. Department:",
                "answer": f" {department}",
            }
            rows.append({**row, "prompt": SHARED} if i == 7 and organization != "gamma" else row)
    for row in rows:
        if row["prompt"] == SHARED:
            row["answer"] = " dermatology"
    for name, chosen in (("train", rows), ("test", rows[::5]), ("public", rows[:9])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chosen))
    path = folder / "forgetful.yaml"
    path.write_text(
        """
run: {name: forgetful, key: forgetful}
model:
  max_length: 48
  made: {hidden: 32, layers: 1, heads: 2, intermediate: 64, vocabulary: 320, warmup_steps: 2, warmup_batch: 8}
  lora: {rank: 4, alpha: 8, targets: [q_proj, v_proj]}
data: {train: train.jsonl, test: test.jsonl, public: public.jsonl, columns: {subject: subject}}
training: {engine: torch, batch_size: 8, sampling_rate: 0.15, lr: 1.0e-2}
federation: {rounds: 3, local_steps: 3, cohorts: by_shard, shards_per_organization: 2, weights: equal,
             participation: random, keep_updates: all}
participation: {settle_every: 3}
resources: {mode: pooled, workers: 1}
"""
    )
    return str(path)


@pytest.fixture(scope="module")
def run(command: Any, forgetful: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A finished run from which the tests of this module remove, one after the other."""
    result: dict[str, Any] = command.train("-c", forgetful, "--run", str(tmp_path_factory.mktemp("runs") / "run"))
    return result


def unlearn(command: Any, run: str, *arguments: str) -> dict[str, Any]:
    out, _ = command.run("unlearn", run, *arguments, "--json")
    result: dict[str, Any] = json.loads(out.splitlines()[-1])
    return result


def fresh(command: Any, config: str, where: Path, schedule: str, *exclude: str) -> str:
    """Digest of the model of a run that never had the excluded records."""
    result = command.train(
        "-c", config, "--run", str(where), f"data.exclude=[{','.join(exclude)}]", "federation.participation=file",
        f"participation.schedule={schedule}", "participation.settle_every=0",
    )  # fmt: skip
    return str(result["model_digest"])


def updates_of(run: str) -> list[dict[str, Any]]:
    """Bodies of the UPDATE events of the newest removal."""
    from trustchain_ray.forgetting.history import History
    from trustchain_ray.forgetting.job import jobs_of
    from trustchain_ray.run_directory import RunDirectory

    events = History.read(Path(run), json.loads((Path(run) / "manifest.json").read_text())).events
    removal = jobs_of(RunDirectory(Path(run)))[-1].removal
    return [event.body for event in events if event.type == "UPDATE" and event.replay == removal]


def schedule_of(config: str, run: str, path: Path) -> str:
    """The efforts of a run, as a file for another one."""
    from trustchain_ray.participation import SCHEDULE, recorded_schedule

    names = organization_names(load_config([config], []))
    rows = [{name: row[name] for name in names} for row in recorded_schedule(Path(run))]
    path.write_text(json.dumps({"format": SCHEDULE, "rounds": rows}))
    return str(path)


def test_what_is_asked_for_wrongly_is_refused_and_nothing_is_changed(command: Any, run: dict[str, Any]) -> None:
    before = (Path(run["run"]) / "ledger" / "seal.json").read_bytes()
    for arguments, message in (
        (("--subject", "nobody"), "subject 'nobody' is not held by any organization"),
        (("--record", "alpha-3", "--organization", "beta"), "record 'alpha-3' is not held by organization 'beta'"),
        (("--organization", "delta"), "organization 'delta' is not in the run"),
        ((), "name what is to be removed"),
        (("--requests", "/nowhere"), "cannot be read"),
    ):
        _, err = command.run("unlearn", run["run"], *arguments, code=2)
        assert message in err
        assert "Traceback" not in err
    assert (Path(run["run"]) / "ledger" / "seal.json").read_bytes() == before


def test_a_removed_person_is_as_if_never_there(
    command: Any, alone: Any, forgetful: str, run: dict[str, Any], tmp_path: Path
) -> None:
    schedule = schedule_of(forgetful, run["run"], tmp_path / "schedule.json")
    out, _ = command.run("unlearn", run["run"], "--list", "--json")
    listed = json.loads(out.splitlines()[-1])
    assert listed["subjects"]["traveller"]["organizations"] == list(ORGANIZATIONS)
    assert sum(row["records"] for row in listed["organizations"].values()) == 90 + 18
    out, _ = command.run("unlearn", run["run"], "--subject", "traveller", "--dry-run", "--json")
    plan = json.loads(out.splitlines()[-1])
    out, err = alone.run("unlearn", run["run"], "--subject", "traveller", "--json")  # without a cluster
    said = [line.split(":")[0].split("  ")[0] for line in err.splitlines()]
    assert said == ["withdrawn", "replayed round 3/3", "federated", "certified"]
    result = json.loads(out.splitlines()[-1])
    assert result["guarantee"] == "EXACT_BITWISE"
    assert {row["organization"] for row in result["asked"]} == set(ORGANIZATIONS)
    assert (result["steps_replayed"], result["steps_total"]) == (plan["steps_replayed"], plan["steps_total"])
    assert result["old_model_digest"] == run["model_digest"] != result["new_model_digest"]
    assert fresh(command, forgetful, tmp_path / "fresh", schedule, "traveller") == result["new_model_digest"]
    report = verify_run(run["run"])
    assert report.ok, report.failure
    _, err = command.run("unlearn", run["run"], "--subject", "traveller", code=2)
    assert "is not held by any organization" in err
    certificate = Path(result["certificate"])
    command.run("verify", str(certificate))
    data = bytearray(certificate.read_bytes())
    data[len(data) // 3] ^= 1
    (tmp_path / "changed.json").write_bytes(data)
    command.run("verify", str(tmp_path / "changed.json"), code=1)


def test_a_text_that_two_organizations_hold_goes_at_both(command: Any, run: dict[str, Any], tmp_path: Path) -> None:
    requests = tmp_path / "requests.jsonl"
    requests.write_text('{"record": "alpha-7", "organization": "alpha"}\n{"record": "gamma-4"}\n')
    result = unlearn(command, run["run"], "--requests", str(requests))
    held = json.loads(command.run("unlearn", run["run"], "--list", "--json")[0].splitlines()[-1])["organizations"]
    # gamma-4 is no test record; the shared text is a training record of alpha and of beta
    assert {name: row["records"] for name, row in held.items()} == {"alpha": 33, "beta": 33, "gamma": 33}
    _, err = command.run("unlearn", run["run"], "--record", "alpha-7", code=2)
    assert "was removed from this run before" in err
    statement = json.loads(Path(result["certificate"]).read_text())
    assert "alpha-7" not in json.dumps(statement)
    assert verify_run(run["run"]).ok


def test_an_organization_leaves_and_a_killed_removal_is_gone_on_with(
    command: Any, alone: Any, forgetful: str, run: dict[str, Any], tmp_path: Path
) -> None:
    schedule = schedule_of(forgetful, run["run"], tmp_path / "schedule.json")
    out, _ = alone.run("unlearn", run["run"], "--organization", "beta", "--dry-run", "--json")
    plan = json.loads(out.splitlines()[-1])
    process = command.start("unlearn", run["run"], "--organization", "beta")
    for line in process.stderr:
        if line.startswith("replayed round 2/"):
            break
    process.send_signal(signal.SIGKILL)
    process.communicate()
    _, err = command.run("train", "--resume", run["run"], code=1)
    assert "removal 3 is not finished" in err
    said = subprocess.run(
        [sys.executable, "-c", REFUSING, "unlearn", run["run"]],
        env=command.environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert said.returncode == 1
    assert "cannot be replayed without an accepted update of alpha" in said.stderr
    assert "stays withdrawn" in said.stderr
    result = unlearn(alone, run["run"])
    assert result["organizations_leaving"] == ["beta"]
    # who stays keeps what it sent in the first round of each cohort, where beta's updates were the only ones to go
    trained = [event["steps"] for event in updates_of(run["run"]) if not event.get("kept")]
    assert result["steps_replayed"] == plan["steps_replayed"] == sum(trained)
    gone = ["beta/*", "traveller", "alpha-7", "gamma-4"]
    config = load_config([forgetful], [f"data.exclude=[{','.join(gone)}]"])
    assert organization_names(config) == ["alpha", "gamma"]
    assert len(load_holdings(config, "alpha").train) == 28
    rows = json.loads(Path(schedule).read_text())
    rows["rounds"] = [{n: e for n, e in row.items() if n != "beta"} for row in rows["rounds"]]
    Path(schedule).write_text(json.dumps(rows))
    assert fresh(command, forgetful, tmp_path / "fresh", schedule, *gone) == result["new_model_digest"]
    report = verify_run(run["run"])
    assert report.ok, report.failure


@pytest.mark.long
def test_a_request_while_the_run_trains_is_carried_out_between_two_rounds(
    command: Any, forgetful: str, tmp_path: Path
) -> None:
    run, rounds = str(tmp_path / "run"), "federation.rounds=40"
    quick = ("federation.evaluate_every=40", "federation.participation=always", "participation.settle_every=0", rounds)
    training = command.start("train", "-c", forgetful, "--run", run, *quick)
    for line in training.stderr:
        if line.startswith("round 2/"):
            break
    _, err = command.run("unlearn", run, "--subject", "nobody", code=2)
    assert "is not held by any organization" in err
    result = unlearn(command, run, "--subject", "traveller")
    _, err = training.communicate(timeout=250)
    assert training.returncode == 0, err
    assert result["guarantee"] == "EXACT_BITWISE"
    assert not list((Path(run) / "removals" / "inbox").iterdir())
    report = verify_run(run)
    assert report.ok, report.failure
    digest = json.loads((Path(run) / "result.json").read_text())["model_digest"]
    never = command.train(
        "-c", forgetful, "--run", str(tmp_path / "never"), "data.exclude=[traveller]", *quick
    )["model_digest"]  # fmt: skip
    assert digest == never
