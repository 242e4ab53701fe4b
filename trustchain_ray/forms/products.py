"""Low-rank products B A of several members: stacking them and factoring them again, in float64.

Terms are taken in the order given by the caller (sorted by member), on fixed-point values, so that the
result is a function of the terms alone.
"""

from collections.abc import Sequence

import numpy as np

from trustchain_ray.adapter import LORA_A, LORA_B, Tensors, layers
from trustchain_ray.merge import FRACTION_BITS


def on_grid(tensor: np.ndarray) -> np.ndarray:
    """Values rounded to the fixed-point grid of the merge, as float64."""
    values = np.rint(tensor.astype(np.float64) * 2**FRACTION_BITS) / 2**FRACTION_BITS
    return np.asarray(values, np.float64)


def stack(terms: Sequence[Tensors], factors: Sequence[float]) -> Tensors:
    """Factors of ``sum_i f_i * B_i A_i``, layer by layer: [f1 B1 | f2 B2 | ...] and [A1 ; A2 ; ...]."""
    stacked: Tensors = {}
    for layer in layers(terms[0]):
        stacked[layer + LORA_A] = np.concatenate([on_grid(t[layer + LORA_A]) for t in terms], 0)
        stacked[layer + LORA_B] = np.concatenate(
            [on_grid(t[layer + LORA_B]) * f for t, f in zip(terms, factors, strict=True)], 1
        )
    return stacked


def full_rank(stacked: Tensors) -> int:
    """The rank at which no layer loses anything: :func:`factor` keeps no more rows than a layer can use."""
    return max(len(stacked[layer + LORA_A]) for layer in layers(stacked))


def factor(stacked: Tensors, rank: int) -> Tensors:
    """The best rank-`rank` factors of every layer, A with orthonormal rows; exact where `rank` is enough.

    B = U S and A = V^T, so a direction with singular value zero keeps a usable row in A. Signs are fixed by
    the largest entry of each row of A.
    """
    out: Tensors = {}
    for layer in layers(stacked):
        a, b = stacked[layer + LORA_A], stacked[layer + LORA_B]
        q_b, r_b = np.linalg.qr(b)
        q_a, r_a = np.linalg.qr(a.T)
        u, s, vt = np.linalg.svd(r_b @ r_a.T, full_matrices=False)
        kept = min(rank, len(s))
        new_b, new_a = (q_b @ u[:, :kept]) * s[:kept], vt[:kept] @ q_a.T
        signs = np.sign(new_a[np.arange(kept), np.abs(new_a).argmax(1)])
        out[layer + LORA_A] = (new_a * signs[:, None]).astype(np.float32)
        out[layer + LORA_B] = (new_b * signs).astype(np.float32)
    return out


def scaled_by_rank(tensors: Tensors, alpha: float, *, undo: bool = False) -> Tensors:
    """Fold alpha / rank into every B (or take it out): then B A alone is the change of the weight."""
    out = dict(tensors)
    for layer in layers(tensors):
        scale = alpha / tensors[layer + LORA_A].shape[0]
        out[layer + LORA_B] = (tensors[layer + LORA_B] * (1 / scale if undo else scale)).astype(np.float32)
    return out
