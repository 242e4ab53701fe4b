"""What a model says to the prompts of records, to show it before and after a removal."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from trustchain_ray.config import Config
from trustchain_ray.data import Record
from trustchain_ray.forgetting.metrics.generation import generate
from trustchain_ray.rows import encode

NEW_TOKENS = 32


def answers(engine: Any, records: Sequence[Record], config: Config) -> list[dict[str, str]]:
    """Greedy answers (or labels) of the loaded adapter, and the probability of each record's own answer.

    Returns
    -------
    list of dict
        `said`, and `probability`: exp of the mean log-probability of the answer's tokens, of the label.
    """
    rows = encode(records, engine.tokenizer, config.model.task, config.model.max_length)
    adapter = engine.adapter
    with torch.no_grad():
        adapter.model.eval()
        losses, _, _ = adapter.record_losses(rows, adapter.model)
        if config.model.task == "classification":
            best = adapter.logits(rows, adapter.model)[0].argmax(-1)
            said = [config.model.labels[int(label)] for label in best]
        else:
            said = generate(engine, rows, NEW_TOKENS)
        adapter.model.train()
    probabilities = np.exp(-losses.double().cpu().numpy())
    return [{"said": s, "probability": f"{p:.4f}"} for s, p in zip(said, probabilities, strict=True)]
