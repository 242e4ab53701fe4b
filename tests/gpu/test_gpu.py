"""What needs a CUDA device: both engines on it, two organizations sharing it, memory that is given back."""

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]

from benchmarks import gpu as benchmark  # noqa: E402


@pytest.fixture(scope="module")
def shape() -> list[str]:
    return ["--hidden=256", "--layers=2", "--length=128", "--batch=4", "--steps=4"]


@pytest.mark.parametrize("case", benchmark.CASES)
def test_every_engine_trains_in_bf16(case: str, shape: list[str]) -> None:
    result = benchmark.run(case, shape)
    assert result["tokens_per_s"] > 0
    assert 0 < result["held_gb"] <= result["peak_gb"]


def test_two_workers_share_the_device(shape: list[str]) -> None:
    assert benchmark.together(shape)["tokens_per_s"] > 0


def test_two_organizations_on_one_gpu_by_one_command(command: Any, config: str, tmp_path: Path) -> None:
    result = command.train(
        "-c", config, "--run", str(tmp_path / "run"), "resources.gpus_per_worker=0.5", "training.engine=deepspeed",
        "model.dtype=bfloat16",
    )  # fmt: skip
    assert result["rounds"] == 3
    held = [memory["cuda_reserved"] for memory in result["memory"].values()]
    assert all(0 < size < 2e9 for size in held)
