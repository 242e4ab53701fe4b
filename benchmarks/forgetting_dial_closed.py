"""Closed-form merges from sums over records: RegMean in the rank space, and an analytic head.

A record enters by second moments of its features on the frozen base, rounded to a grid: sums of integers do not depend
on the order, so a record is taken out by subtracting its part, and what is left equals never having had it. No
gradient step is replayed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trustchain_ray.adapter import LORA_B, Tensors
from trustchain_ray.errors import TrustChainError
from trustchain_ray.merge import FRACTION_BITS

Integers = NDArray[np.int64]
Reals = NDArray[np.float64]
HEAD = "head"
"""Name of the Gram matrix of a head that is trained in full; layers have that of their adapter."""


@dataclass(frozen=True)
class Sums:
    """Sums over records on the grid of 2**-24.

    Attributes
    ----------
    gram : mean over a record's positions of ``x x^T``, summed over records, int64 ``(d, d)``.
    cross : the same of ``x y^T`` with one-hot classes y, int64 ``(d, classes)``; no columns where nothing is predicted.
    """

    gram: Integers
    cross: Integers

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(self.gram + other.gram, self.cross + other.cross)

    def __sub__(self, other: "Sums") -> "Sums":
        return Sums(self.gram - other.gram, self.cross - other.cross)


def sums_of_record(features: NDArray[np.floating], classes: Sequence[int] = (), count: int = 0) -> Sums:
    """The part of one record.

    Parameters
    ----------
    features : finite, ``(positions, d)``, at least one position.
    classes : the right class of every position; empty: nothing is predicted.
    count : number of classes.

    Raises
    ------
    TrustChainError
        No position, or a feature that is not finite.
    """
    x = np.asarray(features, np.float64)
    if not len(x) or not np.isfinite(x).all():
        raise TrustChainError(f"a record needs finite features at one position or more; it has shape {x.shape}")
    cross = np.zeros((x.shape[1], count))
    for row, name in zip(x, classes, strict=False):
        cross[:, name] += row
    return Sums(_on_grid(x.T @ x / len(x)), _on_grid(cross / len(x)))


def total(parts: Sequence[Sums]) -> Sums:
    """The sum over records; at least one."""
    return Sums(
        np.sum([part.gram for part in parts], axis=0, dtype=np.int64),
        np.sum([part.cross for part in parts], axis=0, dtype=np.int64),
    )


def regression(sums: Sums, ridge: float) -> Reals:
    """The analytic head ``(G + e I)^-1 C``, float64 ``(d, classes)``; e is `ridge` times the mean of G's diagonal.

    Least squares on one-hot classes. The classes of a position are ranked by ``x @ head``.
    """
    gram = sums.gram / 2**FRACTION_BITS
    return np.asarray(np.linalg.solve(gram + _level(gram, ridge), sums.cross / 2**FRACTION_BITS), np.float64)


def regmean(weights: Sequence[NDArray[np.floating]], grams: Sequence[Integers], ridge: float) -> Reals:
    """``(sum_i W_i G_i) (sum_i G_i)^-1``: least squares to what every cohort's own layer says on its own records.

    RegMean (https://arxiv.org/abs/2212.09849, equation 2). Instead of shrinking the off-diagonal, `ridge` times the
    mean of the sum's diagonal is added to the diagonals, an equal part to each cohort's: where there is no information
    the result is the mean.

    Parameters
    ----------
    weights : of each cohort, ``(out, d)``: B of a layer, whose A is one and the same for all, or a head.
    grams : of each cohort's records, int64 ``(d, d)``; of A x for a layer.
    """
    real = [gram / 2**FRACTION_BITS for gram in grams]
    level = _level(np.sum(real, axis=0), ridge) / len(real)
    products = [np.asarray(w, np.float64) @ (gram + level) for w, gram in zip(weights, real, strict=True)]
    return np.asarray(np.linalg.solve(np.sum([gram + level for gram in real], axis=0), np.sum(products, axis=0).T).T)


def merge_by_grams(states: Sequence[Tensors], grams: Sequence[dict[str, Integers]], ridge: float) -> Tensors:
    """The RegMean of cohorts of the form `ffa`: every B by its layer's Gram matrix, the head (weight and bias) by its
    own. float32, by PEFT name."""
    merged: Tensors = {}
    head = sorted(name for name in states[0] if not name.endswith(LORA_B))
    for name in states[0]:
        if name.endswith(LORA_B):
            own = [gram[name.removesuffix(LORA_B)] for gram in grams]
            merged[name] = regmean([state[name] for state in states], own, ridge).astype(np.float32)
    if head:
        bias, weight = head  # in the order of their names
        whole = [np.concatenate([state[weight], state[bias][:, None]], axis=1) for state in states]
        found = regmean(whole, [gram[HEAD] for gram in grams], ridge).astype(np.float32)
        merged |= {weight: np.ascontiguousarray(found[:, :-1]), bias: np.ascontiguousarray(found[:, -1])}
    return merged


def with_one(features: NDArray[np.floating]) -> Reals:
    """Features and a column of ones, for a bias: ``(positions, d + 1)``."""
    return np.concatenate([np.asarray(features, np.float64), np.ones((len(features), 1))], axis=1)


def _on_grid(values: Reals) -> Integers:
    return np.asarray(np.rint(values * 2**FRACTION_BITS), np.int64)


def _level(gram: Reals, ridge: float) -> Reals:
    return np.asarray(ridge * np.trace(gram) / len(gram) * np.eye(len(gram)), np.float64)
