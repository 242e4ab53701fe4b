"""Re-evaluation under weight quantisation, which brings back what approximate methods only hide.

https://arxiv.org/abs/2410.16454. No int8 or 4-bit kernel is used: weights are rounded to the values that the
format can hold and stored in the model's own type, so that every machine can do it and gets the same numbers.
Activations are not quantised.
"""

import contextlib
from collections.abc import Iterator

import torch

from trustchain_ray.engines.torch_engine import TorchEngine
from trustchain_ray.errors import TrustChainError

BLOCK = 64  # weights that share a scale in nf4, as in QLoRA
OFFSET = 0.9677083  # the outermost quantile of nf4 (https://arxiv.org/abs/2305.14314)
KINDS = ("int8", "nf4")


@contextlib.contextmanager
@torch.no_grad()
def quantised(engine: TorchEngine, kind: str) -> Iterator[None]:
    """Inside, the engine's model has quantised weights; afterwards it is as before, bit by bit.

    Each linear layer takes part except the output layer and a head that is trained in full, as in
    bitsandbytes. The loaded adapter is merged into its layers first: ``round(W + alpha/r B A)``.

    Parameters
    ----------
    kind : `int8` (:func:`int8`) or `nf4` (:func:`nf4`).
    """
    if kind not in KINDS:
        raise TrustChainError(f"quantisation {kind!r} is none of {', '.join(KINDS)}")
    rounded = int8 if kind == "int8" else nf4
    model, lora = engine.adapter.model, engine.adapter.lora.values()
    output = model.get_output_embeddings()
    kept = {id(module) for module in lora} | ({id(output)} if output is not None else set())
    trained = {id(parameter) for parameter in engine.adapter.parameters.values()}
    saved: list[tuple[torch.Tensor, torch.Tensor]] = []

    def put(parameter: torch.Tensor, tensor: torch.Tensor) -> None:
        saved.append((parameter, parameter.detach().clone()))
        parameter.data.copy_(tensor)

    try:
        for module in lora:
            down, up = module.lora_A["default"].weight, module.lora_B["default"].weight
            weight = module.base_layer.weight
            merged = weight.float() + module.scaling["default"] * (up.float() @ down.float())
            put(weight, rounded(merged))
            put(up, torch.zeros_like(up))
            kept.add(id(module.base_layer))
        for module in model.modules():
            if isinstance(module, torch.nn.Linear) and id(module) not in kept and id(module.weight) not in trained:
                put(module.weight, rounded(module.weight.float()))
        yield
    finally:
        for parameter, original in reversed(saved):
            parameter.data.copy_(original)


def int8(weight: torch.Tensor) -> torch.Tensor:
    """Symmetric rounding to 255 values by output channel, ``s round(w / s)`` with ``s = max |w| / 127``.

    Parameters
    ----------
    weight : float32 ``(out, in)``; a row of zeros stays zero.
    """
    scale = weight.abs().amax(dim=1, keepdim=True) / 127.0
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return (weight / scale).round() * scale


def nf4(weight: torch.Tensor) -> torch.Tensor:
    """4-bit NormalFloat in blocks of 64: each weight over its block's largest magnitude goes to the nearest of 16
    levels (:func:`levels`). Scales stay float32 (no double quantisation).

    Parameters
    ----------
    weight : float32 of any shape; the last block may be shorter.
    """
    codes = torch.tensor(levels(), dtype=torch.float32, device=weight.device)
    flat = weight.reshape(-1)
    blocks = torch.nn.functional.pad(flat, (0, -flat.numel() % BLOCK)).view(-1, BLOCK)
    scale = blocks.abs().amax(dim=1, keepdim=True)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    middles = (codes[1:] + codes[:-1]) / 2
    nearest = codes[torch.bucketize(blocks / scale, middles)]
    return (nearest * scale).view(-1)[: flat.numel()].view(weight.shape)


def levels() -> list[float]:
    """The 16 levels of NF4 in [-1, 1]: quantiles of a normal distribution, 7 below zero, zero, 8 above, scaled
    by the largest (QLoRA, appendix E)."""
    import numpy as np
    from scipy.stats import norm

    above = norm.ppf(np.linspace(OFFSET, 0.5, 9)[:-1])
    below = -norm.ppf(np.linspace(OFFSET, 0.5, 8)[:-1])
    return [float(x) for x in np.sort(np.concatenate([above, [0.0], below])) / above.max()]
