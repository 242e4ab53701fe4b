"""What an organization does with a model by itself: evaluate it, ask it, train alone, make it its own."""

import dataclasses
from typing import Any

from trustchain_ray.adapter import Tensors, head, save_tensors
from trustchain_ray.data import Record
from trustchain_ray.keystore import personal_folder
from trustchain_ray.party import Party, value_of
from trustchain_ray.rates import learning_rates
from trustchain_ray.sampling import plan, sampling_rate
from trustchain_ray.worker import Packed, Trained


class Serving(Party):
    """The part of an organization that needs nobody else."""

    def evaluate(self, terms: list[Any], state: list[Any]) -> dict[str, Any]:
        """Sums of metrics of the model on this organization's own test records."""
        self._agree(terms)
        return self._evaluate(*self._serving(value_of(state).tensors()))

    def isolated(self, terms: list[Any], steps: int) -> dict[str, Any]:
        """Baseline: train alone from the initial adapter for as many steps, and evaluate on the own test records."""
        agreed = self._agree(terms)
        begin = self.form.initial(agreed.fresh.tensors(), self.config.model.lora.rank)
        return self._evaluate(*self._train_alone(begin, 0, learning_rates(self.config.training, 0, steps, steps)))

    def centralised(self, terms: list[Any], steps: int, tests: dict[str, list[Record]]) -> dict[str, Any]:
        """Baseline of a learner that holds everybody's records; metrics on each organization's test records."""
        agreed, metrics = self._agree(terms), {}
        begin = self.form.initial(agreed.fresh.tensors(), self.config.model.lora.rank)
        trained = self._train_alone(begin, 0, learning_rates(self.config.training, 0, steps, steps))
        for name, records in tests.items():
            self.group.call("set_rows", self.name, "test", records)
            metrics[name] = self._evaluate(*trained)
        return metrics

    def personalise(self, terms: list[Any], state: list[Any], steps: int) -> dict[str, Any]:
        """Train an own head or adapter on top of the model; it is kept here, only the metrics are returned."""
        self._agree(terms)
        federation, tensors = self.config.federation, value_of(state).tensors()
        only = sorted(head(tensors)) if federation.personalization == "head" else None
        done = federation.rounds * federation.local_steps
        lr = federation.personalization_lr or self.config.training.lr
        training = dataclasses.replace(self.config.training, lr=lr, warmup_steps=0)
        own, residual = self._train_alone(tensors, done, learning_rates(training, 0, steps, steps), only)
        save_tensors(personal_folder(self.config, self.run, self.name) / "own.safetensors", own.tensors())
        return self._evaluate(own, residual)

    def ask_models(self, terms: list[Any], states: dict[str, Any], most: int) -> list[dict[str, Any]]:
        """What models say to the prompts of up to `most` records that are being removed; by the names in `states`."""
        self._agree(terms)
        records = self._pending()[:most]
        said = {
            name: self.group.call("answers", records, *self._serving(value_of(state).tensors()))
            for name, state in states.items()
        }
        return [
            {"prompt": r.prompt or r.answer, "answer": r.answer if r.label < 0 else self.config.model.labels[r.label],
             **{name: rows[i] for name, rows in said.items() if rows}}
            for i, r in enumerate(records)
        ]  # fmt: skip

    def _serving(self, state: Tensors) -> tuple[Packed, Packed | None]:
        """A state as it is served: an adapter, and for stacked forms a change of the base."""
        begun = self.form.start(state, self._agreed.fresh.tensors(), self.config.model.lora.alpha)
        return Packed.of(begun), Packed.of(state) if self.form.RESIDUAL else None

    def _train_alone(
        self, state: Tensors, first: int, rates: list[float], only: list[str] | None = None
    ) -> tuple[Packed, Packed | None]:
        """Steps on all own records without anybody else, one for each learning rate, the first being step `first`
        of this organization's plan; the trained tensors and the change of the base."""
        ids = [record.id for record in self.holdings.train]
        rate = sampling_rate(self.config.training, len(ids))
        own_plan = plan(self._sampling_key(), ids, rate, first + len(rates))[first:]
        begun, residual = self._serving(state)
        trained: Trained = self.group.call("train", self.name, begun, residual, own_plan, rates, only, True)
        return trained.update, residual

    def _evaluate(self, adapter: Packed, residual: Packed | None) -> dict[str, Any]:
        return dict(vars(self.group.call("evaluate", self.name, "test", adapter, residual)))

    def _pending(self, cohort: str | None = None) -> list[Record]:
        """Training records that are being removed (from one cohort)."""
        kept = {record.id for record in self.holdings.train}
        shard = range(len(self.held.train)) if cohort is None else self._holder().shards[cohort]
        return [self.held.train[i] for i in shard if self.held.train[i].id not in kept]
