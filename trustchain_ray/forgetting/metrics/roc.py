"""How well a signal tells members from others: AUC and true-positive rate at a low false-positive rate."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trustchain_ray.errors import TrustChainError
from trustchain_ray.forgetting.metrics.inputs import Numbers, Values, values


@dataclass(frozen=True)
class Interval:
    """An estimate with a two-sided confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class RateAt:
    """True-positive rate at a false-positive rate of at most `asked`, reached at `false_positive_rate`.

    `resolved` is False where there are fewer than 1 / asked others: the threshold then lets none of them
    through, and the estimate says little.
    """

    asked: float
    false_positive_rate: float
    rate: Interval
    resolved: bool


def auc(members: Numbers, others: Numbers, confidence: float = 0.95) -> Interval:
    """Area under the ROC curve, ``P(member > other) + P(member = other) / 2``.

    The interval is DeLong's (DeLong et al. 1988, by mid-ranks as Sun and Xu 2014), cut at 0 and 1. Where its
    variance is zero (perfect separation, or all values equal), it is the exact binomial interval of
    ``min(members, others)`` disjoint pairs, which DeLong's method would call a point.

    Parameters
    ----------
    members, others : signals, higher for members, ``(records,)``; infinities count by rank.

    Raises
    ------
    TrustChainError
        One of the two classes is empty, or a value is NaN.
    """
    from scipy import stats

    x, y = _classes(members, others, confidence)
    m, n = x.size, y.size
    ranks = stats.rankdata(np.concatenate([x, y]))
    above = (ranks[:m] - stats.rankdata(x)) / n  # for each member the share of others below it
    below = 1.0 - (ranks[m:] - stats.rankdata(y)) / m
    area = float(above.mean())
    variance = (above.var(ddof=1) / m if m > 1 else 0.0) + (below.var(ddof=1) / n if n > 1 else 0.0)
    if variance <= 0:
        return Interval(area, *clopper_pearson(area * min(m, n), min(m, n), confidence))
    width = float(stats.norm.ppf(0.5 + confidence / 2) * np.sqrt(variance))
    return Interval(area, max(0.0, area - width), min(1.0, area + width))


def rate_at(members: Numbers, others: Numbers, asked: float, confidence: float = 0.95) -> RateAt:
    """Largest true-positive rate of a threshold whose false-positive rate is at most `asked`.

    A record is called a member where its signal is at least the threshold; equal signals fall on one side
    together. The interval is Clopper and Pearson's at that threshold (https://arxiv.org/abs/2112.03570 for
    why low rates matter).
    """
    x, y = _classes(members, others, confidence)
    if not 0 < asked < 1:
        raise TrustChainError(f"true-positive rate: the false-positive rate {asked:g} must be between 0 and 1")
    thresholds = np.unique(x)
    false = (y.size - np.searchsorted(np.sort(y), thresholds, side="left")) / y.size
    allowed = np.flatnonzero(false <= asked)
    hits, reached = 0, 0.0
    if allowed.size:
        hits, reached = int((x >= thresholds[allowed[0]]).sum()), float(false[allowed[0]])
    interval = Interval(hits / x.size, *clopper_pearson(hits, x.size, confidence))
    return RateAt(asked, reached, interval, y.size * asked >= 1)


def clopper_pearson(hits: float, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Exact binomial interval of a rate, from quantiles of the beta distribution (Clopper and Pearson 1934)."""
    from scipy.stats import beta

    if trials < 1 or not 0 <= hits <= trials:
        raise TrustChainError(f"binomial interval: {hits:g} hits of {trials} trials")
    tail = (1 - confidence) / 2
    low = 0.0 if hits == 0 else float(beta.ppf(tail, hits, trials - hits + 1))
    high = 1.0 if hits == trials else float(beta.ppf(1 - tail, hits + 1, trials - hits))
    return low, high


def bootstrap(
    members: Numbers,
    others: Numbers,
    draws: np.random.Generator,
    rounds: int = 1000,
    confidence: float = 0.95,
) -> Interval:
    """AUC with a percentile bootstrap interval: members and others are drawn again with replacement."""
    from scipy.stats import rankdata

    x, y = _classes(members, others, confidence)

    def area(one: NDArray[np.float64], two: NDArray[np.float64]) -> float:
        ranks = rankdata(np.concatenate([one, two]))[: one.size]
        return float((ranks.sum() - one.size * (one.size + 1) / 2) / (one.size * two.size))

    areas = [area(draws.choice(x, x.size), draws.choice(y, y.size)) for _ in range(rounds)]
    low, high = np.quantile(areas, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(area(x, y), float(low), float(high))


def privacy_leakage(area: float, retrained: float) -> float:
    """MUSE's PrivLeak, ``100 ((1 - AUC) - (1 - AUC_r)) / (1 - AUC_r)`` (https://arxiv.org/abs/2407.06460).

    Near 0 is good; strongly negative where records are still known, positive where the model was pushed too
    far from them. Both AUC are 1 where forgotten records look trained on, 0.5 where nothing tells.
    """
    if retrained >= 1:
        raise TrustChainError("PrivLeak: the retrained model's AUC is 1: forget and holdout records differ in kind")
    return 100.0 * ((1 - area) - (1 - retrained)) / (1 - retrained)


def _classes(members: Numbers, others: Numbers, confidence: float) -> tuple[Values, Values]:
    if not 0 < confidence < 1:
        raise TrustChainError(f"confidence {confidence:g} must be between 0 and 1, e.g. 0.95")
    x = values("members (forget records)", members, infinite=True)
    return x, values("others (holdout records)", others, infinite=True)
