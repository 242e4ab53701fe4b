"""Leave-one-out: each organization is paid what the model loses without it.

b_i = R * (A(e) - A(e without i)). An exact potential game with potential R * A(e) - sum_i c_i, so the best
joint action for a federation that values quality at R is an equilibrium. On a concave surface the payments
stay below R * (A(e) - A(0)): the rule does not balance the budget, it leaves a surplus.
"""

from envs.arrays import Floats
from envs.game import GameConfig
from envs.profiles import Profiles


def benefits(game: GameConfig, profiles: Profiles, gain: Floats) -> Floats:
    """Return the payment to each organization in each profile; see `public_good.benefits` for the shapes."""
    return game.reward * (gain[:, None] - gain[profiles.without])


def funds(game: GameConfig, profiles: Profiles, gain: Floats) -> Floats:
    """Return the money that the federation has to pay with, (profiles,): R times the gain in quality."""
    return game.reward * gain
