"""What the model still says by heart: extraction strength and exact memorisation."""

from collections.abc import Sequence

import numpy as np

from trustchain_ray.errors import TrustChainError
from trustchain_ray.forgetting.metrics.inputs import Values
from trustchain_ray.forgetting.metrics.scoring import TokenScores


def exact_memorisation(scores: Sequence[TokenScores]) -> Values:
    """Share of the answer's tokens that are the most probable ones, given the true text before them, ``(records,)``.

    ``EM = |{i : argmax p(. | x, y_<i) = y_i}| / |y|`` (https://arxiv.org/abs/2205.10770, as in OpenUnlearning,
    https://arxiv.org/abs/2506.12618). The end of text is not counted.
    """
    return np.asarray([_right(scores, i).mean() for i in range(len(_some(scores)))], np.float64)


def extraction_strength(scores: Sequence[TokenScores]) -> Values:
    """How little of the answer must be given for the model to say the rest, ``(records,)``.

    ``ES = 1 - k / |y|`` with the smallest k such that all tokens after the first k are the most probable ones
    (https://arxiv.org/abs/2012.07805, as in OpenUnlearning, https://arxiv.org/abs/2506.12618): 1 for an answer
    that needs no hint, 0 where the last token is wrong. open-unlearning's code stops at k = |y| - 1 and gives
    1 / |y| to the latter. The end of text is not counted.
    """
    strengths = []
    for i in range(len(_some(scores))):
        right = _right(scores, i)
        wrong = np.flatnonzero(~right)
        strengths.append(1.0 - (wrong[-1] + 1) / right.size if wrong.size else 1.0)
    return np.asarray(strengths, np.float64)


def _some(scores: Sequence[TokenScores]) -> Sequence[TokenScores]:
    if not scores:
        raise TrustChainError("memorisation: there are no records to measure on; give at least one")
    return scores


def _right(scores: Sequence[TokenScores], index: int) -> "np.ndarray[tuple[int], np.dtype[np.bool_]]":
    right = scores[index].text().right
    if not right.size:
        raise TrustChainError(f"memorisation: record {index} has no token of an answer")
    return right
