"""Between an update and the numbers that are masked: the fixed point of the merge, as 64-bit integers.

The weights are public: each member states its own in its signed keys. They are reduced by the common divisor of all
that sent keys, and their sum must be below 2**23, the bound of the plain merge. A value is at most 64 * 2**24 = 2**30
in magnitude, so a sum of honest members is below 2**53: it cannot overflow 2**63, and float64 holds it exactly.
"""

import math
from collections.abc import Mapping

import numpy as np

from trustchain_ray.errors import TrustChainError
from trustchain_ray.merge import FRACTION_BITS, LIMIT

_LARGEST = int(LIMIT) * 2**FRACTION_BITS  # of one value, on fixed point
_MOST = 2**53 // _LARGEST  # the sum of the reduced weights stays below it


def reduced_weights(weights: Mapping[str, int]) -> dict[str, int]:
    """Weights without their common divisor.

    Raises
    ------
    TrustChainError
        The sum over all these members would not be exact.
    """
    divisor = math.gcd(*weights.values())
    reduced = {name: weight // divisor for name, weight in weights.items()}
    total = sum(reduced.values())
    if total >= _MOST:
        raise TrustChainError(
            f"secure aggregation: the weights add up to {total}: {_MOST} and more is not exact in fixed point; "
            "set federation.weights=equal"
        )
    return reduced


def check_update(update: np.ndarray, size: int) -> np.ndarray:
    """Refuse an update that cannot be summed exactly.

    Raises
    ------
    TrustChainError
        Not float32 of shape ``(size,)``, not finite, or a value above 64 in magnitude.
    """
    if update.dtype != np.float32 or update.shape != (size,):
        raise TrustChainError(
            f"secure aggregation: the update is {update.dtype} of shape {update.shape}; the session sums float32 of "
            f"shape ({size},)"
        )
    # Two passes without a temporary; a NaN makes both comparisons false.
    if not (update.max() <= LIMIT and update.min() >= -LIMIT):
        raise TrustChainError(
            f"secure aggregation: the update holds a value that is not finite or above {LIMIT:g} in magnitude; lower "
            "the learning rate or trust.max_update_norm"
        )
    return update


def encode(update: np.ndarray, weight: int) -> np.ndarray:
    """``weight * round(update * 2**24)`` mod 2**64, the numbers of :func:`trustchain_ray.merge.weighted_sum`.

    Parameters
    ----------
    update : float32 array ``(n,)`` that :func:`check_update` has passed.
    weight : reduced weight of the member.

    Returns
    -------
    uint64 array ``(n,)``.
    """
    scaled = np.multiply(update, np.float32(2**FRACTION_BITS))
    np.rint(scaled, out=scaled)  # exact: scaling by a power of two keeps the float32 mantissa
    product: np.ndarray = np.multiply(scaled, weight, dtype=np.float64)
    return product.astype(np.int64).view(np.uint64)


def decode(total: np.ndarray, weights: Mapping[str, int]) -> tuple[np.ndarray, int]:
    """What the plain merge of the same members gives: their sum, and the sum of their weights.

    Parameters
    ----------
    total : uint64 array ``(n,)``, the sum mod 2**64 without masks.
    weights : of the members in the sum, as :func:`encode` had them.

    Returns
    -------
    float64 array ``(n,)`` of integers and the sum of the weights, both without the members' common divisor: the bits
    of ``weighted_sum(updates, weights)``.

    Raises
    ------
    TrustChainError
        The sum is out of range or no multiple of the common divisor: a member masked something other than an update.
    """
    divisor = math.gcd(*weights.values())
    sums = total.view(np.int64)
    bound = sum(weights.values()) * _LARGEST
    if int(sums.max()) > bound or int(sums.min()) < -bound:
        raise TrustChainError(_OUT_OF_RANGE)
    if divisor > 1:
        sums, rest = np.divmod(sums, divisor)
        if rest.any():
            raise TrustChainError(_OUT_OF_RANGE)
    return sums.astype(np.float64), sum(weights.values()) // divisor


_OUT_OF_RANGE = (
    "secure aggregation: the sum is not one of valid updates: a member masked other numbers than an update of its "
    "weight; the masks hide which: nothing is merged; repeat the round in smaller groups to find it"
)
