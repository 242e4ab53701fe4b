"""The privacy loss distribution of composed, Poisson-subsampled Gaussian steps, by FFT.

The neighbour relation is: add or remove one unit, whose contribution to a step has norm at most `clip` and enters
with probability `rate`. In units of `clip` a step is then dominated by the pair P = (1 - q) N(0, s^2) + q N(1, s^2),
Q = N(0, s^2) (remove a unit) and by (Q, P) (add one). Its privacy loss is put on a grid by "connecting the dots"
(2207.04380, algorithm 1): the masses of every cell under P and Q go to its two ends so that both are kept, which
never understates the loss. Steps are independent, so that losses add up: powers of one Fourier transform (2106.02848).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trustchain_ray.errors import UsageError
from trustchain_ray.privacy.settings import LEAST_NOISE, TOO_LITTLE_NOISE

LEAST_DELTA = 1e-10  # below, the rounding of the Fourier transform (1e-13 and less) would show
_DEVIATIONS = 10.0  # where the tails of one step are cut off: a mass below 1e-23
_CUT_OFF = 1e-23
_RESOLUTION = 0.03  # width of a cell, in standard deviations of the loss of a step
_MOST_CELLS = 1 << 22
_TAIL = 1e-4  # share of delta that is spent on what lies beyond the window of the transform


@dataclass(frozen=True, order=True)
class Charge:
    """`steps` releases of a sum over a Poisson sample of rate `rate`, with Gaussian noise of `noise` clip norms.

    Raises
    ------
    UsageError
        A rate outside (0, 1], a noise multiplier that is too small, or a negative number of steps.
    """

    rate: float
    noise: float
    steps: int

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1:
            raise UsageError(f"a sampling rate of {self.rate:g} is no probability above 0; lower training.batch_size")
        if not math.isfinite(self.noise) or self.noise < LEAST_NOISE:
            raise UsageError(f"a noise multiplier of {self.noise:g}: {TOO_LITTLE_NOISE}")
        if self.steps < 0:
            raise UsageError(f"{self.steps} steps: a charge cannot be taken back")


def pld_epsilon(charges: Sequence[Charge], delta: float) -> float:
    """Epsilon at `delta` of all charges together (an upper bound, tight to about 0.1 %).

    Raises
    ------
    UsageError
        `delta` outside [1e-10, 1).
    """
    if not LEAST_DELTA <= delta < 1:
        raise UsageError(f"privacy.delta={delta:g}: must be from {LEAST_DELTA:g} to below 1")
    charges = [charge for charge in charges if charge.steps]
    if not charges:
        return 0.0
    return max(_epsilon(charges, delta, removed) for removed in (True, False))


def _epsilon(charges: Sequence[Charge], delta: float, removed: bool) -> float:
    steps = sum(charge.steps for charge in charges)
    width = _RESOLUTION * math.sqrt(sum(c.steps * _variance(c) for c in charges) / steps)
    tail = _TAIL * delta
    while True:
        parts = [_discretised(charge, width, removed) for charge in charges]
        low, high = _window(parts, [c.steps for c in charges], width, tail)
        if high - low < _MOST_CELLS:
            break
        width *= 1.1 * (high - low) / _MOST_CELLS
    cells = _fast_length(high - low + 1)
    transform = np.ones(cells // 2 + 1, complex)
    for (first, masses), charge in zip(parts, charges, strict=True):
        ring = np.bincount((first + np.arange(masses.size)) % cells, weights=masses, minlength=cells)
        transform *= np.fft.rfft(ring) ** charge.steps
    masses = np.roll(np.fft.irfft(transform, cells), -low)  # the mass of loss (low + i) * width
    return _invert(np.maximum(masses, 0.0), low, width, delta - tail - steps * _CUT_OFF)


def log_ratio(charge: Charge, x: np.ndarray) -> np.ndarray:
    """The loss log P(x) / Q(x) of one step at the points x (in clip norms), float64."""
    with np.errstate(divide="ignore"):  # log 0 where every step reads all units
        stays = np.log1p(-np.float64(charge.rate))
    reads: np.ndarray = math.log(charge.rate) + (2 * x - 1) / (2 * charge.noise**2)
    return np.asarray(np.logaddexp(stays, reads))


def _place(charge: Charge, losses: np.ndarray) -> np.ndarray:
    """The x that have these losses, float64; -inf for a loss at or below log(1 - rate), the least there is."""
    if charge.rate == 1:
        return np.asarray(0.5 + charge.noise**2 * losses)
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled = np.log1p(np.expm1(losses) / charge.rate)
    return np.asarray(0.5 + charge.noise**2 * np.where(np.isnan(scaled), -np.inf, scaled))


def _variance(charge: Charge) -> float:
    """Variance under P of the loss of one step, by the trapezoidal rule."""
    x = np.linspace(-_DEVIATIONS * charge.noise, 1 + _DEVIATIONS * charge.noise, 4001)
    shape = np.exp(-0.5 * (x / charge.noise) ** 2)
    shifted = np.exp(-0.5 * ((x - 1) / charge.noise) ** 2)
    density = (1 - charge.rate) * shape + charge.rate * shifted
    density, losses = density / density.sum(), log_ratio(charge, x)
    return float(density @ (losses - density @ losses) ** 2)


def _discretised(charge: Charge, width: float, removed: bool) -> tuple[int, np.ndarray]:
    """The loss of one step on the grid: number of the first cell boundary, and the masses from there on."""
    spread = _DEVIATIONS * charge.noise
    low, high = map(float, log_ratio(charge, np.array([-spread, 1 + spread])))
    if not removed:
        low, high = -high, -low
    first = math.floor(low / width)
    losses = np.arange(first, math.ceil(high / width) + 1) * width
    x = _place(charge, losses if removed else -losses)
    null = _between(x / charge.noise)
    mixture = (1 - charge.rate) * null + charge.rate * _between((x - 1) / charge.noise)
    upper, lower = (mixture, null) if removed else (null, mixture)
    # Of a cell's mass under the first distribution, the part at the upper end that also keeps the second's mass.
    share = np.clip((upper - lower * np.exp(losses[:-1])) / -math.expm1(-width), 0.0, upper)
    masses = np.zeros(losses.size)
    masses[1:] += share
    masses[:-1] += upper - share
    masses[0] += 1.0 - masses.sum()  # what lies below the grid, put at its lower end: never understated
    return first, masses


_ERFC = np.frompyfunc(math.erfc, 1, 1)


def _between(z: np.ndarray) -> np.ndarray:
    """Standard normal mass between neighbours of a monotone array; differences of tails, never of 1 - tail."""
    tails = 0.5 * _ERFC(np.abs(z) / math.sqrt(2)).astype(np.float64)
    one_side = np.abs(np.diff(tails))
    straddles = np.sign(z[:-1]) * np.sign(z[1:]) < 0
    return np.asarray(np.where(straddles, 1.0 - tails[:-1] - tails[1:], one_side))


def _window(
    parts: Sequence[tuple[int, np.ndarray]], steps: Sequence[int], width: float, tail: float
) -> tuple[int, int]:
    """Numbers of the cells between which the sum of all losses lies but for `tail`, by Chernoff's bound."""
    moments = [
        (n, first, masses, np.arange(first, first + masses.size) * width)
        for n, (first, masses) in zip(steps, parts, strict=True)
    ]
    variance = sum(n * float(masses @ losses**2) for n, _, masses, losses in moments)
    bounds = {1: math.inf, -1: math.inf}
    for exponent in np.geomspace(0.5, 16, 6) / math.sqrt(variance):
        for sign in bounds:
            total = 0.0
            for n, _, masses, losses in moments:
                exponents = sign * exponent * losses
                most = float(exponents.max())
                total += n * (most + math.log(float(masses.clip(0) @ np.exp(exponents - most))))
            bounds[sign] = min(bounds[sign], (total - math.log(tail)) / exponent)
    return math.floor(-bounds[-1] / width), math.ceil(bounds[1] / width)


