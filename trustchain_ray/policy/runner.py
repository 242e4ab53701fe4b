"""The env runner of the participation game: many games in one batch, one forward pass a module and round.

RLlib's `MultiAgentEnvRunner` steps one Python dictionary an environment, keeps one episode object an agent, and
runs two connector pipelines a round. All that costs 3 to 10 ms a round, however small the network. The
participation game has a batched NumPy form in which all games are in the same round, so none of it is needed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from ray.rllib.core import COMPONENT_RL_MODULE
from ray.rllib.core.columns import Columns
from ray.rllib.env import INPUT_ENV_SPACES
from ray.rllib.env.env_runner import EnvRunner
from ray.rllib.utils.checkpoints import Checkpointable
from ray.rllib.utils.metrics import (
    EPISODE_LEN_MEAN,
    EPISODE_RETURN_MEAN,
    NUM_AGENT_STEPS_SAMPLED,
    NUM_AGENT_STEPS_SAMPLED_LIFETIME,
    NUM_ENV_STEPS_SAMPLED,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
    NUM_EPISODES_LIFETIME,
    WEIGHTS_SEQ_NO,
)

from envs import BatchedParticipation, GameConfig
from envs.arrays import Ints, Observations
from envs.dynamics import FEATURES
from trustchain_ray.policy.buffer import Rounds

SHARED = "shared"


class GameRunner(EnvRunner, Checkpointable):
    """Plays whole episodes of `config.num_envs_per_env_runner` games at once.

    `config.env_config` holds the `game`.
    """

    def __init__(self, *, config: Any, **kwargs: Any) -> None:
        super().__init__(config=config, **kwargs)
        self.game: GameConfig = self.config.env_config["game"]
        self.shared = SHARED in self.config.policies
        self.games = BatchedParticipation(self.game, self.config.num_envs_per_env_runner)
        self.random = np.random.default_rng(0)
        self._weights_seq_no = 0
        self.make_module()

    def make_module(self) -> None:
        """Build the modules from the configuration."""
        specs = self.config.get_multi_rl_module_spec(spaces=self.get_spaces(), inference_only=True)
        self.module: Any = specs.build()

    def get_spaces(self) -> dict[str, Any]:
        """Return observation and action space of each module."""
        width = len(FEATURES) + (len(self.game.organizations) if self.shared else 0)
        pair: tuple[Any, Any] = (
            spaces.Box(0.0, 1.0, (width,), np.float32),
            spaces.Discrete(self.game.action_count),
        )
        return {INPUT_ENV_SPACES: pair, **dict.fromkeys(self.config.policies, pair)}

    def sample(self, **kwargs: Any) -> list[Rounds]:
        """Play one episode of every game and return its rounds, games of a round together.

        In a share `random_starts` of the games all play at random up to a random round; these rounds are not
        returned. So every state is seen often, and what follows is played as policies play.

        In every other round of a game, with probability `epsilon`, one organization tries a random action and the
        others play greedily. From such a round only that organization learns: the others would take its trial for
        its policy.
        """
        random, count, players = self.random, self.games.count, len(self.game.names)
        starts = random.random(count) < self.config.env_config["random_starts"]
        first = np.where(starts, random.integers(self.game.horizon, size=count), 0)
        view, over, rounds, number = self.games.reset(), False, [], 0
        returns, who = np.zeros(players), np.arange(players)
        while not over:
            trial = random.integers(self.game.action_count, size=(count, players))
            explorer = np.where(random.random(count) < self._epsilon(), random.integers(players, size=count), players)
            alone = explorer[:, None] == who
            prefix = number < first
            actions = np.where(alone | prefix[:, None], trial, self._greedy(view))
            after, rewards, over = self.games.step(actions)
            kept = ~prefix
            rounds.append(
                Rounds(
                    view[kept],
                    actions[kept],
                    rewards[kept].astype(np.float32),
                    after[kept],
                    # Nothing follows the horizon: a bootstrap would ask the network about a round that never is.
                    np.full(int(kept.sum()), over),
                    (alone | (explorer == players)[:, None])[kept].astype(np.float32),
                )
            )
            returns += rewards.mean(axis=0)
            view, number = after, number + 1
        self._log(count * number, returns)
        return rounds

    def _epsilon(self) -> float:
        return float(self.config.env_config["epsilon"])

    def _greedy(self, view: Observations) -> Ints:
        actions = np.empty(view.shape[:2], dtype=np.int64)
        seen = torch.from_numpy(with_identity(view) if self.shared else view)
        for column, name in enumerate(self.game.names):
            module = self.module[SHARED if self.shared else name]
            with torch.no_grad():
                actions[:, column] = module.forward_inference({Columns.OBS: seen[:, column]})[Columns.ACTIONS].numpy()
        return actions

    def _log(self, steps: int, returns: Any) -> None:
        self.num_env_steps_sampled_lifetime += steps
        log = self.metrics.log_value
        log(NUM_ENV_STEPS_SAMPLED, steps, reduce="sum")
        log(NUM_ENV_STEPS_SAMPLED_LIFETIME, steps, reduce="lifetime_sum", with_throughput=True)
        log(NUM_EPISODES_LIFETIME, self.games.count, reduce="lifetime_sum")
        log(EPISODE_LEN_MEAN, self.game.horizon)
        log(EPISODE_RETURN_MEAN, float(returns.sum()))
        log(WEIGHTS_SEQ_NO, self._weights_seq_no, window=1)
        for name, value in zip(self.game.names, returns.tolist(), strict=True):
            log(("agent_episode_returns_mean", name), value)
            log((NUM_AGENT_STEPS_SAMPLED, name), steps, reduce="sum")
            log((NUM_AGENT_STEPS_SAMPLED_LIFETIME, name), steps, reduce="lifetime_sum")

    def get_metrics(self) -> Any:
        """Return the metrics since the last call."""
        return self.metrics.reduce()

    def get_state(self, components: Any = None, *, not_components: Any = None, **kwargs: Any) -> dict[str, Any]:
        """Return the step count and, if asked for, the modules' state."""
        state: dict[str, Any] = {NUM_ENV_STEPS_SAMPLED_LIFETIME: self.num_env_steps_sampled_lifetime}
        if self._check_component(COMPONENT_RL_MODULE, components, not_components):
            state[COMPONENT_RL_MODULE] = self.module.get_state()
            state[WEIGHTS_SEQ_NO] = self._weights_seq_no
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        """Take up a state; RLlib sends the modules' weights this way."""
        if COMPONENT_RL_MODULE in state:
            self.module.set_state(state[COMPONENT_RL_MODULE])
            self._weights_seq_no = state.get(WEIGHTS_SEQ_NO, 0)
        if NUM_ENV_STEPS_SAMPLED_LIFETIME in state:
            self.num_env_steps_sampled_lifetime = state[NUM_ENV_STEPS_SAMPLED_LIFETIME]

    def get_ctor_args_and_kwargs(self) -> tuple[tuple[()], dict[str, Any]]:
        """Return what builds this runner again."""
        return (), {"config": self.config}

    def get_checkpointable_components(self) -> list[tuple[str, Any]]:
        """Return the parts that save themselves."""
        return [(COMPONENT_RL_MODULE, self.module)]

    def assert_healthy(self) -> None:
        """Refuse a runner without modules."""
        assert self.module is not None

    def stop(self) -> None:
        """Release nothing: the games are arrays."""


def with_identity(view: Observations) -> Observations:
    """Return observations (..., organizations, features) with the organization's one-hot behind the features.

    The first layer's columns of the one-hot are the organization's embedding.
    """
    count = view.shape[-2]
    eye = np.broadcast_to(np.eye(count, dtype=np.float32), (*view.shape[:-1], count))
    return np.concatenate([view, eye], axis=-1)
