"""The same verb under `ray job submit`, on a cluster of its own that the test starts and ends."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from ledger.verify import verify_run

ROOT = Path(__file__).parents[2]


SHORT = ["federation.rounds=1", "federation.local_steps=2", "model.made.warmup_steps=2", "federation.baselines=[]"]


def _free_ports(count: int) -> list[int]:
    """Ports outside the range that Ray gives its workers."""
    found, port = [], 20000 + os.getpid() % 5000
    while len(found) < count:
        port += 1
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                found.append(port)
    return found


@pytest.mark.slow
def test_the_quickstart_runs_as_a_ray_job(command: Any, tmp_path: Path) -> None:
    gcs, dashboard, client = _free_ports(3)
    ray = [sys.executable, "-m", "ray.scripts.scripts"]
    environment = {**command.environment(), "RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": "/tmp"}
    head = subprocess.Popen(
        [*ray, "start", "--head", "--block", "--num-cpus=5", f"--port={gcs}", "--node-ip-address=127.0.0.1",
         "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}",
         "--disable-usage-stats"],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        _wait_for(dashboard)
        code = tmp_path / "code"  # what a user's checkout holds; the job gets a copy of it
        for name in ("trustchain_ray", "ledger", "envs", "configs"):
            shutil.copytree(ROOT / name, code / name, ignore=shutil.ignore_patterns("__pycache__"))
        run = tmp_path / "run"
        job = subprocess.run(
            [*ray, "job", "submit", f"--address=http://127.0.0.1:{dashboard}", f"--working-dir={code}", "--",
             sys.executable, "-m", "trustchain_ray", "train", "-c", "configs/quickstart.yaml", "--run", str(run),
             "--json", *SHORT],
            env=environment, capture_output=True, text=True, timeout=250,
        )  # fmt: skip
        assert job.returncode == 0, job.stdout[-3000:] + job.stderr[-3000:]
        assert '"model_digest"' in job.stdout
        assert verify_run(run).ok
    finally:
        _end(head)


def _wait_for(port: int) -> None:
    for _ in range(600):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise AssertionError(f"nothing listens on port {port}")


def _end(head: "subprocess.Popen[bytes]") -> None:
    """End the head and only what it started."""
    started = psutil.Process(head.pid).children(recursive=True)
    head.send_signal(signal.SIGTERM)
    try:
        head.wait(timeout=30)
    except subprocess.TimeoutExpired:
        head.kill()
    for process in psutil.wait_procs(started, timeout=10)[1]:
        process.kill()
