"""What of a run's training stands, as the log has it, and how a re-execution of it is compared."""

import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from ledger import events as ev
from ledger.events import Event
from ledger.links import LinkState
from ledger.removal import EXACT_METHODS
from trustchain_ray.errors import TrustChainError, UsageError

MERGES = "merges"


@dataclass(frozen=True)
class Recorded:
    """An update that stands, as its member signed it.

    Attributes
    ----------
    base, update
        Digests of the adapter that it was trained from, and of itself.
    removal
        In which it was replayed; empty: it is of the first training.
    trace
        Digest of the trained tensors after each step, where it was logged.
    """

    organization: str
    cohort: str
    round: int
    base: str
    update: str
    weight: int
    steps: int
    removal: str = ""
    trace: tuple[str, ...] = ()


@dataclass(frozen=True)
class Merged:
    """A merge that stands: digests of the adapter before it and of its result, and the updates that it took.

    Attributes
    ----------
    shares
        How much of each update is in it, as logged where `trust.rule` is not the plain mean.
    """

    cohort: str
    round: int
    base: str
    adapter: str
    removal: str
    updates: tuple[Recorded, ...]
    shares: tuple[str, ...] = ()


@dataclass(frozen=True)
class Difference:
    """Where a re-execution first gives something else.

    Attributes
    ----------
    organization
        Whose update it is; empty: every update is the same, and the merge of them is not.
    step
        The first step after which the trained tensors differ, from 1; 0: it is not known, or every step is the same
        and the signed update is not.
    steps
        Of the update.
    """

    organization: str
    cohort: str
    round: int
    step: int = 0
    steps: int = 0

    def __str__(self) -> str:
        place = f"cohort {self.cohort}, round {self.round}"
        if not self.organization:
            return f"the merge of {place}"
        step = f", step {self.step} of {self.steps}" if self.step else ""
        return f"{self.organization}, {place}{step}"


def standing(events: Sequence[Event], manifest: Mapping[str, Any]) -> list[Merged]:
    """The merges that stand, in order of rounds and cohorts.

    Cohorts from which an approximate method removed records are left out: their adapters were trained on records that
    are gone, and nobody can do that again.

    Raises
    ------
    TrustChainError
        A removal is under way.
    LedgerError
        The events contradict each other.
    """
    state = LinkState(manifest, events)
    for event in events:
        state.see(event)
    links = state.finished(lambda note: None)
    if links.under_way:
        raise TrustChainError("a removal from this run is not finished; go on with it first: trustchain unlearn RUN")
    approximate = _approximate(events)
    signed = {_slot(event.organization, event.body): event.body for event in events if event.type == ev.UPDATE}
    found = []
    for chain in links.merges.values():
        if any(event.replay in approximate for event in chain):
            continue
        for event in chain:
            body = event.body
            updates = [
                signed[_slot(entry["organization"], {**body, "update": entry["update"], "weight": entry["weight"]})]
                for entry in body["inputs"]
            ]
            names = [entry["organization"] for entry in body["inputs"]]
            made = [_recorded(name, update) for name, update in zip(names, updates, strict=True)]
            removal, shares = event.replay or "", tuple(e["share"] for e in body["inputs"] if "share" in e)
            found.append(
                Merged(body["cohort"], body["round"], body["base"], body["adapter"], removal, tuple(made), shares)
            )
    return sorted(found, key=lambda merged: (merged.round, merged.cohort))


def replayed(merges: Sequence[Merged]) -> list[Merged]:
    """Those of the merges that removals replayed; where nothing was replayed, all."""
    return [merged for merged in merges if merged.removal] or list(merges)


def share_of(what: str) -> float:
    """The share of the updates that is trained again: a number in (0, 1], or `all`. Raises UsageError."""
    try:
        share = 1.0 if what == "all" else float(what)
    except ValueError:
        share = math.nan
    if not 0.0 < share <= 1.0:
        raise UsageError(f"--reexecute {what}: give all, a share above 0 and up to 1 such as 0.2, or {MERGES}")
    return share


def pick(updates: Sequence[Recorded], share: float) -> list[Recorded]:
    """A random share of the updates, in their order: at least one, unpredictable to who trained them."""
    count = max(1, round(share * len(updates)))
    chosen = secrets.SystemRandom().sample(range(len(updates)), min(count, len(updates)))
    return [updates[i] for i in sorted(chosen)]


def compare(recorded: Recorded, update: str, weight: int, trace: Sequence[str]) -> Difference | None:
    """Where a re-executed update differs from the recorded one.

    Parameters
    ----------
    update, weight, trace
        Of the re-execution, as in :class:`Recorded`.
    """
    step = 0
    if recorded.trace and trace:
        pairs = enumerate(zip_longest(recorded.trace, trace), 1)
        step = next((number for number, (before, now) in pairs if before != now), 0)
    if not step and (update, weight) == (recorded.update, recorded.weight):
        return None
    return Difference(recorded.organization, recorded.cohort, recorded.round, step, recorded.steps)


def _approximate(events: Sequence[Event]) -> set[str]:
    """Removals by a method that is not exact."""
    requests = [event.body for event in events if event.type == ev.UNLEARN_REQUEST]
    asked = {body["request"] for body in requests if body["method"] not in EXACT_METHODS}
    return {
        event.body["removal"]
        for event in events
        if event.type == ev.UNLEARN_WITHDRAWN and asked.intersection(event.body["requests"])
    }


Slot = tuple[str, str, int, str, str, int, str]


def _slot(organization: str, body: Mapping[str, Any]) -> Slot:
    """What tells the update that a merge took from all others."""
    return (
        organization, body["cohort"], body["round"], body["base"], body["update"], body["weight"],
        body.get("replay", ""),
    )  # fmt: skip


def _recorded(organization: str, body: Mapping[str, Any]) -> Recorded:
    return Recorded(
        organization, body["cohort"], body["round"], body["base"], body["update"], body["weight"], body["steps"],
        body.get("replay", ""), tuple(body.get("trace", ())),
    )  # fmt: skip
