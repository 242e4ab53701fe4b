"""The participation game as a PettingZoo environment.

`parallel_env(game)` is the `ParallelEnv`; `env(game)` its AEC form through PettingZoo's own wrapper.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces
from pettingzoo.utils.conversions import parallel_to_aec
from pettingzoo.utils.env import AECEnv, ParallelEnv

from envs.arrays import Ints, Observations
from envs.dynamics import FEATURES, Dynamics
from envs.errors import GameError
from envs.game import GameConfig
from envs.render import draw, write
from envs.stage_game import stage_game

RENDER_MODES = ("ansi", "rgb_array")


class Participation(ParallelEnv[str, Observations, int]):  # type: ignore[misc]  # PettingZoo ships no types
    """N organizations that choose, round by round, whether and how much to take part.

    The game has no chance moves: a seed is accepted and changes nothing. All agents are truncated together
    after `game.horizon` rounds.

    Parameters
    ----------
    game
        The configuration.
    render_mode
        `"ansi"` for text, `"rgb_array"` for a picture, None for neither.

    Raises
    ------
    GameError
        Where the render mode is unknown or the surface does not cover the game.
    """

    metadata: ClassVar[dict[str, Any]] = {
        "name": "participation_v1",
        "render_modes": list(RENDER_MODES),
        "is_parallelizable": True,
        "render_fps": 2,
    }

    def __init__(self, game: GameConfig, render_mode: str | None = None) -> None:
        if render_mode is not None and render_mode not in RENDER_MODES:
            raise GameError(f"render_mode is {render_mode!r}, give one of {', '.join(RENDER_MODES)}")
        self.game = game
        self.render_mode = render_mode
        self.dynamics = Dynamics(stage_game(game))
        self.possible_agents = list(game.names)
        self.agents: list[str] = []
        self.state_now = self.dynamics.start()
        self._history = [self.state_now]
        # One space object an agent: PettingZoo seeds each apart.
        shape = (len(FEATURES),)
        self._observation_spaces = {name: spaces.Box(0.0, 1.0, shape, np.float32) for name in game.names}
        self._action_spaces: dict[str, spaces.Discrete[np.int64]] = {
            name: spaces.Discrete(game.action_count) for name in game.names
        }

    def observation_space(self, agent: str) -> spaces.Box:
        """Return the observation space, one shape for all agents."""
        return self._observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.Discrete[np.int64]:
        """Return the action space: 0 is out; 1 + 2l and 2 + 2l are half and full effort at rank level l."""
        return self._action_spaces[agent]

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Observations], dict[str, dict[str, Any]]]:
        """Start an episode; see `ParallelEnv.reset`."""
        self.agents = list(self.possible_agents)
        self.state_now = self.dynamics.start()
        self._history = [self.state_now]
        return self._observations(), {name: {} for name in self.agents}

    def step(
        self, actions: Mapping[str, int]
    ) -> tuple[dict[str, Observations], dict[str, float], dict[str, bool], dict[str, bool], dict[str, dict[str, Any]]]:
        """Play one round; see `ParallelEnv.step`.

        An info holds what was played, its money and the quality: `action`, `effort`, `benefit`, `cost`,
        `quality`.

        Raises
        ------
        GameError
            Where the episode is over, an organization has no action, or an action is unknown.
        """
        if not self.agents:
            raise GameError("participation: no episode is running, call reset() before step()")
        self.state_now, rewards = self.dynamics.step(self.state_now, self._joint(actions))
        self._history.append(self.state_now)
        over = self.dynamics.done(self.state_now)
        agents = self.agents
        result = (
            self._observations(),
            dict(zip(agents, rewards.tolist(), strict=True)),
            dict.fromkeys(agents, False),
            dict.fromkeys(agents, over),
            self._infos(),
        )
        if over:
            self.agents = []
        return result

    def state(self) -> Observations:
        """Return all agents' observations in one vector, for centralised training."""
        return self.dynamics.observe(self.state_now).reshape(-1)

    def render(self) -> str | np.ndarray[Any, np.dtype[np.uint8]] | None:
        """Return the episode so far, as text or as a (height, width, 3) uint8 picture, by the render mode."""
        if self.render_mode == "ansi":
            return write(self.dynamics, self._history)
        if self.render_mode == "rgb_array":
            return draw(self.dynamics, self._history)
        return None

    def close(self) -> None:
        """Release nothing: the game holds no outside resource."""

    def _joint(self, actions: Mapping[str, int]) -> Ints:
        missing = [name for name in self.agents if name not in actions]
        unknown = [name for name in actions if name not in self.possible_agents]
        if missing or unknown:
            raise GameError(
                f"participation: no action from {missing or 'nobody'}, unknown organizations "
                f"{unknown or 'none'}; give one action an organization"
            )
        joint = np.array([actions[name] for name in self.agents])
        self.dynamics.check_actions(joint)
        return joint

    def _observations(self) -> dict[str, Observations]:
        view = self.dynamics.observe(self.state_now)
        return {name: view[row] for row, name in enumerate(self.possible_agents)}

    def _infos(self) -> dict[str, dict[str, Any]]:
        stage, played = self.dynamics.stage, self.state_now.last
        row = int(self.dynamics.profile(played))
        quality = float(stage.quality[row])
        return {
            name: {
                "action": int(played[i]),
                "effort": float(stage.profiles.efforts[row, i]),
                "benefit": float(stage.benefits[row, i]),
                "cost": float(stage.costs[row, i]),
                "quality": quality,
            }
            for i, name in enumerate(self.possible_agents)
        }


def parallel_env(game: GameConfig, render_mode: str | None = None) -> Participation:
    """Return the game as a PettingZoo `ParallelEnv`."""
    return Participation(game, render_mode)


def env(game: GameConfig, render_mode: str | None = None) -> AECEnv[str, Observations, int | None]:
    """Return the game in PettingZoo's AEC form: organizations act in turn, the round runs after the last."""
    return parallel_to_aec(Participation(game, render_mode))
