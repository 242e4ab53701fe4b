"""Checks that every metric makes of its inputs."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from trustchain_ray.errors import TrustChainError

Values = NDArray[np.float64]
Numbers = Sequence[float] | NDArray[np.floating]


def values(what: str, given: Numbers, *, infinite: bool = False) -> Values:
    """One number a record, float64 ``(records,)``.

    Parameters
    ----------
    what : the name of the input in an error.
    infinite : whether infinity is allowed (statistics by rank).

    Raises
    ------
    TrustChainError
        No values, another shape, or a value that is not a number.
    """
    array = np.asarray(given, np.float64)
    if array.ndim != 1:
        raise TrustChainError(f"{what}: one number a record is needed, not an array of shape {array.shape}")
    if not array.size:
        raise TrustChainError(f"{what}: there are no records to measure on; give at least one")
    bad = np.isnan(array) if infinite else ~np.isfinite(array)
    if bad.any():
        raise TrustChainError(
            f"{what}: {int(bad.sum())} of {array.size} values are not finite (the first at index "
            f"{int(bad.argmax())}); the model diverged, or its adapter holds NaN"
        )
    return array


def pairs(what: str, first: Numbers, second: Numbers) -> tuple[Values, Values]:
    """Two values a record, both ``(records,)``.

    Raises
    ------
    TrustChainError
        As :func:`values`, or different numbers of records.
    """
    one, two = values(what, first), values(what, second)
    if one.size != two.size:
        raise TrustChainError(f"{what}: {one.size} values against {two.size}; both must be of the same records")
    return one, two
