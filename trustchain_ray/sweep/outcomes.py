"""Outcomes of policies, of real runs, and of the exact equilibria that they are compared with.

All are those of `OUTCOMES`, so that policies, runs and equilibria stand on the same axes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from envs import GameConfig, MeasuredSurface, Payoff
from envs.arrays import Floats, Ints
from envs.best_response import Policy
from envs.dynamics import Dynamics
from envs.oracles import (
    budget_balance,
    equilibrium_rows,
    nash_conv,
    payoff_range,
    welfare_optimum,
)
from envs.stage_game import StageGame, stage_game
from trustchain_ray.participation import EFFORTS, recorded_schedule
from trustchain_ray.policy.assess import play, schedule
from trustchain_ray.settlement import net_payoff
from trustchain_ray.statements import statement_of

Outcomes = dict[str, float | None]
OUTCOMES = {
    "participation": "mean effort",
    "quality": "quality of the model",
    "welfare": "welfare, money a round",
    "nash_conv": "NashConv over the payoff range",
    "price_of_anarchy": "best welfare over this welfare",
    "budget_balance": "funds minus payments, money a round",
    "individual_rationality": "share no worse off than outside",
    "epsilon": "epsilon spent by an organization, mean",
    "unlearning_cost": "expected cost of removals, money a round",
}
"""Outcomes and what they are; None where there is none (no privacy is spent, no duty to replay, ...)."""


def of_policies(game: GameConfig, policies: Sequence[Policy]) -> tuple[Outcomes, list[float]]:
    """Return the outcomes of one episode under deterministic policies, and each organization's mean effort."""
    dynamics = Dynamics(stage_game(game))
    rows = dynamics.profile(schedule(dynamics, policies))
    played = play(dynamics, policies)
    found = _of_schedule(dynamics.stage, rows)
    found |= {key: played[key] for key in OUTCOMES if key in played}
    return found, _efforts(dynamics.stage, rows)


def of_run(game: GameConfig, run: Path, scores: dict[str, Any]) -> tuple[Outcomes, list[float]]:
    """Return the outcomes of a finished federation, and each organization's mean effort.

    Participation is that of its log; quality is the accuracy of its model; budget and rationality are those of its
    settlements. Welfare is the organizations' value of what training gained, less the mean cost of a round; it needs
    a settlement of round 1, which measures the untrained model. NashConv is the mean over rounds of the stage
    game's, by the game's surface, and the price of anarchy compares with the optimum of a measured surface. What
    was not settled or measured is None.
    """
    dynamics = Dynamics(stage_game(game))
    stage = dynamics.stage
    actions = [[EFFORTS.index(_fraction(row[name])) for name in game.names] for row in recorded_schedule(run)]
    rows = dynamics.profile(np.array(actions, dtype=np.int64))
    found = _of_schedule(stage, rows)
    quality, measured = float(scores["federated"]["accuracy"]), isinstance(game.surface, MeasuredSurface)
    settled = _settlements(run)
    welfare = balance = rational = None
    if settled and settled[0]["round"] == 1:
        value = sum(float(one.value) for one in game.organizations)
        gain = quality - float(settled[0]["quality_before"])
        welfare = value * gain - float(stage.costs[rows].sum(axis=1).mean())
    if settled:
        balance = float(np.mean([_balance(game, body) for body in settled]))
        payoffs = [sum(net_payoff(body, name) for body in settled) for name in game.names]
        rational = float(np.mean([payoff >= -1e-6 for payoff in payoffs]))
    found |= {
        "quality": quality,
        "welfare": welfare,
        "price_of_anarchy": _price(float(stage.welfare.max()), welfare) if measured else None,
        "budget_balance": balance,
        "individual_rationality": rational,
    }
    return found, _efforts(stage, rows)


