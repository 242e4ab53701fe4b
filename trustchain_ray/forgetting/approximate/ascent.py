"""Gradient ascent: raise the loss of the records to forget (https://arxiv.org/abs/2210.01504).

Nothing bounds it: with enough steps the model is ruined.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch


@dataclass(frozen=True)
class Ascent:
    """``L = -gamma E_F[loss]``; the retained records are not read."""

    gamma: float = 1.0
    alpha: ClassVar[float] = 0.0
    tasks: ClassVar[tuple[str, ...]] = ("causal", "classification")
    needs_reference: ClassVar[bool] = False

    def forget_loss(self, losses: torch.Tensor, tokens: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        return -losses
