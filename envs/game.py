"""What a participation game is: the organizations, the rule that pays them, the horizon.

One round of the game is one round of federated training. Every organization picks an effort (out, half,
full) and, where the game has several LoRA ranks, a rank. See `docs/participation.md`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from envs.errors import GameError
from envs.surface import ClosedFormSurface, MeasuredSurface

ENCODING = "trustchain-game/1"
EFFORTS = (0.0, 0.5, 1.0)
# 3^12: the stage game is tabulated over all joint actions, a few arrays of this many rows.
MAX_PROFILES = 531_441


class Payoff(StrEnum):
    """How the benefit of a round is given to the organizations; one file each in `envs/payoffs`."""

    PUBLIC_GOOD = "public_good"
    LEAVE_ONE_OUT = "leave_one_out"
    SHAPLEY = "shapley"
    EQUAL_SPLIT = "equal_split"
    PROPORTIONAL_SPLIT = "proportional_split"


@dataclass(frozen=True)
class OrganizationType:
    """The private type of one organization.

    Attributes
    ----------
    name
        Unique in the game; the agent's name in PettingZoo.
    records
        Number of training records.
    data_quality
        In [0, 1]: how much one of its records is worth to the model.
    unit_cost
        Money per record and full-effort round, at rank 0 of the cost line `1 + rank_cost * rank`.
    value
        Money per unit of model quality and round.
    privacy_price
        Money per unit of epsilon.
    replay_duty
        Expected share of a full-effort round that must be trained again later, to honour removals.
    budget
        Full-effort rounds that it can afford over the horizon, a multiple of one half. None: all of them.
    """

    name: str
    records: int
    data_quality: float
    unit_cost: float
    value: float
    privacy_price: float = 0.0
    replay_duty: float = 0.0
    budget: float | None = None

    def __post_init__(self) -> None:
        if not self.name:
            raise GameError("organization without a name: give each organization a unique, non-empty name")
        where = f"organization {self.name!r}"
        if isinstance(self.records, bool) or not isinstance(self.records, int) or self.records < 1:
            raise GameError(f"{where}: records is {self.records!r}, give a whole number of at least 1")
        _in_range(where, "data_quality", self.data_quality, 0.0, 1.0)
        for key in ("unit_cost", "value", "privacy_price", "replay_duty"):
            _in_range(where, key, getattr(self, key), 0.0, math.inf)
        if self.budget is not None:
            _in_range(where, "budget", self.budget, 0.0, math.inf)
            if not float(2 * self.budget).is_integer():
                raise GameError(f"{where}: budget is {self.budget}, give a multiple of 0.5 rounds")


@dataclass(frozen=True)
class GameConfig:
    """A participation game. Money is in one unit throughout; rewards are money over a constant of the game.

    Attributes
    ----------
    organizations
        The players, in agent order.
    surface
        Quality of the model that a joint action trains, in [0, 1].
    payoff
        The rule that shares the benefit of a round.
    reward
        R: money per unit of quality for leave-one-out and Shapley, money per round for the two splits. The
        public good pays the organizations' own values and does not read it.
    horizon
        Rounds in an episode.
    ranks
        LoRA ranks to choose from. One rank: the action is the effort alone.
    rank_cost
        Compute grows as `1 + rank_cost * rank`.
    epsilon_per_round
        Privacy spent in a full-effort round.
    competition
        Share of the mean benefit of its rivals that an organization loses; 0 for none.
    discount
        Per-round discount, used by the oracles and the learners.
    """

    organizations: tuple[OrganizationType, ...]
    surface: ClosedFormSurface | MeasuredSurface
    payoff: Payoff
    reward: float
    horizon: int = 10
    ranks: tuple[int, ...] = (8,)
    rank_cost: float = 0.0
    epsilon_per_round: float = 0.0
    competition: float = 0.0
    discount: float = 0.95

    def __post_init__(self) -> None:
        if not self.organizations:
            raise GameError("game: zero organizations, give at least one")
        names = self.names
        doubles = sorted({name for name in names if names.count(name) > 1})
        if doubles:
            raise GameError(f"game: organization names used twice: {', '.join(doubles)}; make them unique")
        if not isinstance(self.payoff, Payoff):
            raise GameError(f"game: payoff is {self.payoff!r}, give one of {', '.join(Payoff)}")
        if isinstance(self.horizon, bool) or not isinstance(self.horizon, int) or self.horizon < 1:
            raise GameError(f"game: horizon is {self.horizon!r}, give a whole number of rounds of at least 1")
        if not self.ranks or list(self.ranks) != sorted(set(self.ranks)) or self.ranks[0] < 1:
            raise GameError(f"game: ranks is {self.ranks!r}, give different positive ranks in rising order")
        for key in ("reward", "rank_cost", "epsilon_per_round", "competition"):
            _in_range("game", key, getattr(self, key), 0.0, math.inf)
        _in_range("game", "discount", self.discount, 0.0, 1.0)
        if self.profile_count > MAX_PROFILES:
            raise GameError(
                f"game: {len(names)} organizations with {self.action_count} actions have "
                f"{self.profile_count} joint actions, the exact game holds at most {MAX_PROFILES}; "
                "use fewer organizations or ranks"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the organizations, in agent order."""
        return tuple(organization.name for organization in self.organizations)

    @property
    def action_count(self) -> int:
        """Actions of an organization: out, and half or full effort at each rank."""
        return 1 + 2 * len(self.ranks)

    @property
    def profile_count(self) -> int:
        """Joint actions of the game."""
        return int(self.action_count ** len(self.organizations))

    def canonical(self) -> str:
        """Return the canonical encoding: JSON with sorted keys and shortest round-trip floats."""
        fields = {
            "encoding": ENCODING,
            "organizations": [_floats(asdict(organization)) for organization in self.organizations],
            "surface": self.surface.canonical(),
            "payoff": self.payoff.value,
            "horizon": self.horizon,
            "ranks": list(self.ranks),
            "reward": float(self.reward),
            "rank_cost": float(self.rank_cost),
            "epsilon_per_round": float(self.epsilon_per_round),
            "competition": float(self.competition),
            "discount": float(self.discount),
        }
        return json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False)

    def digest(self) -> str:
        """Return the SHA-256 of the canonical encoding, in hexadecimal: the name of this game."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()

    def require_digest(self, digest: str, what: str) -> None:
        """Refuse something that was made for another game.

        Parameters
        ----------
        digest
            Digest of the game that `what` was made for.
        what
            What is being loaded, for the message: `"policy runs/a/policy"`.

        Raises
        ------
        GameError
            Where the digests differ.
        """
        if digest != self.digest():
            raise GameError(
                f"{what} was made for game {digest[:12]}, this game is {self.digest()[:12]}: train a policy "
                "for this game, or load the config that the policy was trained with"
            )


def _in_range(where: str, key: str, value: float, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise GameError(f"{where}: {key} is {value!r}, give a finite number")
    if not low <= value <= high:
        limits = f"at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
        raise GameError(f"{where}: {key} is {value}, give a number {limits}")


def _floats(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Give 1 and 1.0 one encoding, records excepted: a count stays whole."""
    return {
        key: float(value) if isinstance(value, (int, float)) and key != "records" else value
        for key, value in fields.items()
    }
