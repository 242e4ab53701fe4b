"""Which of the logged training is done again, and where it differs."""

from collections.abc import Mapping
from typing import Any

import pytest

from ledger import events as ev
from ledger.canonical import sha256_hex
from ledger.events import Event
from ledger.identity import COORDINATOR
from trustchain_ray.errors import TrustChainError, UsageError
from trustchain_ray.forgetting.standing import (
    Difference,
    Merged,
    Recorded,
    compare,
    pick,
    replayed,
    share_of,
    standing,
)

MEMBERS = ("alpha", "beta")
STEPS = 3


def named(text: str) -> str:
    return sha256_hex(text.encode())


class Log:
    """Events of a run with two cohorts, as far as training and removals go."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.newest = {cohort: {0: named("initial")} for cohort in ("one", "two")}
        initial = {cohort: chain[0] for cohort, chain in self.newest.items()}
        self.manifest = {"cohorts": {cohort: list(MEMBERS) for cohort in self.newest}, "initial": initial}

    def add(self, who: str, kind: str, body: Mapping[str, Any]) -> None:
        self.events.append(Event(kind, who, "run", dict(body), f"{kind}/{len(self.events)}", 0, who, b""))

    def train(self, number: int, cohorts: tuple[str, ...] = ("one", "two"), replay: str = "") -> None:
        """A round, with its checkpoint."""
        extra = {"replay": replay} if replay else {}
        for cohort in cohorts:
            self.merge(cohort, number, self.newest[cohort][number - 1], extra)
        self.add(COORDINATOR, ev.CHECKPOINT, {"round": number, "file": f"{number}", "digest": named("file"), **extra})

    def merge(self, cohort: str, number: int, base: str, extra: Mapping[str, str]) -> None:
        inputs = []
        for who in MEMBERS:
            update = named(f"{who} {cohort} {number} {extra}")
            trace = {"trace": [named(f"{update} {i}") for i in range(STEPS)]} if extra else {}
            body = {"cohort": cohort, "round": number, "base": base, "update": update, "weight": 5, "steps": STEPS}
            self.add(who, ev.UPDATE, {**body, **trace, **extra})
            inputs.append({"organization": who, "update": update, "weight": 5})
        self.newest[cohort][number] = named(f"{cohort} {number} {extra} {base}")
        merge = {"round": number, "cohort": cohort, "base": base, "inputs": inputs}
        adapter = self.newest[cohort][number]
        self.add(COORDINATOR, ev.MERGE, {**merge, "adapter": adapter, "file": f"{number}/{cohort}", **extra})

    def withdraw(self, cohorts: Mapping[str, int], method: str = "replay") -> str:
        removal = named(f"removal {len(self.events)}")
        request = named(f"request {len(self.events)}")
        said = {"request": request, "organization": "alpha", "scope": "record", "method": method}
        self.add("alpha", ev.UNLEARN_REQUEST, {**said, "removed": named("removed")})
        body = {"removal": removal, "requests": [request], "cohorts": dict(cohorts), "models": []}
        self.add(COORDINATOR, ev.UNLEARN_WITHDRAWN, body)
        return removal

    def execute(self) -> None:
        requests = [event.body["request"] for event in self.events if event.type == ev.UNLEARN_REQUEST]
        self.add(COORDINATOR, ev.UNLEARN_EXEC, {"requests": requests, "certificate": named("certificate")})

    def standing(self) -> list[Merged]:
        return standing(self.events, self.manifest)


@pytest.fixture
def log() -> Log:
    """Three finished rounds."""
    made = Log()
    for number in (1, 2, 3):
        made.train(number)
    return made


def slots(merges: list[Merged]) -> list[tuple[str, int]]:
    return [(merged.cohort, merged.round) for merged in merges]


def test_without_a_removal_everything_is_done_again(log: Log) -> None:
    merges = replayed(log.standing())
    assert slots(merges) == [("one", 1), ("two", 1), ("one", 2), ("two", 2), ("one", 3), ("two", 3)]
    assert [u.organization for u in merges[0].updates] == list(MEMBERS)
    assert {(u.removal, u.trace) for merged in merges for u in merged.updates} == {("", ())}
    assert all(u.base == merged.base for merged in merges for u in merged.updates)


def test_after_a_removal_its_replayed_rounds_are(log: Log) -> None:
    removal = log.withdraw({"one": 2})
    for number in (2, 3):
        log.train(number, ("one",), removal)
    log.execute()
    merges = replayed(log.standing())
    assert slots(merges) == [("one", 2), ("one", 3)]
    assert {u.removal for merged in merges for u in merged.updates} == {removal}
    assert all(len(u.trace) == u.steps == STEPS for merged in merges for u in merged.updates)
    assert len(log.standing()) == 6


def test_what_a_later_removal_replays_stands_in_place_of_the_earlier_replay(log: Log) -> None:
    first = log.withdraw({"one": 2})
    for number in (2, 3):
        log.train(number, ("one",), first)
    log.execute()
    second = log.withdraw({"one": 3, "two": 3})
    log.train(3, ("one", "two"), second)
    log.execute()
    removals = {slot: merged.removal for slot, merged in zip(slots(log.standing()), log.standing(), strict=True)}
    assert (removals["one", 2], removals["one", 3], removals["two", 3]) == (first, second, second)
    assert slots(replayed(log.standing())) == [("one", 2), ("one", 3), ("two", 3)]


def test_an_attempt_that_was_cut_short_does_not_stand(log: Log) -> None:
    log.merge("one", 4, log.newest["one"][3], {})
    log.merge("one", 4, log.newest["one"][3], {})
    log.train(4, ("two",))
    assert slots(log.standing()).count(("one", 4)) == 1


def test_cohorts_with_an_approximate_removal_are_left_out(log: Log) -> None:
    removal = log.withdraw({}, "ascent")
    log.merge("one", 3, log.newest["one"][3], {"replay": removal})
    log.execute()
    assert slots(log.standing()) == [("two", 1), ("two", 2), ("two", 3)]


def test_an_unfinished_removal_is_refused(log: Log) -> None:
    log.withdraw({"one": 2})
    with pytest.raises(TrustChainError, match="is not finished"):
        log.standing()


def test_a_share_is_random_and_never_empty(log: Log) -> None:
    updates = [u for merged in log.standing() for u in merged.updates]
    assert pick(updates, 1.0) == updates
    assert len(pick(updates, 0.0001)) == 1
    chosen = [pick(updates, 0.5) for _ in range(40)]
    assert {len(some) for some in chosen} == {6}
    assert all(some == sorted(some, key=updates.index) for some in chosen)
    assert len({tuple(some) for some in chosen}) > 1


@pytest.mark.parametrize("what", ["0", "-0.1", "1.01", "nan", "some", ""])
def test_a_wrong_share_is_refused(what: str) -> None:
    with pytest.raises(UsageError, match="--reexecute"):
        share_of(what)


def recorded(trace: tuple[str, ...]) -> Recorded:
    return Recorded("beta", "two", 3, "base", "update", 5, 4, "removal", trace)


TRACE = ("a", "b", "c", "d")


@pytest.mark.parametrize(
    ("before", "now", "step"),
    [
        (TRACE, ("x", "b", "c", "d"), 1),
        (TRACE, ("a", "b", "x", "y"), 3),
        (TRACE, ("a", "b", "c", "x"), 4),
        (TRACE, ("a", "b"), 3),
        (("a", "b", "c"), TRACE, 4),
        (TRACE, TRACE, 0),
        ((), TRACE, 0),
        (TRACE, (), 0),
    ],
)
def test_the_first_step_that_differs_is_found(before: tuple[str, ...], now: tuple[str, ...], step: int) -> None:
    found = compare(recorded(before), "another", 5, now)
    assert found == Difference("beta", "two", 3, step, 4)
    assert ("step" in str(found)) == bool(step)


def test_an_update_is_the_same_only_with_its_digest_weight_and_trace() -> None:
    assert compare(recorded(TRACE), "update", 5, TRACE) is None
    assert compare(recorded(()), "update", 5, TRACE) is None
    assert compare(recorded(TRACE), "update", 6, TRACE) == Difference("beta", "two", 3, 0, 4)
    assert compare(recorded(TRACE), "update", 5, ("a", "b", "x", "d")) == Difference("beta", "two", 3, 3, 4)


def test_a_difference_says_where_it_is() -> None:
    assert str(Difference("beta", "two", 3, 2, 4)) == "beta, cohort two, round 3, step 2 of 4"
    assert str(Difference("beta", "two", 3)) == "beta, cohort two, round 3"
    assert str(Difference("", "two", 3)) == "the merge of cohort two, round 3"
