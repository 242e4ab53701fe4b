"""Live mode: the participation game as a PettingZoo environment with the real federation behind it.

`step` runs one round of real training at the chosen efforts; quality and rewards are measured, not looked up.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import ray

from envs.arrays import Observations
from envs.dynamics import FEATURES, State
from envs.errors import GameError
from envs.participation import Participation
from trustchain_ray.compare import mean_scores
from trustchain_ray.config import Config
from trustchain_ray.config_files import to_yaml
from trustchain_ray.federation import Federation
from trustchain_ray.participation import ASKED, EFFORTS, run_game
from trustchain_ray.policy.game import record_counts
from trustchain_ray.run_directory import RunDirectory, new_run
from trustchain_ray.settlement import net_payoff

REWARD, QUALITY = FEATURES.index("reward_last"), FEATURES.index("quality_last")
Progress = Callable[[str], None]
Infos = dict[str, dict[str, Any]]


class LiveParticipation(Participation):
    """The environment of `envs.participation`, whose rounds are those of a real federation.

    An episode is a run in a fresh directory `<folder>/<run.name>`, `-2`, ..., with its own log and chain. The efforts
    are the actions, every round is settled (`trustchain_ray.settlement`), and a reward is the settled net payoff over
    the same constant as in the game. Three things differ from the game: the model keeps what earlier rounds taught
    it, so a round pays for what it changed; measured rewards may leave [-1, 1] (in observations they are clipped); who
    does not answer in time has played 0. The federation's random choices are those of `run.key`: a seed changes
    nothing, equal actions give equal episodes.

    Needs a Ray session (`trustchain_ray.cluster`), which outlives it; `close` ends the organizations.

    Parameters
    ----------
    config
        Of the federation; `participation.horizon` (else `federation.rounds`) rounds are an episode.
    folder
        Gets the run directories.
    progress
        Called with one line of text as things happen.

    Raises
    ------
    TrustChainError
        The configuration makes no game whose action is the effort alone.
    """

    metadata: ClassVar[dict[str, Any]] = {
        "name": "live_participation_v1",
        "render_modes": [],
        "is_parallelizable": True,
    }

    def __init__(self, config: Config, folder: str | Path, progress: Progress = lambda line: None) -> None:
        super().__init__(run_game(config, record_counts(config)))
        participation = dataclasses.replace(config.participation, settle_every=1)
        federation = dataclasses.replace(config.federation, participation=ASKED, rounds=self.game.horizon)
        self.config = dataclasses.replace(config, participation=participation, federation=federation)
        if config.run.keystore:  # the same for actors, which run in other folders
            keystore = os.fspath(Path(config.run.keystore).expanduser().resolve())
            self.config.run = dataclasses.replace(config.run, keystore=keystore)
        self.folder, self.progress = Path(folder), progress
        self.federation: Federation | None = None
        self._base: Path | None = None  # files of a made base, the same in every run
        self._quality, self._rewards = 0.0, np.zeros(len(self.game.names))

    @property
    def run(self) -> Path | None:
        """Directory of the current run, or of the last one."""
        return None if self.federation is None else self.federation.run.path

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Observations], Infos]:
        """Start a federation anew; one that has not played yet is kept. See `ParallelEnv.reset`."""
        if self.federation is None or self.federation.finished:
            self._end()
            self.federation = self._start()
        super().reset(seed, options)
        evaluations = self.federation.evaluate(self.federation.model())
        self._quality = mean_scores(self.federation.scores(evaluations))["accuracy"]
        self._rewards[:] = 0.0
        return self._observations(), {name: {} for name in self.agents}

    def step(
        self, actions: Mapping[str, int]
    ) -> tuple[dict[str, Observations], dict[str, float], dict[str, bool], dict[str, bool], Infos]:
        """Run one round; see `ParallelEnv.step`.

        An info holds what was played and measured: `action`, `effort`, `benefit`, `cost` (money), the measured
        `quality` of the model, and `predicted_quality`, that of the game's surface at the same efforts.

        Raises
        ------
        GameError
            Where no episode is running, an organization has no action, or an action is unknown.
        TrustChainError
            The round failed: no quorum, or a model that diverged.
        """
        if not self.agents or self.federation is None:
            raise GameError("live participation: no episode is running, call reset() before step()")
        wanted = self.dynamics.affordable(self.state_now, self._joint(actions))
        settlement = self.federation.settlement
        asked = {name: EFFORTS[int(action)] for name, action in zip(self.game.names, wanted, strict=True)}
        settlement.shown = dataclasses.replace(settlement.shown, asked=asked)
        self.federation.train_round(self.federation.finished + 1)
        played = np.array([EFFORTS.index(settlement.shown.played[-1][name]) for name in self.game.names])
        before, stage = self.state_now, self.dynamics.stage
        self.state_now = State(before.round + 1, played, before.spent + self.dynamics.units[played])
        body = settlement.last
        self._quality = float(body["quality"])
        self._rewards = np.array([net_payoff(body, name) for name in self.game.names]) / stage.scale
        over, agents = self.dynamics.done(self.state_now), self.agents
        predicted = float(stage.quality[int(self.dynamics.profile(played))])
        infos = {
            name: {
                "action": int(played[i]),
                "effort": float(EFFORTS[int(played[i])]),
                "benefit": float(body["payments"][name]),
                "cost": float(body["costs"][name]),
                "quality": self._quality,
                "predicted_quality": predicted,
            }
            for i, name in enumerate(agents)
        }
        if over:
            self.agents = []
            self._seal()
        return (
            self._observations(),
            dict(zip(agents, self._rewards.tolist(), strict=True)),
            dict.fromkeys(agents, False),
            dict.fromkeys(agents, over),
            infos,
        )

    def state(self) -> Observations:
        """Return all agents' observations in one vector, for centralised training."""
        return self._view().reshape(-1)

    def close(self) -> None:
        """End the organizations and the ledger of the current run; its directory stays."""
        self._end()
        self.agents = []

    def _start(self) -> Federation:
        path = new_run(os.fspath(self.folder), self.config.run.name)
        run = RunDirectory.create(path)
        run.write("config.yaml", to_yaml(self.config).encode())
        if self._base is not None:
            shutil.copytree(self._base, run.path / "base")
        federation = Federation(self.config, run, self.progress)
        try:
            federation.start()
        except BaseException:
            run.unlock()
            raise
        if (run.path / "base").is_dir():
            self._base = run.path / "base"
        return federation

    def _seal(self) -> None:
        """Make the finished run's rounds durable and its log whole."""
        assert self.federation is not None
        self.federation.writer.close()
        ray.get(self.federation.ledger.finish.remote([], self.federation.witnesses))

    def _end(self) -> None:
        if self.federation is None:
            return
        federation, self.federation = self.federation, None
        federation.close()
        for actor in {id(member.actor): member.actor for member in federation.members.values()}.values():
            ray.kill(actor)
        ray.kill(federation.ledger)
        federation.run.unlock()

    def _view(self) -> Observations:
        """What all see: the game's features, with measured quality and rewards in place of the surface's."""
        view = self.dynamics.observe(self.state_now)
        view[:, QUALITY] = self._quality
        view[:, REWARD] = np.clip((self._rewards + 1.0) / 2.0, 0.0, 1.0)
        return view

    def _observations(self) -> dict[str, Observations]:
        view = self._view()
        return {name: view[row] for row, name in enumerate(self.possible_agents)}
