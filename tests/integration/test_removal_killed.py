"""A removal that is killed before any of its durable writes is gone on with, to the same end."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("stride", [29, pytest.param(1, marks=pytest.mark.long)])
def test_killed_before_a_write_and_gone_on_with(
    command: Any, finished: dict[str, Any], tmp_path: Path, stride: int
) -> None:
    drill = [sys.executable, str(Path(__file__).with_name("removal_drill.py"))]
    run = [finished["run"], str(command.home), str(tmp_path), "beta", "0", str(stride)]
    done = subprocess.run([*drill, *run], env=command.environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["steps"] > 60
    assert len(said["digests"]) == 1
