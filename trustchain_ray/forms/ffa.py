"""FFA-LoRA: one shared frozen A with orthonormal rows, B is trained (https://arxiv.org/abs/2403.12313).

The merge is linear and exact: mean(B) A = mean(B A). Half the bytes of plain LoRA.
"""

from collections.abc import Sequence

import numpy as np

from trustchain_ray.adapter import LORA_A, Layout, Tensors
from trustchain_ray.merge import add_sum, apply_step

TRAINS_A = False
RESIDUAL = False


def initial(tensors: Tensors, rank: int) -> Tensors:
    """The state before round 1, from the tensors of a fresh adapter of the given rank (A, B = 0, head)."""
    return {name: t.copy() for name, t in tensors.items() if not name.endswith(LORA_A)}


def start(state: Tensors, fresh: Tensors, alpha: float) -> Tensors:
    """The tensors that a member trains from; `fresh` is its own fresh adapter of this round."""
    return state


def update(begun: Tensors, trained: Tensors) -> Tensors:
    """What a member returns: here the change of each trained tensor."""
    return {name: trained[name] - begun[name] for name in begun}


def merge(state: Tensors, updates: Sequence[Tensors], weights: Sequence[int], step: float, alpha: float) -> Tensors:
    """The cohort's next state: ``state + step * weighted mean(updates)``, on fixed point."""
    layout = Layout.of(state)
    buffers = [layout.pack(u) for u in updates]
    return layout.unpack(apply_step(layout.pack(state), buffers, weights, step))


def merge_sum(state: Tensors, sums: np.ndarray, total: int, step: float) -> Tensors:
    """The bits of :func:`merge` from the sum of the updates alone, which secure aggregation gives.

    Parameters
    ----------
    sums, total : of :func:`trustchain_ray.merge.weighted_sum`, the values in the order of the state's layout.
    """
    layout = Layout.of(state)
    return layout.unpack(add_sum(layout.pack(state), sums, total, step))


def merge_cohorts(begin: Tensors, states: Sequence[Tensors], weights: Sequence[int], scale: float) -> Tensors:
    """The model: ``begin + scale * weighted mean(states - begin)``; one cohort at scale 1 is the model."""
    if len(states) == 1 and scale == 1.0:
        return states[0]
    return merge(begin, [update(begin, state) for state in states], weights, scale, 1.0)


def published(state: Tensors, fresh: Tensors, alpha: float) -> tuple[Tensors, float]:
    """PEFT tensors (A, B, head) of a state, and the factor alpha / rank they are to be used with."""
    factors = {name: t for name, t in fresh.items() if name.endswith(LORA_A)}
    rank = next(iter(factors.values())).shape[0]
    return {**factors, **state}, alpha / rank
