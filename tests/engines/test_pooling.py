"""Mean pooling: what a head reads, and which models can have it."""

from pathlib import Path

import pytest
import torch

from tests.engines.tiny import base_of, classifier, rows_of, tiny
from trustchain_ray.engines.torch_engine import TorchEngine
from trustchain_ray.errors import TrustChainError
from trustchain_ray.models import load_model, quietly
from trustchain_ray.rows import collate


def test_the_head_reads_the_mean_of_the_tokens_and_not_of_the_padding(tmp_path: Path) -> None:
    config = classifier(tmp_path / "bert")
    config.model.pooling = "mean"
    engine = TorchEngine(config, config.model.base)
    rows = rows_of(engine, config)
    batch = collate(rows, engine.adapter.pad_token)
    tokens, mask = torch.from_numpy(batch.tokens), torch.from_numpy(batch.mask)
    assert not mask.all(), "rows of several lengths"
    model = engine.adapter.model.base_model.model
    with torch.no_grad():
        hidden = model.bert(input_ids=tokens, attention_mask=mask).last_hidden_state
        means = torch.stack([states[kept.bool()].mean(0) for states, kept in zip(hidden, mask, strict=True)])
        torch.testing.assert_close(engine.adapter.logits(rows, engine.adapter.model)[0], model.classifier(means))
        own = load_model(classifier(tmp_path / "bert"), config.model.base, "cpu")
        assert not torch.allclose(own(input_ids=tokens, attention_mask=mask).logits, model.classifier(means))


def test_a_model_whose_head_reads_something_else_is_refused(tmp_path: Path) -> None:
    config = tiny()
    base = base_of(config)
    config.model.task, config.model.labels, config.model.pooling = "classification", ["no", "yes"], "mean"
    with quietly(), pytest.raises(TrustChainError, match=r"model.pooling=mean: the head of a llama model"):
        load_model(config, base, "cpu")
