"""Rules that merge one cohort's updates of a round when some of them are hostile.

A rule is a function of the set of updates alone: they are taken in the order of their organizations' names, distances
are exact (:mod:`trustchain_ray.robust.geometry`), ties go to who stands first. Neither arrival order nor the number of
threads changes a bit, and leaving a member out gives what a round without it gives.

Every rule ends as terms with integer weights, which :func:`trustchain_ray.merge.apply_step` sums on fixed point.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from trustchain_ray.merge import FRACTION_BITS
from trustchain_ray.robust.geometry import Matrix, fixed, gram, nearest, of_sums, squared_distances
from trustchain_ray.robust.settings import (
    GEOMETRIC_MEDIAN,
    MEAN,
    MEDIAN,
    MULTI_KRUM,
    NORM_BOUND,
    least_members,
    most_hostile,
)

COPY = 100  # so many times their squared distance is at most the squared length of near copies
WEISZFELD_STEPS = 32
SMOOTHING = 1e-6  # of the distances in Weiszfeld's algorithm, as a share of the median distance
_TOTAL = 1 << 22  # what the integer weights of the geometric median add up to, about
_BLOCK = 1 << 18

Groups = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Chosen:
    """What a rule makes of updates.

    Attributes
    ----------
    terms
        float32 arrays ``(n,)`` to be averaged.
    weights
        Positive integers, one a term.
    shares
        For each update how much of it is in the average, from 0 (left out) to 1; they add up to 1, but under
        `norm_bound` to less where updates were clipped. Of a coordinate-wise rule it is the mean over coordinates.
    stands
        How many hostile updates the rule stands among these: fewer than asked where too few came.
    """

    terms: list[np.ndarray]
    weights: list[int]
    shares: list[float]
    stands: int


def choose(
    rule: str, buffers: Sequence[np.ndarray], weights: Sequence[int], hostile: int = 0, mixing: bool = False
) -> Chosen:
    """Apply a rule. Near copies count once, whatever the rule but the mean: as the first of them, with the largest of
    their weights; the share is divided among them, since nobody can tell who copied whom.

    Parameters
    ----------
    rule
        Of :data:`trustchain_ray.robust.settings.RULES`.
    buffers
        The updates, in the order of their organizations' names: float32 ``(n,)``, finite, at most 64 in magnitude.
    weights
        Positive integers. `mean` and `norm_bound` keep them; the other rules take every member once, since a hostile
        one could claim as many records as it may.
    hostile
        How many hostile updates to stand; the most that the number of updates allows, where that is less.
    mixing
        First replace every update by the mean of its n - hostile nearest, itself included (nearest-neighbour mixing,
        2302.01772): updates of honest members with different records come closer together.
    """
    stands = min(hostile, most_hostile(rule, len(buffers)))
    if rule == MEAN:
        total = sum(weights)
        return Chosen(list(buffers), list(weights), [weight / total for weight in weights], 0)
    products = gram(buffers)
    if len(alike := near_copies(products)) < len(buffers):
        firsts = [same[0] for same in alike]
        most = [max(weights[i] for i in same) for same in alike]
        once = choose(rule, [buffers[i] for i in firsts], most, hostile, mixing)
        shares = [0.0] * len(buffers)
        for same, share in zip(alike, once.shares, strict=True):
            for i in same:
                shares[i] = share / len(same)
        return replace(once, shares=shares)
    groups: Groups = [[i] for i in range(len(buffers))]
    if mixing:
        groups = nearest(squared_distances(products), len(buffers) - stands)
        products = of_sums(products, groups)
    if rule == NORM_BOUND:
        return _norm_bound(buffers, weights, groups, products, stands)
    if rule == MULTI_KRUM:
        selected = krum_selection(squared_distances(products), stands)
        counts = [int(i in selected) for i in range(len(buffers))]
        return _combined(buffers, _through(groups, counts), stands)
    if rule == GEOMETRIC_MEDIAN:
        counts = weiszfeld(squared_distances(products), _TOTAL // len(groups[0]))
        return _combined(buffers, _through(groups, counts), stands)
    return _by_coordinate(buffers, groups, (len(buffers) - 1) // 2 if rule == MEDIAN else stands, stands)


def near_copies(products: Matrix) -> list[list[int]]:
    """Updates in groups of near copies: those within a tenth of the shorter one's length of a group's first.

    Two trainings on different records are never as close; one party under two names, or one that copies another's
    update and adds a little noise, is. Updates that change nothing are alike without being copied.
    """
    distances, groups = squared_distances(products), list[list[int]]()
    for i, row in enumerate(distances):
        for group in groups:
            shorter = min(products[i][i], products[group[0]][group[0]])
            if shorter and row[group[0]] * COPY <= shorter:
                group.append(i)
                break
        else:
            groups.append([i])
    return groups


def krum_selection(distances: Matrix, hostile: int) -> list[int]:
    """The n - f updates with the smallest sum of squared distances to their n - f - 2 nearest (Multi-Krum, 1703.02757).

    Parameters
    ----------
    distances : squared ones. Too few updates for f = `hostile`: all are selected.
    """
    count = len(distances)
    if not hostile or count < least_members(MULTI_KRUM, hostile):
        return list(range(count))
    scores = []
    for i, row in enumerate(distances):
        others = sorted(value for j, value in enumerate(row) if j != i)
        scores.append((sum(others[: count - hostile - 2]), i))
    return sorted(i for _, i in sorted(scores)[: count - hostile])


def weiszfeld(distances: Matrix, total: int = _TOTAL) -> list[int]:
    """Weights of the smoothed geometric median (RFA, 1912.13445), after a fixed number of Weiszfeld's steps.

    The median is ``sum_i c_i x_i`` with ``sum_i c_i = 1``, and ``|x_i - sum_j c_j x_j|^2 = (D c)_i - c' D c / 2``:
    distances D between updates are all that is needed, and the sums are rounded once (`math.fsum`).

    Parameters
    ----------
    distances : squared ones.
    total : what the result adds up to, about.

    Returns
    -------
    The c_i as integers.
    """
    count = len(distances)
    largest = max((value for row in distances for value in row), default=0)
    if not largest:
        return [1] * count
    squares = [[value / largest for value in row] for row in distances]  # of integers: rounded once
    between = sorted(value for i, row in enumerate(squares) for value in row[:i])
    least = max(SMOOTHING * math.sqrt(between[len(between) // 2]), SMOOTHING**2)
    c = [1 / count] * count
    for _ in range(WEISZFELD_STEPS):
        to_each = [math.fsum(value * weight for value, weight in zip(row, c, strict=True)) for row in squares]
        spread = math.fsum(value * weight for value, weight in zip(to_each, c, strict=True)) / 2
        pull = [1 / max(least, math.sqrt(max(0.0, value - spread))) for value in to_each]
        together = math.fsum(pull)
        c = [value / together for value in pull]
    return [round(value * total) for value in c]


def _norm_bound(
    buffers: Sequence[np.ndarray], weights: Sequence[int], groups: Groups, products: Matrix, stands: int
) -> Chosen:
    """Clip every update to the median norm of this round's (1911.07963, with a bound that nobody has to choose).

    Of an even number it is the smaller one of the two in the middle: below half of hostile updates cannot raise it
    above the norm of an honest one.
    """
    squares = [row[i] for i, row in enumerate(products)]
    bound = sorted(squares)[(len(squares) - 1) // 2]
    factors = [1.0 if square <= bound else math.sqrt(bound / square) for square in squares]
    terms = []
    for i, group in enumerate(groups):
        if len(group) == 1 and factors[i] == 1.0:
            terms.append(buffers[i])
        else:
            scale = factors[i] / len(group) / 2**FRACTION_BITS
            terms.append((sum(fixed(buffers[j]) for j in group) * scale).astype(np.float32))
    total = sum(weights)
    shares = [0.0] * len(buffers)
    for group, factor, weight in zip(groups, factors, weights, strict=True):
        for j in group:
            shares[j] += factor * weight / total / len(group)
    return Chosen(terms, list(weights), shares, stands)


def _combined(buffers: Sequence[np.ndarray], counts: Sequence[int], stands: int) -> Chosen:
    """The updates averaged with integer weights; those of weight 0 are left out."""
    divisor = math.gcd(*counts)
    weights = [count // divisor for count in counts]
    total = sum(weights)
    kept = [i for i, weight in enumerate(weights) if weight]
    shares = [weight / total for weight in weights]
    return Chosen([buffers[i] for i in kept], [weights[i] for i in kept], shares, stands)


def _through(groups: Groups, counts: Sequence[int]) -> list[int]:
    """Weights of the updates, from those of the sums of groups of equal size."""
    through = [0] * len(groups)
    for group, count in zip(groups, counts, strict=True):
        for j in group:
            through[j] += count
    return through


def _by_coordinate(buffers: Sequence[np.ndarray], groups: Groups, trim: int, stands: int) -> Chosen:
    """Drop the `trim` largest and smallest values of every coordinate and average the rest (1803.01498).

    With ``trim = (n - 1) // 2`` it is the median. The sums are of integers, hence exact.
    """
    count, size = len(buffers), buffers[0].size
    kept = count - 2 * trim
    out, taken = np.empty(size, np.float32), np.zeros(count, np.int64)
    for start in range(0, size, _BLOCK):
        end = min(start + _BLOCK, size)
        values = np.stack([fixed(buffer, start, end) for buffer in buffers], 1)
        if len(groups[0]) > 1:
            values = np.stack([values[:, list(group)].sum(1) for group in groups], 1)
        order = np.argsort(values, 1, kind="stable")[:, trim : count - trim]
        taken += np.bincount(order.reshape(-1), minlength=count)
        total = np.take_along_axis(values, order, 1).sum(1)
        out[start:end] = total / (kept * len(groups[0]) * 2**FRACTION_BITS)
    counts = _through(groups, [int(number) for number in taken])
    return Chosen([out], [1], [number / (size * kept * len(groups[0])) for number in counts], stands)
