"""SimNPO (https://arxiv.org/abs/2410.07163): NPO without a reference, on length-normalised likelihoods."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as functional


@dataclass(frozen=True)
class SimNpo:
    """``L = -gamma (2/beta) E_F[log sigmoid(beta (loss - delta))] + alpha E_R[loss]``; defaults of the authors' TOFU
    recipe. A label has no length to normalise by: causal models only."""

    beta: float = 4.5
    delta: float = 0.0
    gamma: float = 0.125
    alpha: float = 1.0
    tasks: ClassVar[tuple[str, ...]] = ("causal",)
    needs_reference: ClassVar[bool] = False

    def forget_loss(self, losses: torch.Tensor, tokens: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        return -2.0 / self.beta * functional.logsigmoid(self.beta * (losses - self.delta))
