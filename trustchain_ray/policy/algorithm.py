"""RLlib's DQN over the participation game, with the game's own runner and buffer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from ray.rllib.algorithms.dqn.dqn import DQN, DQNConfig
from ray.rllib.algorithms.dqn.torch.dqn_torch_learner import DQNTorchLearner
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.learner_group import LearnerGroup
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.env.env_runner_group import EnvRunnerGroup
from ray.rllib.env.wrappers.pettingzoo_env import ParallelPettingZooEnv
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from ray.rllib.utils.metrics import (
    ENV_RUNNER_RESULTS,
    ENV_RUNNER_SAMPLING_TIMER,
    LEARNER_RESULTS,
    LEARNER_UPDATE_TIMER,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
    REPLAY_BUFFER_ADD_DATA_TIMER,
    REPLAY_BUFFER_SAMPLE_TIMER,
    SYNCH_WORKER_WEIGHTS_TIMER,
    TD_ERROR_KEY,
    TIMERS,
)
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger
from ray.tune.registry import register_env

from envs import GameConfig, parallel_env
from trustchain_ray.keys import generator, torch_seed
from trustchain_ray.policy.buffer import RoundEpisodeReplayBuffer, Rounds
from trustchain_ray.policy.q_policies import QNetwork, QPolicies
from trustchain_ray.policy.runner import SHARED, GameRunner, with_identity
from trustchain_ray.policy.settings import LearningConfig

ENVIRONMENT = "participation"
TARGETS_UPDATED = "targets_updated"


class GameLearner(DQNTorchLearner):
    """RLlib's DQN learner, whose checkpoints also say when each target network was updated.

    Without it, a resumed run updates all of them at once and is not the undisturbed run any more.
    """

    def get_state(self, components: Any = None, *, not_components: Any = None, **kwargs: Any) -> dict[str, Any]:
        """Return RLlib's state and the rounds of the last target updates."""
        state: dict[str, Any] = super().get_state(components, not_components=not_components, **kwargs)
        return state | {TARGETS_UPDATED: dict(self.last_update_ts_by_mid)}

    def set_state(self, state: dict[str, Any]) -> None:
        """Take up a state of `get_state`."""
        super().set_state(state)
        self.last_update_ts_by_mid.update(state.get(TARGETS_UPDATED, {}))


class GameDQN(DQN):
    """DQN whose training step draws arrays instead of episodes.

    Learner, loss, target networks and checkpoints are RLlib's. `config.env_config` holds the `game`, the `key` and
    the number of `updates` in a training step. Every random number is derived from the key and the rounds played
    so far, so a resumed run repeats the undisturbed one.
    """

    # RLlib declares these as optional: they are None only while it sets up.
    config: DQNConfig  # type: ignore[assignment]
    metrics: MetricsLogger
    learner_group: LearnerGroup
    env_runner_group: EnvRunnerGroup
    local_replay_buffer: RoundEpisodeReplayBuffer  # type: ignore[assignment]

    def training_step(self) -> None:
        """Play one episode of all games, then update on uniform draws from the buffer."""
        config, runner, buffer = self.config.env_config, self.env_runner, self.local_replay_buffer
        played = self.env_steps
        runner.random = generator(config["key"], "play", played)
        with self.metrics.log_time((TIMERS, ENV_RUNNER_SAMPLING_TIMER)):
            rounds = runner.sample()
            self.metrics.aggregate([runner.get_metrics()], key=ENV_RUNNER_RESULTS)
        with self.metrics.log_time((TIMERS, REPLAY_BUFFER_ADD_DATA_TIMER)):
            buffer.add(rounds)
        size = self.config.total_train_batch_size
        with self.metrics.log_time((TIMERS, REPLAY_BUFFER_SAMPLE_TIMER)):
            drawn = buffer.draw(config["updates"] * size, generator(config["key"], "draw", played))
            batch = self._batch(drawn)
        with self.metrics.log_time((TIMERS, LEARNER_UPDATE_TIMER)):
            # One call for all updates: a call reduces a hundred metrics, which costs as much as an update.
            results = self.learner_group.update(
                batch=batch,
                minibatch_size=size * (len(config["game"].names) if SHARED in self.config.policies else 1),
                num_epochs=1,
                timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: self.env_steps},
            )
        for result in results:
            for of_module in result.values():
                of_module.pop(TD_ERROR_KEY, None)
        self.metrics.aggregate(results, key=LEARNER_RESULTS)
        with self.metrics.log_time((TIMERS, SYNCH_WORKER_WEIGHTS_TIMER)):
            self.env_runner_group.sync_weights(from_worker_or_learner_group=self.learner_group, inference_only=True)

    @property
    def env_steps(self) -> int:
        """Rounds played so far, over all games."""
        return int(self.env_runner.num_env_steps_sampled_lifetime)

    def greedy(self) -> QPolicies:
        """Return the greedy policies of the learner's networks."""
        game: GameConfig = self.config.env_config["game"]
        state = self.learner_group.get_state(components=["learner/rl_module"])["learner"]["rl_module"]
        if SHARED in state:
            network, eye = _network(state[SHARED]), np.eye(len(game.names), dtype=np.float32)
            networks = {name: replace(network, identity=eye[i]) for i, name in enumerate(game.names)}
        else:
            networks = {name: _network(state[name]) for name in game.names}
        return QPolicies(game.digest(), networks)

    def _batch(self, rounds: Rounds) -> MultiAgentBatch:
        """One batch a module; a shared module reads each round from every organization's side."""
        names = self.config.env_config["game"].names
        shared = SHARED in self.config.policies
        before, after = rounds.observations, rounds.next_observations
        if shared:
            before, after = with_identity(before), with_identity(after)
        over = np.repeat(rounds.terminal[:, None], len(names), axis=1)
        columns: dict[str, np.ndarray[Any, Any]] = {
            Columns.OBS: before,
            Columns.NEXT_OBS: after,
            Columns.ACTIONS: rounds.actions,
            Columns.REWARDS: rounds.rewards,
            Columns.TERMINATEDS: over,
            "weights": rounds.weights,
            "n_step": np.ones_like(rounds.rewards),
        }
        if shared:
            batches = {SHARED: {key: values.reshape(-1, *values.shape[2:]) for key, values in columns.items()}}
        else:
            batches = {
                name: {key: np.ascontiguousarray(values[:, i]) for key, values in columns.items()}
                for i, name in enumerate(names)
            }
        tensors = {
            name: SampleBatch({key: torch.from_numpy(values) for key, values in batch.items()})
            for name, batch in batches.items()
        }
        return MultiAgentBatch(tensors, env_steps=len(rounds))


