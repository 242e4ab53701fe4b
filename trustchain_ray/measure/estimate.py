"""Quality of a point and its standard error, from metric sums over blocks of validation records and over repeats."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trustchain_ray.errors import TrustChainError, UsageError
from trustchain_ray.metrics import Metrics

METRICS = ("accuracy", "token_accuracy", "likelihood")
PRIOR_DEGREES = 4  # of freedom: how much the pooled variance of training counts beside a point's own

HOW = (
    "standard_error is the root of the sum of two squares. standard_error_training: of the mean over repeats (other "
    "keys); the variance of a point is moderated towards the mean variance of its rank, with a prior of "
    f"{PRIOR_DEGREES} degrees of freedom; counted as 0 with one repeat, which does not tell it; of a predicted point, "
    "the kriging error. standard_error_records: a delete-one-block jackknife over validation records in up to 20 keyed "
    "blocks"
)

Blocks = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Estimate:
    """A measured quality: mean over repeats, variance between repeats (sample variance, 0 for one), standard error
    over validation records, mean loss, number of repeats."""

    quality: float
    variance: float
    records_error: float
    loss: float
    repeats: int


def quality_of(metric: str, sums: Metrics) -> float:
    """The metric in [0, 1]: accuracy (all tokens of an answer right), token_accuracy, or likelihood, exp(-mean loss).

    Raises
    ------
    TrustChainError
        The loss is not finite: the model diverged.
    UsageError
        There is no such metric for the task.
    """
    if not math.isfinite(sums.loss):
        raise TrustChainError("the loss on the validation records is not finite; lower training.lr or model.lora.alpha")
    if metric == "likelihood":
        return math.exp(-sums.loss / sums.records)
    if metric not in sums.summary():
        raise UsageError(f"--metric {metric}: this task has {', '.join(sorted(sums.summary()))} and likelihood")
    return sums.summary()[metric]


def estimate(metric: str, repeats: Sequence[Blocks]) -> Estimate:
    """The estimate of one point from the blocks of each of its repeats."""
    sums = [[Metrics(**block) for block in blocks] for blocks in repeats]
    totals = [_total(blocks) for blocks in sums]
    values = [quality_of(metric, total) for total in totals]
    quality = float(np.mean(values))
    without = np.array(
        [np.mean([quality_of(metric, _total(b[:g] + b[g + 1 :])) for b in sums]) for g in range(len(sums[0]))]
    )
    jackknife = (len(without) - 1) / len(without) * float(((without - without.mean()) ** 2).sum())
    variance = float(np.var(values, ddof=1)) if len(values) > 1 else 0.0
    loss = float(np.mean([total.loss / total.records for total in totals]))
    return Estimate(quality, variance, math.sqrt(jackknife), loss, len(values))


def training_errors(estimates: Sequence[Estimate]) -> list[float]:
    """Standard error of each point's mean over repeats, for points of one rank.

    Few repeats tell little of a point's own variance s2 (two that tie would claim an error of 0), so it is moderated:
    (d0 * pooled + (R - 1) * s2) / (d0 + R - 1) with d0 = 4. Zeros where there is one repeat: the variance is unknown.
    """
    repeated = [one for one in estimates if one.repeats > 1]
    pooled = float(np.mean([one.variance for one in repeated])) if repeated else 0.0
    errors = []
    for one in estimates:
        own = one.repeats - 1
        moderated = (PRIOR_DEGREES * pooled + own * one.variance) / (PRIOR_DEGREES + own)
        errors.append(math.sqrt(moderated / one.repeats))
    return errors


def _total(blocks: Sequence[Metrics]) -> Metrics:
    total = Metrics()
    for block in blocks:
        for name, value in vars(block).items():
            setattr(total, name, getattr(total, name) + value)
    return total
