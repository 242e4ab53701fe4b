"""The main job: a federation by one command, its result, its log and its model."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests_support import adapters_of, model_scores

from ledger.verify import verify_run


def test_the_result_holds_what_scripts_need(finished: dict[str, Any]) -> None:
    assert {"run", "model_digest", "rounds", "scores", "log", "anchor"} <= set(finished)
    assert set(finished["scores"]) == {"federated", "isolated", "centralised"}
    assert finished["rounds"] == 3
    assert finished["log"]["size"] == finished["anchor"]["size"]
    assert len(finished["log"]["root"]) == 64


def test_training_changes_the_adapter_every_round(finished: dict[str, Any]) -> None:
    adapters = adapters_of(finished["run"])
    assert len(adapters) == 3
    assert len(set(adapters)) == 3


def test_same_key_same_digests_in_every_round_whatever_the_mode(
    command: Any, config: str, finished: dict[str, Any], tmp_path: Path
) -> None:
    pooled = command.train("-c", config, "--run", str(tmp_path / "run"), "resources.mode=pooled", "resources.workers=2")
    assert pooled["model_digest"] == finished["model_digest"]
    assert adapters_of(pooled["run"]) == adapters_of(finished["run"])


@pytest.mark.long
def test_another_key_another_model(command: Any, config: str, finished: dict[str, Any], tmp_path: Path) -> None:
    other = command.train("-c", config, "--run", str(tmp_path / "run"), "resources.mode=pooled", "run.key=other")
    assert other["model_digest"] != finished["model_digest"]


def test_verify_accepts_a_copy_of_the_run(command: Any, finished: dict[str, Any], tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished["run"], copy)
    out, _ = command.run("verify", str(copy), "--json")
    report = json.loads(out.splitlines()[-1])
    assert report["ok"]
    unchecked = {check["name"] for check in report["checks"] if check["status"] != "ok"}
    assert unchecked == {"keys", "private chain"}  # nobody named keys, and the run has no private chain


@pytest.mark.parametrize(
    "name",
    [
        "manifest.json",
        "config.yaml",
        "identities/alpha.json",
        "rounds/0002/all.safetensors",
        "rounds/0002/round.json",
        "model/adapter_model.safetensors",
        "model/adapter_config.json",
        "ledger/log.sqlite",
        "ledger/anchors.json",
        "ledger/chain/blocks.log",
        "ledger/seal.json",
    ],
)
def test_verify_names_the_file_in_which_one_byte_changed(finished: dict[str, Any], tmp_path: Path, name: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished["run"], copy)
    draws = np.random.default_rng(len(name))
    data = bytearray((copy / name).read_bytes())
    for position in draws.integers(0, len(data), 3):
        changed = bytearray(data)
        changed[position] ^= 1 << int(draws.integers(8))
        (copy / name).write_bytes(changed)
        report = verify_run(copy)
        assert not report.ok
        assert name in report.failure.detail


def test_private_keys_stay_out_of_the_run(command: Any, finished: dict[str, Any]) -> None:
    keys = {path.read_bytes() for path in (command.home / "keys").glob("*.pem")}
    assert len(keys) >= 3
    for path in Path(finished["run"]).rglob("*"):
        if path.is_file():
            assert b"PRIVATE KEY" not in path.read_bytes(), path


def test_peft_loads_the_model_and_gives_the_runs_own_scores(config: str, finished: dict[str, Any]) -> None:
    scores = model_scores(config, finished["run"])
    assert scores == pytest.approx(finished["scores"]["federated"]["by_organization"]["alpha"], abs=1e-5)


def test_resume_of_a_complete_run_says_so_and_changes_nothing(command: Any, finished: dict[str, Any]) -> None:
    again = command.train("--resume", finished["run"])
    assert again["model_digest"] == finished["model_digest"]
    assert verify_run(finished["run"]).ok
