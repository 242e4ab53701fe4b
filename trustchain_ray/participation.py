"""How an organization decides, round by round, whether and how much to take part."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from envs import GameConfig
from envs.baselines import myopic_policy
from envs.best_response import Policy
from envs.dynamics import FEATURES, Dynamics, State
from envs.stage_game import stage_game
from ledger.canonical import canonical_json, sha256_hex
from trustchain_ray.config import Config
from trustchain_ray.errors import TrustChainError
from trustchain_ray.keys import generator
from trustchain_ray.statements import statement_of

EFFORTS = (Fraction(0), Fraction(1, 2), Fraction(1))
"""What an action of the game means: 0 is out, 1 half of the local steps, 2 all of them."""

ASKED = "asked"
"""How organizations decide in `trustchain_ray.live`, which asks them for efforts; no value for a configuration file."""

SCHEDULE = "trustchain-schedule/1"
"""Format of a schedule file: ``{"format": ..., "rounds": [{organization: "0" | "1/2" | "1"}, ...]}``."""

Schedule = list[dict[str, Fraction]]


@dataclass(frozen=True)
class Shown:
    """What the federation has shown by the start of a round: public, and the same for all.

    Attributes
    ----------
    played
        For each finished round the effort of every organization; who was absent or refused played 0.
    quality
        Measured quality of the model in the last round that was settled, in [0, 1]; None before the first.
    asked
        In live mode the effort that each organization is asked for in this round.
    """

    played: Sequence[Mapping[str, Fraction]] = ()
    quality: float | None = None
    asked: Mapping[str, Fraction] = field(default_factory=dict)


class Decider:
    """Decides for one organization.

    Parameters
    ----------
    config
        `federation.participation` says how: always | never | random | file | myopic | learned.
    name
        The organization.
    records
        Training records of every organization (the manifest's).
    schedule
        Of :func:`load_schedule`, for `file`.

    Raises
    ------
    TrustChainError
        No such schedule or policy, or one that was made for another game.
    """

    def __init__(
        self, config: Config, name: str, records: Mapping[str, int], schedule: Schedule | None = None
    ) -> None:
        self._key, self._name, self._schedule = config.run.key, name, schedule
        self._kind = config.federation.participation
        if self._kind in ("myopic", "learned"):
            game = run_game(config, records)
            self._dynamics = Dynamics(stage_game(game))
            self._names = game.names
            self._row = game.names.index(name)
            self._policy = _policy(config, game, self._dynamics, self._row)

    def decide(self, number: int, shown: Shown) -> Fraction:
        """Effort in round `number` (from 1), as a share of `federation.local_steps`."""
        if self._kind == "always":
            return EFFORTS[-1]
        if self._kind == "never":
            return EFFORTS[0]
        if self._kind == "random":
            draw = generator(self._key, "participation", self._name, number)
            return EFFORTS[int(draw.integers(len(EFFORTS)))]
        if self._kind == ASKED:
            return shown.asked[self._name]
        if self._kind == "file":
            assert self._schedule is not None
            return self._schedule[number - 1][self._name]
        state = self._state(shown)
        view = self._dynamics.observe(state)[self._row]
        if shown.quality is not None:
            view[FEATURES.index("quality_last")] = shown.quality
        joint = np.zeros(len(self._names), np.int64)
        joint[self._row] = self._policy(view[None])[0]
        return EFFORTS[int(self._dynamics.affordable(state, joint)[self._row])]

    def _state(self, shown: Shown) -> State:
        """The game after the rounds that were really played."""
        state = self._dynamics.start()
        for efforts in shown.played[: self._dynamics.game.horizon - 1]:
            actions = np.array([EFFORTS.index(efforts.get(name, EFFORTS[0])) for name in self._names])
            state, _ = self._dynamics.step(state, actions)
        return state


def effort_of(decision: Mapping[str, Any]) -> Fraction:
    """The effort that an accepted DECISION names."""
    return Fraction(statement_of(decision)["body"]["effort"])


def run_game(config: Config, records: Mapping[str, int]) -> GameConfig:
    """The game of a run, where the rank is fixed and an action is the effort alone.

    Raises
    ------
    TrustChainError
        The configuration makes no such game.
    """
    from trustchain_ray.policy.game import build_game

    game = build_game(config, config.participation, records)
    if game.action_count != len(EFFORTS):
        raise TrustChainError(
            f"participation.ranks={list(game.ranks)}: the LoRA rank of a run is fixed; leave it empty for "
            f"federation.participation={config.federation.participation}"
        )
    return game


def manifest_entry(config: Config, records: Mapping[str, int], schedule: Schedule | None) -> dict[str, str]:
    """How everybody decides, for the manifest: the `kind`, and digests of the `game`, the `policy`, the `schedule`."""
    kind = config.federation.participation
    entry = {"kind": kind}
    if kind in ("myopic", "learned") or config.participation.settle_every:
        game = run_game(config, records)
        entry["game"] = game.digest()
        if kind == "learned":
            from trustchain_ray.policy.q_policies import QPolicies

            entry["policy"] = QPolicies.load(config.participation.policy, game).digest()
    if schedule is not None:
        rows = [{name: str(effort) for name, effort in row.items()} for row in schedule]
        entry["schedule"] = sha256_hex(canonical_json(rows))
    return entry


def load_schedule(path: str | Path, names: Sequence[str], rounds: int) -> Schedule:
    """Read efforts that were decided before.

    Parameters
    ----------
    path
        A file in the format :data:`SCHEDULE`, or a run directory, whose decisions are taken.
    names
        Organizations that must be in it.
    rounds
        Rounds that it must cover.

    Raises
    ------
    TrustChainError
        Missing, malformed, too short, or an organization or effort that is none.
    """
    where = Path(path)
    rows = recorded_schedule(where) if where.is_dir() else _read_schedule(where)
    if len(rows) < rounds:
        raise TrustChainError(f"{where}: covers {len(rows)} rounds, the run has {rounds}")
    schedule: Schedule = []
    for number, row in enumerate(rows[:rounds], 1):
        if row.keys() != set(names):
            raise TrustChainError(f"{where}: round {number} is of {', '.join(sorted(row))}, not of {', '.join(names)}")
        try:
            schedule.append({name: EFFORTS[EFFORTS.index(Fraction(effort))] for name, effort in row.items()})
        except (ValueError, TypeError, ZeroDivisionError):
            raise TrustChainError(f"{where}: round {number}: an effort is 0, 1/2 or 1, not {row}") from None
    return schedule


def recorded_schedule(run: Path) -> list[dict[str, str]]:
    """Efforts that the organizations of a finished or unfinished run decided on, round by round, by its log.

    Who did not answer in a round played 0. Where a round was repeated after a crash, the last decision counts.
    """
    from ledger import layout
    from ledger.events import DECISION, read_event
    from ledger.identity import COORDINATOR
    from ledger.log import SqliteLog

    log = SqliteLog(run / layout.LOG, read_only=True)
    try:
        names = [name for name in log.registry.organizations if name != COORDINATOR]
        found: dict[int, dict[str, str]] = {}
        for _, envelope in log.events(DECISION):
            event = read_event(envelope, log.keys())
            found.setdefault(event.body["round"], dict.fromkeys(names, "0"))[event.organization] = event.body["effort"]
    finally:
        log.close()
    if sorted(found) != list(range(1, len(found) + 1)):
        raise TrustChainError(f"{run}: its log holds decisions of rounds {sorted(found)}, with gaps")
    return [found[number] for number in sorted(found)]


def _read_schedule(path: Path) -> list[dict[str, str]]:
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != SCHEDULE:
            raise ValueError(f"format {content['format']!r}, this version reads {SCHEDULE!r}")
        return [dict(row) for row in content["rounds"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrustChainError(f"{path}: not a schedule ({type(error).__name__}: {error})") from None


def _policy(config: Config, game: GameConfig, dynamics: Dynamics, row: int) -> Callable[..., Any]:
    if config.federation.participation == "myopic":
        return myopic_policy(dynamics.stage, row)
    from trustchain_ray.policy.q_policies import QPolicies

    policy: Policy = QPolicies.load(config.participation.policy, game).policies()[row]
    return policy
