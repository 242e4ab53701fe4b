"""The replay buffer of the participation game: whole rounds of all organizations, drawn uniformly.

RLlib's `MultiAgentEpisodeReplayBuffer` keeps one Python object an agent and episode and cuts a new one for each
drawn transition. Here all organizations act in every round, so a round is one row of four arrays: adding a batch
of games and drawing from it are array copies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from ray.rllib.utils.replay_buffers.multi_agent_episode_buffer import MultiAgentEpisodeReplayBuffer

from envs.arrays import Floats, Ints, Observations


@dataclass(frozen=True)
class Rounds:
    """Consecutive rounds of many games.

    Attributes
    ----------
    observations, next_observations
        (rows, organizations, features) float32.
    actions
        (rows, organizations).
    rewards
        (rows, organizations) float32.
    terminal
        (rows,): whether the game ended with the round.
    weights
        (rows, organizations) float32: 1 for an organization that learns from the round, 0 for one that does not.
    """

    observations: Observations
    actions: Ints
    rewards: Floats
    next_observations: Observations
    terminal: np.ndarray[Any, np.dtype[np.bool_]]
    weights: Floats

    def __len__(self) -> int:
        return len(self.terminal)


class RoundEpisodeReplayBuffer(MultiAgentEpisodeReplayBuffer):
    """A ring of rounds, sampled uniformly with replacement.

    Parameters
    ----------
    capacity
        Rounds that it holds; the oldest are overwritten.
    """

    def __init__(self, capacity: int = 10_000, **kwargs: Any) -> None:
        super().__init__(capacity=capacity, **kwargs)
        self._rows: dict[str, np.ndarray[Any, Any]] = {}
        self._next = 0
        self._filled = 0

    def add(self, episodes: list[Rounds] | Rounds) -> None:  # type: ignore[override]  # rounds, not episodes
        """Add rounds, in order."""
        for rounds in episodes if isinstance(episodes, list) else [episodes]:
            columns = vars(rounds)
            if not self._rows:
                self._rows = {
                    name: np.zeros((self.capacity, *column.shape[1:]), column.dtype) for name, column in columns.items()
                }
            at = (self._next + np.arange(len(rounds))) % self.capacity
            for name, column in columns.items():
                self._rows[name][at] = column
            self._next = int((self._next + len(rounds)) % self.capacity)
            self._filled = min(self._filled + len(rounds), self.capacity)

    def draw(self, count: int, random: np.random.Generator) -> Rounds:
        """Return `count` rounds, drawn uniformly with replacement."""
        at = random.integers(self._filled, size=count)
        return Rounds(**{name: column[at] for name, column in self._rows.items()})

    def clear(self) -> None:
        """Forget all rounds."""
        self._next = self._filled = 0

    def get_num_timesteps(self, module_id: str | None = None) -> int:
        """Return the rounds held."""
        return self._filled

    def get_state(self) -> dict[str, Any]:
        """Return the filled part of the ring and where it goes on."""
        return {
            "rows": {name: column[: self._filled] for name, column in self._rows.items()},
            "next": self._next,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Take up a state of `get_state`."""
        self._filled = len(state["rows"]["terminal"]) if state["rows"] else 0
        self._next = state["next"]
        self._rows = {}
        for name, column in state["rows"].items():
            self._rows[name] = np.zeros((self.capacity, *column.shape[1:]), column.dtype)
            self._rows[name][: self._filled] = column
