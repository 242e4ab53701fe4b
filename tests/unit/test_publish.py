"""The published folder is what PEFT expects."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from ledger.canonical import safetensors_digest, sha256_hex
from trustchain_ray.adapter import LORA_A, LORA_B, Tensors, digest, layers, load_tensors
from trustchain_ray.config import Config
from trustchain_ray.publish import publish
from trustchain_ray.run_directory import RunDirectory

AdapterOf = Callable[..., Tensors]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDirectory]:
    made = RunDirectory.create(tmp_path / "run")
    yield made
    made.unlock()


@pytest.fixture
def config(config_of: Callable[..., Config]) -> Config:
    config = config_of("a.jsonl", labels=("bad", "good"))
    config.model.lora.targets = ["v_proj", "q_proj"]
    return config


def test_peft_reads_the_settings(run: RunDirectory, config: Config, adapter_of: AdapterOf):
    peft = pytest.importorskip("peft")
    publish(config, run, adapter_of(0, rank=4), 2.5, "ffa")
    settings = peft.PeftConfig.from_pretrained(run.path / "model")
    assert isinstance(settings, peft.LoraConfig)
    assert (settings.r, settings.lora_alpha / settings.r) == (4, 2.5)
    assert settings.target_modules == {"q_proj", "v_proj"}
    assert (settings.task_type, settings.base_model_name_or_path) == ("SEQ_CLS", "some/model")
    config.model.task, config.model.labels, config.model.base = "causal", [], "made"
    publish(config, run, adapter_of(0, rank=4), 1.0, "svd")
    settings = peft.PeftConfig.from_pretrained(run.path / "model")
    assert (settings.task_type, settings.modules_to_save) == ("CAUSAL_LM", None)
    assert settings.base_model_name_or_path == str(run.path / "base")


def test_layers_of_different_ranks_get_one_and_change_the_weights_as_before(
    run: RunDirectory, config: Config, adapter_of: AdapterOf
):
    tensors = adapter_of(0, rank=5, head=True) | {
        name: t for name, t in adapter_of(1, rank=2).items() if name.startswith("layer1")
    }
    before = {name: t.copy() for name, t in tensors.items()}
    publish(config, run, tensors, 0.5, "flora")
    published = load_tensors(run.path / "model" / "adapter_model.safetensors")
    settings = json.loads((run.path / "model" / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"]) == (5, 2.5)
    for layer in layers(tensors):
        assert published[layer + LORA_A].shape[0] == published[layer + LORA_B].shape[1] == 5
        np.testing.assert_allclose(
            published[layer + LORA_B] @ published[layer + LORA_A],
            before[layer + LORA_B] @ before[layer + LORA_A],
            atol=1e-6,
        )
    np.testing.assert_array_equal(published["classifier.weight"], before["classifier.weight"])
    assert digest(tensors) == digest(before), "the state itself is untouched"


def test_digests_are_those_of_the_files(run: RunDirectory, config: Config, adapter_of: AdapterOf):
    tensors = adapter_of(0)
    release = publish(config, run, tensors, 1.0, "ffa")
    path = run.path / "model" / "adapter_model.safetensors"
    assert release["model_digest"] == safetensors_digest(path) == digest(tensors)
    assert set(release["files"]) == {
        "model/README.md",
        "model/adapter_config.json",
        "model/adapter_model.safetensors",
    }
    for name, value in release["files"].items():
        assert value == sha256_hex((run.path / name).read_bytes())


def test_publishing_again_replaces_the_folder(run: RunDirectory, config: Config, adapter_of: AdapterOf):
    first = publish(config, run, adapter_of(0), 1.0, "ffa")
    (run.path / "model" / "stale.txt").touch()
    (run.path / ".model.partial").mkdir()
    (run.path / ".model.partial" / "half.bin").touch()
    again = publish(config, run, adapter_of(0), 1.0, "ffa")
    assert again == first
    assert sorted(path.name for path in run.path.iterdir()) == [".lock", "model", "rounds"]


def test_the_card_names_the_labels_in_order(run: RunDirectory, config: Config, adapter_of: AdapterOf):
    publish(config, run, adapter_of(0), 1.0, "ffa")
    card = (run.path / "model" / "README.md").read_text()
    assert "bad, good" in card
    assert "`ffa`" in card


def test_the_card_says_that_the_head_reads_a_mean(run: RunDirectory, config: Config, adapter_of: AdapterOf):
    publish(config, run, adapter_of(0), 1.0, "ffa")
    assert "pool_by_mean" not in (run.path / "model" / "README.md").read_text()
    config.model.pooling = "mean"
    publish(config, run, adapter_of(0), 1.0, "ffa")
    assert "\npool_by_mean(base_model)" in (run.path / "model" / "README.md").read_text()
