"""Every way to make a model of the last cohort adapters of a run, scored on every organization's test records."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as functional
from numpy.typing import NDArray

from benchmarks.forgetting_dial_closed import Integers, merge_by_grams, regression, total
from benchmarks.forgetting_dial_features import Features, features, grams_of
from trustchain_ray.adapter import LORA_A, Tensors, digest, load_tensors
from trustchain_ray.assembly import FROZEN, INITIAL
from trustchain_ray.cohorts import records_of
from trustchain_ray.compare import Scores, mean_scores
from trustchain_ray.data import Record
from trustchain_ray.engines.torch_engine import TorchEngine
from trustchain_ray.errors import TrustChainError
from trustchain_ray.evaluate.adapters import open_engine, read_adapter
from trustchain_ray.evaluate.standing import read_standing
from trustchain_ray.forms import ffa
from trustchain_ray.metrics import Metrics
from trustchain_ray.round_writer import adapter_file
from trustchain_ray.rows import TokenRow, encode

SCALES = (1.0, 1.5, 3.0)
SHARES = (0.0, 0.25, 0.5)
RIDGE = 0.1
HEAD_RIDGES = (0.01, 0.1, 1.0)
BATCH = 32
MEAN, ENSEMBLE, REGMEAN = "mean", "logit ensemble", "RegMean"


def scaled(scale: float) -> str:
    """Name of the scaled mean."""
    return MEAN if scale == 1.0 else f"mean x {scale:g}"


def own(share: float) -> str:
    """Name of an organization's own cohorts and a share of the mean of the others."""
    return f"own + {share:g} others" if share else "own cohorts alone"


@dataclass
class Cohorts:
    """The last adapters of a run: states and members by cohort, without those that hold no record, and their records
    by (organization, cohort), as indices."""

    states: dict[str, Tensors]
    members: dict[str, list[str]]
    records: dict[tuple[str, str], list[int]]


