"""The adapter before anybody trained it, drawn from the run's key without a global generator."""

from collections.abc import Mapping

import numpy as np

from trustchain_ray.adapter import LORA_A, LORA_B, Tensors
from trustchain_ray.keys import generator


def fresh_adapter(shapes: Mapping[str, tuple[int, ...]], key: str, purpose: str, rank: int, form: str) -> Tensors:
    """LoRA factors of a fresh adapter: B = 0 and a random A.

    Parameters
    ----------
    shapes : shapes of all adapter tensors; A is ``(largest rank, d_in)``, B ``(d_out, largest rank)``.
    purpose : what the draw is for: ``frozen`` (shared by all), or a round and member.
    rank : rank of this adapter.
    form : `ffa` draws A with orthonormal rows (QR of a Gaussian), so that distances of B are distances of
        the weight change; the others draw it uniformly within 1 / sqrt(d_in), as PEFT does.

    Returns
    -------
    float32 tensors by PEFT name.
    """
    tensors: Tensors = {}
    for name in sorted(shapes):
        if name.endswith(LORA_B):
            tensors[name] = np.zeros((shapes[name][0], rank), np.float32)
        elif name.endswith(LORA_A):
            width = shapes[name][1]
            draws = generator(key, "adapter", purpose, name)
            if form == "ffa" and rank <= width:
                q, r = np.linalg.qr(draws.standard_normal((width, rank)))
                tensors[name] = np.ascontiguousarray((q * np.sign(np.diag(r))).T, np.float32)
            else:
                bound = 1.0 / np.sqrt(width)
                tensors[name] = draws.uniform(-bound, bound, (rank, width)).astype(np.float32)
    return tensors
