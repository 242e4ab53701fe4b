"""What the coordinator and the organizations hand to each other: terms, tasks, updates, replies."""

from dataclasses import dataclass, field
from typing import Any

from trustchain_ray.participation import Schedule
from trustchain_ray.worker import Packed

NO_REMOVAL = "0" * 64
"""Under this id updates are trained again only to be compared: no removal has it, so none of it passes for a replay."""


@dataclass(frozen=True)
class Terms:
    """What all organizations agreed on before round 1 (the manifest, as far as members need it)."""

    run: str
    rates: dict[str, dict[str, float]]  # organization -> cohort -> sampling rate
    shapes: dict[str, tuple[int, ...]]
    fresh: Packed
    base: Any  # the base model: a name, or a reference to its files in a list
    records: dict[str, int] = field(default_factory=dict)  # organization -> training records
    schedule: Schedule | None = None  # efforts, where `federation.participation: file`
    keys: dict[str, str] = field(default_factory=dict)  # public keys (hex) of all parties, by name
    rotated: dict[str, Any] = field(default_factory=dict)  # identity documents of those that rotated their keys


@dataclass(frozen=True)
class CohortTask:
    """A cohort's state at the start of a round: by value, or as a reference that workers read in place."""

    cohort: str
    state: Any
    digest: str


@dataclass(frozen=True)
class Update:
    """What a member returns: the update, its signed statement, and figures for the metrics.

    Under secure aggregation `update` is empty: the values stay with the organization, which states a keyed digest.
    """

    cohort: str
    update: Packed
    envelope: dict[str, Any]
    weight: int
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    records: int = 0
    resident: int = 0


@dataclass(frozen=True)
class Reply:
    """An organization's part in a round. `seconds` is the whole time inside the organization; `events` what it states
    besides, `spent` whether its privacy budget pays for no further step. `withheld`: why updates that are to be masked
    do not pass the organization's own checks, by cohort."""

    organization: str
    decision: dict[str, Any]
    updates: list[Update]
    seconds: float
    events: list[dict[str, Any]] = field(default_factory=list)
    spent: bool = False
    withheld: dict[str, str] = field(default_factory=dict)
