"""The plan of a removal: who holds the records, what depends on them, what it costs, what can be claimed."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ledger.canonical import is_digest
from ledger.removal import EXACT_BITWISE, EXACT_METHODS, ORGANIZATION, RECORD, SUBJECT, TRAIN
from trustchain_ray.custody import Asked
from trustchain_ray.errors import TrustChainError, UsageError
from trustchain_ray.federation import Federation
from trustchain_ray.forgetting.history import History
from trustchain_ray.forgetting.holder import Found, Usage, Wanted
from trustchain_ray.forgetting.kept import kept_updates
from trustchain_ray.forgetting.secure import check_sums
from trustchain_ray.round_writer import adapter_file


@dataclass(frozen=True)
class Ask:
    """What a person or organization asks for; `organization` empty: whoever holds it."""

    scope: str
    ids: tuple[str, ...] = ()
    organization: str = ""


@dataclass(frozen=True)
class Plan:
    """What a removal will do.

    Attributes
    ----------
    wanted
        Requests by organization.
    records
        Number of records that are removed, by organization.
    cohorts
        First round that is replayed or dropped, by cohort: the start may be earlier than the first use where adapters
        were pruned.
    dropped
        Cohorts of which nothing is left, or that the method leaves out.
    left
        Organizations that leave.
    needed
        Organizations that must be online for the replay.
    steps_replayed, steps_total
        Training steps of the replay, and of training without the records.
    guarantee
        The strongest that can be claimed.
    """

    method: str
    wanted: dict[str, list[Wanted]]
    records: dict[str, int]
    cohorts: dict[str, int]
    dropped: list[str]
    left: list[str]
    needed: list[str]
    steps: dict[str, list[dict[str, int]]]
    steps_replayed: int
    steps_total: int
    guarantee: str
    pruned: list[str]
    usages: dict[str, Usage]

    def describe(self) -> dict[str, Any]:
        """For people and scripts."""
        return {
            "method": self.method,
            "guarantee": self.guarantee,
            "records": self.records,
            "organizations_leaving": self.left,
            "cohorts": {
                cohort: {"from_round": first, "dropped": cohort in self.dropped}
                for cohort, first in sorted(self.cohorts.items())
            },
            "steps_replayed": self.steps_replayed,
            "steps_total": self.steps_total,
            "share": round(self.steps_replayed / max(1, self.steps_total), 6),
            "needed": self.needed,
            "pruned": self.pruned,
        }


def make_plan(federation: Federation, history: History, asks: Sequence[Ask], method: str) -> Plan:
    """Ask all organizations what they hold, and work out what depends on it. Nothing is changed.

    Raises
    ------
    UsageError
        An unknown organization, subject or record, one that was removed before, or nothing would be left.
    """
    rounds, steps = federation.finished, history.steps(federation.finished)
    usages = {name: _usage(federation, name, steps) for name in federation.names}
    wanted, found = _find(federation, asks, usages)
    left = sorted({n for n, own in wanted.items() if any(one.asked.scope == ORGANIZATION for one in own)})
    _check_left(federation, found, left)
    first: dict[str, int] = {}
    for answer in found.values():
        for part in answer.parts:
            if part.first:
                first[part.cohort] = min(part.first, first.get(part.cohort, part.first))
    if method == "retrain":
        first = dict.fromkeys(first, 1)
    members = {c: [name for name in federation.cohorts[c] if name not in left] for c in first}
    dropped = sorted(c for c in first if method == "drop" or not members[c])
    pruned = []
    for cohort in sorted(set(first) - set(dropped)):
        start = _start(federation, cohort, first[cohort])
        if start + 1 != first[cohort]:
            pruned.append(cohort)
            first[cohort] = start + 1
    replayed = {c: f for c, f in first.items() if c not in dropped} if method in EXACT_METHODS else {}
    lost = {(n, p.cohort) for n, answer in found.items() for p in answer.parts if p.split == TRAIN and p.records}
    emptied = {(n, p.cohort) for n, answer in found.items() for p in answer.parts if p.split == TRAIN and not p.left}
    if federation.config.trust.secure_aggregation:
        gone = emptied | {(name, cohort) for name in left for cohort in replayed}
        check_sums(federation.config, method, replayed, steps, gone)
    if method not in EXACT_METHODS and left:
        raise UsageError(f"--method {method} removes records; an organization leaves by replay or drop")
    kept = {
        (cohort, begin, name)
        for cohort, begin in replayed.items()
        for name in kept_updates(federation, cohort, begin, {*left, *(n for n, c in lost if c == cohort)})
    }
    trains = [
        (name, count)
        for cohort, begin in replayed.items()
        for number, row in enumerate(steps[cohort][begin - 1 : rounds], begin)
        for name, count in row.items()
        if name not in left and (name, cohort) not in emptied and (cohort, number, name) not in kept
    ]
    if federation.config.privacy.dp != "none":
        _check_budgets(federation, {c: steps[c][begin - 1 : rounds] for c, begin in replayed.items()}, left)
    total = sum(count for c, rows in steps.items() if c not in dropped for row in rows for n, count in row.items()
                if n not in left and (n, c) not in emptied)  # fmt: skip
    return Plan(
        method=method,
        wanted=wanted,
        records={name: sum(answer.hits.values()) for name, answer in found.items() if name in wanted},
        cohorts=first,
        dropped=dropped,
        left=left,
        needed=sorted({name for name, _ in trains} | {name for *_, name in kept}),
        steps=steps,
        steps_replayed=sum(count for _, count in trains),
        steps_total=total,
        guarantee=EXACT_BITWISE if method in EXACT_METHODS else "APPROXIMATE",
        pruned=pruned,
        usages=usages,
    )


def _usage(federation: Federation, name: str, steps: Mapping[str, Sequence[Mapping[str, int]]]) -> Usage:
    """How an organization's members trained so far."""
    config = federation.config
    own = [cohort for cohort, members in federation.cohorts.items() if name in members]
    counted = config.federation.weights == "records"
    by_count = {
        c for c in own if not config.training.sampling_rate or (counted and len(federation.cohorts[c]) > 1)
    }
    return Usage(
        rates={c: federation.rate_of(name, c) for c in own},
        steps={c: [row.get(name, 0) for row in steps[c]] for c in own},
        local_steps=config.federation.local_steps,
        counts_matter=frozenset(by_count),
    )


