"""The one path from a model to numbers: log-probabilities of the answer's tokens, from which metrics follow."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from trustchain_ray.adapter import Tensors
from trustchain_ray.engines.torch_engine import TorchEngine
from trustchain_ray.errors import TrustChainError
from trustchain_ray.rows import TokenRow


@dataclass(frozen=True)
class AdapterState:
    """What an engine loads: tensors by PEFT name, alpha, and the residual of a form that has one.

    A frozen A may be left out if it was loaded into the engine once.
    """

    tensors: Tensors
    alpha: float
    residual: Tensors | None = None


def load(engine: TorchEngine, state: AdapterState) -> None:
    """Load a state; the residual of a state that was loaded before does not stay in the base."""
    if state.residual is None:
        for layer, original in engine.adapter.originals.items():
            weight = engine.adapter.lora[layer].base_layer.weight
            weight.data.copy_(original.to(weight.device))
    engine.load(state.tensors, state.alpha, state.residual)


@dataclass(frozen=True)
class TokenScores:
    """What a model says of one record's answer; arrays of shape ``(tokens,)``, the label alone for a classification.

    Attributes
    ----------
    log_probs : log-probability (nats) of each token, given all that stands before it, float64.
    right : whether the token is the most probable one, bool.
    mean, deviation : mean and standard deviation of the log-probability over the vocabulary (or the classes)
        under the model's own distribution at that place, float64 (for Min-K%++).
    ends : whether the last token is the tokenizer's end of text.
    """

    log_probs: NDArray[np.float64]
    right: NDArray[np.bool_]
    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]
    ends: bool = False

    @property
    def loss(self) -> float:
        """Mean-token negative log-likelihood (nats)."""
        return float(-self.log_probs.mean())

    def text(self) -> "TokenScores":
        """The scores without the end of text: what metrics of memorisation read.

        An answer that was cut keeps its last token, which open-unlearning drops as if it were the end.
        """
        if not self.ends:
            return self
        return TokenScores(self.log_probs[:-1], self.right[:-1], self.mean[:-1], self.deviation[:-1])


@torch.no_grad()
def score(engine: TorchEngine, rows: Sequence[TokenRow], batch: int = 16) -> list[TokenScores]:
    """Score rows with the loaded adapter, in their order.

    Batches hold rows of like length, by a stable order, so that equal rows give equal numbers.

    Raises
    ------
    TrustChainError
        A row without a token to score (its answer is empty).
    """
    empty = next((i for i, row in enumerate(rows) if _answer_length(engine, row) == 0), None)
    if empty is not None:
        raise TrustChainError(f"row {empty} has no answer token to score; its answer is empty or cut away")
    adapter = engine.adapter
    scores: dict[int, TokenScores] = {}
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].tokens))
    with _evaluating(engine):
        for start in range(0, len(order), batch):
            part = order[start : start + batch]
            logits, targets = adapter.logits([rows[i] for i in part], adapter.model)
            if adapter.task == "classification":
                logits, targets = logits[:, None], targets[:, None]
            for i, row_logits, row_targets in zip(part, logits, targets, strict=True):
                kept = row_targets != -100
                scores[i] = _scores(engine, rows[i], row_logits[kept], row_targets[kept])
    return [scores[i] for i in range(len(rows))]


def losses(scores: Sequence[TokenScores]) -> NDArray[np.float64]:
    """Mean-token negative log-likelihoods, float64 ``(records,)``."""
    return np.asarray([each.loss for each in scores], np.float64)


def _answer_length(engine: TorchEngine, row: TokenRow) -> int:
    return 1 if engine.adapter.task == "classification" else len(row.tokens) - row.answer_start


def _scores(engine: TorchEngine, row: TokenRow, logits: torch.Tensor, targets: torch.Tensor) -> TokenScores:
    """Scores of ``(tokens, choices)`` logits against ``(tokens,)`` targets."""
    log_probs = torch.log_softmax(logits, dim=-1)
    probs = log_probs.exp()
    mean = (probs * log_probs).sum(-1)
    variance = (probs * (log_probs - mean[:, None]).square()).sum(-1)
    causal = engine.adapter.task == "causal"
    arrays = [log_probs.gather(-1, targets[:, None])[:, 0], logits.argmax(-1) == targets, mean, variance.sqrt()]
    of_tokens, right, means, deviations = (array.cpu().numpy() for array in arrays)
    return TokenScores(
        of_tokens.astype(np.float64),
        right,
        means.astype(np.float64),
        deviations.astype(np.float64),
        causal and len(targets) > 1 and int(row.tokens[-1]) == engine.tokenizer.eos_token_id,
    )


@contextlib.contextmanager
def _evaluating(engine: TorchEngine) -> Iterator[None]:
    engine.adapter.model.eval()
    try:
        yield
    finally:
        engine.adapter.model.train()
