"""Proportional split: a pool of R a round, shared by effective records.

b_i = R * e_i q_i n_i / sum_j e_j q_j n_j. Not a potential game: an organization's share falls with what
its rivals bring, so best responses can cycle and independent learning has no guarantee.
"""

import numpy as np

from envs.arrays import Floats
from envs.game import GameConfig
from envs.profiles import Profiles


def benefits(game: GameConfig, profiles: Profiles, gain: Floats) -> Floats:
    """Return the payment to each organization in each profile; see `public_good.benefits` for the shapes."""
    records = np.array([one.data_quality * one.records for one in game.organizations])
    brought = profiles.efforts * records
    total = brought.sum(axis=1, keepdims=True)
    share: Floats = np.divide(brought, total, out=np.zeros_like(brought), where=total > 0)
    return game.reward * share


def funds(game: GameConfig, profiles: Profiles, gain: Floats) -> Floats:
    """Return the money that the federation has to pay with, (profiles,): R, spent if any record comes."""
    return np.where(benefits(game, profiles, gain).any(axis=1), float(game.reward), 0.0)
