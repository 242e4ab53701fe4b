"""Learning participation with RLlib: rounds a second, and how close to equilibrium the Q-policies come.

`python -m benchmarks.policy`, from the top of the repository, writes `benchmarks/results/policy.json` after every
figure and prints the tables. What the file already holds is not measured again; `--fresh` begins anew.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import parser, table, write
from benchmarks.participation import federation
from envs import ClosedFormSurface, GameConfig, OrganizationType, Payoff, parallel_env
from envs.baselines import BASELINES, baseline_policies
from envs.dynamics import Dynamics
from envs.oracles import price_of_anarchy, pure_equilibria
from envs.q_learning import q_learning
from envs.stage_game import stage_game
from trustchain_ray.cluster import cluster
from trustchain_ray.config import Config
from trustchain_ray.policy.assess import play, schedule
from trustchain_ray.policy.learn import learn
from trustchain_ray.policy.settings import LearningConfig

POTENTIAL = (Payoff.PUBLIC_GOOD, Payoff.LEAVE_ONE_OUT, Payoff.SHAPLEY, Payoff.EQUAL_SPLIT)
KEY = "benchmark"
COSTS = (0.0, 2e-4, 4e-4, 6e-4, 9e-4, 2e-3)


def quietly(name: str, game: GameConfig, settings: LearningConfig) -> Any:
    """Learn in a folder that is thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        return learn(game, settings, f"{KEY}/{name}", Path(folder), lambda line: None)


def default_dqn(game: GameConfig, settings: LearningConfig, same_ratio: bool) -> Any:
    """Return RLlib's DQN with its own multi-agent runner, buffer and training step.

    With `same_ratio`, network, batch and updates a round are those of `settings`; else they are RLlib's defaults.
    """
    from ray.rllib.algorithms.dqn.dqn import DQNConfig
    from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
    from ray.rllib.env.wrappers.pettingzoo_env import ParallelPettingZooEnv
    from ray.tune.registry import register_env

    register_env(
        "participation-default",
        lambda _: ParallelPettingZooEnv(parallel_env(game)),  # type: ignore[no-untyped-call]
    )
    config = (
        DQNConfig()  # type: ignore[no-untyped-call]
        .environment("participation-default")
        .env_runners(num_env_runners=0)
        .multi_agent(policies=list(game.names), policy_mapping_fn=lambda agent, *_, **__: agent)
        .training(replay_buffer_config={"type": "MultiAgentEpisodeReplayBuffer", "capacity": settings.buffer})
        .reporting(min_sample_timesteps_per_iteration=1)
        .debugging(seed=0, log_level="ERROR")
    )
    # Learning from the first round: the time is that of rounds and updates.
    config.training(num_steps_sampled_before_learning_starts=game.horizon * 40)
    if same_ratio:
        every = settings.games * game.horizon // settings.updates
        config.env_runners(rollout_fragment_length=every).training(train_batch_size=settings.batch_size)
        config.rl_module(
            model_config=DefaultModelConfig(fcnet_hiddens=list(settings.hidden), head_fcnet_hiddens=[])
        )
    return config.build_algo()


def own_dqn(game: GameConfig, settings: LearningConfig) -> Any:
    """Return the project's algorithm."""
    from trustchain_ray.policy.algorithm import dqn_config

    return dqn_config(game, settings, KEY.encode()).build_algo()


def rounds_played(algorithm: Any) -> int:
    """Return the environment steps so far; all organizations act in each."""
    return int(algorithm.metrics.peek(("env_runners", "num_env_steps_sampled_lifetime"), default=0))


def rate(algorithm: Any, seconds: float) -> float:
    """Return rounds a second over about `seconds` of training steps."""
    before, start = rounds_played(algorithm), time.perf_counter()
    while time.perf_counter() - start < seconds:
        algorithm.training_step()
    return (rounds_played(algorithm) - before) / (time.perf_counter() - start)


