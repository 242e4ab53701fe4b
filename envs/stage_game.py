"""The stage game: one round, tabulated over all joint actions.

Every other module reads this table: the environment, the batched form, the oracles and the learner. That
is why they agree to the last bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from envs.arrays import Floats
from envs.errors import GameError
from envs.game import GameConfig
from envs.payoffs import RULES
from envs.payoffs.competition import losses
from envs.payoffs.values import model_values
from envs.profiles import Profiles, action_efforts, action_ranks, enumerate_profiles


@dataclass(frozen=True)
class StageGame:
    """One round of a game, for all its joint actions.

    Attributes
    ----------
    game
        The configuration.
    profiles
        The joint actions, in row order of the tables.
    quality
        (profiles,), in [0, 1].
    benefits, costs
        (profiles, organizations), money; benefits before the losses to rivals.
    rewards
        (profiles, organizations): (benefit - loss to rivals - cost) / `scale`, in [-1, 1].
    funds
        (profiles,), money that pays for the benefits.
    welfare
        (profiles,), money: the organizations' value of the gain in quality, less all costs. Payments are
        transfers and do not count.
    scale
        Largest absolute payoff of the game, money: the constant that rewards are divided by.
    """

    game: GameConfig
    profiles: Profiles
    quality: Floats
    benefits: Floats
    costs: Floats
    rewards: Floats
    funds: Floats
    welfare: Floats
    scale: float


def action_costs(game: GameConfig) -> Floats:
    """Return what one round of each action costs each organization, (actions, organizations), money.

    effort * (unit_cost * records * (1 + rank_cost * rank) * (1 + replay_duty) + privacy_price * epsilon).
    """
    efforts, ranks = action_efforts(game)[:, None], action_ranks(game)[:, None]
    compute = np.array([one.unit_cost * one.records * (1.0 + one.replay_duty) for one in game.organizations])
    privacy = np.array([one.privacy_price * game.epsilon_per_round for one in game.organizations])
    return np.asarray(efforts * (compute * (1.0 + game.rank_cost * ranks) + privacy), dtype=np.float64)


def stage_game(game: GameConfig) -> StageGame:
    """Tabulate one round of a game.

    Raises
    ------
    GameError
        Where the surface does not cover the game, or a quality or payoff is not finite.
    """
    profiles = enumerate_profiles(game)
    quality = game.surface.quality(profiles.efforts, profiles.ranks, game.organizations)
    gain = quality - quality[0]
    rule = RULES[game.payoff]
    benefits = rule.benefits(game, profiles, gain)
    costs = action_costs(game)[profiles.actions, np.arange(len(game.organizations))]
    payoffs = benefits - losses(game, benefits) - costs
    bad = np.argwhere(~np.isfinite(payoffs))
    if len(bad):
        row, organization = bad[0]
        raise GameError(
            f"game: the payoff of organization {game.names[organization]!r} at efforts "
            f"{profiles.efforts[row].tolist()} is {payoffs[row, organization]}; check the surface there, "
            "and the reward and costs for numbers too large"
        )
    scale = float(np.abs(payoffs).max()) or 1.0
    return StageGame(
        game=game,
        profiles=profiles,
        quality=quality,
        benefits=benefits,
        costs=costs,
        rewards=payoffs / scale,
        funds=rule.funds(game, profiles, gain),
        welfare=gain * float(model_values(game).sum()) - costs.sum(axis=1),
        scale=scale,
    )