def _find(
    federation: Federation, asks: Sequence[Ask], usages: Mapping[str, Usage]
) -> tuple[dict[str, list[Wanted]], dict[str, Found]]:
    """Requests by organization, and what each holds of them: named records first, then copies of them elsewhere."""
    wanted: dict[str, list[Wanted]] = {}
    for ask in asks:
        if ask.organization and ask.organization not in federation.names:
            gone = " has left the run" if ask.organization in federation.registered else " is not in the run"
            raise UsageError(f"organization {ask.organization!r}{gone}; there are {', '.join(federation.names)}")
        if ask.organization in federation.offline:
            raise TrustChainError(f"organization {ask.organization!r} must be online: it takes its own records out")
        if ask.scope == ORGANIZATION:
            wanted.setdefault(ask.organization, []).append(Wanted(secrets.token_hex(32), Asked(ORGANIZATION)))
            continue
        asked = Asked(ask.scope, ask.ids, secrets.token_bytes(32))
        online = [name for name in federation.names if name not in federation.offline]
        names = [ask.organization] if ask.organization else online
        looked = _look(federation, {name: [Wanted("ask", asked)] for name in names}, usages)
        _check_known(ask, looked)
        if ask.scope == RECORD or not federation.config.data.columns.subject:
            _check_one_holder(ask, looked)
        tags = tuple(sorted({tag for answer in looked.values() for tag in answer.tags["ask"]}))
        with_copies = replace(asked, tags=tags)
        for name in online:
            # where it was asked for by name, and wherever else the same text lies
            here = with_copies if name in names else replace(with_copies, ids=())
            wanted.setdefault(name, []).append(Wanted(secrets.token_hex(32), here))
    found = _look(federation, wanted, usages)
    hit = {
        name: [one for one in own if found[name].hits[one.request] or one.asked.scope == ORGANIZATION]
        for name, own in wanted.items()
    }
    hit = {name: own for name, own in hit.items() if own}
    return hit, {name: found[name] for name in hit}


def _look(
    federation: Federation, wanted: Mapping[str, list[Wanted]], usages: Mapping[str, Usage]
) -> dict[str, Found]:
    answers: dict[str, Found] = {}
    calls = {name: federation.members[name].call("look", own, usages[name]) for name, own in wanted.items()}
    for name, call in calls.items():
        answers[name] = federation.answer(name, call)
    return answers


def _check_known(ask: Ask, looked: Mapping[str, Found]) -> None:
    """Every id is somewhere. Raises UsageError."""
    what = "subject" if ask.scope == SUBJECT else "record"
    for name in ask.ids:
        if all(name in answer.missing["ask"] for answer in looked.values()):
            if any(name in answer.before["ask"] for answer in looked.values()):
                raise UsageError(f"{what} {name!r} was removed from this run before; see certificates/ of the run")
            where = f"organization {ask.organization!r}" if ask.organization else "any organization"
            hint = "" if not is_digest(name) else " (an id, not a commitment, is needed)"
            raise UsageError(f"{what} {name!r} is not held by {where}{hint}; see: trustchain unlearn RUN --list")


def _check_one_holder(ask: Ask, looked: Mapping[str, Found]) -> None:
    """Ids of records are an organization's own: the same one elsewhere is another record. Raises UsageError."""
    for name in ask.ids:
        holders = sorted(n for n, answer in looked.items() if name not in answer.missing["ask"])
        if len(holders) > 1:
            raise UsageError(f"{name!r} is held by {', '.join(holders)}: say whose is meant with --organization")


def _check_left(federation: Federation, found: Mapping[str, Found], left: Sequence[str]) -> None:
    """Somebody keeps records, and nobody is emptied without saying so. Raises UsageError."""
    if set(left) == set(federation.names):
        raise UsageError("no organization would be left; delete the run directory instead")
    for name, answer in found.items():
        train = [part for part in answer.parts if part.split == "train"]
        touched = sum(part.records for part in train)
        remaining = sum(federation.counts[name].values()) - touched
        if name not in left and touched and not remaining:
            raise UsageError(
                f"organization {name!r} would have no training records left; remove it: --organization {name}"
            )


def _check_budgets(
    federation: Federation, rounds: Mapping[str, Sequence[Mapping[str, int]]], left: Sequence[str]
) -> None:
    """The privacy budgets pay for the replay. Raises UsageError."""
    for name in federation.names:
        if name in left or name in federation.offline:
            continue
        own = {c: [row.get(name, 0) for row in rows] for c, rows in rounds.items()}
        own = {c: counts for c, counts in own.items() if any(counts)}
        if own and (short := federation.answer(name, federation.members[name].call("affords", own))):
            raise UsageError(
                f"the privacy budget of {name} does not pay for a replay of {', '.join(short)} (privacy.max_removals="
                f"{federation.config.privacy.max_removals}); use --method drop, which leaves these cohorts out"
            )


def _start(federation: Federation, cohort: str, first: int) -> int:
    """The last round before `first` whose adapter is still there; 0: the initial one."""
    for number in range(first - 1, 0, -1):
        if (federation.run.path / adapter_file(number, cohort)).is_file():
            return number
    return 0
