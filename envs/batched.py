"""Thousands of games at once, in NumPy.

Every game of a batch is the one of `envs.participation`, to the last bit. All games are in the same round
and end together.
"""

from __future__ import annotations

import numpy as np

from envs.arrays import Floats, Ints, Observations
from envs.dynamics import Dynamics
from envs.errors import GameError
from envs.game import GameConfig
from envs.stage_game import stage_game


class BatchedParticipation:
    """Many copies of one participation game.

    Parameters
    ----------
    game
        The configuration.
    count
        Number of games.

    Attributes
    ----------
    state
        State of all games; arrays are (count, organizations).
    """

    def __init__(self, game: GameConfig, count: int) -> None:
        if count < 1:
            raise GameError(f"batched games: count is {count}, give at least 1")
        self.count = count
        self.dynamics = Dynamics(stage_game(game))
        self.state = self.dynamics.start((count,))

    def reset(self) -> Observations:
        """Start all games again and return (count, organizations, features)."""
        self.state = self.dynamics.start((self.count,))
        return self.dynamics.observe(self.state)

    def step(self, actions: Ints) -> tuple[Observations, Floats, bool]:
        """Play one round in every game.

        Parameters
        ----------
        actions
            (count, organizations) integers.

        Returns
        -------
        Observations (count, organizations, features), rewards (count, organizations) in [-1, 1], and whether
        the games are truncated, all at once.

        Raises
        ------
        GameError
            Where the actions do not fit, or the games are over.
        """
        if self.dynamics.done(self.state):
            raise GameError("batched games: the horizon is reached, call reset() before step()")
        actions = np.asarray(actions)
        if actions.shape != self.state.last.shape:
            raise GameError(f"batched games: actions have shape {actions.shape}, give {self.state.last.shape}")
        self.dynamics.check_actions(actions)
        self.state, rewards = self.dynamics.step(self.state, actions)
        return self.dynamics.observe(self.state), rewards, self.dynamics.done(self.state)
