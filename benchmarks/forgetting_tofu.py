"""TOFU (https://arxiv.org/abs/2401.06121): exact removal beside approximate methods, and the price of isolation.

Four organizations train on 60 of the fictitious authors, the 20 of forget10 and 40 others, so that two cores are
enough; 20 of TOFU's retained ones are held out from everybody, for the membership attacks. The authors of forget01,
forget05 and forget10 are removed from copies of each run by `trustchain unlearn`, and compared with runs that never
had them. References of a seed are the retrained models of the other seeds: other keys, so other organizations, shards,
orders and initial adapters.

The approximate methods work on the released (merged) model in one process, not cohort by cohort as
`trustchain unlearn --method` does. Each gets the same grid of learning rates and epochs; the best by tug of war against
the retrained model, on a third of the records and with the first seed, is taken for all seeds, that of forget05 for
forget10, too. Nobody who needs an approximate method has the retrained model, so this favours them.

Model utility is TOFU's harmonic mean of nine parts; one that a small base cannot do at all (the words of a real
author's name) makes it 0 for everybody, so that of the three parts of retained records stands beside it.
"""

import math
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import table
from benchmarks.forgetting_tofu_runs import RETAINED, SETS, TINY, WORK, Runs, Save, Scale
from trustchain_ray.adapter import LORA_B
from trustchain_ray.engines.torch_engine import TorchEngine
from trustchain_ray.errors import TrustChainError
from trustchain_ray.evaluate.adapters import Adapter, open_engine, read_adapter
from trustchain_ray.forgetting.approximate import METHODS
from trustchain_ray.forgetting.approximate.loop import Loop, unlearn_approximately
from trustchain_ray.forgetting.metrics import agreement, tofu
from trustchain_ray.forgetting.metrics.measuring import Measured, attacks, measure, summary
from trustchain_ray.forgetting.metrics.memorisation import exact_memorisation
from trustchain_ray.forgetting.metrics.relearning import Relearning, RelearnTime, relearn_ratio, relearn_time
from trustchain_ray.forgetting.metrics.scoring import AdapterState, TokenScores, load, losses, score

BEFORE, REPLAY = "before", "replay"
ROWS = (BEFORE, REPLAY, *METHODS)
ACCURACY = ("forget", "retain", "holdout")
TUNED_AS = {"forget10": "forget05"}
UTILITY = ("retain", "real_authors", "world_facts")


def tofu_part(done: dict[str, Any], save: Save, seeds: Sequence[int], work: Path | None, tiny: bool) -> None:
    """Train, remove, retrain and measure; all that stands in `done` or lies in `work` is not done again."""
    scale = TINY if tiny else Scale()
    runs = Runs(done, save, seeds, (work or WORK / ("tiny" if tiny else "full")).resolve(), scale)
    for seed in seeds:
        runs.full(seed)
        if f"seed {seed}/isolation" not in done:
            runs.one(seed)
        for name in (name for name in runs.scale.sets if _is_missing(runs, name)):
            runs.retrained(seed, name)
            runs.replayed(seed, name)
    models = {seed: read_adapter(runs.full(seed)) for seed in seeds}
    config = runs.config(seeds[0])
    engine = open_engine(config, config.model.base, list(models.values()))
    for seed in seeds:
        _measure_isolation(runs, engine, seed)
    for name in runs.scale.sets:
        if _is_missing(runs, name):
            never = {seed: read_adapter(runs.retrained(seed, name)) for seed in seeds}
            _ForgetSet(runs, engine, name, models, never).measure()


def _is_missing(runs: Runs, name: str) -> bool:
    """Whether something of a forget set is not measured yet."""
    return any(f"seed {seed}/{name}/{row}" not in runs.done for seed in runs.seeds for row in ROWS)


def _measure_isolation(runs: Runs, engine: TorchEngine, seed: int) -> None:
    """Model utility of shards that never see each other, and of one cohort for all."""
    if (key := f"seed {seed}/isolation") in runs.done:
        return
    groups = {n: group for n, group in runs.groups(engine, runs.scale.sets[0]).items() if n in UTILITY}
    said = {}
    for cohorts, run in (("by_shard", runs.full(seed)), ("one", runs.one(seed))):
        load(engine, read_adapter(run).state)
        found = summary(measure(engine, groups, runs.settings))
        said[cohorts] = {**_utilities(found), "retain_loss": found["retain"]["loss"]}
    runs.note(key, said)


