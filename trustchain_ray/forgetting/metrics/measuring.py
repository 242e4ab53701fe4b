"""One model on sets of records: values a record, their means, and membership attacks."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trustchain_ray.engines.torch_engine import TorchEngine
from trustchain_ray.forgetting.metrics import likelihood, membership, roc
from trustchain_ray.forgetting.metrics.canaries import canary_test
from trustchain_ray.forgetting.metrics.generation import generate
from trustchain_ray.forgetting.metrics.inputs import Values
from trustchain_ray.forgetting.metrics.memorisation import exact_memorisation, extraction_strength
from trustchain_ray.forgetting.metrics.quantisation import KINDS
from trustchain_ray.forgetting.metrics.questions import Question
from trustchain_ray.forgetting.metrics.relearning import Relearning
from trustchain_ray.forgetting.metrics.rouge import rouge_l_recall
from trustchain_ray.forgetting.metrics.scoring import TokenScores, losses, score
from trustchain_ray.forgetting.metrics.tofu import model_utility

Results = dict[str, Any]
Groups = Mapping[str, Sequence[Question]]
NOT_USEFUL = ("forget", "holdout", "population", "canaries", "twins")  # sets that no utility is taken of
WITHOUT_ROUGE = ("population", "canaries", "twins")


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes
    ----------
    new_tokens : longest generated answer for ROUGE; 0 leaves ROUGE out.
    min_k : share of tokens of Min-K% and Min-K%++ (open-unlearning's TOFU recipe takes 0.4).
    false_positive_rates : at which true-positive rates are given.
    confidence : of all intervals.
    margins : equivalence margins by metric (`loss`, `probability`, `log_truth_ratio`, `rouge`); where one is
        missing it is twice the standard deviation between the retrained references, if there are at least two.
    quantisations : a selection of `int8` and `nf4`.
    relearning : how relearn time is measured; None leaves it out.
    batch : rows of a forward pass.
    """

    new_tokens: int = 200
    min_k: float = 0.4
    false_positive_rates: tuple[float, ...] = (0.01, 0.001)
    confidence: float = 0.95
    margins: Mapping[str, float] = field(default_factory=dict)
    quantisations: tuple[str, ...] = KINDS
    relearning: Relearning | None = field(default_factory=Relearning)
    batch: int = 16


@dataclass
class Measured:
    """Of one model: scores by set and values a record by set and metric."""

    scores: dict[str, list[TokenScores]]
    values: dict[str, dict[str, Values]]


def measure(engine: TorchEngine, groups: Groups, settings: Settings) -> Measured:
    """Measure the loaded adapter on every set; ROUGE is left out where no text is looked at one by one."""
    scores, by_set = {}, {}
    causal = engine.adapter.task == "causal"
    for name, group in groups.items():
        found = scores[name] = score(engine, [q.row for q in group], settings.batch)
        loss = losses(found)
        values = by_set[name] = {"loss": loss, "probability": likelihood.probability(loss)}
        if not causal:
            values["accuracy"] = np.asarray([each.right[0] for each in found], np.float64)
            continue
        values["exact_memorisation"] = exact_memorisation(found)
        values["extraction_strength"] = extraction_strength(found)
        if settings.new_tokens and name not in WITHOUT_ROUGE:
            said = generate(engine, [q.row for q in group], settings.new_tokens, settings.batch)
            values["rouge"] = rouge_l_recall(said, [q.answer for q in group])
        if all(q.wrong for q in group):
            _add_truth(engine, values, group, loss, settings.batch)
    return Measured(scores, by_set)


def _add_truth(
    engine: TorchEngine, values: dict[str, Values], group: Sequence[Question], loss: Values, batch: int
) -> None:
    """Truth ratios and the probability among the offered answers; a missing paraphrase is the answer itself."""
    flat = losses(score(engine, [row for q in group for row in q.wrong], batch))
    ends = np.cumsum([len(q.wrong) for q in group])
    wrong = np.split(flat, ends[:-1])
    right = losses(score(engine, [q.paraphrase or q.row for q in group], batch))
    values["truth_ratio"] = likelihood.truth_ratio(right, wrong)
    values["probability_among"] = likelihood.probability_among(loss, wrong)


def summary(measured: Measured) -> Results:
    """Means by set, model utility, and the test of canaries."""
    out: Results = {}
    for name, values in measured.values.items():
        means = {metric: float(array.mean()) for metric, array in values.items() if metric != "truth_ratio"}
        if "truth_ratio" in values:
            mean = likelihood.forgotten_truth if name == "forget" else likelihood.retained_truth
            means["truth_ratio"] = mean(values["truth_ratio"])
        out[name] = means
    parts: dict[str, float] = {}
    for name in [name for name in measured.values if name not in NOT_USEFUL]:
        probability = "probability" if name == "retain" else "probability_among"
        shown = (probability, "rouge", "truth_ratio", "accuracy")
        parts |= {f"{name} {metric}": out[name][metric] for metric in shown if metric in out[name]}
    if parts:
        out["model_utility"] = model_utility(parts)
        out["utility_parts"] = parts
    if "canaries" in measured.values:
        of_sets = [measured.values[name]["loss"] for name in ("canaries", "twins")]
        out["canary_test"] = dataclasses.asdict(canary_test(*of_sets))
    return out


def attacks(
    engine: TorchEngine,
    scores: Mapping[str, Sequence[TokenScores]],
    base: Mapping[str, Sequence[TokenScores]],
    references: Sequence[Mapping[str, Sequence[TokenScores]]],
    groups: Groups,
    settings: Settings,
) -> Results:
    """AUC and true-positive rates of every attack: `forget` are the members, `holdout` the others."""
    population = "population" if "population" in groups else "holdout"

    def signals(name: str) -> dict[str, Values]:
        own = scores[name]
        found = {
            "loss": membership.loss_signal(own),
            "zlib": membership.zlib_signal(own, [q.answer for q in groups[name]]),
            "reference": membership.reference_signal(own, base[name]),
            "rmia": membership.rmia_signal(
                losses(own),
                [losses(reference[name]) for reference in references],
                losses(scores[population]),
                [losses(reference[population]) for reference in references],
            ),
        }
        if engine.adapter.task == "causal":
            found["min_k"] = membership.min_k_signal(own, settings.min_k)
            found["min_k_plus_plus"] = membership.min_k_plus_plus_signal(own, settings.min_k)
        return found

    members, others = signals("forget"), signals("holdout")
    return {
        attack: {
            "auc": dataclasses.asdict(roc.auc(members[attack], others[attack], settings.confidence)),
            "true_positive_rates": [
                dataclasses.asdict(roc.rate_at(members[attack], others[attack], rate, settings.confidence))
                for rate in settings.false_positive_rates
            ],
        }
        for attack in sorted(members)
    }