def speed(repeats: int, seconds: float) -> dict[str, Any]:
    """Return rounds a second of three algorithms that take turns, N = 4."""
    import torch

    game, settings = federation(Payoff.LEAVE_ONE_OUT, 4, 0), LearningConfig()
    torch.set_num_threads(1)
    algorithms = {
        "default": default_dqn(game, settings, same_ratio=False),
        "default_same_ratio": default_dqn(game, settings, same_ratio=True),
        "own": own_dqn(game, settings),
    }
    rates: dict[str, list[float]] = {name: [] for name in algorithms}
    for algorithm in algorithms.values():
        while rounds_played(algorithm) < game.horizon * 40:  # warm: past the rounds without updates
            algorithm.training_step()
    for _ in range(repeats):
        for name, algorithm in algorithms.items():
            rates[name].append(rate(algorithm, seconds))
    for algorithm in algorithms.values():
        algorithm.stop()
        shutil.rmtree(algorithm.logdir, ignore_errors=True)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "organizations": 4,
        "horizon": game.horizon,
        "rounds_per_second": medians,
        "all": rates,
        "own_over_default": medians["own"] / medians["default"],
        "own_over_default_same_ratio": medians["own"] / medians["default_same_ratio"],
        "rounds_per_update": {
            "default": 1,
            "default_same_ratio": settings.games * game.horizon / settings.updates,
            "own": settings.games * game.horizon / settings.updates,
        },
    }


def quality(payoff: Payoff, organizations: int, seed: int, settings: LearningConfig) -> dict[str, Any]:
    """Return the figures of one learning in a random federation, beside the fixed policies and the tabular learner."""
    game = federation(payoff, organizations, seed)
    dynamics = Dynamics(stage_game(game))
    learned = quietly(f"{payoff.value}/{organizations}/{seed}", game, settings)
    policies = {"dqn": learned.policies.policies(), "tabular": q_learning(game, seed, runs=1)[0].policies()}
    policies |= {name: baseline_policies(name, dynamics.stage, np.random.default_rng(seed)) for name in BASELINES}
    return {
        "payoff": payoff.value,
        "organizations": organizations,
        "seed": seed,
        "pure_equilibria": len(pure_equilibria(dynamics.stage)),
        "price_of_anarchy_of_the_game": price_of_anarchy(dynamics.stage),
        "rounds_per_second": learned.env_steps_per_second,
        "curve": learned.curve,
        "policies": {
            name: {key: value for key, value in play(dynamics, each).items() if key != "returns"}
            for name, each in policies.items()
        },
    }


def statics(cost: float, seed: int, settings: LearningConfig) -> dict[str, Any]:
    """Return participation at a unit cost: three equal organizations, leave-one-out, one round."""
    parties = tuple(OrganizationType(f"o{i}", 1000, 0.8, cost, 1.0) for i in range(3))
    game = GameConfig(parties, ClosedFormSurface(0.9, 1 / 1500), Payoff.LEAVE_ONE_OUT, 2.0, horizon=1)
    dynamics = Dynamics(stage_game(game))
    learned = quietly(f"statics/{cost}/{seed}", game, settings)
    found = dynamics.stage.profiles.efforts[dynamics.profile(pure_equilibria(dynamics.stage))]
    return {
        "cost": cost,
        "seed": seed,
        "participation": float(schedule(dynamics, learned.policies.policies()).mean() / 2),
        "equilibria": [float(found.mean(axis=1).min()), float(found.mean(axis=1).max())],
    }


