"""Tabular independent Q-learning: the reference learner, in one file.

Each organization learns its own table and takes the others for part of its environment (Tan 1993). Many
independent runs learn side by side in one batch of games: a run is a seed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from envs.arrays import Floats, Ints, Observations
from envs.best_response import Policy
from envs.dynamics import FEATURES, Dynamics
from envs.errors import GameError
from envs.game import GameConfig
from envs.stage_game import stage_game

TIME, BUDGET_LEFT = FEATURES.index("time"), FEATURES.index("budget_left")


@dataclass(frozen=True)
class QLearningConfig:
    """Settings of the learner.

    Attributes
    ----------
    episodes
        Episodes in each run.
    learning_rate, learning_rate_end
        Step size, falling linearly over the episodes.
    exploration, exploration_end
        Probability of a random action, falling linearly over `exploration_share` of the episodes.
    exploration_share
        In (0, 1].
    """

    episodes: int = 8000
    learning_rate: float = 0.2
    learning_rate_end: float = 0.01
    exploration: float = 1.0
    exploration_end: float = 0.1
    exploration_share: float = 0.9

    def __post_init__(self) -> None:
        if self.episodes < 1:
            raise GameError(f"Q-learning: episodes is {self.episodes}, give at least 1")
        for key in ("learning_rate", "learning_rate_end", "exploration_share"):
            if not 0.0 < getattr(self, key) <= 1.0:
                raise GameError(f"Q-learning: {key} is {getattr(self, key)}, give a number in (0, 1]")
        for key in ("exploration", "exploration_end"):
            if not 0.0 <= getattr(self, key) <= 1.0:
                raise GameError(f"Q-learning: {key} is {getattr(self, key)}, give a number in [0, 1]")


@dataclass(frozen=True)
class TabularPolicies:
    """Learned tables of one run.

    Attributes
    ----------
    game
        The game that they were learned in.
    q
        (organizations, rounds, budget units left + 1, actions), reward units.
    """

    game: GameConfig
    q: Floats

    def policies(self) -> list[Policy]:
        """Return the greedy policies, one an organization, that act on observations."""
        greedy = self.q.argmax(axis=-1)
        return [self._policy(table) for table in greedy]

    def _policy(self, table: Ints) -> Policy:
        horizon = self.game.horizon

        def act(observations: Observations) -> Ints:
            time = np.rint(observations[:, TIME] * horizon).astype(np.int64)
            left = np.rint(observations[:, BUDGET_LEFT] * 2 * horizon).astype(np.int64)
            return table[time, left]

        return act

    def save(self, path: str | Path) -> None:
        """Write the tables with the digest of their game, as one npz file."""
        header = json.dumps({"format": "trustchain-tabular/1", "game": self.game.digest()})
        with open(path, "wb") as file:
            np.savez_compressed(file, header=np.array(header), q=self.q)

    @classmethod
    def load(cls, path: str | Path, game: GameConfig) -> TabularPolicies:
        """Read tables for a game.

        Raises
        ------
        GameError
            Where the file is no such table or was made for another game.
        """
        try:
            with np.load(path, allow_pickle=False) as stored:
                header, q = json.loads(str(stored["header"])), stored["q"]
        except (OSError, ValueError, KeyError) as error:
            raise GameError(f"policy {path}: not a tabular policy ({error}); train one") from error
        game.require_digest(header["game"], f"policy {path}")
        return cls(game, q)


def q_learning(
    game: GameConfig, seed: int, runs: int, settings: QLearningConfig | None = None
) -> list[TabularPolicies]:
    """Learn a Q-table an organization, in several independent runs.

    Q_i(s, a) moves towards r_i + discount * max_a' Q_i(s', a'); the state is (round, own budget left).

    Parameters
    ----------
    game
        The game.
    seed
        Of all runs together; a run's result depends on `seed` and `runs`.
    runs
        Runs, in one batch.
    settings
        Of the learner; None for the defaults.

    Returns
    -------
    One `TabularPolicies` a run.
    """
    if runs < 1:
        raise GameError(f"Q-learning: runs is {runs}, give at least 1")
    settings = settings or QLearningConfig()
    dynamics, random = Dynamics(stage_game(game)), np.random.default_rng(seed)
    count, actions, horizon = len(game.organizations), game.action_count, game.horizon
    run, organization = np.arange(runs)[:, None], np.arange(count)
    # One round and budget beyond the last, all zero: the value after the horizon.
    q = np.zeros((runs, count, horizon + 1, 2 * horizon + 1, actions))
    for episode in range(settings.episodes):
        rate = _linear(settings.learning_rate, settings.learning_rate_end, episode / settings.episodes)
        explored = min(episode / (settings.exploration_share * settings.episodes), 1.0)
        epsilon = _linear(settings.exploration, settings.exploration_end, explored)
        state = dynamics.start((runs,))
        while not dynamics.done(state):
            left = dynamics.budget - state.spent
            here = q[run, organization, state.round, left]
            explore = random.random((runs, count)) < epsilon
            wanted = np.where(explore, random.integers(actions, size=(runs, count)), here.argmax(axis=-1))
            after, rewards = dynamics.step(state, wanted)
            ahead = q[run, organization, after.round, dynamics.budget - after.spent].max(axis=-1)
            cell = (run, organization, state.round, left, wanted)
            q[cell] += rate * (rewards + game.discount * ahead - q[cell])
            state = after
    return [TabularPolicies(game, table[:, :horizon]) for table in q]


def _linear(start: float, end: float, share: float) -> float:
    return start + (end - start) * share
