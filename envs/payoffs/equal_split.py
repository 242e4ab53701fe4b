"""Equal split: a pool of R a round, shared equally by those who take part, whatever their effort.

b_i = R / k for the k participants, 0 outside. An exact potential game (a congestion game, Rosenthal 1973)
with potential R * (1 + 1/2 + ... + 1/k) - sum_i c_i. Effort is not paid for, so equilibria hold half effort.
"""

import numpy as np

from envs.arrays import Floats
from envs.game import GameConfig
from envs.profiles import Profiles


def benefits(game: GameConfig, profiles: Profiles, gain: Floats) -> Floats:
    """Return the payment to each organization in each profile; see `public_good.benefits` for the shapes."""
    inside = profiles.actions > 0
    participants = np.maximum(inside.sum(axis=1, keepdims=True), 1)
    return np.where(inside, game.reward / participants, 0.0)


def funds(game: GameConfig, profiles: Profiles, gain: Floats) -> Floats:
    """Return the money that the federation has to pay with, (profiles,): R, spent if anyone takes part."""
    return np.where(profiles.actions.any(axis=1), float(game.reward), 0.0)
