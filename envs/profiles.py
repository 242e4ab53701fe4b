"""All joint actions of a game, in one fixed order.

Profile j is the base-A number whose digits are the actions, organization 0 the most significant. The
profile in which organization i stays out is then one subtraction away, so every coalition of every
profile is a row of the same table: exact leave-one-out and Shapley values are look-ups.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from envs.arrays import Floats, Ints
from envs.game import EFFORTS, GameConfig


@dataclass(frozen=True)
class Profiles:
    """The joint actions.

    Attributes
    ----------
    actions, efforts, ranks
        (profiles, organizations). The rank is 0 where the effort is 0.
    without
        (profiles, organizations): index of the profile with this organization out, all else equal.
    strides
        (organizations,): profile index = sum of action times stride.
    """

    actions: Ints
    efforts: Floats
    ranks: Ints
    without: Ints
    strides: Ints


def action_efforts(game: GameConfig) -> Floats:
    """Return the effort of each action: out, then half and full at each rank, ranks rising."""
    return np.array([EFFORTS[0], *(EFFORTS[1:] * len(game.ranks))])


def action_ranks(game: GameConfig) -> Ints:
    """Return the rank of each action, 0 for staying out."""
    return np.array([0, *np.repeat(game.ranks, 2)], dtype=np.int64)


def enumerate_profiles(game: GameConfig) -> Profiles:
    """Return every joint action of the game, in index order."""
    count = len(game.organizations)
    strides = game.action_count ** np.arange(count - 1, -1, -1, dtype=np.int64)
    index = np.arange(game.profile_count, dtype=np.int64)[:, None]
    actions = index // strides % game.action_count
    return Profiles(
        actions=actions,
        efforts=action_efforts(game)[actions],
        ranks=action_ranks(game)[actions],
        without=index - actions * strides,
        strides=strides,
    )
