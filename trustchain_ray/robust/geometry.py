"""Inner products and distances of updates, exact: on the integers of the merge's fixed point.

A value is ``rint(x * 2**24)``, below 2**30 in magnitude. It is cut into two limbs of at most 2**15, whose products,
summed over a block of 2**22 values, stay below 2**53: BLAS computes them without rounding, in whatever order and with
however many threads. The blocks are added up as Python integers. So equal updates have distance 0, ties are ties, and
no machine sees another neighbour.
"""

from collections.abc import Sequence

import numpy as np

from trustchain_ray.merge import FRACTION_BITS

Matrix = list[list[int]]
BLOCK = 1 << 22
_LIMB = 1 << 16


def fixed(buffer: np.ndarray, start: int = 0, end: int | None = None) -> np.ndarray:
    """Values `start` to `end` of a float32 buffer in units of 2**-24, as whole numbers in float64."""
    scaled = buffer[start:end] * np.float32(2**FRACTION_BITS)  # exact: a power of two keeps the mantissa
    return np.rint(scaled).astype(np.float64)


def gram(buffers: Sequence[np.ndarray]) -> Matrix:
    """Inner products of updates, exact.

    Parameters
    ----------
    buffers : float32 arrays of one shape ``(n,)``, finite and at most 64 in magnitude.

    Returns
    -------
    The symmetric matrix of inner products, in units of 2**-48.
    """
    count, size = len(buffers), buffers[0].size
    total = [[0] * count for _ in range(count)]
    for start in range(0, size, BLOCK):
        block = np.stack([fixed(buffer, start, start + BLOCK) for buffer in buffers])
        high = np.rint(block / _LIMB)
        low = block - high * _LIMB
        squares, crosses, rest = high @ high.T, high @ low.T, low @ low.T
        for i in range(count):
            for j in range(count):
                middle = int(crosses[i, j]) + int(crosses[j, i])
                total[i][j] += (int(squares[i, j]) * _LIMB + middle) * _LIMB + int(rest[i, j])
    return total


def squared_distances(products: Matrix) -> Matrix:
    """Squared distances ``|x_i - x_j|^2`` from inner products, in the units of those."""
    own = [row[i] for i, row in enumerate(products)]
    return [[own[i] + own[j] - 2 * value for j, value in enumerate(row)] for i, row in enumerate(products)]


def nearest(distances: Matrix, count: int) -> list[list[int]]:
    """For every update the `count` nearest ones, itself first; of equally near ones those that stand first.

    Updates stand in the order of their organizations' names, so that ties are broken by name.
    """
    return [
        sorted(sorted(range(len(row)), key=lambda j: (j != i, row[j], j))[:count]) for i, row in enumerate(distances)
    ]


def of_sums(products: Matrix, groups: Sequence[Sequence[int]]) -> Matrix:
    """Inner products of sums of updates, ``<sum of group a, sum of group b>``."""
    return [[sum(products[i][j] for i in a for j in b) for b in groups] for a in groups]
