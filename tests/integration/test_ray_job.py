"""The same verb under `ray job submit`, on a cluster of its own that the test starts and ends."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ray_head import RAY, ray_head

from ledger.verify import verify_run

ROOT = Path(__file__).parents[2]


SHORT = ["federation.rounds=1", "federation.local_steps=2", "model.made.warmup_steps=2", "federation.baselines=[]"]


@pytest.mark.long
def test_the_quickstart_runs_as_a_ray_job(command: Any, tmp_path: Path) -> None:
    environment = command.environment(shared=False)
    with ray_head(environment, 5, dashboard=True) as head:
        code = tmp_path / "code"  # what a user's checkout holds; the job gets a copy of it
        for name in ("trustchain_ray", "ledger", "envs", "configs"):
            shutil.copytree(ROOT / name, code / name, ignore=shutil.ignore_patterns("__pycache__", "node_modules"))
        run = tmp_path / "run"
        job = subprocess.run(
            [*RAY, "job", "submit", f"--address={head.dashboard}", f"--working-dir={code}", "--",
             sys.executable, "-m", "trustchain_ray", "train", "-c", "configs/quickstart.yaml", "--run", str(run),
             "--json", *SHORT],
            env={**environment, "RAY_AUTH_MODE": "disabled"}, capture_output=True, text=True, timeout=250,
        )  # fmt: skip
        assert job.returncode == 0, job.stdout[-3000:] + job.stderr[-3000:]
        assert '"model_digest"' in job.stdout
        assert verify_run(run).ok
