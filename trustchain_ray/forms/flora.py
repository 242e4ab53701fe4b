"""FLoRA: adapters are stacked, [B1 | B2 | ...] [A1 ; A2 ; ...], which is exact for any mixture of ranks
(https://arxiv.org/abs/2409.05976).

The state is the sum of all rounds' changes. Members add it to the base and train a fresh adapter each round.
When the stack has more rows than the layer can use it is factored again, which loses nothing.
"""

from collections.abc import Sequence

import numpy as np

from trustchain_ray.adapter import LORA_A, LORA_B, Tensors, head, layers
from trustchain_ray.forms import ffa, svd
from trustchain_ray.forms.products import factor, full_rank, scaled_by_rank, stack

TRAINS_A = True
RESIDUAL = True
update = svd.update
merge_cohorts = svd.merge_cohorts
published = svd.published


def initial(tensors: Tensors, rank: int) -> Tensors:
    """The state before round 1: no change (one row of zeros a layer) and the head."""
    out = {name: t.copy() for name, t in head(tensors).items()}
    for layer in layers(tensors):
        out[layer + LORA_A] = np.zeros((1, tensors[layer + LORA_A].shape[1]), np.float32)
        out[layer + LORA_B] = np.zeros((tensors[layer + LORA_B].shape[0], 1), np.float32)
    return out


def start(state: Tensors, fresh: Tensors, alpha: float) -> Tensors:
    """A fresh adapter and the state's head; the state itself goes into the member's base."""
    return {**fresh, **head(state)}


def merge(state: Tensors, updates: Sequence[Tensors], weights: Sequence[int], step: float, alpha: float) -> Tensors:
    """``state + step * weighted mean(B A)``, exactly."""
    total = sum(weights)
    terms = [{n: t for n, t in state.items() if n.endswith((LORA_A, LORA_B))}]
    terms += [scaled_by_rank(u, alpha) for u in updates]
    stacked = stack(terms, [1.0] + [step * weight / total for weight in weights])
    out = factor(stacked, full_rank(stacked))
    if head(state):
        out |= ffa.merge(head(state), [head(u) for u in updates], weights, step, alpha)
    return out
