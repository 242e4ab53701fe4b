"""Killed by SIGKILL in the middle of a round, the run ends with the model of the undisturbed run."""

import contextlib
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests_support import adapters_of

from ledger.log import SqliteLog
from ledger.verify import verify_run

SMALL = ["resources.max_restarts=3", "federation.local_steps=4"]


def _kill_child(driver: int, name: str) -> int:
    """SIGKILL one process of this run whose Ray title starts with `name`; its pid."""
    for _ in range(100):
        for child in psutil.Process(driver).children(recursive=True):
            try:
                title = " ".join(child.cmdline())
            except psutil.Error:
                continue
            if title.startswith(name):
                child.send_signal(signal.SIGKILL)
                return child.pid
        time.sleep(0.05)
    raise AssertionError(f"no process {name} to kill")


@pytest.mark.slow
def test_killed_actors_change_nothing(alone: Any, config: str, finished: dict[str, Any], tmp_path: Path) -> None:
    """A worker and the ledger actor die in round 2, an organization in round 3."""
    process = alone.start("train", "-c", config, "--run", str(tmp_path / "run"), *SMALL)
    lines = []
    for line in process.stderr:
        lines.append(line)
        if line.startswith("round 1/"):
            _kill_child(process.pid, "ray::Worker")
            _kill_child(process.pid, "ray::Ledger")
        if line.startswith("round 2/"):
            _kill_child(process.pid, "ray::Organization")
    process.communicate(timeout=200)
    assert process.returncode == 0, "".join(lines)
    assert adapters_of(str(tmp_path / "run")) == adapters_of(finished["run"])
    assert verify_run(tmp_path / "run").ok


@pytest.mark.slow
@pytest.mark.parametrize(
    "after",
    [
        pytest.param("making the base", marks=pytest.mark.long),
        "round 2/",
        pytest.param("federated:", marks=pytest.mark.long),
    ],
)
def test_a_killed_driver_is_resumed(
    alone: Any, command: Any, config: str, finished: dict[str, Any], tmp_path: Path, after: str
) -> None:
    run, here = str(tmp_path / "run"), command if after == "round 2/" else alone  # a cluster that outlives the driver
    process = here.start("train", "-c", config, "--run", run, *SMALL)
    children: list[psutil.Process] = []
    for line in process.stderr:
        if line.startswith(after):
            children = psutil.Process(process.pid).children(recursive=True)
            process.kill()
            break
    process.communicate(timeout=100)
    assert process.returncode == -signal.SIGKILL, "the run ended before it could be killed"
    report = verify_run(run)
    assert report.ok or after == "making the base", report.failure
    result = here.train("--resume", run)
    for child in children:  # Ray's agents outlive their driver for a while
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    assert result["model_digest"] == finished["model_digest"]
    assert adapters_of(run) == adapters_of(finished["run"])
    assert verify_run(run).ok


@pytest.mark.long
@pytest.mark.parametrize("ever", [True, False])
def test_an_organization_that_hangs_is_left_out_and_comes_back(
    alone: Any, config: str, tmp_path: Path, ever: bool
) -> None:
    run = tmp_path / "run"
    settings = [f"federation.deadline_s={20 if ever else 8}", "federation.rounds=6", "federation.quorum=0.5"]
    process = alone.start("train", "-c", config, "--run", str(run), *settings)
    lines, paused = [], None
    for line in process.stderr:
        lines.append(line)
        if line.startswith("round 1/"):
            paused = _pause(process.pid, "ray::Worker")
        if ever and line.startswith("round 3/"):
            paused.resume()
    assert process.wait(timeout=100) == 0, "".join(lines)
    with contextlib.suppress(psutil.NoSuchProcess):
        paused.kill()
    present = {int(line[6]): line.split("  ")[2] for line in lines if line.startswith("round ")}
    assert present[1] == "2 organizations"
    assert "1 organizations" in (present[2], present[3])
    assert present[6] == f"{2 if ever else 1} organizations"
    assert ever or any("left out of the scores: " in line and "federation.deadline_s=8" in line for line in lines)
    assert verify_run(run).ok
    log = SqliteLog(run / "ledger" / "log.sqlite", read_only=True)
    assert sum(1 for _ in log.events("ABSENT")) >= 1
    log.close()


def _pause(driver: int, name: str) -> psutil.Process:
    """Stop one process of this run without ending it."""
    for child in psutil.Process(driver).children(recursive=True):
        if " ".join(child.cmdline()).startswith(name):
            child.suspend()
            return child
    raise AssertionError(f"no process {name} to pause")
