"""`trustchain sweep`: learning and real federations under Ray Tune, killed and resumed, and points that fail."""

import argparse
import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from ledger.verify import verify_run
from trustchain_ray.errors import UsageError
from trustchain_ray.sweep.command import add_arguments, run

pytestmark = pytest.mark.long

COMMAND = """
import argparse, sys
from trustchain_ray.sweep.command import add_arguments, run

parser = argparse.ArgumentParser()
add_arguments(parser)
sys.exit(run(parser.parse_args()))
"""
GRID = "sweep.parameters={participation.payoff: [shapley, leave_one_out, equal_split], participation.reward: [0.5, 2]}"
SMALL = [GRID, "participation.terms.unit_cost=5e-3", "sweep.repeats=2", "sweep.episodes=100", "federation.rounds=2"]


def sweep(*arguments: str, code: int = 0) -> None:
    """The verb in this process, on the Ray session that the tests share."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert run(parser.parse_args(arguments)) == code


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """All rows, without what a clock says."""
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in ("seconds", "run")} for row in rows]


@pytest.fixture(scope="module")
def session() -> Iterator[None]:
    ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def undisturbed(session: None, config: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sweeps") / "undisturbed"
    sweep("-c", config, *SMALL, "--out", str(out))
    return out


def test_results_hold_every_point_repeat_and_its_equilibrium(undisturbed: Path) -> None:
    rows = rows_of(undisturbed)
    assert [(row["point"], row["repeat"]) for row in rows] == [(p, k) for p in range(6) for k in range(2)]
    for row in rows:
        assert row["equilibrium"]["count"] >= 1
        assert 0 <= row["outcomes"]["participation"] <= 1
        assert row["outcomes"]["nash_conv"] >= 0
    assert len({row["game"] for row in rows}) == 6
    assert len((undisturbed / "table.txt").read_text().splitlines()) == 7
    assert len((undisturbed / "results.csv").read_text().splitlines()) == 13
    pictures = {path.name for path in (undisturbed / "plots").iterdir()}
    assert {"participation.png", "quality.png", "welfare.png", "nash_conv.png"} <= pictures
    assert not (undisturbed / "tune").exists()


def test_killed_and_resumed_is_the_undisturbed_sweep(
    command: Any, config: str, undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, "-c", config, *SMALL, "sweep.concurrent=1", "--out", str(out)],
        env=command.environment(), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    lines, children = [], list[psutil.Process]()
    for line in process.stderr:
        lines.append(line)
        if line.startswith("2/6"):
            children = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(signal.SIGKILL)
            break
    process.wait(60)
    for child in children:
        with contextlib.suppress(psutil.Error):
            child.kill()
    assert process.returncode == -signal.SIGKILL, "".join(lines)
    kept = {path.name: path.stat().st_mtime_ns for path in (out / "done").iterdir()}
    assert 2 <= len(kept) < 6
    assert not (out / "results.jsonl").exists()
    sweep("--resume", str(out), "--json")
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["worked"] == 6 - len(kept)
    assert summary["finished"] == 6
    assert {name: (out / "done" / name).stat().st_mtime_ns for name in kept} == kept
    assert rows_of(out) == rows_of(undisturbed)
    sweep("--resume", str(out), "--json")
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["worked"] == 0


def test_real_federations_and_a_point_that_fails_loses_no_other(
    session: None, config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A trial holds two of three CPUs: its organizations' workers take those, others would never come."""
    out = tmp_path / "runs"
    sweep(
        "-c", config, "sweep.parameters={ledger.public.kind: [none, rpc]}",
        "ledger.public.rpc_url=http://127.0.0.1:9", "ledger.public.key_env=NO_SUCH_KEY",
        "sweep.task=train", "sweep.repeats=1", "federation.rounds=1", "participation.settle_every=1",
        "ledger.witnesses=false", f"run.keystore={tmp_path / 'keys'}", "--out", str(out), "--json", code=1,
    )  # fmt: skip
    captured = capsys.readouterr()
    summary = json.loads(captured.out.splitlines()[-1])
    assert summary["finished"] == 1
    assert "NO_SUCH_KEY" in summary["failed"]["1"]
    assert "error: point 1 failed" in captured.err
    rows = rows_of(out)
    assert rows[0]["outcomes"]["participation"] == 1.0
    assert rows[0]["outcomes"]["welfare"] is not None
    assert rows[1]["failed"] == summary["failed"]["1"]
    assert verify_run(next((out / "points").glob("0000-*/repeat-0"))).ok


def test_policies_are_learned_by_rllib_too(session: None, config: str, tmp_path: Path) -> None:
    learning = "participation.learning={env_steps: 600, games: 32, hidden: [16], lr: 5.0e-3, iterations: 1}"
    sweep(
        "-c", config, "sweep.parameters={participation.reward: [0.5, 2]}", *SMALL[1:], "sweep.learner=dqn",
        "sweep.repeats=1", "sweep.concurrent=1", learning, "--out", str(tmp_path / "dqn"),
    )  # fmt: skip
    rows = rows_of(tmp_path / "dqn")
    assert [row["values"] for row in rows] == [{"participation.reward": 0.5}, {"participation.reward": 2.0}]
    assert not any((tmp_path / "dqn" / "points").iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a configuration"),
        (["--resume", "nowhere"], "cannot be resumed"),
        (["--resume", "nowhere", "-c", "CONFIG"], "leave -c"),
        (["-c", "CONFIG"], "sweep.parameters is empty"),
        (["-c", "CONFIG", GRID, "sweep.axis=model.lora.rank"], "is not in sweep.parameters"),
        (["-c", "CONFIG", GRID, "sweep.task=guess"], "choose one of policy, train"),
        (["-c", "CONFIG", GRID, "participation.organizations={gamma: {}}"], "no organization gamma"),
    ],
)
def test_one_clear_message_before_anything_starts(
    config: str, tmp_path: Path, arguments: list[str], message: str
) -> None:
    filled = [config if argument == "CONFIG" else argument for argument in arguments]
    if "--resume" not in filled:
        filled += ["--out", str(tmp_path / "sweep")]
    with pytest.raises(UsageError) as caught:
        sweep(*filled)
    assert message in str(caught.value)
    assert not list(tmp_path.iterdir())