def dqn_config(game: GameConfig, settings: LearningConfig, key: bytes) -> DQNConfig:
    """Return RLlib's configuration of the learning.

    Parameters
    ----------
    game
        The game.
    settings
        Section `participation.learning`.
    key
        All randomness is derived from it.
    """
    register_env(ENVIRONMENT, lambda context: ParallelPettingZooEnv(parallel_env(context["game"])))
    shared, steps = settings.shared, settings.env_steps
    config = (
        DQNConfig(algo_class=GameDQN)
        .environment(
            ENVIRONMENT,
            env_config={
                "game": game,
                "key": key,
                "updates": settings.updates,
                "epsilon": settings.epsilon,
                "random_starts": settings.random_starts,
            },
            disable_env_checking=True,
        )
        .env_runners(
            num_env_runners=0,
            env_runner_cls=GameRunner,
            num_envs_per_env_runner=settings.games,
        )
        .multi_agent(
            policies=[SHARED] if shared else list(game.names),
            policy_mapping_fn=lambda agent, *_, **__: SHARED if shared else agent,
        )
        .rl_module(
            model_config=DefaultModelConfig(
                fcnet_hiddens=list(settings.hidden), fcnet_activation="tanh", head_fcnet_hiddens=[]
            )
        )
        .training(
            gamma=game.discount,
            double_q=True,
            dueling=True,
            lr=[[0, settings.lr], [steps // 2, settings.lr], [steps, settings.lr_end]],
            train_batch_size=settings.batch_size,
            target_network_update_freq=settings.target_every,
            num_steps_sampled_before_learning_starts=0,
            grad_clip=None,
            learner_class=GameLearner,
            replay_buffer_config={
                "type": f"{RoundEpisodeReplayBuffer.__module__}.{RoundEpisodeReplayBuffer.__qualname__}",
                "capacity": settings.buffer,
            },
        )
        .reporting(min_sample_timesteps_per_iteration=-(-steps // settings.iterations))
        .debugging(seed=torch_seed(key, "weights") % 2**31, log_level="ERROR")
    )
    return config


def _network(state: Mapping[str, Any]) -> QNetwork:
    """Take a Q-network out of the state of RLlib's DQN module."""

    def layer(name: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        return np.array(state[f"{name}.weight"], np.float32), np.array(state[f"{name}.bias"], np.float32)

    depth = sum(name.startswith("encoder.net.mlp.") and name.endswith(".weight") for name in state)
    # Between two linear layers stands an activation: their numbers are even.
    hidden = tuple(layer(f"encoder.net.mlp.{2 * i}") for i in range(depth))
    return QNetwork(hidden, layer("af.net.mlp.0"), layer("vf.net.mlp.0"))
