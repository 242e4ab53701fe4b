"""Reputation: its formula, what counts and what does not, exclusion and the way back."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from ledger.errors import LedgerError
from ledger.events import AUDIT, make_event
from ledger.identity import COORDINATOR, load_or_create
from trustchain_ray.robust.reputation import EXCLUDED, PLANTS, WAS_REFUSED, Reputation

Statement = dict[str, Any]
NAMES = ["north", "south", "west"]


def merge(*names: str, **more: Any) -> Statement:
    body = {"round": 1, "cohort": "all", "inputs": [{"organization": n} for n in names], **more}
    return {"type": "MERGE", "organization": COORDINATOR, "body": body}


def absent(name: str, reason: str) -> Statement:
    return {"type": "ABSENT", "organization": COORDINATOR, "body": {"organization": name, "reason": reason}}


def refused(name: str, reason: str = "wrong") -> Statement:
    return {"type": "REFUSED", "organization": COORDINATOR, "body": {"organization": name, "reason": reason}}


def settled(rule: str, chance: str = "0.000000", **payments: str) -> Statement:
    body = {"rule": rule, "payments": payments, "chance": chance}
    return {"type": "REWARD_SETTLEMENT", "organization": COORDINATOR, "body": body}


def beta(good: float, bad: float) -> float:
    return (good + 1) / (good + bad + 2)


def after(*rounds: list[Statement], audits: list[Statement] | None = None) -> Reputation:
    reputation = Reputation(NAMES, audits or [])
    for number, statements in enumerate(rounds, 1):
        reputation.note(number, statements)
    return reputation


def test_it_is_the_beta_reputation_of_what_fades():
    found = after([merge("north", "south")], [merge("north"), absent("south", "no answer")], [merge("north")])
    assert found.of("north") == pytest.approx(beta(0.81 + 0.9 + 1, 0))
    assert found.of("south") == pytest.approx(beta(0.81, 0.9))
    assert found.of("west") == 0.5
    many = after(*[[merge("north"), refused("south")]] * 200)
    assert many.of("north") == pytest.approx(beta(10, 0))
    assert many.of("south") == pytest.approx(beta(0, 40))


def test_a_refusal_counts_once_and_more_than_silence():
    once = after([refused("north"), refused("north"), absent("south", WAS_REFUSED + "forged")])
    assert once.of("north") == once.of("south") == pytest.approx(beta(0, 4))
    assert once.of("north") < after([absent("north", "no answer")]).of("north") < 0.5


def test_contributions_count_where_they_were_measured():
    payments = {"north": "0.500000", "south": "-0.250000", "west": "-0.000000"}
    for rule in ("shapley", "leave_one_out"):
        found = after([merge(*NAMES), settled(rule, **payments)])
        assert found.of("north") == pytest.approx(beta(1 + 4, 0))
        assert found.of("south") == pytest.approx(beta(1, 2))
        assert found.of("west") == pytest.approx(beta(1, 0))
    for rule in ("equal_split", "public_good", "proportional_split"):
        assert after([merge(*NAMES), settled(rule, **payments)]).of("south") == pytest.approx(beta(1, 0))
    nothing = after([merge(*NAMES), settled("shapley", north="0.000000", south="0.000000", west="0.000000")])
    assert nothing.all() == dict.fromkeys(NAMES, pytest.approx(beta(1, 0)))


def test_payments_within_the_error_of_measurement_neither_help_nor_harm():
    payments = {"north": "0.500000", "south": "-0.250000", "west": "-0.100000"}
    found = after([merge(*NAMES), settled("shapley", "0.100000", **payments)])
    assert found.of("south") == pytest.approx(beta(1, 2))
    assert found.of("west") == pytest.approx(beta(1, 0))
    luck = after([merge(*NAMES), settled("shapley", "0.500000", **payments)])
    assert luck.all() == dict.fromkeys(NAMES, pytest.approx(beta(1, 0)))


def test_replays_and_what_a_rule_left_out_do_not_count():
    plain = after([merge(*NAMES)])
    with_replay = after([merge(*NAMES), merge("north", replay="ab" * 32)])
    assert with_replay.all() == plain.all()
    dropped = merge(*NAMES)
    dropped["body"]["inputs"] = [{"organization": n, "share": "0.000000"} for n in NAMES]
    assert after([dropped]).all() == plain.all()


def test_an_excluded_organization_stays_out_until_its_updates_are_re_executed():
    bad = [[merge("north"), refused("south")]] * 2
    excluded = after(*bad).excluded(0.3)
    assert list(excluded) == ["south"]
    assert excluded["south"].startswith(EXCLUDED)
    assert "is below trust.exclude_below=0.3" in excluded["south"]
    out = [[merge("north"), absent("south", excluded["south"])]] * 50
    assert after(*bad, *out).of("south") == after(*bad).of("south"), "time alone brings nobody back"
    same = {"round": 52, "organization": "south", "steps": 8, "result": "same"}
    back = after(*bad, *out, audits=[same])
    assert back.of("south") >= 0.5
    assert back.excluded(0.5) == {}
    caught = after(*bad, *out, audits=[same, {**same, "result": "south, cohort all, round 2"}])
    assert caught.of("south") < after(*bad).of("south")
    assert after(*bad).excluded(0.0) == {}


def test_it_continues_from_the_log_bit_by_bit():
    rounds = [
        [merge(*NAMES), settled("shapley", north="0.100000", south=f"{i % 7 - 3}.300000", west="0.700000")]
        for i in range(40)
    ]
    audits = [{"round": 17, "organization": "south", "steps": 1, "result": "same"}]
    whole = after(*rounds, audits=audits)
    resumed = Reputation(NAMES, audits)
    for number, statements in enumerate(rounds, 1):
        resumed.note(number, [dict(reversed(s.items())) for s in statements])
    assert resumed.all() == whole.all()
    assert all(0 < Fraction(value) < 1 for value in whole.all().values())


def test_nobody_audits_itself(tmp_path: Path):
    body = {"round": 3, "organization": "south", "steps": 12, "result": "same"}
    make_event(load_or_create("north", tmp_path), "run-1", AUDIT, body)
    for name in ("south", COORDINATOR):
        with pytest.raises(LedgerError, match="another organization than the audited one"):
            make_event(load_or_create(name, tmp_path), "run-1", AUDIT, body)
    with pytest.raises(LedgerError, match="organization name"):
        make_event(load_or_create("north", tmp_path), "run-1", AUDIT, {**body, "organization": "../south"})
    for missing in body:
        with pytest.raises(LedgerError, match=missing):
            make_event(
                load_or_create("north", tmp_path), "run-1", AUDIT, {k: v for k, v in body.items() if k != missing}
            )


def test_rounds_in_which_a_trigger_was_planted_are_counted_once_for_all_cohorts():
    caught = refused("west", f"{PLANTS}texts with 'cf' move")
    found = after([caught, caught], [refused("west")], [caught, merge("north")])
    assert found.planted == {"north": set(), "south": set(), "west": {1, 3}}
