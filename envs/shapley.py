"""Contribution values over any coalition value function: leave-one-out, exact Shapley, GTG-Shapley.

A coalition is a frozenset of organization indices; the value function returns its quality. The federation
passes the evaluation of a merged model: no retraining. A coalition is evaluated once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from envs.arrays import Floats
from envs.errors import GameError

EXACT_LIMIT = 8
HARD_LIMIT = 20

Coalition = frozenset[int]
CoalitionValue = Callable[[Coalition], float]


@dataclass(frozen=True)
class Contributions:
    """Contribution values and what they cost.

    Attributes
    ----------
    values
        (organizations,), in units of the value function.
    evaluations
        Coalitions evaluated.
    permutations
        Orders of arrival sampled; 0 where the values are exact.
    converged
        Whether the stopping rule was met; True where the values are exact.
    """

    values: Floats
    evaluations: int
    permutations: int = 0
    converged: bool = True


class _Memo:
    """Evaluates each coalition once and refuses values that are not finite."""

    def __init__(self, value: CoalitionValue, count: int) -> None:
        if count < 1:
            raise GameError(f"contributions: {count} organizations, give at least one")
        self.everyone = frozenset(range(count))
        self._value = value
        self.known: dict[Coalition, float] = {}

    def __call__(self, coalition: Coalition) -> float:
        if coalition not in self.known:
            quality = float(self._value(coalition))
            if not math.isfinite(quality):
                raise GameError(
                    f"contributions: the value of coalition {sorted(coalition)} is {quality}; "
                    "evaluate its model again or leave a diverged member out"
                )
            self.known[coalition] = quality
        return self.known[coalition]


def leave_one_out(value: CoalitionValue, count: int) -> Contributions:
    """Return v(N) - v(N without i) for each organization, in count + 1 evaluations."""
    memo = _Memo(value, count)
    whole = memo(memo.everyone)
    values = np.array([whole - memo(memo.everyone - {i}) for i in range(count)])
    return Contributions(values, len(memo.known))


def exact_shapley(value: CoalitionValue, count: int) -> Contributions:
    """Return the exact Shapley values, in 2^count evaluations.

    Parameters
    ----------
    value
        The value function.
    count
        Number of organizations, at most 20.

    Raises
    ------
    GameError
        Where there are too many organizations or a value is not finite.
    """
    if count > HARD_LIMIT:
        raise GameError(f"exact Shapley: {count} organizations need 2^{count} evaluations; use gtg_shapley")
    memo = _Memo(value, count)
    table = np.array([memo(_members(mask, count)) for mask in range(2**count)])
    masks = np.arange(2**count)
    size = np.array([mask.bit_count() for mask in range(2**count)])
    # Share of the orders in which exactly a given coalition of this size comes before i.
    weight = np.array([1.0 / (count * math.comb(count - 1, s)) for s in range(count)])
    values = np.empty(count)
    for i in range(count):
        before = masks[masks >> i & 1 == 0]
        values[i] = (weight[size[before]] * (table[before | 1 << i] - table[before])).sum()
    return Contributions(values, len(memo.known))


def gtg_shapley(
    value: CoalitionValue,
    count: int,
    seed: int,
    between_tolerance: float = 0.005,
    within_tolerance: float = 0.001,
    convergence: float = 0.05,
    window: int = 20,
    max_permutations: int = 2000,
) -> Contributions:
    """Estimate Shapley values by guided truncated sampling (GTG-Shapley, 2109.02053).

    Every organization leads equally often. A round that changed quality by less than `between_tolerance`
    pays nobody. An order stops once its coalition is within `within_tolerance` of the whole: those who come
    later get 0 from it, so values sum to v(N) - v(empty) up to that tolerance.

    Parameters
    ----------
    value, count
        As for `exact_shapley`; any number of organizations.
    seed
        Of the orders.
    between_tolerance, within_tolerance
        In units of the value function.
    convergence, window
        Stop when the mean relative change of the values over the last `window` permutations is below
        `convergence`.
    max_permutations
        Stop there in any case, with `converged` False.

    Raises
    ------
    GameError
        Where a value is not finite.
    """
    memo = _Memo(value, count)
    empty, whole = memo(frozenset()), memo(memo.everyone)
    if abs(whole - empty) < between_tolerance:
        return Contributions(np.zeros(count), len(memo.known))
    random = np.random.default_rng(seed)
    total, history = np.zeros(count), [np.zeros(count)]
    while len(history) <= max_permutations:
        leader = (len(history) - 1) % count
        followers = random.permutation([i for i in range(count) if i != leader]).tolist()
        arrived: Coalition = frozenset()
        before = empty
        for i in [leader, *followers]:
            if abs(whole - before) < within_tolerance:
                break
            arrived = arrived | {i}
            after = memo(arrived)
            total[i] += after - before
            before = after
        history.append(total / len(history))
        # Only after whole cycles of leaders: in between, the leaders so far are over-counted.
        if len(history) > window and (len(history) - 1) % count == 0:
            now = history[-1]
            scale = np.maximum(np.abs(now), within_tolerance)
            change = float(np.mean([np.abs(now - old) / scale for old in history[-window - 1 : -1]]))
            if change < convergence:
                return Contributions(now, len(memo.known), len(history) - 1)
    return Contributions(history[-1], len(memo.known), max_permutations, converged=False)


def shapley(value: CoalitionValue, count: int, seed: int) -> Contributions:
    """Return Shapley values: exact for up to 8 organizations, GTG-Shapley with `seed` beyond."""
    return exact_shapley(value, count) if count <= EXACT_LIMIT else gtg_shapley(value, count, seed)


def _members(mask: int, count: int) -> Coalition:
    return frozenset(i for i in range(count) if mask >> i & 1)
