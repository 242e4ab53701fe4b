"""Learning policies with RLlib: iterations, checkpoints, the learning curve, going on after a kill."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from envs import GameConfig, GameError
from envs.best_response import policies_nash_conv
from envs.dynamics import Dynamics
from envs.stage_game import stage_game
from ledger.canonical import fsync_directory
from trustchain_ray.errors import TrustChainError
from trustchain_ray.keys import derive
from trustchain_ray.policy.q_policies import QPolicies
from trustchain_ray.policy.settings import LearningConfig

CHECKPOINTS, CURVE, BEST, EVENTS = "checkpoints", "curve.json", "best", "tensorboard"
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Learned:
    """What a learning came to.

    Attributes
    ----------
    policies
        The greedy policies of the iteration with the lowest NashConv, of the latest where several share it: learners
        that all adapt at once keep moving around an equilibrium, and the game is known, so each stop can be judged.
    curve
        (rounds played, NashConv over the payoff range) after every iteration.
    env_steps_per_second
        Rounds a second, over sampling and updates, of this process.
    """

    policies: QPolicies
    curve: list[tuple[int, float]]
    env_steps_per_second: float


def learn(
    game: GameConfig, settings: LearningConfig, key: str, folder: Path, progress: Progress, resume: bool = False
) -> Learned:
    """Learn one Q-policy an organization; needs a Ray session (`trustchain_ray.cluster`).

    Runs in this process: the networks are so small that moving them between processes costs more than they do.

    Parameters
    ----------
    game
        The game.
    settings
        Section `participation.learning`.
    key
        `run.key`; same key and settings, same policies.
    folder
        Gets `checkpoints/` and TensorBoard event files.
    progress
        Called with one line an iteration.
    resume
        Go on from the last whole checkpoint in `folder`, if there is one.

    Raises
    ------
    TrustChainError
        The Q-values became infinite, a checkpoint cannot be read, or the horizon is too long to judge policies.
    """
    # RLlib's modules import torch, TensorFlow stubs and a hundred files: only who learns pays for it.
    import torch
    from tensorboardX import SummaryWriter

    from trustchain_ray.policy.algorithm import GameDQN, dqn_config

    dynamics = Dynamics(stage_game(game))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    algorithm, events = None, SummaryWriter(os.fspath(folder / EVENTS))
    try:
        with _quiet():
            config = dqn_config(game, settings, derive(key, "policy", settings.seed))
            algorithm = config.build_algo()
        assert isinstance(algorithm, GameDQN)
        curve, best = _restore(algorithm, game, folder) if resume else ([], None)
        if curve:
            progress(f"going on after {curve[-1][0]} of {settings.env_steps} rounds of the game")
        start, learning = algorithm.env_steps, 0.0
        while algorithm.env_steps < settings.env_steps:
            since = time.perf_counter()
            with _quiet():
                result = algorithm.train()
            learning += time.perf_counter() - since
            policies = algorithm.greedy()
            found = _nash_conv(dynamics, policies)
            if best is None or found <= min(value for _, value in curve):
                best = policies
            curve.append((algorithm.env_steps, found))
            _write_events(events, result, found, algorithm.env_steps)
            _save(algorithm, best, folder, curve)
            rate = (algorithm.env_steps - start) / learning
            progress(
                f"{algorithm.env_steps}/{settings.env_steps} rounds of the game  NashConv {found:.2%}  "
                f"{rate:,.0f} rounds/s"
            )
        played = algorithm.env_steps - start
        assert best is not None
        return Learned(best, curve, played / learning if played else 0.0)
    finally:
        events.close()
        if algorithm is not None:
            with _quiet():
                algorithm.stop()
            # RLlib makes it in the home folder, for logs that are written to `folder` here.
            shutil.rmtree(algorithm.logdir, ignore_errors=True)
        torch.set_num_threads(threads)


def _nash_conv(dynamics: Dynamics, policies: QPolicies) -> float:
    try:
        return max(0.0, policies_nash_conv(dynamics, policies.policies()).relative)
    except GameError as error:
        raise TrustChainError(f"{error}. The key is participation.horizon") from None


def _save(algorithm: Any, best: QPolicies, folder: Path, curve: list[tuple[int, float]]) -> None:
    """Write a checkpoint whole or not at all, and drop the one before."""
    checkpoints = folder / CHECKPOINTS
    whole, part = checkpoints / f"{algorithm.env_steps:010d}", checkpoints / "part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    with _quiet():
        algorithm.save_to_path(os.fspath(part / "rllib"))
    buffer = algorithm.local_replay_buffer.get_state()
    with open(part / "buffer.npz", "wb") as file:
        np.savez(file, next=np.array(buffer["next"]), **buffer["rows"])
    best.save(part / BEST)
    (part / CURVE).write_text(json.dumps(curve), encoding="utf-8")
    for path in part.rglob("*"):
        if path.is_file():
            with open(path, "rb") as written:
                os.fsync(written.fileno())
        else:
            fsync_directory(path)
    fsync_directory(part)
    os.rename(part, whole)
    fsync_directory(checkpoints)
    for old in _checkpoints(folder)[:-1]:
        shutil.rmtree(old)


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / CHECKPOINTS).glob("[0-9]*") if path.is_dir())


def _restore(algorithm: Any, game: GameConfig, folder: Path) -> tuple[list[tuple[int, float]], QPolicies | None]:
    """Take up the last whole checkpoint; return the curve and the best policies so far, if there is one."""
    found = _checkpoints(folder)
    if not found:
        return [], None
    try:
        with _quiet():
            algorithm.restore_from_path(os.fspath(found[-1] / "rllib"))
        with np.load(found[-1] / "buffer.npz", allow_pickle=False) as stored:
            rows = {name: stored[name] for name in stored.files}
        algorithm.local_replay_buffer.set_state({"next": int(rows.pop("next")), "rows": rows})
        curve = json.loads((found[-1] / CURVE).read_text(encoding="utf-8"))
    except Exception as error:  # RLlib, torch and NumPy each have their own
        raise TrustChainError(
            f"checkpoint {found[-1]} cannot be read ({type(error).__name__}: {error}); delete it to begin again"
        ) from error
    return [(int(steps), float(value)) for steps, value in curve], QPolicies.load(found[-1] / BEST, game)


def _write_events(events: Any, result: dict[str, Any], nash_conv: float, step: int) -> None:
    """TensorBoard scalars: NashConv, returns, and each module's loss and Q-values."""
    events.add_scalar("nash_conv", nash_conv, step)
    runners = result["env_runners"]
    events.add_scalar("episode_return_mean", runners["episode_return_mean"], step)
    for name, value in runners["agent_episode_returns_mean"].items():
        events.add_scalar(f"episode_return_mean/{name}", value, step)
    for module, values in result["learners"].items():
        for key in ("qf_loss", "qf_mean", "qf_max", "td_error_mean"):
            if key in values:
                if not np.isfinite(values[key]):
                    raise TrustChainError(
                        f"learning: {key} of {module!r} is {values[key]} after {step} rounds; lower "
                        "participation.learning.lr"
                    )
                events.add_scalar(f"{key}/{module}", float(values[key]), step)
    events.flush()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """RLlib warns of what does not concern who learns here: deprecated names, unset resources."""
    loggers = [logging.getLogger(name) for name in ("ray", "ray.rllib", "ray.tune")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