def _invert(masses: np.ndarray, low: int, width: float, delta: float) -> float:
    """The least epsilon >= 0 at which the hockey-stick divergence is at most `delta`."""
    losses = (low + np.arange(masses.size)) * width

    def divergence(epsilon: float, start: int) -> float:
        """Sum over losses above epsilon, which are those from `start` on."""
        return float(masses[start:] @ -np.expm1(epsilon - losses[start:]))

    zero = max(0, -low + 1)
    if divergence(0.0, zero) <= delta:
        return 0.0
    below, above = zero - 1, masses.size - 1  # divergence at the loss `below` is too large, at `above` not
    while above - below > 1:
        middle = (below + above) // 2
        if divergence(float(losses[middle]), middle + 1) > delta:
            below = middle
        else:
            above = middle
    # Between two neighbours the divergence is mass - exp(epsilon) * rest, exactly.
    mass = float(masses[above:].sum())
    rest = float(masses[above:] @ np.exp(losses[above] - losses[above:]))
    return max(0.0, float(losses[above]) + math.log((mass - delta) / rest))


def _fast_length(least: int) -> int:
    """The smallest even 2^a 3^b 5^c that is at least so large: lengths at which the transform is quick."""
    best = 1 << max(1, (least - 1).bit_length())
    for fives in range(10):
        for threes in range(12):
            odd = 5**fives * 3**threes
            if odd < best:
                best = min(best, odd << max(1, (-(-least // odd) - 1).bit_length()))
    return best
