"""Exact answers about one round: equilibria, NashConv, welfare, the price of anarchy, the potential defect.

All are computed from the stage game's table. NashConv and payoff ranges are in reward units (see
`StageGame.scale`), welfare and funds in money. For a game over several rounds see `envs.best_response`.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import numpy.typing as npt

from envs.arrays import Floats, Ints
from envs.errors import GameError
from envs.game import Payoff
from envs.payoffs.values import model_values
from envs.stage_game import StageGame

TOLERANCE = 1e-12


def payoff_range(stage: StageGame) -> float:
    """Return the largest minus the smallest reward of the stage game, over all organizations."""
    return float(stage.rewards.max() - stage.rewards.min())


def deviation_gains(stage: StageGame) -> Floats:
    """Return what each organization could gain by changing only its own action, (profiles, organizations)."""
    grid = _grid(stage)
    count = len(stage.game.organizations)
    gains = [grid[..., i].max(axis=i, keepdims=True) - grid[..., i] for i in range(count)]
    return np.stack([np.broadcast_to(gain, grid.shape[:-1]).reshape(-1) for gain in gains], axis=1)


def nash_conv(stage: StageGame, actions: Ints) -> Floats:
    """Return NashConv = sum_i max_a' u_i(a', a_-i) - u_i(a) of joint actions, 0 exactly at equilibria.

    Parameters
    ----------
    stage
        The stage game.
    actions
        (..., organizations).

    Returns
    -------
    (...), reward units (Lanctot et al. 2017; OpenSpiel 1908.09453).
    """
    grid, profile = _grid(stage), (np.asarray(actions) * stage.profiles.strides).sum(axis=-1)
    total = np.zeros(profile.shape)
    for i in range(len(stage.game.organizations)):
        best = np.broadcast_to(grid[..., i].max(axis=i, keepdims=True), grid.shape[:-1]).reshape(-1)
        total += best[profile] - stage.rewards[profile, i]
    return total


def pure_equilibria(stage: StageGame, tolerance: float = TOLERANCE) -> Ints:
    """Return all pure Nash equilibria of the stage game by enumeration.

    Parameters
    ----------
    stage
        The stage game.
    tolerance
        Largest gain, in reward units, that still counts as none.

    Returns
    -------
    (equilibria, organizations) actions, in profile order; no rows where there is none.
    """
    return stage.profiles.actions[equilibrium_rows(stage, tolerance)]


def equilibrium_rows(stage: StageGame, tolerance: float = TOLERANCE) -> Ints:
    """Return the rows of the stage game's tables that are pure equilibria, rising."""
    return np.flatnonzero(deviation_gains(stage).max(axis=1) <= tolerance)


def welfare_optimum(stage: StageGame) -> tuple[Ints, float]:
    """Return the joint action of the highest welfare, (organizations,), and that welfare in money."""
    row = int(stage.welfare.argmax())
    return stage.profiles.actions[row], float(stage.welfare[row])


def price_of_anarchy(stage: StageGame, tolerance: float = TOLERANCE) -> float:
    """Return the optimal welfare over the welfare of the worst pure equilibrium.

    1 is no loss; infinite where an equilibrium wastes all welfare. Never negative: nobody taking part has
    welfare 0, so the optimum is at least 0.

    Raises
    ------
    GameError
        Where the stage game has no pure equilibrium.
    """
    rows = equilibrium_rows(stage, tolerance)
    if not len(rows):
        raise GameError("price of anarchy: the stage game has no pure equilibrium; report NashConv instead")
    best, worst = float(stage.welfare.max()), float(stage.welfare[rows].min())
    if best - worst <= TOLERANCE * max(best, 1.0):
        return 1.0
    return best / worst if worst > 0 else math.inf


def budget_balance(stage: StageGame) -> Floats:
    """Return funds minus payments in each profile, (profiles,), money: 0 balanced, positive a surplus."""
    balance: Floats = stage.funds - stage.benefits.sum(axis=1)
    return balance


def individual_rationality(stage: StageGame) -> npt.NDArray[np.bool_]:
    """Return who is no worse off than outside the federation, (profiles, organizations).

    An organization that leaves altogether has payoff 0: no model, no payment, no cost.
    """
    return stage.rewards >= -TOLERANCE


def potential_weights(stage: StageGame) -> Floats:
    """Return the weights under which the rule is known to be a potential game, (organizations,).

    Its value of the model, less the losses to rivals, for the public good; 1 for the other rules. An
    organization to which the model is worth nothing has payoffs that no rival moves: any weight does.

    Raises
    ------
    GameError
        Where competition outweighs an organization's own value: the weight would be negative.
    """
    game = stage.game
    if game.payoff is not Payoff.PUBLIC_GOOD:
        return np.ones(len(game.organizations))
    values = model_values(game)
    rivals = max(len(values) - 1, 1)
    weights = values - game.competition * (values.sum() - values) / rivals
    if (weights < 0).any():
        name = game.names[int(weights.argmin())]
        raise GameError(
            f"potential weights: organization {name!r} loses more to its rivals than the model is worth "
            "to it, so the game has no positive weights; lower `competition`"
        )
    return np.where(weights == 0, 1.0, weights)


def potential_defect(stage: StageGame, weights: Floats | None = None) -> float:
    """Return the largest 4-cycle sum of the game over its payoff range: 0 exactly for potential games.

    A game has an exact potential if and only if, for every two organizations and two actions each, the
    gains along the cycle of single deviations sum to zero (Monderer and Shapley 1996, corollary 2.9).

    Parameters
    ----------
    stage
        The stage game.
    weights
        (organizations,) positive: payoffs are divided by these, for weighted potentials. None for all 1.
    """
    count, actions = len(stage.game.organizations), stage.game.action_count
    grid = _grid(stage) / (np.ones(count) if weights is None else np.asarray(weights))
    spread = float(grid.max() - grid.min())
    if spread == 0.0:
        return 0.0
    worst = 0.0
    for i, j in itertools.combinations(range(count), 2):
        first = np.moveaxis(grid[..., i], (i, j), (0, 1))
        second = np.moveaxis(grid[..., j], (i, j), (0, 1))
        for (a, b), (c, d) in itertools.product(itertools.combinations(range(actions), 2), repeat=2):
            # i goes a to b, j goes c to d, i goes back, j goes back.
            cycle = (first[b, c] - first[a, c]) + (second[b, d] - second[b, c])
            cycle = cycle + (first[a, d] - first[b, d]) + (second[a, c] - second[a, d])
            worst = max(worst, float(np.abs(cycle).max()))
    return worst / spread


def _grid(stage: StageGame) -> Floats:
    """Return the rewards with one axis an organization's action, and the organizations last."""
    count = len(stage.game.organizations)
    return stage.rewards.reshape(*([stage.game.action_count] * count), count)
