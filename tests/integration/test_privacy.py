"""Private steps and secure sums in one run: killed, resumed, removed from, and at the end of its budget."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from tests_support import adapters_of, drill, events_of

from ledger.verify import verify_run

pytestmark = pytest.mark.slow

PRIVATE = ("privacy.dp=record", "privacy.epsilon=8")
BUDGET = 8.0


def test_a_private_secure_run_is_killed_resumed_and_removed_from(command: Any, four: str, tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    done = drill("secure_drill.py", command, "killed", four, run, *PRIVATE)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(adapters_of(run)) == 1
    trained = command.train("--resume", run)
    assert verify_run(run).ok
    spent = _spent(run)
    assert {name: len(row) for name, row in spent.items()} == dict.fromkeys(("alpha", "beta", "delta", "gamma"), 3)
    for row in spent.values():  # the killed round was charged once: two equal rounds follow
        assert 0 < row[0] < row[1] < row[2] < BUDGET
    removed = json.loads(command.run("unlearn", run, "--record", "beta-3", "--json")[0].splitlines()[-1])
    assert removed["guarantee"] == "EXACT_DISTRIBUTION"
    assert removed["new_model_digest"] != trained["model_digest"]
    after = _spent(run)["beta"]
    assert len(after) > 3  # whoever stayed pays for the replay
    assert spent["beta"][-1] < after[-1] <= BUDGET
    before = adapters_of(run)
    _, err = command.run("unlearn", run, "--organization", "gamma", code=2)
    assert "the privacy budget of alpha does not pay for a replay of shard_0 (privacy.max_removals=1)" in err
    assert adapters_of(run) == before  # refused before anything is changed
    report = verify_run(run)
    assert report.ok, report.failure

    [account] = (command.home / "custody").glob(f"{trained['id']}/alpha.privacy.json")
    account.unlink()
    _, err = command.run("unlearn", run, "--record", "beta-4", "--method", "drop", code=1)
    assert "organization 'alpha': its privacy account says epsilon 0.000000, and it has signed" in err


@pytest.mark.long
def test_whole_organizations_are_noised_once_a_round_and_removed_from(command: Any, four: str, tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    command.train("-c", four, "--run", run, "privacy.dp=organization", "privacy.epsilon=40")
    updates = events_of(run, "UPDATE")
    assert {event.body["steps"] for event in updates} == {2}, "all local steps, not one"
    assert all(row[-1] < 40 for row in _spent(run).values())
    removed = json.loads(command.run("unlearn", run, "--record", "beta-3", "--json")[0].splitlines()[-1])
    assert removed["guarantee"] == "EXACT_DISTRIBUTION"
    assert all(row[-1] <= 40 for row in _spent(run).values())
    replayed = events_of(run, "UPDATE")[len(updates) :]
    assert replayed
    assert all(event.body["trace"] == [] for event in replayed), "steps before the noise are nobody's business"
    rows = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
    assert all(row["records"] == 0 for row in rows if "records" in row)


def _spent(run: str) -> dict[str, list[float]]:
    """Epsilon by organization, in the order of the log."""
    found: dict[str, list[float]] = {}
    for event in events_of(run, "PRIVACY_SPEND"):
        found.setdefault(event.organization, []).append(float(event.body["epsilon"]))
    return found
