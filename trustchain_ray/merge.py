"""The merge: a weighted sum on fixed-point numbers, independent of the order of its terms.

Every value is rounded to a multiple of 2**-24. The scaled values are integers below 2**31, weights are
integers, so all products and partial sums are integers below 2**53: a float64 accumulator holds them
exactly, and neither arrival order nor the number of threads or nodes can change a bit. Leaving a term
out equals never having added it.
"""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from trustchain_ray.errors import TrustChainError

FRACTION_BITS = 24
LIMIT = 64.0  # largest magnitude of one value of an update
_CHUNK = 1 << 15  # values of a block: its temporaries stay in the first-level caches


def weighted_sum(
    terms: Sequence[np.ndarray], weights: Sequence[int], threads: int = 1
) -> tuple[np.ndarray, int]:
    """``sum_i weights[i] * round(terms[i] * 2**24)``, exactly, and the total weight.

    Parameters
    ----------
    terms : float32 arrays of one shape ``(n,)``, finite and at most 64 in magnitude.
    weights : positive integers; a common divisor is taken out.

    Returns
    -------
    float64 array ``(n,)`` of integers, and the sum of the reduced weights.

    Raises
    ------
    TrustChainError
        A weight below one, or weights so large that the sum would not be exact.
    """
    if not terms or any(weight < 1 for weight in weights):
        raise TrustChainError(f"a merge needs terms with positive weights, got {list(weights)}")
    divisor = math.gcd(*weights)
    reduced = [weight // divisor for weight in weights]
    total = sum(reduced)
    if total * LIMIT * 2**FRACTION_BITS >= 2**53:
        raise TrustChainError(
            f"the weights of a merge add up to {total}: {int(2**53 / (LIMIT * 2**FRACTION_BITS))} or more is not "
            "exact in fixed point; set federation.weights=equal"
        )
    size = terms[0].size
    result = np.zeros(size, np.float64)

    def block_range(first: int, last: int) -> None:
        scaled = np.empty(_CHUNK, np.float32)
        product = np.empty(_CHUNK, np.float64)
        for start in range(first, last, _CHUNK):
            end = min(start + _CHUNK, last)
            out, s, p = result[start:end], scaled[: end - start], product[: end - start]
            for term, weight in zip(terms, reduced, strict=True):
                np.multiply(term[start:end], np.float32(2**FRACTION_BITS), out=s)
                np.rint(s, out=s)  # exact: scaling by a power of two keeps the float32 mantissa
                if weight == 1:
                    np.add(out, s, out=out)
                else:
                    np.multiply(s, float(weight), out=p)
                    np.add(out, p, out=out)

    edges = [size * i // threads // _CHUNK * _CHUNK for i in range(threads)] + [size]
    if threads == 1:
        block_range(0, size)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(block_range, edges[:-1], edges[1:]))
    return result, total


def apply_step(
    base: np.ndarray, terms: Sequence[np.ndarray], weights: Sequence[int], step: float, threads: int = 1
) -> np.ndarray:
    """``base + step * weighted mean of terms``, float32 ``(n,)``; bit-equal in any order of the terms."""
    total, weight = weighted_sum(terms, weights, threads)
    total *= step / (weight * 2**FRACTION_BITS)
    total += base
    return total.astype(np.float32)
