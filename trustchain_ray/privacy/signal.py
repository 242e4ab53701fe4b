"""How much of what is trained is left under the noise, and the noise of a whole update."""

import math

import numpy as np

from trustchain_ray.errors import TrustChainError
from trustchain_ray.merge import FRACTION_BITS
from trustchain_ray.privacy.noise import gaussian

LEAST_RATIO = 1.0


def step_noise(noise: float, values: int, batch_size: int) -> float:
    """Expected norm of the noise in a step's mean gradient, in clip norms: ``noise * sqrt(values) / batch_size``.

    The signal, a mean of clipped gradients, has a norm of at most 1.

    Parameters
    ----------
    noise : the noise multiplier.
    values : trained numbers.
    """
    return noise * math.sqrt(values) / batch_size


def step_warning(dp: str, ratio: float, organizations: int, batch_size: int, units: int) -> str | None:
    """What to change where the noise of a step exceeds what a step can hold at most; else None.

    Parameters
    ----------
    ratio : of :func:`step_noise`, of one organization.
    organizations : that train together: the mean of their steps has 1 / sqrt(N) of the noise.
    batch_size, units : of the organization.
    """
    merged = ratio / math.sqrt(organizations)
    if merged <= LEAST_RATIO:
        return None
    return (
        f"privacy.dp={dp}: a step's noise is {ratio:.2g} times its largest possible signal, {merged:.2g} times in the "
        f"mean of {organizations}: the model will hardly learn. It is noise * sqrt(trained values) / batch_size: raise "
        f"training.batch_size (now {batch_size} of {units} units) and the number of records (data.limit), lower "
        "model.lora.rank, or name fewer modules in model.lora.targets, such as those of the last layers"
    )


def signal_to_noise(noise: float, values: int, organizations: int) -> float:
    """Largest norm of the mean of all clipped updates over the expected norm of its noise (`dp: organization`).

    Each organization adds its own full noise, since nobody is trusted to add it: of N the mean keeps 1 / sqrt(N).
    """
    return math.sqrt(organizations) / (noise * math.sqrt(values))


def noise_warning(noise: float, values: int, organizations: int) -> str | None:
    """What to tell whoever chose `privacy.dp: organization`, where the noise drowns the updates; else None."""
    ratio = signal_to_noise(noise, values, organizations)
    if ratio >= LEAST_RATIO:
        return None
    return (
        f"privacy.dp=organization: the mean of {organizations} updates of {values:,} values has a signal-to-noise "
        f"ratio of at most {ratio:.2g}; about {math.ceil(organizations / ratio**2):,} organizations would reach 1. "
        "privacy.dp=record or subject protects persons with far less noise"
    )


def private_update(update: np.ndarray, clip: float, noise: float, key: bytes, number: int) -> np.ndarray:
    """A whole update, clipped to the norm `clip`, with noise: what the round would be without it can hardly be told.

    Neighbours differ in whether the organization's update is there or zero. Rounded to the grid of the merge before
    and after the noise.

    Parameters
    ----------
    update : float32 ``(n,)``.
    noise : standard deviation in multiples of `clip`.
    key : of :func:`trustchain_ray.privacy.noise.noise_key`.
    number : of the round.

    Returns
    -------
    float32 ``(n,)``.

    Raises
    ------
    TrustChainError
        The update holds NaN or infinity.
    """
    exact = update.astype(np.float64)
    norm = float(np.linalg.norm(exact))
    if not math.isfinite(norm):
        raise TrustChainError("an update holds NaN or infinity and cannot be clipped; lower training.lr")
    unit = 2.0**-FRACTION_BITS
    clipped = np.trunc(exact * min(1.0, clip / norm if norm else 1.0) / unit)  # towards zero: the norm only falls
    noised = clipped + np.rint(gaussian(key, number, exact.size) * (noise * clip / unit))
    return (noised * unit).astype(np.float32)