class _ForgetSet:
    """All models of one forget set, of all seeds."""

    def __init__(
        self, runs: Runs, engine: TorchEngine, name: str, models: dict[int, Adapter], never: dict[int, Adapter]
    ) -> None:
        self.runs, self.engine, self.name, self.models, self.never = runs, engine, name, models, never
        self.groups = runs.groups(engine, name)
        self.training = [q.row for q in runs.sample(engine, runs.train_file, None, RETAINED)]
        self.forget = [q.row for q in runs.forgotten(engine, name)]
        self.relearning = Relearning(lr=2e-4, most_steps=runs.scale.relearn_steps)

    def measure(self) -> None:
        """Tune the approximate methods with the first seed, then measure what is missing."""
        first = next(iter(self.models))
        tuned = {method: self._tuned(method, first) for method in METHODS}
        base = self._base(self.models[first])
        references = {seed: self._measured(adapter.state) for seed, adapter in self.never.items()}
        for seed, model in self.models.items():
            missing = [row for row in ROWS if f"seed {seed}/{self.name}/{row}" not in self.runs.done]
            if not missing:
                continue
            others = [other for other in self.never if other != seed] or [seed]
            target = self._relearn_target(model)
            times = [self._relearn(self.never[other].state, target) for other in others]
            for row in missing:
                began = time.perf_counter()
                if row == BEFORE:
                    state = model.state
                elif row == REPLAY:
                    state = read_adapter(self.runs.replayed(seed, self.name)).state
                else:
                    state = self._apply(row, tuned[row], model, seed)
                found = self._measured(state)
                said = self._compared(found, references[seed], [references[other] for other in others], base)
                relearned = self._relearn(state, target)
                ratios = [relearn_ratio(relearned, reference) for reference in times]
                said |= {
                    "relearn_steps": relearned.steps,
                    "relearn_ratio": [None if ratio is None or math.isinf(ratio) else ratio for ratio in ratios],
                    "seconds": round(time.perf_counter() - began, 1),
                }
                self.runs.note(f"seed {seed}/{self.name}/{row}", said)

    def _compared(
        self, model: Measured, own: Measured, others: Sequence[Measured], base: dict[str, list[TokenScores]]
    ) -> dict[str, Any]:
        """A model against the retrained one of its own key (`retrained`) and those of other keys."""
        said = summary(model)
        scores = [other.scores for other in others]
        found = attacks(self.engine, model.scores, base, scores, self.groups, self.runs.settings)
        quality = [
            tofu.forget_quality(model.values["forget"]["truth_ratio"], other.values["forget"]["truth_ratio"])
            for other in others
        ]
        return {
            "forget_quality": [each.p_value for each in quality],
            "forget_quality_statistic": [each.statistic for each in quality],
            **_utilities(said),
            "utility_parts": said["utility_parts"],
            "retrained": _utilities(summary(own)),
            "tug_of_war": [agreement.tug_of_war(_accuracies(model), _accuracies(other)) for other in others],
            "rouge": {n: said[n]["rouge"] for n in ("forget", "retain")},
            "loss": {n: said[n]["loss"] for n in ACCURACY},
            "attacks": {n: each["auc"]["value"] for n, each in found.items()},
        }

    def _tuned(self, method: str, seed: int) -> dict[str, Any]:
        """The best of the grid by tug of war on a third of the records."""
        if (key := f"tuned/{TUNED_AS.get(self.name, self.name)}/{method}") in self.runs.done:
            return dict(self.runs.done[key])
        wanted, tried = self._quick_accuracies(self.never[seed].state), list[dict[str, Any]]()
        began = time.perf_counter()
        for lr in self.runs.scale.rates:
            for epochs in self.runs.scale.epochs:
                tried.append({"lr": lr, "epochs": epochs, "tug_of_war": 0.0})
                try:
                    state = self._apply(method, tried[-1], self.models[seed], seed)
                    tried[-1]["tug_of_war"] = agreement.tug_of_war(self._quick_accuracies(state), wanted)
                except TrustChainError as error:  # the loss is not finite any more
                    tried[-1]["failed"] = str(error)
        best = max(tried, key=lambda each: each["tug_of_war"])
        seconds = round(time.perf_counter() - began, 1)
        self.runs.note(key, {"lr": best["lr"], "epochs": best["epochs"], "tried": tried, "seconds": seconds})
        return best

    def _quick_accuracies(self, state: AdapterState) -> dict[str, float]:
        """Exact memorisation on every third record of a set."""
        load(self.engine, state)
        parts = {name: [q.row for q in self.groups[name][::3]] for name in ACCURACY}
        return {name: float(exact_memorisation(score(self.engine, rows)).mean()) for name, rows in parts.items()}

    def _apply(self, method: str, settings: dict[str, Any], model: Adapter, seed: int) -> AdapterState:
        """The merged model after an approximate method."""
        loop = Loop(epochs=settings["epochs"], lr=settings["lr"])
        result = unlearn_approximately(
            self.engine, METHODS[method](), model.state, self.forget, self.training, f"tofu-{seed}", loop
        )
        return AdapterState(result.tensors, model.alpha)

    def _measured(self, state: AdapterState) -> Measured:
        load(self.engine, state)
        return measure(self.engine, self.groups, self.runs.settings)

    def _base(self, model: Adapter) -> dict[str, list[TokenScores]]:
        """Scores of the base: the adapter with B = 0."""
        zero = {name: np.zeros_like(t) if name.endswith(LORA_B) else t for name, t in model.tensors.items()}
        load(self.engine, AdapterState(zero, model.alpha))
        return {name: score(self.engine, [q.row for q in group]) for name, group in self.groups.items()}

    def _relearn_target(self, model: Adapter) -> float:
        """The loss of the whole model, and the slack."""
        load(self.engine, model.state)
        before = losses(score(self.engine, self.forget[: self.runs.scale.relearned]))
        return float(before.mean()) + self.relearning.slack

    def _relearn(self, state: AdapterState, target: float) -> RelearnTime:
        rows = self.forget[: self.runs.scale.relearned]
        return relearn_time(self.engine, state, rows, target, "tofu", settings=self.relearning)


