"""Greedy answers of the loaded adapter, for ROUGE and for showing a model before and after."""

from collections.abc import Sequence

import numpy as np
import torch

from trustchain_ray.engines.torch_engine import TorchEngine
from trustchain_ray.errors import TrustChainError
from trustchain_ray.rows import TokenRow


@torch.no_grad()
def generate(engine: TorchEngine, rows: Sequence[TokenRow], new_tokens: int = 200, batch: int = 16) -> list[str]:
    """Continue the prompts of rows greedily until the end of text or for `new_tokens`; the texts, stripped.

    Prompts of one batch are padded on the left; rows are batched by the length of their prompts.

    Raises
    ------
    TrustChainError
        The model is a classification.
    """
    adapter, tokenizer = engine.adapter, engine.tokenizer
    if adapter.task != "causal":
        raise TrustChainError("generated answers (ROUGE) need model.task=causal; a classification says a label")
    texts: dict[int, str] = {}
    order = sorted(range(len(rows)), key=lambda i: rows[i].answer_start)
    adapter.model.eval()
    try:
        for start in range(0, len(order), batch):
            part = order[start : start + batch]
            longest = max(rows[i].answer_start for i in part)
            tokens = np.full((len(part), longest), adapter.pad_token, np.int64)
            mask = np.zeros((len(part), longest), np.int64)
            for line, i in enumerate(part):
                size = rows[i].answer_start
                tokens[line, longest - size :] = rows[i].tokens[:size]
                mask[line, longest - size :] = 1
            with torch.autocast(adapter.device.split(":")[0], torch.bfloat16, enabled=adapter.autocast):
                said = adapter.model.generate(
                    input_ids=torch.from_numpy(tokens).to(adapter.device),
                    attention_mask=torch.from_numpy(mask).to(adapter.device),
                    max_new_tokens=new_tokens,
                    do_sample=False,
                    temperature=None,
                    top_p=None,
                    top_k=None,
                    pad_token_id=adapter.pad_token,
                    eos_token_id=tokenizer.eos_token_id,
                )
            decoded = tokenizer.batch_decode(said[:, longest:], skip_special_tokens=True)
            texts.update(zip(part, (text.strip() for text in decoded), strict=True))
    finally:
        adapter.model.train()
    return [texts[i] for i in range(len(rows))]
