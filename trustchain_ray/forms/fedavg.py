"""FedIT: A and B are both trained and averaged separately (https://arxiv.org/abs/2305.05644).

What the source papers do, kept as the baseline. It is biased: mean(B) mean(A) is not mean(B A).
"""

from trustchain_ray.adapter import Tensors
from trustchain_ray.forms.ffa import merge, merge_cohorts, merge_sum, start, update

__all__ = ["RESIDUAL", "TRAINS_A", "initial", "merge", "merge_cohorts", "merge_sum", "published", "start", "update"]

TRAINS_A = True
RESIDUAL = False


def initial(tensors: Tensors, rank: int) -> Tensors:
    """The state before round 1: A, B and head of the fresh adapter."""
    return {name: t.copy() for name, t in tensors.items()}


def published(state: Tensors, fresh: Tensors, alpha: float) -> tuple[Tensors, float]:
    """PEFT tensors of a state, and the factor alpha / rank they are to be used with."""
    rank = next(t.shape[0] for name, t in state.items() if name.endswith(".lora_A.weight"))
    return state, alpha / rank