class Offline:
    """One process that holds the base of a federation with one key, and everybody's records."""

    def __init__(self, run: Path) -> None:
        self.standing = read_standing(str(run), lambda line: None)
        config = self.standing.config
        self.engine: TorchEngine = open_engine(config, self.standing.base, [read_adapter(run)])
        self.alpha = config.model.lora.alpha
        self.fresh, self.initial = load_tensors(run / FROZEN), load_tensors(run / INITIAL)
        self.tests = {name: self._rows(held.test) for name, held in self.standing.holdings.items()}
        self.load(self.initial)

    def load(self, state: Tensors, residual: Tensors | None = None) -> None:
        """Load a state of the form `ffa`."""
        frozen = {name: t for name, t in self.fresh.items() if name.endswith(LORA_A)}
        self.engine.load({**frozen, **state}, self.alpha, residual)

    def cohorts(self, run: Path) -> Cohorts:
        """The last adapters of a run of this federation and key.

        Raises
        ------
        TrustChainError
            The run has another base or another A; or their mean is not the model that the run released.
        """
        standing = read_standing(str(run), lambda line: None)
        if digest(load_tensors(run / FROZEN)) != digest(self.fresh):
            raise TrustChainError(f"{run} has another frozen A than the run it is compared with; train it again")
        config, members, rounds = standing.config, standing.manifest["cohorts"], standing.config.federation.rounds
        records = {
            (n, c): records_of(config.federation, config.run.key, n, c, standing.holdings[n].train)
            for c in members
            for n in members[c]
        }
        held = [c for c in sorted(members) if any(records[n, c] for n in members[c])]
        states = {c: load_tensors(run / adapter_file(rounds, c)) for c in held}
        found = Cohorts(states, {c: members[c] for c in held}, records)
        merged = {**{n: t for n, t in self.fresh.items() if n.endswith(LORA_A)}, **self.mean(list(states.values()))}
        if digest(merged) != read_adapter(run).digest:
            raise TrustChainError(f"{run}: the mean of its last adapters is not the model that it released")
        return found

    def mean(self, states: Sequence[Tensors], scale: float = 1.0) -> Tensors:
        """``initial + scale * mean(states - initial)``, on fixed point."""
        return ffa.merge_cohorts(self.initial, states, [1] * len(states), scale)

    def scores(self, state: Tensors, residual: Tensors | None = None) -> Scores:
        """Scores of one model by organization, as `trustchain train` reports them."""
        self.load(state, residual)
        return {name: self.engine.evaluate(rows, BATCH).summary() for name, rows in self.tests.items()}

    def own_and_others(self, cohorts: Cohorts, share: float) -> Scores:
        """Every organization with a model of its own: its cohorts' mean, and so much of the mean of the others."""
        out = {}
        for name, rows in self.tests.items():
            mine = [state for c, state in cohorts.states.items() if name in cohorts.members[c]]
            theirs = [state for c, state in cohorts.states.items() if name not in cohorts.members[c]]
            state, others = self.mean(mine), ffa.update(self.initial, self.mean(theirs))
            self.load({n: (t + share * others[n]).astype(np.float32) for n, t in state.items()})
            out[name] = self.engine.evaluate(rows, BATCH).summary()
        return out

    def ensemble(self, states: Sequence[Tensors]) -> Scores:
        """The mean of all cohorts' logits: as many forward passes as there are cohorts."""
        logits: dict[str, list[torch.Tensor]] = {}
        for state in states:
            self.load(state)
            for name, rows in self.tests.items():
                new = list(self._logits(rows))
                old = logits.get(name)
                logits[name] = [a + b for a, b in zip(old, new, strict=True)] if old else new
        return {n: self._summary(self.tests[n], [x / len(states) for x in each]) for n, each in logits.items()}

    def regmean(self, cohorts: Cohorts) -> Scores:
        """The cohorts merged by the Gram matrices of their records."""
        grams: list[dict[str, Integers]] = []
        for cohort, members in cohorts.members.items():
            grams.append(grams_of([self.training[n][i] for n in members for i in cohorts.records[n, cohort]]))
        return self.scores(merge_by_grams(list(cohorts.states.values()), grams, RIDGE))

    def analytic(self) -> dict[str, Scores]:
        """Heads by ridge regression on the base's features, from the records of all organizations or its own."""
        config, found = self.standing.config, dict[str, Scores]()
        causal = config.model.task == "causal"
        count = len(self.engine.tokenizer) if causal else len(config.model.labels)
        sums = {name: total([record.sums(count) for record in each]) for name, each in self.training.items()}
        everybody = total(list(sums.values()))
        self.load(self.initial)
        tests = {name: features(self.engine, rows, layers=False) for name, rows in self.tests.items()}
        for ridge in HEAD_RIDGES:
            for whose in ("all records", "own records"):
                heads = {n: regression(everybody if whose == "all records" else sums[n], ridge) for n in sums}
                found[f"analytic head, {whose}, ridge {ridge:g}"] = {
                    name: _ranked(tests[name], rows, heads[name], causal) for name, rows in self.tests.items()
                }
        return found

    @cached_property
    def training(self) -> dict[str, list[Features]]:
        """Features of all training records on the frozen base, by organization."""
        self.load(self.initial)
        return {n: features(self.engine, self._rows(held.train)) for n, held in self.standing.holdings.items()}

    def _rows(self, records: Sequence[Record]) -> list[TokenRow]:
        model = self.standing.config.model
        return encode(records, self.engine.tokenizer, model.task, model.max_length)

    def _batches(self, rows: Sequence[TokenRow]) -> Iterator[list[TokenRow]]:
        order = sorted(range(len(rows)), key=lambda i: len(rows[i].tokens))
        for start in range(0, len(order), BATCH):
            yield [rows[i] for i in order[start : start + BATCH]]

    @torch.no_grad()
    def _logits(self, rows: Sequence[TokenRow]) -> Iterator[torch.Tensor]:
        """Logits of every counted place of each batch, ``(places, choices)``."""
        adapter = self.engine.adapter
        adapter.model.eval()
        for batch in self._batches(rows):
            logits, targets = adapter.logits(batch, adapter.model)
            yield logits if adapter.task == "classification" else logits[targets != -100]
        adapter.model.train()

    def _summary(self, rows: Sequence[TokenRow], logits: Sequence[torch.Tensor]) -> dict[str, float]:
        """Metrics of logits, which stand in the order of :meth:`_logits`."""
        found = Metrics()
        for batch, said in zip(self._batches(rows), logits, strict=True):
            start = 0
            for row in batch:
                causal = self.engine.adapter.task == "causal"
                right = row.tokens[row.answer_start :] if causal else [row.label]
                targets = torch.as_tensor(np.asarray(right, np.int64))
                part = said[start : start + len(targets)]
                start += len(targets)
                _add(found, part.argmax(-1) == targets, causal)
                found.loss += float(functional.cross_entropy(part, targets))
        return found.summary()


def all_merges(offline: Offline, run: Path) -> dict[str, Scores]:
    """Scores of every merging that a layout has, by its name."""
    cohorts = offline.cohorts(run)
    states = list(cohorts.states.values())
    found = {MEAN: offline.scores(offline.mean(states))}
    if len(states) == 1:
        return found
    for scale in SCALES[1:]:
        found[scaled(scale)] = offline.scores(offline.mean(states, scale))
    found[REGMEAN] = offline.regmean(cohorts)
    found[ENSEMBLE] = offline.ensemble(states)
    if all(len(members) < len(offline.tests) for members in cohorts.members.values()):
        for share in SHARES:
            found[own(share)] = offline.own_and_others(cohorts, share)
    return found


def means(found: Mapping[str, Scores]) -> dict[str, dict[str, float]]:
    """Means over organizations, rounded for a file."""
    return {name: {m: round(v, 4) for m, v in mean_scores(scores).items()} for name, scores in found.items()}


def _ranked(
    found: Sequence[Features], rows: Sequence[TokenRow], head: NDArray[np.float64], causal: bool
) -> dict[str, float]:
    """Accuracy of a head; a regression has no likelihood."""
    total_of = Metrics()
    for one, row in zip(found, rows, strict=True):
        said = one.answers @ head
        if row.choices:
            barred = [i for i in range(said.shape[1]) if i not in row.choices]
            said[:, barred] = -np.inf
        _add(total_of, torch.from_numpy(said.argmax(-1) == np.asarray(one.classes)), causal)
    return {name: value for name, value in total_of.summary().items() if name != "loss"}


def _add(found: Metrics, right: torch.Tensor, causal: bool) -> None:
    found.records += 1
    found.correct += int(right.all())
    if causal:
        found.tokens += len(right)
        found.correct_tokens += int(right.sum())

