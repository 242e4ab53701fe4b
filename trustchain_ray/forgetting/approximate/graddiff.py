"""Gradient difference: ascent on the records to forget, descent on the rest (https://arxiv.org/abs/2203.12817)."""

from dataclasses import dataclass
from typing import ClassVar

import torch


@dataclass(frozen=True)
class GradDiff:
    """``L = -gamma E_F[loss] + alpha E_R[loss]``."""

    gamma: float = 1.0
    alpha: float = 1.0
    tasks: ClassVar[tuple[str, ...]] = ("causal", "classification")
    needs_reference: ClassVar[bool] = False

    def forget_loss(self, losses: torch.Tensor, tokens: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        return -losses
