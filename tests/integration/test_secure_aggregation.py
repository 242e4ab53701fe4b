"""Secure aggregation in whole runs: the same bits as without it, whatever happens in the middle of the protocol."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from tests_support import adapters_of, drill, events_of

from ledger.verify import verify_run

pytestmark = pytest.mark.slow

ORGANIZATIONS = ("alpha", "beta", "delta", "gamma")
SECURE = "trust.secure_aggregation=true"


@pytest.fixture(scope="module")
def plain(command: Any, four: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    result: dict[str, Any] = command.train("-c", four, "--run", str(tmp_path_factory.mktemp("runs") / "plain"))
    return result


@pytest.fixture(scope="module")
def secure(command: Any, four: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A finished run, from which the last test removes."""
    folder = str(tmp_path_factory.mktemp("runs") / "secure")
    result: dict[str, Any] = command.train("-c", four, "--run", folder, SECURE)
    return result


def test_the_bits_are_those_of_the_run_without_it(plain: dict[str, Any], secure: dict[str, Any]) -> None:
    assert secure["model_digest"] == plain["model_digest"]
    assert adapters_of(secure["run"]) == adapters_of(plain["run"])
    assert verify_run(secure["run"]).ok


def test_the_log_tells_of_sums_and_of_no_update(plain: dict[str, Any], secure: dict[str, Any]) -> None:
    merges = events_of(secure["run"], "MERGE")
    assert len(merges) == 6
    assert len({merge.body["transcript"] for merge in merges}) == 6
    for merge in merges:
        assert [entry["organization"] for entry in merge.body["inputs"]] == list(ORGANIZATIONS)
        assert (merge.body["threshold"], merge.body["attempt"]) == (3, 0)
    stated = [{e.body["update"] for e in events_of(one["run"], "UPDATE")} for one in (plain, secure)]
    assert len(stated[0]) == len(stated[1]) == 24
    assert not stated[0] & stated[1]  # keyed digests: nobody can try records out on them
    assert not list(Path(secure["run"]).rglob("updates"))
    rows = [json.loads(line) for line in (Path(secure["run"]) / "metrics.jsonl").read_text().splitlines()]
    rounds = [row for row in rows if "seconds" in row]
    assert all(row["secure_aggregation_seconds"] > 0 and row["secure_aggregation_attempts"] == 2 for row in rounds)
    values = 8 * 4 * 2 * 4 * (32 + 32) // 8
    assert all(row["bytes"] > values for row in rounds)


@pytest.mark.long
def test_organizations_with_actors_of_their_own_give_the_same_bits(
    command: Any, four: str, plain: dict[str, Any], tmp_path: Path
) -> None:
    result = command.train("-c", four, "--run", str(tmp_path / "run"), SECURE, "resources.mode=dedicated")
    assert result["model_digest"] == plain["model_digest"]
    assert verify_run(result["run"]).ok


def test_what_shows_single_updates_is_refused_by_the_command_line(command: Any, four: str, tmp_path: Path) -> None:
    _, err = command.run("train", "-c", four, "--run", str(tmp_path / "run"), SECURE, "data.exclude=[alpha/*,beta/*]",
                         code=2)  # fmt: skip
    assert "the federation has 2 organizations, a secure sum needs 3" in err
    assert not (tmp_path / "run").exists()


@pytest.mark.long
def test_a_coordinator_killed_in_the_middle_goes_on_to_the_same_model(
    command: Any, four: str, plain: dict[str, Any], tmp_path: Path
) -> None:
    run = str(tmp_path / "run")
    done = drill("secure_drill.py", command, "killed", four, run)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(adapters_of(run)) == 1
    result = command.train("--resume", run)
    assert result["model_digest"] == plain["model_digest"]
    assert verify_run(run).ok


def test_a_cheat_is_named_the_dead_are_absent_and_the_sums_go_on(command: Any, four: str, tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    one = ("federation.cohorts=one", "federation.shards_per_organization=1", "resources.workers=4")
    done = drill("secure_drill.py", command, "cheated", four, run, *one)
    assert done.returncode == 0, done.stderr
    merged = {m.round: [entry["organization"] for entry in m.body["inputs"]] for m in events_of(run, "MERGE")}
    assert merged == {1: ["alpha", "beta", "gamma"], 2: ["alpha", "beta", "delta"], 3: list(ORGANIZATIONS)}
    [refused] = events_of(run, "REFUSED")
    assert (refused.body["organization"], refused.round) == ("delta", 1)
    assert "delta sent a masked input of" in refused.body["reason"]
    [absent] = events_of(run, "ABSENT")
    assert (absent.body["organization"], absent.round) == ("gamma", 2)
    report = verify_run(run)
    assert report.ok, report.failure


def test_a_removal_sums_again_without_what_is_gone(
    command: Any, four: str, secure: dict[str, Any], tmp_path: Path
) -> None:
    """The last tests of this module: they change the run, in which a member has rotated its key since."""
    run = secure["run"]
    command.run("keys", "rotate", "delta")
    result = json.loads(command.run("unlearn", run, "--record", "beta-3", "--json")[0].splitlines()[-1])
    assert result["guarantee"] == "EXACT_BITWISE"
    fresh = command.train("-c", four, "--run", str(tmp_path / "fresh"), "data.exclude=[beta-3]")
    assert result["new_model_digest"] == fresh["model_digest"] != secure["model_digest"]
    out, _ = command.run("verify", run, "--reexecute", "all", "--json")
    said = json.loads(out.splitlines()[-1])
    assert said["reexecution"]["same"]
    assert said["reexecution"]["merges"] > 0


def test_an_organization_leaves_and_two_are_too_few(
    command: Any, four: str, secure: dict[str, Any], tmp_path: Path
) -> None:
    """After the removal above."""
    run = secure["run"]
    left = json.loads(command.run("unlearn", run, "--organization", "gamma", "--json")[0].splitlines()[-1])
    assert left["guarantee"] == "EXACT_BITWISE"
    gone = command.train("-c", four, "--run", str(tmp_path / "gone"), "data.exclude=[beta-3,gamma/*]")
    assert left["new_model_digest"] == gone["model_digest"]
    _, err = command.run("unlearn", run, "--organization", "delta", code=2)
    assert "would be trained by alpha, beta alone: a secure sum needs 3 members. Use --method drop" in err
    _, err = command.run("unlearn", run, "--record", "beta-4", "--method", "ascent", code=2)
    assert "--method ascent merges the single update" in err
    report = verify_run(run)
    assert report.ok, report.failure
    assert [event.organization for event in events_of(run, "KEY_ROTATION")] == ["delta"]
