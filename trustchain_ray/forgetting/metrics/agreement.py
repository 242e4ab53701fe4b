"""How near a model is to retrained ones: tug-of-war score and tests of equivalence."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from trustchain_ray.errors import TrustChainError
from trustchain_ray.forgetting.metrics.inputs import Numbers, pairs, values


def tug_of_war(model: Mapping[str, float], retrained: Mapping[str, float]) -> float:
    """``product over sets of 1 - |accuracy of the model - accuracy of the retrained one|``; 1 is best.

    ToW (https://arxiv.org/abs/2406.01257) on forgotten, retained and test records; accuracies in [0, 1].
    """
    if not model or model.keys() != retrained.keys():
        raise TrustChainError(
            f"tug of war: accuracies on {sorted(model)} against {sorted(retrained)}; "
            "both must be of the same sets, at least one"
        )
    for name in model:
        if not (0 <= model[name] <= 1 and 0 <= retrained[name] <= 1):
            raise TrustChainError(f"tug of war: accuracies on {name} must be within [0, 1]")
    return float(np.prod([1.0 - abs(model[name] - retrained[name]) for name in model]))


@dataclass(frozen=True)
class Equivalence:
    """Outcome of two one-sided tests: `difference` of means with its interval (at twice the tests' level, by
    custom), `p_value` of the weaker test, and whether the difference lies within the margin."""

    difference: float
    low: float
    high: float
    margin: float
    p_value: float
    equivalent: bool


def paired_equivalence(model: Numbers, retrained: Numbers, margin: float, level: float = 0.05) -> Equivalence:
    """TOST on the same records under two models (Schuirmann 1987): is the mean difference within ``±margin``?

    The margin is chosen before the test, e.g. by :func:`seed_margin`. Without spread (bitwise equal models)
    the p-value is 0 where the difference is inside the margin, else 1.

    Parameters
    ----------
    model, retrained : a metric of each record, ``(records,)``, at least two.
    """
    own, other = pairs("equivalence test", model, retrained)
    differences = own - other
    if differences.size < 2:
        raise TrustChainError("equivalence test: at least two records are needed")
    error = float(differences.std(ddof=1)) / np.sqrt(differences.size)
    return _two_tests(float(differences.mean()), error, differences.size - 1, margin, level)


def equivalence(model: Numbers, retrained: Numbers, margin: float, level: float = 0.05) -> Equivalence:
    """TOST with Welch's degrees of freedom between two independent groups, e.g. seeds of either program."""
    own, other = values("equivalence test", model), values("equivalence test: retrained", retrained)
    if own.size < 2 or other.size < 2:
        raise TrustChainError("equivalence test: at least two values of each program are needed")
    parts = [float(own.var(ddof=1)) / own.size, float(other.var(ddof=1)) / other.size]
    total = sum(parts)
    squares = parts[0] ** 2 / (own.size - 1) + parts[1] ** 2 / (other.size - 1)
    freedom = total**2 / squares if squares > 0 else own.size + other.size - 2
    return _two_tests(float(own.mean() - other.mean()), float(np.sqrt(total)), freedom, margin, level)


def seed_margin(means: Numbers, times: float = 2.0) -> float:
    """``times`` the standard deviation of a metric's mean between seeds of the retrained model.

    Raises
    ------
    TrustChainError
        Fewer than two seeds, or seeds that do not differ: no margin follows from them.
    """
    array = values("equivalence margin", means)
    if array.size < 2 or not array.std(ddof=1) > 0:
        raise TrustChainError(
            f"equivalence margin: {array.size} retrained seed(s) without spread; retrain with at least two "
            "different keys, or set a margin"
        )
    return float(times * array.std(ddof=1))


def _two_tests(difference: float, error: float, freedom: float, margin: float, level: float) -> Equivalence:
    from scipy.stats import t

    if not (np.isfinite(margin) and margin > 0):
        raise TrustChainError(f"equivalence test: the margin {margin:g} must be above 0")
    if not 0 < level < 0.5:
        raise TrustChainError(f"equivalence test: the level {level:g} must be between 0 and 0.5")
    if error == 0:
        p_value, width = (0.0 if abs(difference) < margin else 1.0), 0.0
    else:
        p_value = float(t.sf((margin - abs(difference)) / error, freedom))
        width = float(t.ppf(1 - level, freedom)) * error
    return Equivalence(difference, difference - width, difference + width, margin, p_value, p_value < level)
