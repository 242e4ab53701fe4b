"""Loss, probability and truth ratio of answers (TOFU, https://arxiv.org/abs/2401.06121)."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from trustchain_ray.errors import TrustChainError
from trustchain_ray.forgetting.metrics.inputs import Numbers, Values, values

LARGEST_EXPONENT = 700.0  # exp of it is still a float64


def probability(losses: Numbers) -> Values:
    """Length-normalised probability ``P(a|q)^(1/|a|) = exp(-loss)`` (TOFU, section 2.2.2).

    Parameters
    ----------
    losses : mean-token negative log-likelihoods (nats), ``(records,)``.
    """
    return np.exp(-values("probability", losses))


def probability_among(losses: Numbers, wrong: Sequence[Numbers]) -> Values:
    """Share of the right answer among the offered ones, ``p / (p + sum_j p_j)`` with ``p = exp(-loss)``.

    TOFU's probability of real authors and world facts.

    Parameters
    ----------
    losses : of the right answers, ``(records,)``.
    wrong : of the wrong answers, at least one a record.
    """
    right, others = values("probability among answers", losses), _of_perturbed(losses, wrong)
    logs = [np.concatenate([[-loss], -each]) for loss, each in zip(right, others, strict=True)]
    return np.asarray([1.0 / np.exp(log - log[0]).sum() for log in logs])


def truth_ratio(paraphrased: Numbers, perturbed: Sequence[Numbers]) -> Values:
    """How probable wrong answers are against a right one: ``exp(-mean_j L(wrong_j)) / exp(-L(paraphrase))``.

    TOFU, section 2.2.2 (equation 1): the geometric mean of length-normalised probabilities of the wrong
    answers. Near or above 1 where the model does not know the answer, near 0 where it does. Computed from
    logarithms, so that answers of a vanishing probability keep their order.

    Parameters
    ----------
    paraphrased : losses of the paraphrased right answers, ``(records,)``.
    perturbed : losses of the wrong answers, at least one a record.
    """
    right, others = values("truth ratio", paraphrased), _of_perturbed(paraphrased, perturbed)
    exponent = right - np.asarray([each.mean() for each in others])
    return np.asarray(np.exp(np.clip(exponent, -LARGEST_EXPONENT, LARGEST_EXPONENT)), np.float64)


def forgotten_truth(ratios: Numbers) -> float:
    """Mean of ``min(R, 1/R)`` over forgotten records: 1 where right and wrong answers are equally likely."""
    array = _ratios(ratios)
    return float(np.minimum(array, 1.0 / array).mean())


def retained_truth(ratios: Numbers) -> float:
    """Mean of ``max(0, 1 - R)`` over retained records: 1 where wrong answers are never likely."""
    return float(np.maximum(0.0, 1.0 - _ratios(ratios)).mean())


def _ratios(ratios: Numbers) -> Values:
    array = values("truth ratio", ratios)
    if (array <= 0).any():
        raise TrustChainError("truth ratio: ratios are positive; give the output of truth_ratio")
    return array


def _of_perturbed(right: Numbers, wrong: Sequence[Numbers]) -> list[NDArray[np.float64]]:
    if len(wrong) != len(right):
        raise TrustChainError(
            f"truth ratio: wrong answers of {len(wrong)} records against {len(right)} right answers; "
            "both must be of the same records"
        )
    return [values(f"wrong answers of record {i}", each) for i, each in enumerate(wrong)]