def of_equilibria(game: GameConfig) -> dict[str, Any]:
    """Return what the stage game's exact solution is, by enumeration.

    Returns
    -------
    `count` of pure equilibria, and for each outcome `[least, largest]` over them (None where there is none), as if
    one of them were played in every round; `optimum`, the outcomes of the highest welfare. Budgets that bind are
    not in it: it is the solution of one round.
    """
    stage = stage_game(game)
    rows = equilibrium_rows(stage)
    each = [_of_schedule(stage, np.array([row] * game.horizon)) for row in rows]
    spans: dict[str, Any] = {"count": len(rows)}
    for key in OUTCOMES:
        values = [value for one in each if (value := one[key]) is not None]
        spans[key] = [min(values), max(values)] if values else None
    best, _ = welfare_optimum(stage)
    row = int((best * stage.profiles.strides).sum())
    return spans | {"optimum": _of_schedule(stage, np.array([row] * game.horizon))}


def _of_schedule(stage: StageGame, rows: Ints) -> Outcomes:
    """Outcomes of a schedule of joint actions, (rounds,) rows of the stage game's tables."""
    game, efforts = stage.game, stage.profiles.efforts[rows]
    welfare = float(stage.welfare[rows].mean())
    span = payoff_range(stage)
    found = float(nash_conv(stage, stage.profiles.actions[rows]).mean())
    rational = stage.rewards[rows].sum(axis=0) >= -1e-9  # as in `play`
    duty = _duty_costs(stage, rows)
    return {
        "participation": float(efforts.mean()),
        "quality": float(stage.quality[rows].mean()),
        "welfare": welfare,
        "nash_conv": found / span if span > 0 else 0.0,
        "price_of_anarchy": _price(float(stage.welfare.max()), welfare),
        "budget_balance": float(budget_balance(stage)[rows].mean()),
        "individual_rationality": float(rational.mean()),
        "epsilon": float(efforts.sum(axis=0).mean() * game.epsilon_per_round) if game.epsilon_per_round else None,
        "unlearning_cost": float(duty.sum(axis=1).mean()) if any(o.replay_duty for o in game.organizations) else None,
    }


def _duty_costs(stage: StageGame, rows: Ints) -> Floats:
    """The part of the costs that expected removals make, (rounds, organizations), money."""
    game = stage.game
    compute = np.array([one.unit_cost * one.records * one.replay_duty for one in game.organizations])
    ranks = 1.0 + game.rank_cost * stage.profiles.ranks[rows]
    return np.asarray(stage.profiles.efforts[rows] * compute * ranks, dtype=np.float64)


def _efforts(stage: StageGame, rows: Ints) -> list[float]:
    return [float(effort) for effort in stage.profiles.efforts[rows].mean(axis=0)]


def _price(best: float, welfare: float | None) -> float | None:
    if welfare is None:
        return None
    return best / welfare if welfare > 0 else (1.0 if best <= 0 else None)


def _settlements(run: Path) -> list[dict[str, Any]]:
    """Bodies of the run's settlements, in the order of their rounds, from its finished rounds."""
    found = []
    for file in sorted(run.glob("rounds/[0-9]*/round.json")):
        for envelope in json.loads(file.read_text(encoding="utf-8"))["events"]:
            statement = statement_of(envelope)
            if statement["type"] == "REWARD_SETTLEMENT":
                found.append(statement["body"])
    return sorted(found, key=lambda body: int(body["round"]))


def _balance(game: GameConfig, body: dict[str, Any]) -> float:
    """Funds minus payments of a settled round; the public good makes no payments."""
    if game.payoff is Payoff.PUBLIC_GOOD:
        return 0.0
    paid = sum(float(amount) for amount in body["payments"].values())
    if game.payoff in (Payoff.LEAVE_ONE_OUT, Payoff.SHAPLEY):
        return game.reward * (float(body["quality"]) - float(body["quality_before"])) - paid
    return (game.reward if paid else 0.0) - paid


def _fraction(text: str) -> Any:
    return next(effort for effort in EFFORTS if str(effort) == text)
