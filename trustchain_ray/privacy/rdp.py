"""Rényi differential privacy of Poisson-subsampled Gaussian steps: the looser accountant that checks the other one."""

import functools
import math
from collections.abc import Sequence

import numpy as np

from trustchain_ray.privacy.pld import Charge, log_ratio

ORDERS = (*(1 + i / 10 for i in range(1, 100)), *(float(i) for i in range(11, 64)), 128.0, 256.0, 512.0, 1024.0)
"""Orders over which the bound is minimised; those of the accountants of dp-accounting and Opacus."""


def rdp_epsilon(charges: Sequence[Charge], delta: float) -> float:
    """Epsilon at `delta` of all charges together: the least bound over :data:`ORDERS`.

    From the Rényi divergence r of order a: ``r + log((a - 1) / a) - (log delta + log a) / (a - 1)`` (2004.00010,
    proposition 12).
    """
    total = np.zeros(len(ORDERS))
    for charge in charges:
        total += charge.steps * np.asarray(divergences(charge.rate, charge.noise))
    orders = np.asarray(ORDERS)
    bounds = total + np.log1p(-1 / orders) - (math.log(delta) + np.log(orders)) / (orders - 1)
    return max(0.0, float(bounds.min())) if any(charge.steps for charge in charges) else 0.0


@functools.lru_cache(maxsize=256)
def divergences(rate: float, noise: float) -> tuple[float, ...]:
    """Rényi divergence of P from Q of one step for each of :data:`ORDERS` (1908.10530, section 3.3: the pair
    (P, Q) is the worse direction).

    The integral of Q (P / Q)^a is summed by the trapezoidal rule, whose error falls exponentially for such a
    function: at this step it is rounding.
    """
    if rate == 1:
        return tuple(order / (2 * noise**2) for order in ORDERS)
    charge, width, out = Charge(rate, noise, 1), min(noise / 8, noise**2 / 2), []
    for order in ORDERS:
        if order > 64 and noise < 0.3:  # never the least bound then, and a long sum
            out.append(math.inf)
            continue
        x = np.arange(-12 * noise, order + 12 * noise, width)
        exponents = order * log_ratio(charge, x) - 0.5 * (x / noise) ** 2
        most = float(exponents.max())
        total = most + math.log(float(np.exp(exponents - most).sum()))
        out.append((total + math.log(width / (noise * math.sqrt(2 * math.pi)))) / (order - 1))
    return tuple(max(0.0, value) for value in out)
