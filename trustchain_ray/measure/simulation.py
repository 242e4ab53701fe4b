"""What a coalition trains: the rounds of a real federation in one process, bit for bit those of `trustchain train`.

The arithmetic is the federation's own (sampling plans, learning rates, forms, fixed-point merges); what is left out
is what does not change the model: signatures, log, network.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import numpy as np

from trustchain_ray import forms
from trustchain_ray.adapter import Tensors, digest
from trustchain_ray.cohorts import cohorts_of, records_of
from trustchain_ray.config import Config, FederationConfig
from trustchain_ray.data import Record
from trustchain_ray.errors import TrustChainError
from trustchain_ray.initial import fresh_adapter
from trustchain_ray.keys import derive
from trustchain_ray.merge import LIMIT
from trustchain_ray.rates import learning_rates
from trustchain_ray.robust.merging import merge_cohorts, merge_updates
from trustchain_ray.sampling import plan, sampling_rate
from trustchain_ray.worker import Packed, Trained, Worker


@dataclass
class Costs:
    """What a training cost: seconds of the steps alone (all organizations; the slowest of them), bytes of all
    updates, records read, mean loss of the last round."""

    seconds: float = 0.0
    slowest: float = 0.0
    bytes: int = 0
    records: int = 0
    loss: float = 0.0


@dataclass(frozen=True)
class Coalition:
    """A finished federation: cohort states, how many records each cohort held, and what it cost."""

    states: dict[str, Tensors]
    held: dict[str, int]
    costs: Costs = field(default_factory=Costs)

    def digests(self) -> dict[str, str]:
        """Digest of each cohort's adapter, as the log of a run has it."""
        return {name: digest(state) for name, state in self.states.items()}


