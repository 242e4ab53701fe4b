"""A lower bound on epsilon from one training run (Steinke, Nasr and Jagielski, https://arxiv.org/abs/2305.08846).

Each of m canaries is trained on with probability 1/2, independently of the others. Whoever sees what was released
scores every canary, guesses "in" for the r/2 highest scores and "out" for the r/2 lowest, and says nothing of the
rest. Under (epsilon, delta)-DP the number of right guesses is hardly above that of r coins which come up right with
probability ``e^epsilon / (1 + e^epsilon)``; more right guesses than that refute the epsilon.

How many guesses to make is not tuned: a fixed list of shares of m is tried, and each is tested at an equal part of the
error that the confidence allows (Bonferroni), so that the largest of the bounds holds with the whole confidence.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trustchain_ray.errors import TrustChainError
from trustchain_ray.forgetting.metrics.inputs import Numbers, values

SHARES = (1.0, 1 / 2, 1 / 4, 1 / 8, 1 / 16)
"""Guesses that are tried, as shares of the canaries; the list does not depend on scores or outcomes."""

FEWEST = 8
"""With fewer guesses, all of them right, not even epsilon 0 is refuted at a confidence of 95 %."""

_HALVINGS = 30


@dataclass(frozen=True)
class Bound:
    """What an audit shows.

    Attributes
    ----------
    epsilon : with the asked confidence no (epsilon, delta) below this holds; 0 where nothing is shown.
    canaries, guesses, right : m, r and the number of right guesses of the test that gave the bound.
    delta, confidence : at which it holds.
    """

    epsilon: float
    canaries: int
    guesses: int
    right: int
    delta: float
    confidence: float


def p_value(canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """Most probable that at least so many guesses are right under (epsilon, delta)-DP (2305.08846, theorem 5.2).

    ``P[B >= v] + 2 m delta max_i P[v > B >= v - i] / i`` with B binomial, of r trials at ``1 / (1 + e^-epsilon)``.

    Parameters
    ----------
    canaries : m, each included with probability 1/2.
    guesses : r of them are guessed; chosen without looking at the outcome.
    right : v guesses are right.

    Raises
    ------
    TrustChainError
        Impossible numbers.
    """
    from scipy.stats import binom

    if not 0 <= right <= guesses <= canaries or epsilon < 0 or not 0 <= delta <= 1:
        raise TrustChainError(
            f"audit: {right} right of {guesses} guesses on {canaries} canaries, epsilon {epsilon:g}, delta {delta:g}"
        )
    rate = 1 / (1 + np.exp(-epsilon))
    beyond = float(binom.sf(right - 1, guesses, rate))
    if not delta or not right:
        return min(1.0, beyond)
    below = binom.pmf(np.arange(right - 1, -1, -1), guesses, rate).cumsum()  # P[v > B >= v - i], i = 1, 2, ...
    slope = float((below / np.arange(1, right + 1)).max())
    return min(1.0, beyond + 2 * canaries * delta * slope)


def epsilon_bound(canaries: int, guesses: int, right: int, delta: float, confidence: float = 0.95) -> float:
    """Largest epsilon that so many right guesses refute; 0 where they refute none.

    A mechanism that keeps an epsilon keeps every larger one: refuting one refutes all below it, which is why a search
    by halves is enough (2305.08846, lemma 4.7). What is returned is the lower, refuted end.
    """
    if not 0 < confidence < 1:
        raise TrustChainError(f"audit: confidence {confidence:g} must be between 0 and 1, e.g. 0.95")
    error = 1 - confidence
    low, high = 0.0, 1.0
    while p_value(canaries, guesses, right, high, delta) < error:
        low, high = high, 2 * high
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if p_value(canaries, guesses, right, middle, delta) < error else (low, middle)
    return low


def one_run(scores: Numbers, included: NDArray[np.bool_], delta: float, confidence: float = 0.95) -> Bound:
    """The lower bound on epsilon that one run shows.

    Parameters
    ----------
    scores : one a canary, ``(m,)``, higher where the canary looks more like one that was trained on. They may depend on
        anything that was released, and not on `included`. Equal ones keep the order of the canaries.
    included : which canaries were trained on, bool ``(m,)``; each by a coin of its own.
    delta : of the (epsilon, delta) that is to be refuted.

    Raises
    ------
    TrustChainError
        Too few canaries, or scores that are no numbers.
    """
    found, truth = values("scores of canaries", scores), np.asarray(included, bool)
    if truth.shape != found.shape:
        raise TrustChainError(f"audit: {found.size} scores of canaries, and {truth.size} of them known to be in or out")
    if found.size < FEWEST:
        raise TrustChainError(f"audit: {found.size} canaries can show nothing; {FEWEST} are the least, 200 are some")
    order = np.argsort(-found, kind="stable")
    sides = [half for share in SHARES if 2 * (half := int(found.size * share / 2)) >= FEWEST]
    each, bounds = 1 - (1 - confidence) / len(sides), []
    for half in sides:
        right = int(truth[order[:half]].sum() + (~truth[order[found.size - half :]]).sum())
        bound = epsilon_bound(found.size, 2 * half, right, delta, each)
        bounds.append(Bound(bound, found.size, 2 * half, right, delta, confidence))
    return max(bounds, key=lambda bound: bound.epsilon)  # the first, with the most guesses, where nothing is shown
