"""Orthogonal subspaces: every organization trains in rows of A of its own, so that merged changes do not interfere.

All rows come from one orthonormal matrix, drawn from the run's key: a removal is as exact, and costs as much, as with
one A for all. The merged model has the rank of all organizations together.
"""

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

import numpy as np

from benchmarks.forgetting_dial_merges import SCALES, SHARES, Offline, own, scaled
from trustchain_ray.adapter import LORA_A, LORA_B, Tensors, layers
from trustchain_ray.compare import Scores
from trustchain_ray.config_files import load_config
from trustchain_ray.errors import TrustChainError
from trustchain_ray.forgetting.metrics.scoring import AdapterState, load
from trustchain_ray.initial import fresh_adapter
from trustchain_ray.measure.simulation import Simulation
from trustchain_ray.worker import Worker


class Subspaces:
    """The cohorts of a run trained again, each organization in rows of A of its own.

    Parameters
    ----------
    run : of a layout in which no cohort has two organizations.
    """

    def __init__(self, offline: Offline, run: Path) -> None:
        self.offline, config = offline, load_config([str(run / "config.yaml")], [])
        holdings = offline.standing.holdings
        worker = Worker(config, offline.standing.base)
        for name, held in holdings.items():
            worker.set_rows(name, "train", held.train)
        simulation = Simulation(worker, config, config.run.key, {n: held.train for n, held in holdings.items()})
        rank = config.model.lora.rank
        frozen = fresh_adapter(simulation.shapes, config.run.key, "frozen", rank * len(holdings), "ffa")
        if any(t.shape[1] < len(t) for n, t in frozen.items() if n.endswith(LORA_A)):
            raise TrustChainError(
                f"{len(holdings)} organizations of rank {rank} have more rows than a layer is wide; lower the rank"
            )
        self.frozen: dict[str, Tensors] = {}
        self.trained: dict[str, Tensors] = {}
        shared = simulation.fresh
        for i, name in enumerate(sorted(holdings)):
            mine = slice(i * rank, (i + 1) * rank)
            self.frozen[name] = {n: t[mine] for n, t in frozen.items() if n.endswith(LORA_A)}
            simulation.fresh = {**shared, **self.frozen[name]}
            found = simulation.federate({name: Fraction(1)})
            self.trained[name] = offline.mean([found.states[c] for c in sorted(found.states) if found.held[c]])

    def scores(self) -> dict[str, Scores]:
        """Scores of the scaled means, and of every organization's own cohorts and a share of the others'."""
        names = list(self.trained)
        found = {scaled(scale): self._scores(dict.fromkeys(names, scale / len(names))) for scale in SCALES}
        for share in SHARES:
            found[own(share)] = {}
            for name in names:
                factors = {other: 1.0 if other == name else share / (len(names) - 1) for other in names}
                found[own(share)] |= self._scores(factors, name)
        return found

    def _scores(self, factors: Mapping[str, float], only: str = "") -> Scores:
        offline = self.offline
        frozen = {n: t for n, t in offline.fresh.items() if n.endswith(LORA_A)}
        state = AdapterState({**frozen, **offline.initial}, offline.alpha, self._stacked(factors))
        load(offline.engine, state)
        rows = {n: rows for n, rows in offline.tests.items() if only in ("", n)}
        return {n: offline.engine.evaluate(each).summary() for n, each in rows.items()}

    def _stacked(self, factors: Mapping[str, float]) -> Tensors:
        """``sum_o f_o B_o A_o`` as one pair of factors a layer."""
        out: Tensors = {}
        for layer in layers(self.offline.initial):
            a = [self.frozen[name][layer + LORA_A] for name in factors]
            b = [self.trained[name][layer + LORA_B] * f for name, f in factors.items()]
            out[layer + LORA_A] = np.concatenate(a)
            out[layer + LORA_B] = (np.concatenate(b, axis=1) * self.offline.alpha / len(a[0])).astype(np.float32)
        return out
