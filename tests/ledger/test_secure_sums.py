"""What the verifier asks of merges by secure aggregation: a safe threshold, and no merge without a sum."""

from typing import Any

import pytest

from ledger import events as ev
from ledger.errors import LedgerError
from ledger.identity import load_or_create
from ledger.links import LinkState

D = "ab" * 32
MEMBERS = ["a", "b", "c", "d"]


def inputs(count: int) -> list[dict[str, Any]]:
    return [{"organization": name, "update": D, "weight": 1} for name in MEMBERS[:count]]


def body(count: int, **more: Any) -> dict[str, Any]:
    merge = {"round": 1, "cohort": "c", "base": D, "adapter": "cd" * 32 if count else D, "file": "f"}
    return {**merge, "inputs": inputs(count), **more}


SUM = {"transcript": D, "attempt": 0, "threshold": 3}


def test_sums_with_a_safe_threshold_are_taken_and_so_is_a_reason_for_none(tmp_path):
    coordinator = load_or_create("coordinator", tmp_path)
    for one in (body(3, **SUM), body(4, **SUM), body(4, **{**SUM, "threshold": 4}), body(0, reason="too few")):
        ev.make_event(coordinator, "run", ev.MERGE, one)


@pytest.mark.parametrize(
    ("merge", "reason"),
    [
        (body(2, **{**SUM, "threshold": 2}), "a secure sum of 2 updates with the threshold 2"),
        (body(3, **{**SUM, "threshold": 2}), "a secure sum of 3 updates with the threshold 2"),
        (body(3, **{**SUM, "threshold": 4}), "a secure sum of 3 updates with the threshold 4"),
        (body(3, transcript=D), "with the threshold 0"),
        (body(0, **SUM), "a secure sum of 0 updates"),
        (body(3, **{**SUM, "transcript": "x"}), "transcript is not a digest"),
        (body(3, **{**SUM, "attempt": -1}), "attempt is not a int"),
    ],
)
def test_sums_that_are_not_safe_are_refused(tmp_path, merge: dict[str, Any], reason: str):
    with pytest.raises(LedgerError, match=reason):
        ev.make_event(load_or_create("coordinator", tmp_path), "run", ev.MERGE, merge)


@pytest.mark.parametrize("secure", [False, True])
def test_a_run_of_secure_sums_has_no_other_merge(tmp_path, secure: bool):
    who = {name: load_or_create(name, tmp_path) for name in ("coordinator", *MEMBERS)}
    keys = {identity.key_id: identity.public_hex for identity in who.values()}
    update = {"round": 1, "cohort": "c", "base": D, "update": D, "weight": 1, "steps": 1}
    made = [ev.make_event(who[name], "run", ev.UPDATE, update) for name in MEMBERS]
    made.append(ev.make_event(who["coordinator"], "run", ev.MERGE, body(4)))
    events = [ev.read_event(envelope, keys) for envelope in made]
    manifest = {"cohorts": {"c": MEMBERS}, "initial": {"c": D}, **({"secure_aggregation": True} if secure else {})}
    state = LinkState(manifest, events)
    for event in events[:-1]:
        state.see(event)
    if secure:
        with pytest.raises(LedgerError, match="names no secure sum; the manifest says that all of them are"):
            state.see(events[-1])
    else:
        state.see(events[-1])