def quickstart() -> dict[str, Any]:
    """Return time and figures of `trustchain policy train -c configs/quickstart.yaml`, the start of Ray included."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["policy", "train", "-c", "configs/quickstart.yaml", "--out", f"{folder}/policy", "--json"]
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "trustchain_ray", *arguments], capture_output=True, text=True, check=False
        )
        seconds = time.perf_counter() - began
    if not done.stdout:
        raise SystemExit(done.stderr)
    report = json.loads(done.stdout.splitlines()[-1])
    return {
        "seconds": seconds,
        "exit_code": done.returncode,
        "nash_conv": report["policies"]["learned"]["nash_conv"],
        "rounds_per_second": report["env_steps_per_second"],
    }


def median_of(rows: list[dict[str, Any]], policy: str, key: str) -> float:
    """Median over the rows of one rule; a price of anarchy of no welfare counts as infinite."""
    values = [row["policies"][policy][key] for row in rows]
    return float(np.median([np.inf if value is None else value for value in values]))


def tables(result: dict[str, Any]) -> str:
    """Return NashConv and price of anarchy, a line a rule and number of organizations."""
    kinds, lines = ("dqn", "tabular", "always", "random", "myopic"), []
    for organizations in (4, 8):
        for payoff in POTENTIAL:
            rows = [row for row in result["quality"].values() if row["payoff"] == payoff.value]
            rows = [row for row in rows if row["organizations"] == organizations]
            if rows:
                cells = [f"{median_of(rows, kind, 'nash_conv'):.1%}" for kind in kinds]
                last = statistics.median(row["curve"][-1][1] for row in rows)
                cells += [f"{median_of(rows, kind, 'price_of_anarchy'):.2f}" for kind in kinds]
                worst = max(row["policies"]["dqn"]["nash_conv"] for row in rows)
                own = [cells[0], f"{worst:.1%}", f"{last:.1%}"]
                lines.append([payoff.value, organizations, len(rows), *own, *cells[1:]])
    header = ["rule", "N", "seeds", "NashConv dqn", "worst", "last iteration"]
    header += [f"NashConv {kind}" for kind in kinds[1:]] + [f"anarchy {kind}" for kind in kinds]
    return table(header, lines)


def main() -> None:
    """Measure what is missing, write after each figure, print the tables."""
    arguments = parser("policy", __doc__ or "")
    arguments.add_argument("--fresh", action="store_true", help="measure everything again")
    arguments.add_argument("--seeds", type=int, default=10, help="federations and learnings a rule")
    arguments.add_argument("--organizations", type=int, nargs="*", default=[4, 8], choices=[4, 8])
    arguments.add_argument("--repeats", type=int, default=5, help="turns of the speed comparison")
    arguments.add_argument("--seconds", type=float, default=6.0, help="of a turn")
    options = arguments.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("ray").setLevel(logging.ERROR)
    settings = LearningConfig()
    result: dict[str, Any] = {"settings": asdict(settings), "quality": {}, "statics": {}}
    if options.out.exists() and not options.fresh:
        stored = json.loads(options.out.read_text(encoding="utf-8"))
        result = stored if stored.get("settings") == result["settings"] else result

    def measure(into: dict[str, Any], name: str, what: Callable[[], Any]) -> None:
        if name not in into:
            into[name] = what()
            with contextlib.redirect_stdout(sys.stderr):
                write(options.out, {key: value for key, value in result.items() if key not in ("date", "machine")})

    measure(result, "quickstart", quickstart)
    alone = Config()
    alone.resources.mode = "pooled"
    with cluster(alone, 1):
        measure(result, "speed", partial(speed, options.repeats, options.seconds))
        print(json.dumps(result["speed"]["rounds_per_second"]), flush=True)
        for cost in COSTS:
            for seed in range(3):
                brief = replace(settings, env_steps=4_000, games=64, lr=5e-3, iterations=1)
                measure(result["statics"], f"{cost:g}/{seed}", partial(statics, cost, seed, brief))
        for organizations in options.organizations:
            for seed in range(options.seeds):
                for payoff in POTENTIAL:
                    name = f"{payoff.value}/{organizations}/{seed}"
                    measure(result["quality"], name, partial(quality, payoff, organizations, seed, settings))
                    row = result["quality"][name]
                    print(f"{name:<28} NashConv {row['policies']['dqn']['nash_conv']:.2%}", flush=True)
    print(tables(result))


if __name__ == "__main__":
    main()
