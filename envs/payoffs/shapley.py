"""Shapley: each organization is paid its mean marginal contribution over all orders of arrival.

b_i = R * phi_i(e), sum_i phi_i = A(e) - A(0): the budget balances. An exact potential game; its potential
is R * P(e) - sum_i c_i with P the Hart-Mas-Colell potential of the coalition game (Econometrica 57, 1989):
P(S) = (v(S) + sum_{i in S} P(S without i)) / |S|, phi_i = P(N) - P(N without i).
"""

import numpy as np

from envs.arrays import Floats
from envs.game import GameConfig
from envs.profiles import Profiles


def coalition_potential(profiles: Profiles, gain: Floats) -> Floats:
    """Return the Hart-Mas-Colell potential of the coalition of each profile, (profiles,).

    One pass over coalition sizes: a profile reads only profiles with one participant less.
    """
    inside = profiles.actions > 0
    size = inside.sum(axis=1)
    potential = np.zeros(len(gain))
    for members in range(1, inside.shape[1] + 1):
        rows = np.flatnonzero(size == members)
        below = np.where(inside[rows], potential[profiles.without[rows]], 0.0).sum(axis=1)
        potential[rows] = (gain[rows] + below) / members
    return potential


def benefits(game: GameConfig, profiles: Profiles, gain: Floats) -> Floats:
    """Return the payment to each organization in each profile; see `public_good.benefits` for the shapes."""
    potential = coalition_potential(profiles, gain)
    return game.reward * (potential[:, None] - potential[profiles.without])


def funds(game: GameConfig, profiles: Profiles, gain: Floats) -> Floats:
    """Return the money that the federation has to pay with, (profiles,): R times the gain in quality."""
    return game.reward * gain
