"""How exposed canaries (:mod:`trustchain_ray.canaries`) are beside their twins, which were not trained on.

The Secret Sharer (Carlini et al., https://arxiv.org/abs/1802.08232).
"""

from dataclasses import dataclass

import numpy as np

from trustchain_ray.errors import TrustChainError
from trustchain_ray.forgetting.metrics.inputs import Numbers, Values, values
from trustchain_ray.forgetting.metrics.roc import Interval, auc


def exposure(canaries: Numbers, twins: Numbers) -> Values:
    """``log2 |R| - log2 rank``, by the rank of each canary among the twins and itself, ``(canaries,)``.

    Rank 1 is the lowest loss; equal losses share their mean rank. 0 where the canary is the least likely of
    all, log2(twins + 1) where it is the likeliest; a canary that was never seen has about 1.44 bits (1 / ln 2)
    in the mean.

    Parameters
    ----------
    canaries, twins : losses; twins come from the same generator and were never trained on.
    """
    own, other = values("canaries", canaries), np.sort(values("twins of canaries", twins))
    below = np.searchsorted(other, own, side="left")
    equal = np.searchsorted(other, own, side="right") - below
    return np.asarray(np.log2(other.size + 1) - np.log2(1 + below + equal / 2), np.float64)


@dataclass(frozen=True)
class CanaryTest:
    """One-sided Mann-Whitney test that canaries are no likelier than their twins; `p_value` above 0.05 and an
    `auc` near 0.5 after a removal."""

    p_value: float
    auc: Interval
    mean_exposure: float


def canary_test(canaries: Numbers, twins: Numbers) -> CanaryTest:
    """Test losses of canaries against those of their twins."""
    from scipy.stats import mannwhitneyu

    own, other = values("canaries", canaries), values("twins of canaries", twins)
    if own.size + other.size < 3:
        raise TrustChainError("canary test: at least two canaries or two twins are needed")
    p_value = float(mannwhitneyu(own, other, alternative="less").pvalue)
    return CanaryTest(p_value, auc(-own, -other), float(exposure(own, other).mean()))
