"""Negative preference optimisation (https://arxiv.org/abs/2404.05868): ascent that fades out as the records fade.

The reference is the adapter that the method starts from. For a classification the answer is the label alone.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as functional


@dataclass(frozen=True)
class Npo:
    """``L = gamma (2/beta) E_F[log(1 + (p / p_0)^beta)] + alpha E_R[loss]`` with p the probability of the whole
    answer (the sum of token log-probabilities, not their mean). As beta goes to 0 its gradient is that of ascent.
    """

    beta: float = 0.1
    gamma: float = 1.0
    alpha: float = 1.0
    tasks: ClassVar[tuple[str, ...]] = ("causal", "classification")
    needs_reference: ClassVar[bool] = True

    def forget_loss(self, losses: torch.Tensor, tokens: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        log_ratio = -losses * tokens - reference
        return 2.0 / self.beta * functional.softplus(self.beta * log_ratio)
