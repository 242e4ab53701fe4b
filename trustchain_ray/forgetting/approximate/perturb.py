"""Perturbation: noise on the adapter, then fine-tuning on the rest, several times with less and less noise.

The third family of the survey 2406.09831. Of the shape of noisy fine-tuning with a guarantee (Langevin unlearning,
https://arxiv.org/abs/2401.10371), without its assumptions: nothing is certified.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from trustchain_ray.adapter import Tensors
from trustchain_ray.engines.torch_engine import TorchEngine
from trustchain_ray.forgetting.metrics.scoring import AdapterState, load
from trustchain_ray.keys import generator
from trustchain_ray.rows import TokenRow


@dataclass(frozen=True)
class Perturb:
    """In segment s of S every trained tensor gets ``noise (1 - s/S) rms N(0, 1)``, with rms its root mean square at
    the start; each segment then trains its share of the steps with a new optimizer."""

    noise: float = 0.5
    segments: int = 4
    tasks: ClassVar[tuple[str, ...]] = ("causal", "classification")

    def train(
        self,
        engine: TorchEngine,
        start: AdapterState,
        trained: Sequence[str],
        rows: Sequence[TokenRow],
        steps: Sequence[Sequence[int]],
        rates: Sequence[float],
        key: bytes | str,
    ) -> list[float]:
        """Noise and train from `start`; the loss of each step. Leaves the result in the engine."""
        rms = {name: float(np.sqrt(np.square(start.tensors[name].astype(np.float64)).mean())) for name in trained}
        losses: list[float] = []
        state = start
        bounds = [round(i * len(steps) / self.segments) for i in range(self.segments + 1)]
        for segment, (begin, end) in enumerate(itertools.pairwise(bounds)):
            tensors = dict(state.tensors)
            for name in trained:
                draws = generator(key, "perturb", segment, name).standard_normal(tensors[name].shape)
                scale = self.noise * (1 - segment / self.segments) * rms[name]
                tensors[name] = (tensors[name] + scale * draws).astype(np.float32)
            load(engine, AdapterState(tensors, start.alpha, start.residual))
            losses += engine.train(rows, steps[begin:end], rates[begin:end], trained)
            state = AdapterState(current(engine, start), start.alpha, start.residual)
        return losses


def current(engine: TorchEngine, start: AdapterState) -> Tensors:
    """The engine's tensors by the names and ranks of `start`."""
    tensors = engine.tensors(sorted(start.tensors))
    return {name: t[tuple(slice(0, size) for size in start.tensors[name].shape)] for name, t in tensors.items()}
