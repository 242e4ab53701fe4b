"""Policies that learn nothing: the rows beside a learned policy in every table.

All have the form of `envs.best_response.Policy`: observations of one organization, (states, features), to
actions, (states,).
"""

from __future__ import annotations

import numpy as np

from envs.arrays import Floats, Ints, Observations
from envs.best_response import Policy, constant_policy
from envs.dynamics import FEATURES
from envs.errors import GameError
from envs.game import GameConfig
from envs.profiles import action_efforts
from envs.stage_game import StageGame

BASELINES = ("always", "never", "random", "myopic")
EFFORT, PARTICIPATION, TIME = (FEATURES.index(name) for name in ("effort_last", "participation_last", "time"))


def always_policy(game: GameConfig) -> Policy:
    """Return the policy of full effort at the highest rank in every round."""
    return constant_policy(game.action_count - 1)


def never_policy() -> Policy:
    """Return the policy that stays out."""
    return constant_policy(0)


def random_policy(game: GameConfig, random: np.random.Generator) -> Policy:
    """Return a plan drawn at random: one uniform action a round.

    Once drawn it is a deterministic policy, so `envs.best_response` can judge it.
    """
    plan = random.integers(game.action_count, size=game.horizon)

    def act(observations: Observations) -> Ints:
        return plan[np.rint(observations[:, TIME] * game.horizon).astype(np.int64)]

    return act


def myopic_policy(stage: StageGame, organization: int) -> Policy:
    """Return the best response to the last round, as if the others repeated it.

    An organization sees how much the others took part together, not who did: it answers the mean over all
    joint actions of the others with that total effort. Ties go to the lower action.

    Parameters
    ----------
    stage
        The stage game.
    organization
        Index of the one that responds.
    """
    table, count = _best_responses(stage, organization), len(stage.game.organizations)

    def act(observations: Observations) -> Ints:
        everyone = np.rint(2 * count * observations[:, PARTICIPATION].astype(np.float64))
        own = np.rint(2 * observations[:, EFFORT].astype(np.float64))
        return table[(everyone - own).astype(np.int64)]

    return act


def baseline_policies(name: str, stage: StageGame, random: np.random.Generator) -> list[Policy]:
    """Return one policy an organization.

    Parameters
    ----------
    name
        One of `BASELINES`.
    stage
        The stage game.
    random
        Draws the plans of `random`, one an organization.

    Raises
    ------
    GameError
        Where there is no such baseline.
    """
    count = len(stage.game.organizations)
    if name == "always":
        return [always_policy(stage.game)] * count
    if name == "never":
        return [never_policy()] * count
    if name == "random":
        return [random_policy(stage.game, random) for _ in range(count)]
    if name == "myopic":
        return [myopic_policy(stage, i) for i in range(count)]
    raise GameError(f"baseline {name!r}: give one of {', '.join(BASELINES)}")


def _best_responses(stage: StageGame, organization: int) -> Ints:
    """Best action for each total effort of the others, in half-effort units, (2 N - 1,)."""
    game = stage.game
    units = np.rint(2 * action_efforts(game)).astype(np.int64)[stage.profiles.actions]
    others = units.sum(axis=1) - units[:, organization]
    own, shape = stage.profiles.actions[:, organization], (2 * len(game.organizations) - 1, game.action_count)
    total: Floats = np.zeros(shape)
    np.add.at(total, (others, own), stage.rewards[:, organization])
    # Each action meets the same joint actions of the others, so sums compare as means do.
    return np.asarray(total.argmax(axis=1), dtype=np.int64)
