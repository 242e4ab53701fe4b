"""Reputation: a number in [0, 1] for each organization, from what the log says of it and from nothing else.

    r = (g + 1) / (g + b + 2)            (beta reputation, Josang and Ismail 2002)

g and b are what speaks for and against an organization, both 0 at first, so that r begins at 1/2. After every round

    g <- 0.9 g + [one of its updates was merged] + 4 p+
    b <- 0.9 b + [it did not answer] + 4 [an answer or update of it was refused] + 4 p-

with p = its payment over the largest one in magnitude, where the round was settled by what members contributed
(`leave_one_out` or `shapley`), and p+ and p- the positive and negative part of p; a payment that is no larger than what
the measured quality's standard error is worth (`chance`) counts as none: it may be luck. A round from which an
organization is excluded changes nothing for it. What a rule left out of a merge does not count either: it may be an
honest minority.

An AUDIT, another organization's signed statement of what re-executing updates gave, ends a round's account: the logged
digests again, and b is 0, so that r is 1/2 or more and no exclusion holds; another digest adds 16 to b.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ledger import events as ev
from ledger import layout
from ledger.events import read_event
from ledger.log import SqliteLog
from trustchain_ray.robust.settings import BY_CONTRIBUTION

MEMORY = 0.9
CONTRIBUTED, REFUSED, CAUGHT = 4.0, 4.0, 16.0
EXCLUDED = "excluded: "
"""How the reason of an ABSENT event begins where the federation left the organization out."""
WAS_REFUSED = "its answer was refused: "
PLANTS = "it plants a trigger: "
"""How the reason of a REFUSED event begins where the scan found a trigger."""
SAME = "same"
"""Result of a re-execution that gave the logged digests; anything else says where the first difference is."""

Statement = Mapping[str, Any]


class Reputation:
    """What stands for and against every organization, round by round; plain sums in the order of the log.

    Parameters
    ----------
    names
        The organizations that have registered.
    audits
        Bodies of AUDIT events, in the order of the log; each counts at the end of its round.

    Attributes
    ----------
    planted
        Rounds whose scan (`trust.scan_every`) found that an organization plants a trigger.
    """

    def __init__(self, names: Sequence[str], audits: Iterable[Statement] = ()) -> None:
        self._good, self._bad = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
        self.planted: dict[str, set[int]] = {name: set() for name in names}
        self._audits: dict[int, list[Statement]] = {}
        for body in audits:
            self._audits.setdefault(body["round"], []).append(body)

    def of(self, name: str) -> float:
        """Reputation of an organization, above 0 and below 1."""
        return (self._good[name] + 1) / (self._good[name] + self._bad[name] + 2)

    def all(self) -> dict[str, float]:
        """Reputation of every organization."""
        return {name: self.of(name) for name in self._good}

    def excluded(self, below: float) -> dict[str, str]:
        """Organizations whose reputation is below `trust.exclude_below`, with the reason for the log."""
        return {
            name: f"{EXCLUDED}its reputation {value:.3f} is below trust.exclude_below={below:g}. To appeal, have its "
            "updates re-executed: trustchain verify RUN --reexecute --attest ANOTHER, then train --resume RUN"
            for name, value in self.all().items()
            if value < below
        }

    def note(self, number: int, statements: Sequence[Statement]) -> None:
        """Take a finished round in.

        Parameters
        ----------
        number
            The round, from 1.
        statements
            Its events as signed (`type`, `organization`, `body`); those of replays are passed over.
        """
        good, bad = dict.fromkeys(self._good, 0.0), dict.fromkeys(self._good, 0.0)
        excluded = set()
        for statement in statements:
            kind, body = statement["type"], statement["body"]
            if "replay" in body:
                continue
            if kind == ev.MERGE:
                for entry in body["inputs"]:
                    good[entry["organization"]] = 1.0
            elif kind == ev.ABSENT and body["reason"].startswith(EXCLUDED):
                excluded.add(body["organization"])
            elif kind == ev.ABSENT and not body["reason"].startswith(WAS_REFUSED):
                bad[body["organization"]] += 1.0
        refused = [s["body"] for s in statements if _is_refusal(s)]
        for name in {body["organization"] for body in refused}:
            bad[name] += REFUSED
        for name in {body["organization"] for body in refused if body["reason"].startswith(PLANTS)}:
            self.planted[name].add(number)
        for name, payment in _contributions(statements).items():
            good[name] += CONTRIBUTED * max(payment, 0.0)
            bad[name] += CONTRIBUTED * max(-payment, 0.0)
        for name in set(self._good) - excluded:
            self._good[name] = MEMORY * self._good[name] + good[name]
            self._bad[name] = MEMORY * self._bad[name] + bad[name]
        for body in self._audits.get(number, []):
            name = body["organization"]
            self._bad[name] = 0.0 if body["result"] == SAME else self._bad[name] + CAUGHT


def audits_of(run: Path) -> list[Statement]:
    """Bodies of the AUDIT events in a run's log."""
    log = SqliteLog(run / layout.LOG, read_only=True)
    try:
        return [read_event(envelope, log.keys()).body for _, envelope in log.events(ev.AUDIT)]
    finally:
        log.close()


def _is_refusal(statement: Statement) -> bool:
    kind, body = statement["type"], statement["body"]
    if "replay" in body:
        return False
    return bool(kind == ev.REFUSED or (kind == ev.ABSENT and body["reason"].startswith(WAS_REFUSED)))


def _contributions(statements: Sequence[Statement]) -> dict[str, float]:
    """Payments of the round's settlement beyond chance, over the largest in magnitude; empty where there are none."""
    settled = [s["body"] for s in statements if s["type"] == ev.REWARD_SETTLEMENT and "replay" not in s["body"]]
    if not settled or settled[-1]["rule"] not in BY_CONTRIBUTION:
        return {}
    chance = float(settled[-1].get("chance", 0.0))
    paid = {name: float(amount) for name, amount in settled[-1]["payments"].items()}
    payments = {name: payment for name, payment in paid.items() if abs(payment) > chance}
    largest = max((abs(payment) for payment in payments.values()), default=0.0)
    return {name: payment / largest for name, payment in payments.items()}