def _utilities(said: dict[str, Any]) -> dict[str, float]:
    """TOFU's model utility, and that of the parts of retained records."""
    parts = {name: part for name, part in said["utility_parts"].items() if name.startswith("retain ")}
    return {"model_utility": said["model_utility"], "retain_utility": tofu.model_utility(parts)}


def _accuracies(model: Measured) -> dict[str, float]:
    return {name: float(model.values[name]["exact_memorisation"].mean()) for name in ACCURACY}


def tofu_table(done: dict[str, Any]) -> str:
    """Medians over seeds (and references), and the price of isolation."""
    names = [name for name in SETS if any(f"/{name}/{BEFORE}" in key for key in done)]
    lines = []
    for name in names:
        for row in ROWS:
            found = [v for key, v in done.items() if key.startswith("seed ") and key.endswith(f"/{name}/{row}")]
            if found:
                lines.append([name, row, *_cells(found)])
    header = [
        "set", "model", "forget quality (KS p)", "utility", "minus retrained", "of retained", "minus retrained",
        "tug of war", "ROUGE forget / retain", "attack (Min-K% AUC)", "relearn ratio",
    ]  # fmt: skip
    out = [table(header, lines)]
    price = [v for key, v in done.items() if key.endswith("/isolation")]
    for cohorts in ("by_shard", "one") if price else ():
        model, retain = (statistics.median(v[cohorts][k] for v in price) for k in ("model_utility", "retain_utility"))
        out.append(f"cohorts {cohorts}: utility {model:.4f}, of retained records {retain:.4f}")
    removed = [v for key, v in done.items() if key.endswith("/removal")]
    out.append(f"{sum(v['equal'] for v in removed)} of {len(removed)} replays equal retraining bit for bit")
    return "\n".join(out)


def _cells(found: list[dict[str, Any]]) -> list[str]:
    def middle(values: Sequence[float | None], digits: int = 3) -> str:
        known = [value for value in values if value is not None]
        return f"{statistics.median(known):.{digits}f}" if known else "-"

    every = {k: [x for v in found for x in v[k]] for k in ("forget_quality", "tug_of_war", "relearn_ratio")}
    cells = [middle(every["forget_quality"])]
    for kind in ("model_utility", "retain_utility"):
        cells += [middle([v[kind] for v in found], 4), middle([v[kind] - v["retrained"][kind] for v in found], 4)]
    return [
        *cells,
        middle(every["tug_of_war"]),
        " / ".join(middle([v["rouge"][name] for v in found]) for name in ("forget", "retain")),
        middle([v["attacks"]["min_k"] for v in found]),
        middle(every["relearn_ratio"], 2),
    ]
