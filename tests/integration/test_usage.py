"""Wrong usage and bad input: one clear message, the right exit code, nothing lost."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from trustchain_ray.run_directory import RunDirectory


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["train"], 2, "name a configuration"),
        (["train", "-c", "missing.yaml"], 2, "missing.yaml"),
        (["train", "-c", "CONFIG", "model.lora.rnk=4"], 2, "model.lora.rank"),
        (["train", "-c", "CONFIG", "model.lora.rank=many"], 2, "model.lora.rank"),
        (["train", "-c", "CONFIG", "federation.quorum=2"], 2, "federation.quorum"),
        (["train", "-c", "CONFIG", "training.engine=deepspeed", "resources.mode=pooled"], 2, "pooled"),
        (["train", "--resume", "nowhere"], 2, "nowhere"),
        (["train", "--resume", "nowhere", "-c", "CONFIG"], 2, "--resume"),
        (["verify", "nowhere"], 2, "nowhere"),
        (["fly"], 2, "invalid choice"),
        (["train", "--no-such-flag"], 2, "unrecognized"),
        (["train", "-c", "CONFIG", "data.train=absent.jsonl"], 1, "absent.jsonl"),
        pytest.param(
            ["train", "-c", "CONFIG", "model.base=/no/such/folder", "resources.mode=pooled"], 1, "/no/such/folder",
            marks=pytest.mark.long,
        ),
        pytest.param(
            ["train", "-c", "CONFIG", "model.lora.targets=[wings]", "resources.mode=pooled"], 1, "wings",
            marks=pytest.mark.long,
        ),
    ],
)
def test_one_clear_message(
    command: Any, config: str, tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    filled = [config if argument == "CONFIG" else argument for argument in arguments]
    if "train" in filled and "--resume" not in filled:
        filled += ["--run", str(tmp_path / "run")]
    _, err = command.run(*filled, code=code)
    assert message in err
    assert "Traceback" not in err


def test_dry_run_prints_the_configuration_and_starts_nothing(command: Any, config: str, tmp_path: Path) -> None:
    out, _ = command.run("train", "-c", config, "--dry-run", "model.lora.rank=3", "--run", str(tmp_path / "run"))
    assert "rank: 3" in out
    assert not (tmp_path / "run").exists()


def test_a_label_outside_the_set_names_file_and_line(command: Any, tmp_path: Path) -> None:
    rows = [
        {"id": i, "organization": "alpha", "text": "good", "label": "up" if i != 3 else "sideways"} for i in range(6)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, err = command.run(
        "train", "--run", str(tmp_path / "run"), "-c", _write(tmp_path, "rows.jsonl"), "model.task=classification",
        "model.labels=[up, down]", "resources.mode=pooled", code=1,
    )  # fmt: skip
    assert "rows.jsonl:4" in err
    assert "sideways" in err


@pytest.mark.long
def test_an_organization_without_records_is_named(command: Any, config: str, tmp_path: Path) -> None:
    _, err = command.run(
        "train", "-c", config, "--run", str(tmp_path / "run"), "data.split=dirichlet", "data.split_into=60",
        "data.dirichlet_alpha=0.01", "resources.mode=pooled", code=1,
    )  # fmt: skip
    assert "has no training records" in err


def test_a_run_directory_in_use_is_refused(command: Any, config: str, tmp_path: Path) -> None:
    held = RunDirectory.create(tmp_path / "run")
    held.write("config.yaml", Path(config).read_bytes())
    try:
        _, err = command.run("train", "--resume", str(held.path), code=1)
        assert f"in use by process {os.getpid()}" in err
        _, err = command.run("train", "-c", config, "--run", str(held.path), code=2)
        assert "exists already" in err
    finally:
        held.unlock()


def _write(folder: Path, train: str) -> str:
    path = folder / "config.yaml"
    path.write_text(f"data: {{train: {train}, public: {train}}}\nmodel: {{made: {{vocabulary: 300}}}}\n")
    return str(path)
