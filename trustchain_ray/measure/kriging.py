"""Quality at joint efforts that were not measured: Gaussian process regression (kriging) over efforts and rank.

Prior of the gain over the untrained model, with e the efforts, s their mean and r the rank:

    k = (b^2 e.e' + c^2 s s' + d^2 exp(-|e - e'|^2 / 2 l^2)) * exp(-(log2 r - log2 r')^2 / 2 m^2)

that is: an own slope of every organization, a common slope, and a smooth departure from both (interaction,
saturation). The noise is the known standard error of each measurement. The hyper-parameters maximise the
marginal likelihood; errors are widened by the root mean square of the standardised leave-one-out residuals where that
is above 1 (Rasmussen and Williams, Gaussian Processes for Machine Learning, 2.2, 5.4.1 and 5.4.2).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trustchain_ray.errors import TrustChainError
from trustchain_ray.keys import generator

MAX_MEASURED = 2000
_STARTS, _STEPS = 300, 200
# ln of (b, c, d, l, m, nugget): where the search draws its starts from
_LOW = np.log([0.01, 0.01, 0.005, 0.4, 0.5, 1e-3])
_HIGH = np.log([0.5, 1.5, 0.5, 4.0, 8.0, 5e-2])


@dataclass(frozen=True)
class Kriging:
    """A fitted process. Made with :func:`fit`.

    Attributes
    ----------
    widening
        Factor on predicted standard errors, at least 1.
    leave_one_out
        Share of measured points whose leave-one-out prediction lies within two of its standard errors.
    """

    inputs: np.ndarray
    empty: float
    weights: np.ndarray
    factor: np.ndarray
    parameters: np.ndarray
    widening: float
    leave_one_out: float

    def predict(self, efforts: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
        """Quality and its standard error, each ``(points,)``, at efforts ``(points, organizations)`` of one rank."""
        x = _inputs(efforts, np.full(len(efforts), rank))
        across = _kernel(x, self.inputs, self.parameters)
        mean = self.empty + across @ self.weights
        solved = np.linalg.solve(self.factor, across.T)
        own = np.array([_kernel(row[None], row[None], self.parameters)[0, 0] for row in x])
        variance = own + math.exp(2 * self.parameters[5]) - (solved**2).sum(0)
        return np.clip(mean, 0.0, 1.0), self.widening * np.sqrt(np.maximum(variance, 0.0))


def fit(
    efforts: np.ndarray, ranks: np.ndarray, quality: np.ndarray, errors: np.ndarray, empty: float, key: str
) -> Kriging:
    """Fit to measured points.

    Parameters
    ----------
    efforts : ``(points, organizations)`` in [0, 1], none all zero.
    ranks, quality, errors : ``(points,)``; the standard errors of the trainings.
    empty : quality of the untrained model, at which the process is fixed.
    key : draws the starts of the search.

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
    draws = generator(key, "measure", "kriging")
    starts = _LOW + (_HIGH - _LOW) * draws.random((_STARTS, len(_LOW)))
    costs = [_cost(start, x, gain, errors) for start in starts]
    best, parameters = min(costs), starts[int(np.argmin(costs))]
    width = 0.5
    for _ in range(_STEPS):  # a shrinking random walk: derivative-free, and few points make it cheap
        candidate = parameters + width * draws.standard_normal(len(_LOW))
        candidate = np.clip(candidate, _LOW - 2.0, _HIGH + 1.0)
        cost = _cost(candidate, x, gain, errors)
        if cost < best:
            best, parameters = cost, candidate
        else:
            width = max(0.05, width * 0.98)
    covariance = _covariance(parameters, x, errors)
    inverse = np.linalg.inv(covariance)
    weights = inverse @ gain
    left_out = weights / np.sqrt(np.diag(inverse))  # standardised leave-one-out residuals
    widening = max(1.0, float(np.sqrt(np.mean(left_out**2))))
    inside = float(np.mean(np.abs(left_out) <= 2.0 * widening))
    return Kriging(x, empty, weights, np.linalg.cholesky(covariance), parameters, widening, inside)


def _inputs(efforts: np.ndarray, ranks: Sequence[int] | np.ndarray) -> np.ndarray:
    """Efforts with log2 of the rank as the last column."""
    return np.column_stack([np.asarray(efforts, float), np.log2(np.asarray(ranks, float))])


def _kernel(a: np.ndarray, b: np.ndarray, parameters: np.ndarray) -> np.ndarray:
    own, common, smooth, length, ranks, _ = np.exp(parameters)
    ea, eb = a[:, :-1], b[:, :-1]
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
