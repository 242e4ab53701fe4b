"""Average in product space, factored again to each member's rank (FlexLoRA, https://arxiv.org/abs/2402.11505).

Members may have different ranks; a member of rank r starts from the r leading directions.
"""

from collections.abc import Sequence

import numpy as np

from trustchain_ray.adapter import LORA_A, LORA_B, Tensors, head, layers
from trustchain_ray.forms import ffa
from trustchain_ray.forms.products import factor, full_rank, scaled_by_rank, stack

TRAINS_A = True
RESIDUAL = False


def initial(tensors: Tensors, rank: int) -> Tensors:
    """The state before round 1: A, B = 0 and head. Of a state, B A alone is the change of the weight."""
    return {name: t.copy() for name, t in tensors.items()}


def start(state: Tensors, fresh: Tensors, alpha: float) -> Tensors:
    """The leading directions of the state, as many as the member's rank, in the member's scaling.

    A member of a larger rank than the state has fills up with fresh rows of A and zeros in B.
    """
    out = dict(head(state))
    for layer in layers(fresh):
        fresh_a, a, b = fresh[layer + LORA_A], state[layer + LORA_A], state[layer + LORA_B]
        rank = fresh_a.shape[0]
        out[layer + LORA_A] = np.concatenate([a[:rank], fresh_a[a.shape[0] :]])
        out[layer + LORA_B] = np.pad(b[:, :rank], ((0, 0), (0, max(0, rank - b.shape[1]))))
    return scaled_by_rank(out, alpha, undo=True)


def update(begun: Tensors, trained: Tensors) -> Tensors:
    """The trained factors as they are, and the change of the head."""
    changed = ffa.update(head(begun), head(trained))
    return {name: changed.get(name, tensor) for name, tensor in trained.items()}


def merge(state: Tensors, updates: Sequence[Tensors], weights: Sequence[int], step: float, alpha: float) -> Tensors:
    """``(1 - step) * state + step * weighted mean(B A)``, cut to the rank of the state."""
    total = sum(weights)
    terms = [{n: t for n, t in state.items() if n.endswith((LORA_A, LORA_B))}]
    terms += [scaled_by_rank(u, alpha) for u in updates]
    factors = [1.0 - step] + [step * weight / total for weight in weights]
    rank = max(t.shape[0] for name, t in state.items() if name.endswith(LORA_A))
    out = factor(stack(terms, factors), rank)
    if head(state):
        out |= ffa.merge(head(state), [head(u) for u in updates], weights, step, alpha)
    return out


def merge_cohorts(begin: Tensors, states: Sequence[Tensors], weights: Sequence[int], scale: float) -> Tensors:
    """The model: ``scale * weighted mean(B A)`` of the cohorts, exact (stacked, not cut)."""
    if len(states) == 1 and scale == 1.0:
        return states[0]
    total = sum(weights)
    stacked = stack(states, [scale * weight / total for weight in weights])
    out = factor(stacked, full_rank(stacked))
    if head(begin):
        out |= ffa.merge_cohorts(head(begin), [head(s) for s in states], weights, scale)
    return out


def published(state: Tensors, fresh: Tensors, alpha: float) -> tuple[Tensors, float]:
    """PEFT tensors of a state; the factor is 1, since B A alone is the change of the weight."""
    return state, 1.0
