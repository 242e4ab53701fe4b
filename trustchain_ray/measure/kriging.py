"""Quality at joint efforts that were not measured: Gaussian process regression (kriging) over efforts and rank.

Prior of the gain over the untrained model, with e the efforts to the power g (half the steps give more than half),
s their mean and r the rank:

    k = (b^2 e.e' + c^2 s s' + d^2 exp(-|e - e'|^2 / 2 l^2)) * exp(-(log2 r - log2 r')^2 / 2 m^2)

that is: an own slope of every organization, a common slope, and a smooth departure from both (interaction,
saturation). The noise is the known standard error of each measurement. The hyper-parameters are not maximised, which
would be too sure of them, but averaged over: a Metropolis walk over their posterior under a log-uniform prior
(Rasmussen and Williams, Gaussian Processes for Machine Learning, 2.2, 5.2 and 5.4). Errors are widened by the root
mean square of the standardised leave-one-out residuals where that is above 1.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trustchain_ray.errors import TrustChainError
from trustchain_ray.keys import generator

MAX_MEASURED = 1000
_STARTS, _WALK, _KEPT = 200, 1200, 40
# ln of (b, c, d, l, m, nugget, g): the box of the prior
_LOW = np.log([0.005, 0.01, 0.005, 0.4, 0.5, 1e-3, 0.25])
_HIGH = np.log([0.5, 1.5, 0.5, 4.0, 8.0, 5e-2, 1.5])


@dataclass(frozen=True)
class Process:
    """A Gaussian process at one draw of the hyper-parameters, conditioned on the measurements."""

    parameters: np.ndarray
    inputs: np.ndarray
    weights: np.ndarray
    factor: np.ndarray

    def predict(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean gain and its variance at inputs ``(points, organizations + 1)``."""
        across = _kernel(x, self.inputs, self.parameters)
        own = np.array([_kernel(row[None], row[None], self.parameters)[0, 0] for row in x])
        nugget = math.exp(2 * self.parameters[5])  # a point differs from the smooth surface by so much
        variance = own + nugget - (np.linalg.solve(self.factor, across.T) ** 2).sum(0)
        return across @ self.weights, np.maximum(variance, 0.0)


@dataclass(frozen=True)
class Kriging:
    """An average of processes. Made with :func:`fit`.

    Attributes
    ----------
    empty
        Quality of the untrained model, at which all processes are fixed.
    widening
        Factor on predicted standard errors, at least 1.
    leave_one_out
        Share of measured points whose leave-one-out prediction lies within two of its standard errors.
    """

    processes: tuple[Process, ...]
    empty: float
    widening: float
    leave_one_out: float

    def predict(self, efforts: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
        """Quality and its standard error, each ``(points,)``, at efforts ``(points, organizations)`` of one rank."""
        x = _inputs(efforts, np.full(len(efforts), rank))
        mean, variance = _mixture([process.predict(x) for process in self.processes])
        return np.clip(self.empty + mean, 0.0, 1.0), self.widening * np.sqrt(variance)


def fit(
    efforts: np.ndarray, ranks: np.ndarray, quality: np.ndarray, errors: np.ndarray, empty: float, key: str
) -> Kriging:
    """Fit to measured points.

    Parameters
    ----------
    efforts : ``(points, organizations)`` in [0, 1], none all zero.
    ranks, quality, errors : ``(points,)``; the standard errors of the trainings.
    empty : quality of the untrained model.
    key : draws the walk.

    Raises
    ------
    TrustChainError
        Fewer than four points, or more than can be solved.
    """
    if not 4 <= len(quality) <= MAX_MEASURED:
        raise TrustChainError(
            f"{len(quality)} measured points: from 4 to {MAX_MEASURED} can predict the others; change --coalitions"
        )
    x, gain = _inputs(efforts, ranks), quality - empty
    processes, left_out = [], []
    for parameters in _walk(x, gain, errors, generator(key, "measure", "kriging")):
        covariance = _covariance(parameters, x, errors)
        inverse = np.linalg.inv(covariance)
        weights = inverse @ gain
        processes.append(Process(parameters, x, weights, np.linalg.cholesky(covariance)))
        left_out.append((gain - weights / np.diag(inverse), 1.0 / np.diag(inverse)))
    mean, variance = _mixture(left_out)
    standardised = np.abs(gain - mean) / np.sqrt(variance)
    widening = max(1.0, float(np.sqrt(np.mean(standardised**2))))
    return Kriging(tuple(processes), empty, widening, float(np.mean(standardised <= 2.0 * widening)))


def _walk(x: np.ndarray, gain: np.ndarray, errors: np.ndarray, draws: np.random.Generator) -> list[np.ndarray]:
    """Draws from the posterior of the hyper-parameters: a Metropolis walk from the best of many starts."""
    starts = _LOW + (_HIGH - _LOW) * draws.random((_STARTS, len(_LOW)))
    costs = [_cost(start, x, gain, errors) for start in starts]
    now, cost = starts[int(np.argmin(costs))], min(costs)
    kept = []
    for step in range(_WALK):
        proposed = now + 0.12 * (_HIGH - _LOW) * draws.standard_normal(len(_LOW))
        luck = math.log(draws.random())
        if ((proposed >= _LOW) & (proposed <= _HIGH)).all():
            proposed_cost = _cost(proposed, x, gain, errors)
            if luck < cost - proposed_cost:
                now, cost = proposed, proposed_cost
        if step >= _WALK // 3 and (step + 1) % (_WALK * 2 // 3 // _KEPT) == 0:
            kept.append(now)
    return kept


def _mixture(parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of an equal mixture of distributions given by (means, variances)."""
    means, variances = np.array([mean for mean, _ in parts]), np.array([variance for _, variance in parts])
    return means.mean(0), variances.mean(0) + means.var(0)


def _inputs(efforts: np.ndarray, ranks: Sequence[int] | np.ndarray) -> np.ndarray:
    """Efforts with log2 of the rank as the last column."""
    return np.column_stack([np.asarray(efforts, float), np.log2(np.asarray(ranks, float))])


def _kernel(a: np.ndarray, b: np.ndarray, parameters: np.ndarray) -> np.ndarray:
    own, common, smooth, length, ranks, _, power = np.exp(parameters)
    ea, eb = a[:, :-1] ** power, b[:, :-1] ** power
    means = np.outer(ea.mean(1), eb.mean(1))
    between = ((ea[:, None, :] - eb[None, :, :]) ** 2).sum(-1)
    # the smooth part is tied to 0 at no effort: nobody trains, whatever the rank
    tie = np.exp(-((ea**2).sum(1)[:, None] + (eb**2).sum(1)[None, :]) / (2 * length**2))
    over_efforts = own**2 * ea @ eb.T + common**2 * means + smooth**2 * (np.exp(-between / (2 * length**2)) - tie)
    apart = (a[:, None, -1] - b[None, :, -1]) ** 2
    return np.asarray(over_efforts * np.exp(-apart / (2 * ranks**2)))


def _covariance(parameters: np.ndarray, x: np.ndarray, errors: np.ndarray) -> np.ndarray:
    return _kernel(x, x, parameters) + np.diag(errors**2 + math.exp(2 * parameters[5]))


def _cost(parameters: np.ndarray, x: np.ndarray, gain: np.ndarray, errors: np.ndarray) -> float:
    """Negative log marginal likelihood without its constant."""
    try:
        factor = np.linalg.cholesky(_covariance(parameters, x, errors))
    except np.linalg.LinAlgError:
        return math.inf
    solved = np.linalg.solve(factor, gain)
    return float(0.5 * solved @ solved + np.log(np.diag(factor)).sum())
