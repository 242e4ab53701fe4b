"""What policies are worth: exact figures of a game and of everybody's policies in it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from envs.arrays import Ints
from envs.baselines import BASELINES, baseline_policies
from envs.best_response import Policy, joint_actions, policies_nash_conv
from envs.dynamics import Dynamics
from envs.errors import GameError
from envs.game import GameConfig
from envs.oracles import budget_balance, payoff_range, price_of_anarchy, pure_equilibria, welfare_optimum
from envs.stage_game import stage_game
from trustchain_ray.errors import TrustChainError
from trustchain_ray.keys import generator

DRAWS = 10  # random plans that the row `random` is the mean of


def assess(game: GameConfig, learned: Sequence[Policy], key: bytes | str, max_nash_conv: float) -> dict[str, Any]:
    """Judge learned policies, beside the baselines, against the exact oracles.

    Parameters
    ----------
    game
        The game.
    learned
        One policy an organization, in agent order.
    key
        The random baseline is drawn from it.
    max_nash_conv
        Largest NashConv, as a share of the payoff range, at which the policies are accepted.

    Returns
    -------
    Plain values for JSON: the oracles of the stage game, one row a kind of policy (see `play`), `accepted`.

    Raises
    ------
    TrustChainError
        A policy that is none, or a horizon too long to follow every deviation.
    """
    dynamics = Dynamics(stage_game(game))
    try:
        rows = {"learned": play(dynamics, learned)}
        for name in BASELINES:
            draws = [
                play(dynamics, baseline_policies(name, dynamics.stage, generator(key, "baseline", draw)))
                for draw in range(DRAWS if name == "random" else 1)
            ]
            rows[name] = _mean(draws)
    except GameError as error:
        raise TrustChainError(str(error)) from None
    found = rows["learned"]["nash_conv"]
    return {
        "game": game.digest(),
        "payoff": game.payoff.value,
        "organizations": list(game.names),
        "horizon": game.horizon,
        "oracles": oracles(dynamics),
        "policies": rows,
        "max_nash_conv": max_nash_conv,
        "accepted": bool(found <= max_nash_conv),
    }


def oracles(dynamics: Dynamics) -> dict[str, Any]:
    """Return the exact figures of the stage game; money a round."""
    stage = dynamics.stage
    joint, best = welfare_optimum(stage)
    found = pure_equilibria(stage)
    welfare = stage.welfare[dynamics.profile(found)] if len(found) else np.array([])
    try:
        price: float | None = _finite(price_of_anarchy(stage))
    except GameError:
        price = None
    return {
        "welfare_optimum": best,
        "optimum_efforts": stage.profiles.efforts[dynamics.profile(joint)].tolist(),
        "pure_equilibria": len(found),
        "welfare_of_equilibria": [float(welfare.min()), float(welfare.max())] if len(found) else None,
        "price_of_anarchy": price,
        "payoff_range": payoff_range(stage) * stage.scale,
    }


def play(dynamics: Dynamics, policies: Sequence[Policy]) -> dict[str, Any]:
    """Play one episode and return its exact figures.

    Returns
    -------
    `nash_conv`
        NashConv of the whole game over the payoff range (see `envs.best_response`).
    `welfare`, `budget_balance`
        Mean over the rounds, money.
    `price_of_anarchy`
        Optimal welfare over this welfare; None where this one is not positive.
    `quality`, `participation`
        Means over the rounds; participation is the mean effort.
    `individual_rationality`
        Share of the organizations that are no worse off than outside.
    `returns`
        Mean payoff a round of each organization, money.
    """
    stage, state, rows = dynamics.stage, dynamics.start((1,)), []
    total = np.zeros(len(dynamics.game.organizations))
    while not dynamics.done(state):
        state, rewards = dynamics.step(state, joint_actions(dynamics, policies, state))
        rows.append(int(dynamics.profile(state.last)[0]))
        total += rewards[0]
    welfare, best = float(stage.welfare[rows].mean()), float(stage.welfare.max())
    return {
        "nash_conv": _plain(policies_nash_conv(dynamics, policies).relative),
        "welfare": welfare,
        "price_of_anarchy": _plain(best / welfare) if welfare > 0 else (1.0 if best <= 0 else None),
        "quality": float(stage.quality[rows].mean()),
        "participation": float(stage.profiles.efforts[rows].mean()),
        "budget_balance": float(budget_balance(stage)[rows].mean()),
        "individual_rationality": float((total >= -1e-9).mean()),
        "returns": (total / len(rows) * stage.scale).tolist(),
    }


def schedule(dynamics: Dynamics, policies: Sequence[Policy]) -> Ints:
    """Return the actions that are played, (rounds, organizations)."""
    state, played = dynamics.start((1,)), []
    while not dynamics.done(state):
        state, _ = dynamics.step(state, joint_actions(dynamics, policies, state))
        played.append(state.last[0])
    return np.array(played, dtype=np.int64)


def _mean(rows: list[dict[str, Any]]) -> dict[str, Any]:
    if len(rows) == 1:
        return rows[0]
    mean: dict[str, Any] = {}
    for key in rows[0]:
        values = [row[key] for row in rows if row[key] is not None]
        mean[key] = np.mean(values, axis=0).tolist() if values else None
    return mean


def _plain(value: float) -> float:
    """Without the dust of floating point: NashConv is never negative."""
    return max(value, 0.0) if value > -1e-9 else value


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
