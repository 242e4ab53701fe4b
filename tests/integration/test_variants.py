"""Adapter forms, cohorts, classification, own adapters: each by a whole run that verifies and that PEFT loads."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests_support import adapters_of, model_scores

from ledger.verify import verify_run
from trustchain_ray.adapter import load_tensors

POOLED = ["resources.mode=pooled", "federation.rounds=2", "training.threads=1"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param(["model.lora.form=fedavg"], marks=pytest.mark.long),
        pytest.param(["model.lora.form=svd", "model.lora.ranks={beta: 2}"], marks=pytest.mark.long),
        pytest.param(["model.lora.form=flora", "model.lora.ranks={beta: 6}"], marks=pytest.mark.long),
        [
            "federation.cohorts=by_shard",
            "federation.shards_per_organization=2",
            "federation.merge_scale=1.5",
            "federation.participation=random",
            "federation.weights=equal",
        ],
    ],
    ids=["fedavg", "svd", "flora", "by_shard"],
)
def test_each_variant_verifies_and_loads_by_peft(
    command: Any, config: str, finished: dict[str, Any], tmp_path: Path, overrides: list[str]
) -> None:
    run, base = str(tmp_path / "run"), f"{finished['run']}/base"
    result = command.train("-c", config, "--run", run, f"model.base={base}", *POOLED, *overrides)
    assert verify_run(run).ok
    assert len(set(adapters_of(run))) == 2
    scores = result["scores"]["federated"]["by_organization"]["beta"]
    assert model_scores(config, run, "beta", base) == pytest.approx(scores, abs=1e-5)


@pytest.fixture(scope="module")
def classification(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A sentiment configuration with two organizations, one of which uses two of three labels, and a tiny BERT."""
    torch = pytest.importorskip("torch")
    from transformers import BertConfig, BertModel

    from trustchain_ray.models import _byte_level_bpe

    folder = tmp_path_factory.mktemp("classification")
    words = {"good": "fine great lovely", "bad": "awful poor dull", "mixed": "so so plain"}
    for organization, labels in {"alpha": ["good", "bad", "mixed"], "beta": ["good", "bad"]}.items():
        rows = [
            {"text": f"a {words[labels[i % len(labels)]]} film number {i}", "label": labels[i % len(labels)], "id": i}
            for i in range(30)
        ]
        (folder / f"{organization}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = _byte_level_bpe(list(words.values()), 300)
    tokenizer.save_pretrained(folder / "bert")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(
            BertConfig(
                vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1,
                num_attention_heads=2, max_position_embeddings=32, pad_token_id=tokenizer.pad_token_id,
            )
        ).save_pretrained(folder / "bert")  # fmt: skip
    path = folder / "classification.yaml"
    path.write_text(
        """
run: {name: classification, key: classification}
model: {base: bert, task: classification, labels: [good, bad, mixed], max_length: 24}
data:
  split: sources
  organizations: {alpha: {train: alpha.jsonl}, beta: {train: beta.jsonl, labels: [good, bad]}}
training: {engine: torch, batch_size: 8, lr: 2.0e-2}
federation: {rounds: 3, local_steps: 6, personalization_steps: 6}
resources: {mode: pooled}
"""
    )
    text = path.read_text()
    path.write_text(text.replace("max_length: 24", "max_length: 24, lora: {rank: 4, targets: [query, value]}"))
    return str(path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["head", pytest.param("adapter", marks=pytest.mark.long)])
def test_classification_with_an_own_head_or_adapter(
    command: Any, classification: str, tmp_path: Path, kind: str
) -> None:
    run = tmp_path / "run"
    result = command.train("-c", classification, "--run", str(run), f"federation.personalization={kind}")
    assert verify_run(run).ok
    assert set(result["scores"]) == {"federated", "personalised"}
    model = load_tensors(run / "model" / "adapter_model.safetensors")
    own = [load_tensors(path) for path in (command.home / "personal" / result["id"]).glob("*/own.safetensors")]
    assert len(own) == 2
    for tensors in own:
        changed = {name for name, tensor in tensors.items() if not np.array_equal(tensor, model[name])}
        assert any("classifier" in name for name in changed)
        assert any("lora_B" in name for name in changed) == (kind == "adapter")
    assert not list(run.rglob("own.safetensors"))
    scores = _scores_by_peft(classification, str(run), "beta")
    assert scores == pytest.approx(result["scores"]["federated"]["by_organization"]["beta"], abs=1e-5)


def _scores_by_peft(config_file: str, run: str, organization: str) -> dict[str, float]:
    """Scores of the published classifier through plain PEFT in this process."""
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    from trustchain_ray.config_files import load_config
    from trustchain_ray.data import load_holdings
    from trustchain_ray.engines.base import AdapterModel
    from trustchain_ray.models import load_tokenizer
    from trustchain_ray.rows import encode

    config = load_config([config_file], [])
    base = AutoModelForSequenceClassification.from_pretrained(config.model.base, num_labels=3)
    model = PeftModel.from_pretrained(base, f"{run}/model").eval()
    tokenizer = load_tokenizer(config.model.base)
    rows = encode(load_holdings(config, organization).test, tokenizer, "classification", config.model.max_length)
    adapter = AdapterModel(model, tokenizer.pad_token_id, "classification", 1, "cpu", False)
    return adapter.evaluate(rows, 32, model).summary()
