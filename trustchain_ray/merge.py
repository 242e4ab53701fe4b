"""The merge: a weighted sum on fixed-point numbers, independent of the order of its terms.

Every value is rounded to a multiple of 2**-24. The scaled values are integers below 2**31, weights are
integers, so all products and partial sums are integers below 2**53: a float64 accumulator holds them
exactly, and neither arrival order nor the number of threads or nodes can change a bit. Leaving a term
out equals never having added it.
"""

import functools
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from trustchain_ray.errors import TrustChainError

FRACTION_BITS = 24
LIMIT = 64.0  # largest magnitude of one value of an update
_CHUNK = 1 << 17  # values of a block: its accumulator stays in the second-level cache


def weighted_sum(terms: Sequence[np.ndarray], weights: Sequence[int], threads: int = 1) -> tuple[np.ndarray, int]:
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
    reduced, total = _reduced(terms, weights)
    result = np.zeros(terms[0].size, np.float64)
    accumulate = _kernel(result.size * len(terms))

    def work(start: int, end: int) -> None:
        accumulate(result[start:end], [term[start:end] for term in terms], reduced)

    _in_blocks(work, result.size, threads)
    return result, total


def apply_step(
    base: np.ndarray, terms: Sequence[np.ndarray], weights: Sequence[int], step: float, threads: int = 0
) -> np.ndarray:
    """``base + step * weighted mean of terms`` as float32, shape ``(n,)``; bit-equal in any order of the terms
    and with any number of threads (0: all cores for a large merge)."""
    reduced, total = _reduced(terms, weights)
    threads = threads or (os.cpu_count() or 1 if base.size * len(terms) >= _COMPILE_FROM else 1)
    out = np.empty(base.size, np.float32)
    accumulate = _kernel(out.size * len(terms))
    factor = step / (total * 2**FRACTION_BITS)

    def work(start: int, end: int) -> None:
        block = np.zeros(end - start, np.float64)
        accumulate(block, [term[start:end] for term in terms], reduced)
        block *= factor
        block += base[start:end]
        out[start:end] = block

    _in_blocks(work, out.size, threads)
    return out


def add_sum(base: np.ndarray, sums: np.ndarray, total: int, step: float) -> np.ndarray:
    """The bits of :func:`apply_step` from what :func:`weighted_sum` gives for the same terms.

    Parameters
    ----------
    base : float32 array ``(n,)``.
    sums, total : float64 array ``(n,)`` of integers and the sum of the reduced weights.

    Returns
    -------
    float32 array ``(n,)``.
    """
    out = sums * (step / (total * 2**FRACTION_BITS))
    out += base
    return np.asarray(out, np.float32)


def _reduced(terms: Sequence[np.ndarray], weights: Sequence[int]) -> tuple[list[int], int]:
    """Weights without their common divisor, and their sum, if the merge is exact with them."""
    if not terms or any(weight < 1 for weight in weights):
        raise TrustChainError(f"a merge needs terms with positive weights, got {list(weights)}")
    divisor = math.gcd(*weights)
    reduced = [weight // divisor for weight in weights]
    total = sum(reduced)
    if total * LIMIT * 2**FRACTION_BITS >= 2**53:
        raise TrustChainError(
            f"the weights of a merge add up to {total}: more than {int(2**53 / (LIMIT * 2**FRACTION_BITS))} is not "
            "exact in fixed point; set federation.weights=equal"
        )
    return reduced, total


def _in_blocks(work: Callable[[int, int], None], size: int, threads: int) -> None:
    """Call `work(start, end)` on blocks of all values, on several threads."""
    starts = range(0, size, _CHUNK)
    if threads == 1:
        for start in starts:
            work(start, min(start + _CHUNK, size))
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda start: work(start, min(start + _CHUNK, size)), starts))


Accumulate = Callable[[np.ndarray, Sequence[np.ndarray], Sequence[int]], None]
_COMPILE_FROM = 1 << 24  # values of a merge for which compiling the kernel (half a second, once) pays


def _kernel(values: int) -> Accumulate:
    """The compiled kernel for large merges where numba is installed, else NumPy: the same bits."""
    if values < _COMPILE_FROM:
        return _accumulate
    try:
        return _compiled()
    except ImportError:
        return _accumulate


def _accumulate(out: np.ndarray, terms: Sequence[np.ndarray], weights: Sequence[int]) -> None:
    """``out += sum weights[i] * round(terms[i] * 2**24)`` by NumPy."""
    scaled = np.empty(out.size, np.float32)
    product = np.empty(out.size, np.float64)
    for term, weight in zip(terms, weights, strict=True):
        np.multiply(term, np.float32(2**FRACTION_BITS), out=scaled)
        np.rint(scaled, out=scaled)  # exact: scaling by a power of two keeps the float32 mantissa
        # dtype: a float32 array times a Python number is rounded to float32 otherwise
        np.multiply(scaled, weight, out=product, dtype=np.float64)
        np.add(out, product, out=out)


@functools.cache
def _compiled() -> Accumulate:
    """The same in one pass over four terms at a time, compiled, without the interpreter lock."""
    import numba

    one = np.float32(2**FRACTION_BITS)

    @numba.njit(nogil=True, error_model="numpy")
    def four(out, a, b, c, d, wa, wb, wc, wd):  # type: ignore[no-untyped-def]
        for i in range(out.size):
            first = np.float64(np.rint(a[i] * one)) * wa + np.float64(np.rint(b[i] * one)) * wb
            second = np.float64(np.rint(c[i] * one)) * wc + np.float64(np.rint(d[i] * one)) * wd
            out[i] += first + second

    def accumulate(out: np.ndarray, terms: Sequence[np.ndarray], weights: Sequence[int]) -> None:
        for k in range(0, len(terms), 4):
            group, factors = list(terms[k : k + 4]), [float(w) for w in weights[k : k + 4]]
            missing = 4 - len(group)  # filled up with the last term at weight zero
            four(out, *group, *[group[-1]] * missing, *factors, *[0.0] * missing)

    return accumulate
