"""All metrics of one model beside its retrained references, as one dictionary that JSON can hold."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from trustchain_ray.adapter import LORA_A, digest
from trustchain_ray.engines.torch_engine import TorchEngine
from trustchain_ray.errors import TrustChainError
from trustchain_ray.forgetting.metrics import agreement, roc, tofu
from trustchain_ray.forgetting.metrics.inputs import Values
from trustchain_ray.forgetting.metrics.measuring import Measured, Results, Settings, attacks, measure, summary
from trustchain_ray.forgetting.metrics.quantisation import quantised
from trustchain_ray.forgetting.metrics.questions import Question
from trustchain_ray.forgetting.metrics.relearning import (
    Relearning,
    RelearnTime,
    mean_loss,
    relearn_ratio,
    relearn_time,
)
from trustchain_ray.forgetting.metrics.scoring import AdapterState, load, score


@dataclass(frozen=True)
class Sets:
    """What a model is measured on.

    Attributes
    ----------
    forget : records that were removed (or are to be).
    retain : records that it was trained on and may keep.
    holdout : records of the same kind as `forget` that no model was trained on; empty: no membership attacks.
    population : further such records for RMIA; empty: `holdout`, which then also compares with itself.
    others : further sets by name, e.g. TOFU's ``real_authors`` and ``world_facts``.
    canaries, twins : canaries that were removed with `forget`, and their twins; both or none.
    """

    forget: Sequence[Question]
    retain: Sequence[Question] = ()
    holdout: Sequence[Question] = ()
    population: Sequence[Question] = ()
    others: Mapping[str, Sequence[Question]] = field(default_factory=dict)
    canaries: Sequence[Question] = ()
    twins: Sequence[Question] = ()


def evaluate_forgetting(
    engine: TorchEngine,
    model: AdapterState,
    retrained: Sequence[AdapterState],
    sets: Sets,
    key: bytes | str,
    old: AdapterState | None = None,
    settings: Settings | None = None,
) -> Results:
    """Every metric of a model, of models retrained without the forget set, and of how near they are.

    Parameters
    ----------
    engine : the torch engine; its adapter is replaced.
    model : the model after the removal.
    retrained : references, best three or more of different keys.
    key : decides the order of the records of the relearning attack.
    old : the model before the removal; without it there is no relearn time.

    Returns
    -------
    dict with `task`, `records` (numbers by set), `model` and `retrained` (a list): means by set, `membership`,
    `model_utility` with its `utility_parts`, `canary_test`, `quantised`, `relearn`; and against the references:
    `forget_quality` and `tug_of_war` (one of each), `equivalence` (by metric, against their mean of each record),
    `privacy_leakage`, `relearn_ratio` (None where a model did not relearn). What cannot be measured is left out:
    ROUGE, truth ratios and memorisation of a classification, truth ratios without wrong answers, membership
    without holdout.

    Raises
    ------
    TrustChainError
        No records to forget, or an input that a metric refuses.
    """
    settings = settings or Settings()
    if not sets.forget:
        raise TrustChainError("evaluate_forgetting: there are no records to forget")
    if bool(sets.canaries) != bool(sets.twins):
        raise TrustChainError("evaluate_forgetting: canaries and their twins are measured together; give both or none")
    groups: dict[str, Sequence[Question]] = {
        "forget": sets.forget, "retain": sets.retain, "holdout": sets.holdout, "population": sets.population,
        **sets.others, "canaries": sets.canaries, "twins": sets.twins,
    }  # fmt: skip
    reserved = sorted(set(sets.others) & {"forget", "retain", "holdout", "population", "canaries", "twins"})
    if reserved:
        raise TrustChainError(f"evaluate_forgetting: a further set cannot be named {reserved[0]!r}; rename it")
    groups = {name: group for name, group in groups.items() if group}
    load(engine, base_state(engine, model))
    base = {name: score(engine, [q.row for q in groups[name]], settings.batch) for name in groups}
    states = [model, *retrained]
    measured = []
    for state in states:
        load(engine, state)
        measured.append(measure(engine, groups, settings))
    results = []
    for i, state in enumerate(states):
        # not one that is the model itself, so that equal models have equal references
        references = [m.scores for s, m in zip(retrained, measured[1:], strict=True) if not _is_same(s, state)]
        result = summary(measured[i])
        if "holdout" in groups:
            result["membership"] = attacks(engine, measured[i].scores, base, references or [base], groups, settings)
        for kind in settings.quantisations:
            load(engine, state)
            with quantised(engine, kind):
                rounded = measure(engine, groups, settings)
            result.setdefault("quantised", {})[kind] = summary(rounded)
        results.append(result)
    out: Results = {
        "task": engine.adapter.task,
        "records": {name: len(group) for name, group in groups.items()},
        "model": results[0],
        "retrained": results[1:],
        **_comparison(measured, settings),
    }
    if "membership" in results[0] and retrained and "min_k" in results[0]["membership"]:
        areas = [result["membership"]["min_k"]["auc"]["value"] for result in results]
        out["privacy_leakage"] = [roc.privacy_leakage(areas[0], area) if area < 1 else None for area in areas[1:]]
    if old is not None and settings.relearning is not None:
        _relearn(engine, out, old, states, groups["forget"], key, settings.relearning)
    return out


def base_state(engine: TorchEngine, model: AdapterState) -> AdapterState:
    """The base without adapter (B = 0, a head as it was initialised): it saw none of the records."""
    head = engine.fresh_head()
    tensors = {n: t if n.endswith(LORA_A) else head.get(n, np.zeros_like(t)) for n, t in model.tensors.items()}
    return AdapterState(tensors, model.alpha)


def _is_same(one: AdapterState, other: AdapterState) -> bool:
    """Whether two adapters are the same bits."""
    residuals = [digest(state.residual) if state.residual else "" for state in (one, other)]
    return (
        digest(one.tensors) == digest(other.tensors) and one.alpha == other.alpha and residuals[0] == residuals[1]
    )


def _comparison(measured: Sequence[Measured], settings: Settings) -> Results:
    """The model (the first) against each reference, and against their mean of each record."""
    model, references = measured[0], measured[1:]
    out: Results = {}
    if not references:
        return out
    own = model.values["forget"]
    if "truth_ratio" in own:
        out["forget_quality"] = [
            dataclasses.asdict(tofu.forget_quality(own["truth_ratio"], reference.values["forget"]["truth_ratio"]))
            for reference in references
        ]
    accuracy = "accuracy" if "accuracy" in own else "exact_memorisation"
    sets = [name for name in ("forget", "retain", "holdout") if name in model.values]

    def accuracies(of: Measured) -> dict[str, float]:
        return {name: float(of.values[name][accuracy].mean()) for name in sets}

    out["tug_of_war"] = [agreement.tug_of_war(accuracies(model), accuracies(reference)) for reference in references]
    out["equivalence"] = {}
    for metric in ("loss", "probability", "log_truth_ratio", "rouge"):
        found = [_of_forgotten(each, metric) for each in measured]
        if found[0] is None or len(found[0]) < 2:
            continue
        others = np.stack([each for each in found[1:] if each is not None])
        margin = settings.margins.get(metric)
        if margin is None and len(references) > 1 and others.mean(1).std(ddof=1) > 0:
            margin = agreement.seed_margin(others.mean(1))
        if margin is not None:
            test = agreement.paired_equivalence(found[0], others.mean(0), margin)
            out["equivalence"][metric] = dataclasses.asdict(test)
    return out


def _of_forgotten(measured: Measured, metric: str) -> Values | None:
    """A metric of each forgotten record; truth ratios as logarithms, since a few large ones would rule their mean."""
    values = measured.values["forget"]
    if metric == "log_truth_ratio":
        return np.log(values["truth_ratio"]) if "truth_ratio" in values else None
    return values.get(metric)


def _relearn(
    engine: TorchEngine,
    out: Results,
    old: AdapterState,
    states: Sequence[AdapterState],
    forget: Sequence[Question],
    key: bytes | str,
    settings: Relearning,
) -> None:
    """Relearn times of the model and of each reference, and their ratios."""
    rows = [q.row for q in forget]
    load(engine, old)
    target = mean_loss(engine, rows) + settings.slack
    times: list[RelearnTime] = [relearn_time(engine, s, rows, target, key, settings=settings) for s in states]
    for result, time in zip([out["model"], *out["retrained"]], times, strict=True):
        result["relearn"] = {"steps": time.steps, "losses": list(time.losses)}
    ratios = [relearn_ratio(times[0], time) for time in times[1:]]
    out["relearn_target"] = target
    out["relearn_ratio"] = [ratio if ratio is not None and np.isfinite(ratio) else None for ratio in ratios]
