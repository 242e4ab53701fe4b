"""TOFU's two headline numbers: forget quality and model utility (https://arxiv.org/abs/2401.06121)."""

from collections.abc import Mapping
from dataclasses import dataclass

from trustchain_ray.errors import TrustChainError
from trustchain_ray.forgetting.metrics.inputs import Numbers, values

UTILITY_SETS = ("retain", "real_authors", "world_facts")
UTILITY_METRICS = ("probability", "rouge", "truth_ratio")


@dataclass(frozen=True)
class ForgetQuality:
    """Two-sample Kolmogorov-Smirnov test: `p_value`, the largest distance `statistic` of the two empirical
    distributions, and the numbers of records."""

    p_value: float
    statistic: float
    records: int
    retrained_records: int


def forget_quality(ratios: Numbers, retrained: Numbers) -> ForgetQuality:
    """The p-value with which the truth ratios of forgotten records look drawn as those of a retrained model.

    Two-sided, exact where the samples are small (SciPy's ``auto``). A large p-value is no proof: 40 records
    (forget01) have little power, so read the statistic and an equivalence test beside it.

    Parameters
    ----------
    ratios, retrained : truth ratios of the forget set under the model and under the retrained reference.
    """
    from scipy.stats import ks_2samp

    own = values("forget quality", ratios, infinite=True)
    other = values("forget quality of the retrained model", retrained, infinite=True)
    found = ks_2samp(own, other)
    return ForgetQuality(float(found.pvalue), float(found.statistic), own.size, other.size)


def model_utility(parts: Mapping[str, float]) -> float:
    """Harmonic mean of utilities in [0, 1], 0 if one of them is 0.

    TOFU takes nine: probability, ROUGE-L recall and ``max(0, 1 - truth ratio)`` on retained records, real
    authors and world facts. Any other selection is a different number; say which.

    Raises
    ------
    TrustChainError
        No parts, or one outside [0, 1].
    """
    array = values("model utility", list(parts.values()))
    for name, part in parts.items():
        if not 0 <= part <= 1 + 1e-9:
            raise TrustChainError(f"model utility: {name} is {part:g}, outside [0, 1]")
    if (array == 0).any():
        return 0.0
    return float(array.size / (1.0 / array).sum())
