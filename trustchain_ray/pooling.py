"""Mean pooling: a classification head on the mean of a text's hidden states instead of its first token's.

Bases that were trained as sentence embeddings (Sentence-BERT, 1908.10084, and its successors) put a text's meaning into
that mean; their pooler of the first token was left as pretraining had it. A head on the mean learns in a fraction of
the steps, which under differential privacy decides whether it learns at all (docs/decisions.md).
"""

from typing import Any

import torch

from trustchain_ray.errors import TrustChainError

POOLED = ("bert", "ernie")
"""Model types whose heads read a pooler of all hidden states."""


class MeanPooler(torch.nn.Module):
    """Takes the place of an encoder's pooler: from hidden states ``(texts, tokens, width)`` to ``(texts, width)``.

    The mean leaves padding out; it has the type of the hidden states and is summed in float32.
    """

    def __init__(self, encoder: torch.nn.Module) -> None:
        super().__init__()
        self._mask: torch.Tensor | None = None
        encoder.register_forward_pre_hook(self._keep, with_kwargs=True)

    def _keep(self, encoder: torch.nn.Module, args: Any, options: dict[str, Any]) -> None:
        self._mask = options["attention_mask"]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Mean over the tokens of the mask that the encoder was called with."""
        mask = self._mask
        assert mask is not None, "the encoder was called without a mask"
        weights = mask.to(torch.float32)[..., None]
        means = (hidden.float() * weights).sum(1) / weights.sum(1)
        return means.to(hidden.dtype)


def pool_by_mean(model: Any) -> None:
    """Have a classification model's head read the mean of hidden states.

    Raises
    ------
    TrustChainError
        The model's head does not read the output of such a pooler.
    """
    kind = model.config.model_type
    if kind not in POOLED:
        raise TrustChainError(
            f"model.pooling=mean: the head of a {kind} model reads something of its own; known: {', '.join(POOLED)}. "
            "Use model.pooling=own, or a base of these"
        )
    encoder = model.base_model
    encoder.pooler = MeanPooler(encoder)