class Simulation:
    """Federations on one worker that is built for one rank.

    Parameters
    ----------
    config : of this rank.
    key : of a repeat: it draws the fresh adapter, shards and sampling, nothing else.
    records : training records by organization, already set as the worker's rows.
    """

    def __init__(self, worker: Worker, config: Config, key: str, records: Mapping[str, list[Record]]) -> None:
        self.worker, self.config, self.key, self.records = worker, config, key, records
        lora = config.model.lora
        self.form: Any = forms.get(lora.form)
        self.shapes = worker.engine.shapes()
        frozen = fresh_adapter(self.shapes, key, "frozen", lora.rank, lora.form)
        self.fresh: Tensors = {**frozen, **worker.engine.fresh_head()}
        self.initial: Tensors = self.form.initial(self.fresh, lora.rank)

    def federate(self, efforts: Mapping[str, Fraction]) -> Coalition:
        """All rounds of the federation of those with an effort above 0, each at its effort in every round."""
        federation, members = self.config.federation, sorted(name for name in efforts if efforts[name])
        cohorts = cohorts_of(_among(federation, members), members)
        self.worker.freeze(Packed.of(self.fresh))
        indices = {(n, c): self._indices(n, c) for c in cohorts for n in cohorts[c]}
        plans = {member: self._plan(member[0], own) for member, own in indices.items()}
        states, costs = dict.fromkeys(cohorts, self.initial), Costs()
        seconds, losses = dict.fromkeys(members, 0.0), list[float]()
        for number in range(1, federation.rounds + 1):
            losses.clear()
            for cohort, names in cohorts.items():
                updates: dict[str, tuple[Tensors, int]] = {}
                for name in names:
                    own = indices[name, cohort]
                    if not own:
                        continue
                    steps = int(federation.local_steps * efforts[name])
                    trained = self._train(number, name, cohort, states[cohort], plans[name, cohort], steps)
                    weight = (len(own) if federation.weights == "records" else 1) * steps
                    updates[name] = trained.update.tensors(), weight
                    seconds[name] += trained.seconds
                    losses += trained.losses
                    costs.bytes += trained.update.buffer.nbytes
                    costs.records += trained.records
                states[cohort] = merge_updates(self.config, states[cohort], updates).state
        costs.seconds, costs.slowest = sum(seconds.values()), max(seconds.values())
        costs.loss = sum(losses) / len(losses) if losses else 0.0
        return Coalition(states, {c: sum(len(indices[n, c]) for n in cohorts[c]) for c in cohorts}, costs)

    def model(self, states: Mapping[str, Tensors], held: Mapping[str, int]) -> Tensors:
        """The merge of cohorts, as :meth:`Federation.model` makes it."""
        federation, chosen = self.config.federation, sorted(c for c in states if held[c])
        if not chosen:
            return self.initial
        weights = [1] * len(chosen) if federation.weights == "equal" else [held[c] for c in chosen]
        return merge_cohorts(self.config, self.initial, [states[c] for c in chosen], weights)

    def evaluate(self, model: Tensors, blocks: int) -> list[dict[str, Any]]:
        """Sums of metrics of a model on each block of validation records."""
        alpha = self.config.model.lora.alpha
        residual = model if self.form.RESIDUAL else None
        self.worker.freeze(Packed.of(self.fresh))
        self.worker.engine.load(self.form.start(model, self.fresh, alpha), alpha, residual)
        rows = self.worker.rows
        return [vars(self.worker.engine.evaluate(rows["validation", str(block)])) for block in range(blocks)]

    def _train(
        self, number: int, name: str, cohort: str, state: Tensors, steps_of: list[list[int]], steps: int
    ) -> Trained:
        federation, lora = self.config.federation, self.config.model.lora
        first = (number - 1) * federation.local_steps
        rates = learning_rates(self.config.training, first, steps, federation.rounds * federation.local_steps)
        begun, residual = state, None
        if lora.form not in ("ffa", "fedavg"):
            purpose = f"{number}/{name}/{cohort}"
            begun = self.form.start(
                state, fresh_adapter(self.shapes, self.key, purpose, lora.rank, lora.form), lora.alpha
            )
            residual = Packed.of(state) if self.form.RESIDUAL else None
        trained = self.worker.train(name, Packed.of(begun), residual, steps_of[first : first + steps], rates)
        assert trained is not None  # this worker is rank 0
        self._check(trained, name, number)
        return trained

    def _check(self, trained: Trained, name: str, number: int) -> None:
        """Refuse what a federation would refuse: such an update has no place on a surface."""
        update = trained.update.buffer
        largest, norm = float(np.abs(update).max(initial=0.0)), float(np.linalg.norm(update.astype(np.float64)))
        if not (math.isfinite(largest) and largest <= LIMIT and norm <= self.config.trust.max_update_norm):
            raise TrustChainError(
                f"{name} diverged in round {number} (update of norm {norm:.3g}, largest value {largest:.3g}): a "
                "federation refuses such an update; lower training.lr or model.lora.alpha, or leave this rank out"
            )

    def _indices(self, name: str, cohort: str) -> list[int]:
        return records_of(self.config.federation, self.key, name, cohort, self.records[name])

    def _plan(self, name: str, indices: list[int]) -> list[list[int]]:
        """Steps of the whole run, as positions among the organization's records."""
        federation, ids = self.config.federation, [self.records[name][i].id for i in indices]
        rate = sampling_rate(self.config.training, len(ids))
        steps = plan(derive(self.key, "sampling", name), ids, rate, federation.rounds * federation.local_steps)
        return [[indices[i] for i in step] for step in steps]


def repeat_key(key: str, repeat: int) -> str:
    """The key of a repeat; repeat 0 is the run of the configuration itself."""
    return key if repeat == 0 else f"{key}/repeat-{repeat}"


def at_rank(config: Config, rank: int, cohorts: str | None = None) -> Config:
    """The configuration with another rank, and other cohorts if given."""
    model = replace(config.model, lora=replace(config.model.lora, rank=rank))
    federation = config.federation
    if cohorts is not None:
        federation = replace(federation, cohorts=cohorts, shards_per_organization=1)
    return replace(config, model=model, federation=federation)


def _among(federation: FederationConfig, members: list[str]) -> FederationConfig:
    """Named groups without those who stay out."""
    groups = {g: [n for n in names if n in members] for g, names in federation.groups.items()}
    return replace(federation, groups={g: names for g, names in groups.items() if names})
