"""Membership signals: one number a record, higher where the record looks more like one that was trained on."""

import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from trustchain_ray.errors import TrustChainError
from trustchain_ray.forgetting.metrics.inputs import Numbers, Values, pairs, values
from trustchain_ray.forgetting.metrics.scoring import TokenScores, losses

SMALLEST_DEVIATION = 1e-3  # of Min-K%++; as a variance of 1e-6


def loss_signal(scores: Sequence[TokenScores]) -> Values:
    """``-loss``, the mean-token log-likelihood (Yeom et al., https://arxiv.org/abs/1709.01604)."""
    return -values("loss signal", losses(scores))


def zlib_signal(scores: Sequence[TokenScores], texts: Sequence[str]) -> Values:
    """``-loss / bytes`` with the size of the answer's text under zlib (https://arxiv.org/abs/2012.07805)."""
    loss = values("zlib signal", losses(scores))
    if len(texts) != loss.size:
        raise TrustChainError(f"zlib signal: {len(texts)} texts for {loss.size} records")
    return -loss / np.asarray([len(zlib.compress(text.encode())) for text in texts], np.float64)


def min_k_signal(scores: Sequence[TokenScores], share: float = 0.4) -> Values:
    """Min-K%: the mean of the lowest `share` of token log-probabilities (https://arxiv.org/abs/2310.16789).

    At least one token is taken, ``max(1, floor(share * tokens))``; the end of text is not counted.
    """
    return _lowest("Min-K% signal", [each.text().log_probs for each in scores], share)


def min_k_plus_plus_signal(scores: Sequence[TokenScores], share: float = 0.4) -> Values:
    """Min-K%++: as Min-K%, of log-probabilities standardised by the mean and the standard deviation of
    ``log p(v)`` under the model's own ``p`` at that place (https://arxiv.org/abs/2404.02936)."""
    texts = [each.text() for each in scores]
    standard = [(t.log_probs - t.mean) / np.maximum(t.deviation, SMALLEST_DEVIATION) for t in texts]
    return _lowest("Min-K%++ signal", standard, share)


def reference_signal(scores: Sequence[TokenScores], reference: Sequence[TokenScores]) -> Values:
    """``loss under the reference - loss``: how much less surprised the model is than one that did not see the
    record (https://arxiv.org/abs/2012.07805). The base without adapter is such a reference."""
    own, other = pairs("reference signal", losses(scores), losses(reference))
    return other - own


def rmia_signal(
    losses_of: Numbers,
    reference_losses: Sequence[Numbers],
    population_losses: Numbers,
    population_reference_losses: Sequence[Numbers],
    gamma: float = 1.0,
    offline: float = 1.0,
) -> Values:
    """RMIA (https://arxiv.org/abs/2312.03262): the share of a population that the record beats by `gamma`.

    ``score(x) = Pr_z[(p(x) / q(x)) / (p(z) / q(z)) >= gamma]`` with length-normalised probabilities p of the
    model, and q from reference models that did not see x: ``q(x) = ((1 + a) mean_r p_r(x) + 1 - a) / 2``.

    Parameters
    ----------
    losses_of : of the records under the model, ``(records,)``.
    reference_losses : of the same records under each reference model, ``(references, records)``.
    population_losses, population_reference_losses : the same of population records z, which are neither
        trained on nor tested, ``(population,)`` and ``(references, population)``.
    gamma : at least 1.
    offline : the paper's a in [0, 1]; 1 takes the mean of the references as it is.

    Returns
    -------
    Shares in [0, 1], ``(records,)``.
    """
    if gamma < 1 or not 0 <= offline <= 1:
        raise TrustChainError(f"RMIA: gamma={gamma:g} must be at least 1 and offline={offline:g} within [0, 1]")
    ratios = _likelihood_ratios("RMIA", losses_of, reference_losses, offline)
    population = np.sort(_likelihood_ratios("RMIA population", population_losses, population_reference_losses, offline))
    beaten = np.searchsorted(population, ratios - np.log(gamma), side="right")
    return np.asarray(beaten / population.size, np.float64)


def _likelihood_ratios(
    what: str,
    losses_of: Numbers,
    reference_losses: Sequence[Numbers],
    offline: float,
) -> Values:
    """``log p(x) - log q(x)``, ``(records,)``."""
    own = values(what, losses_of)
    if not len(reference_losses):
        raise TrustChainError(f"{what}: a reference model is needed; give the losses under at least one")
    references = [pairs(what, own, each)[1] for each in reference_losses]
    mean = np.exp(-np.stack(references)).mean(0)
    known = np.maximum(((1 + offline) * mean + 1 - offline) / 2, np.finfo(np.float64).tiny)
    return np.asarray(-own - np.log(known), np.float64)


def _lowest(what: str, arrays: Sequence[NDArray[np.float64]], share: float) -> Values:
    """Mean of the lowest share of each array."""
    if not 0 < share <= 1:
        raise TrustChainError(f"{what}: share={share:g} must be above 0 and at most 1")
    means = []
    for i, array in enumerate(arrays):
        if not array.size:
            raise TrustChainError(f"{what}: record {i} has no token of an answer")
        means.append(np.sort(array)[: max(1, int(array.size * share))].mean())
    return values(what, means)
