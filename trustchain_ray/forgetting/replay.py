"""The second half of a removal: withdrawn rounds are trained again without the records, exactly as they were recorded.

Every replayed round is written before the next one begins. A replay that was cut short goes on after the last round
that was written whole.
"""

import time
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from ray.exceptions import RayActorError, RayTaskError

from trustchain_ray import calls
from trustchain_ray.adapter import Tensors, digest, load_tensors, save_tensors
from trustchain_ray.calls import reason_of
from trustchain_ray.checks import MALFORMED, Refused
from trustchain_ray.errors import TrustChainError
from trustchain_ray.exchange import Reply, Update
from trustchain_ray.federation import CohortRound, Federation
from trustchain_ray.forgetting.job import REPLAYED, Job
from trustchain_ray.forgetting.kept import state_again
from trustchain_ray.round_writer import adapter_file, update_file
from trustchain_ray.run_directory import explain_writes
from trustchain_ray.secure_merge import figures
from trustchain_ray.statements import newest_merges, statement_of
from trustchain_ray.worker import Packed

Progress = Callable[[str], None]


def replay(federation: Federation, job: Job, progress: Progress) -> Job:
    """Replay all withdrawn rounds of all cohorts that are not dropped; the cohorts' states are then those of a run
    that never had the records.

    Raises
    ------
    TrustChainError
        An organization that is needed does not answer: its cohorts stay withdrawn until it is back.
    """
    began, cohorts = time.perf_counter(), _replayed(job)
    if cohorts:
        if not is_complete(federation, job):
            _check_online(federation, job, cohorts)
        for number in range(min(cohorts.values()), job.rounds + 1):
            active = [cohort for cohort in sorted(cohorts) if cohorts[cohort] <= number]
            for cohort in active:
                if cohorts[cohort] == number:
                    federation.states[cohort] = _before(federation, cohort, number)
            if not _is_written(federation, job, number):
                _replay_round(federation, job, number, active)
                progress(f"replayed round {number}/{job.rounds}  {', '.join(active)}")
            else:
                for cohort in active:
                    federation.states[cohort] = load_tensors(federation.run.path / adapter_file(number, cohort))
        if keep := federation.config.federation.keep_rounds:
            federation.writer.prune(job.rounds - keep)
    seconds, steps = float(job.facts.get("replayed_s", "0")) + time.perf_counter() - began, _steps(federation, job)
    return job.at(federation.run, REPLAYED, replayed_s=f"{seconds:.3f}", steps_replayed=str(steps))


def is_complete(federation: Federation, job: Job) -> bool:
    """Whether every round of a removal is written, so that no training is left."""
    cohorts = _replayed(job)
    first = min(cohorts.values(), default=job.rounds + 1)
    return all(_is_written(federation, job, number) for number in range(first, job.rounds + 1))


def _steps(federation: Federation, job: Job) -> int:
    """Steps that a removal trained again, by the rounds that it wrote."""
    first = min(_replayed(job).values(), default=job.rounds + 1)
    said = [statement_of(e) for n in range(first, job.rounds + 1) for e in _content(federation, n)["events"]]
    bodies = [s["body"] for s in said if s["type"] == "UPDATE" and s["body"].get("replay") == job.removal]
    return sum(body["steps"] for body in bodies if not body.get("kept"))


def _replayed(job: Job) -> dict[str, int]:
    return {cohort: first for cohort, first in job.cohorts.items() if cohort not in job.dropped}


def _before(federation: Federation, cohort: str, number: int) -> Tensors:
    """A cohort's state before a round."""
    if number == 1:
        return federation.initial
    return load_tensors(federation.run.path / adapter_file(number - 1, cohort))


def _content(federation: Federation, number: int) -> dict[str, Any]:
    content: dict[str, Any] = federation.run.read_json(f"rounds/{number:04d}/round.json")
    return content


def _is_written(federation: Federation, job: Job, number: int) -> bool:
    return _content(federation, number).get("replay") == job.removal


def _check_online(federation: Federation, job: Job, cohorts: dict[str, int]) -> None:
    """Everybody whose steps are replayed has registered. Raises TrustChainError."""
    needed = {
        name
        for cohort, first in cohorts.items()
        for row in job.steps[cohort][first - 1 : job.rounds]
        for name in row
        if name not in job.left
    }
    if missing := sorted(needed - set(federation.registrations)):
        raise TrustChainError(
            f"{', '.join(missing)} must be online to replay {', '.join(sorted(cohorts))}; they stay withdrawn. "
            f"Go on when they are back: trustchain unlearn {federation.run.path}"
        )


def _replay_round(federation: Federation, job: Job, number: int, active: list[str]) -> None:
    """Train, check, merge and write one round of the active cohorts."""
    before = {cohort: federation.states[cohort] for cohort in active}
    recorded = {c: {n: k for n, k in job.steps[c][number - 1].items() if n not in job.left} for c in active}
    rounds = {c: CohortRound(federation.task_of(c), set(recorded[c])) for c in active}
    events: list[dict[str, Any]] = []
    again = {c: set(row) for c, row in recorded.items()}  # who trains
    for cohort in active:
        if job.cohorts[cohort] == number:
            kept, stated = state_again(federation, job, number, cohort, rounds)
            again[cohort], events = again[cohort] - kept, [*events, *stated]
    asked = {}
    for name in sorted(set().union(*again.values())):
        tasks = [(rounds[c].task, recorded[c][name]) for c in active if name in again[c]]
        asked[federation.members[name].call("replay", federation.terms_ref, number, tasks, job.removal)] = name
    deadline = time.monotonic() + federation.config.federation.deadline_s
    while asked:
        done, _ = calls.wait(list(asked), max(0.0, deadline - time.monotonic()), least=1)
        name = asked.pop(done[0]) if done else next(iter(asked.values()))
        try:
            if not done:
                raise TrustChainError(f"no answer within {federation.config.federation.deadline_s:g} s")
            reply: Reply = calls.get(done[0])
            federation.late.pop(name, None)  # it has come through what it was still at
            events += federation.accept_updates(number, name, reply, rounds, job.removal)
        except (RayActorError, RayTaskError, TrustChainError, Refused, *MALFORMED) as error:
            raise TrustChainError(
                f"organization {name!r} did not replay round {number}: {reason_of(error)}. {', '.join(active)} stay "
                f"withdrawn; go on when it is back: trustchain unlearn {federation.run.path}"
            ) from None
    for cohort in active:
        held = {name for name in recorded[cohort] if federation.counts[name][cohort]}  # without records: no update
        _check_accepted(federation, number, cohort, rounds[cohort], held)
        body = federation.merge(number, cohort, rounds[cohort])
        _check_accepted(federation, number, cohort, rounds[cohort], held)  # a secure sum may have lost one
        events.append(federation.event("MERGE", {**body, "replay": job.removal}))
    write_round(federation, job, number, active, before, rounds, events)


def _check_accepted(federation: Federation, number: int, cohort: str, round_: CohortRound, held: set[str]) -> None:
    """Everybody who took part is in the merge again. Raises TrustChainError."""
    if missing := sorted(held - set(round_.accepted)):
        why = f" ({round_.secure.reason})" if round_.secure is not None and round_.secure.reason else ""
        raise TrustChainError(
            f"round {number} of {cohort} cannot be replayed without an accepted update of {', '.join(missing)}, which "
            f"took part{why}; {cohort} stays withdrawn. Go on with: trustchain unlearn {federation.run.path}"
        )


def write_round(
    federation: Federation,
    job: Job,
    number: int,
    active: list[str],
    before: dict[str, Tensors],
    rounds: dict[str, CohortRound],
    events: list[dict[str, Any]],
) -> None:
    """Settle the round where that is due, then make it durable: adapters first, `round.json` last."""
    run, content = federation.run, _content(federation, number)
    kept = federation.kept_updates(number, rounds)
    if federation.settlement.due(number) and (everything := _all_updates(federation, number, rounds)) is not None:
        others = [cohort for cohort in federation.cohorts if cohort not in active]
        before |= {cohort: _before(federation, cohort, number) for cohort in others}
        events += federation.settle_again(number, before, everything, _played(content, job), job.removal)
    files = {run.path / adapter_file(number, c): federation.states[c] for c in active}
    files |= {run.round_folder(number) / name: tensors for name, tensors in kept.items()}
    for path, tensors in files.items():
        with explain_writes(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            save_tensors(path, tensors)
    adapters = {c: a for c, a in content["adapters"].items() if c in federation.cohorts}
    adapters |= {c: digest(federation.states[c]) for c in active}
    data = run.write_json(
        f"rounds/{number:04d}/round.json",
        {"round": number, "adapters": adapters, "events": [*content["events"], *events], "replay": job.removal},
    )
    run.append_metrics({"round": number, "replay": job.removal, "cohorts": active, **figures(rounds)})
    federation.submit([*events, federation.checkpoint(number, data, job.removal)])


def _all_updates(
    federation: Federation, number: int, rounds: dict[str, CohortRound]
) -> dict[str, CohortRound] | None:
    """The round of every cohort with its single updates: replayed ones, and kept files of the others; None where
    they were not kept (`federation.keep_updates`), so that the settlement cannot be made again. Under secure
    aggregation there are none: the merged adapters stand for them."""
    content, out = _content(federation, number), dict(rounds)
    signed = {
        (s["organization"], s["body"]["cohort"], s["body"]["update"]): (s["body"]["weight"], envelope)
        for envelope in content["events"]
        if (s := statement_of(envelope))["type"] == "UPDATE"
    }
    merges, others = newest_merges(content), sorted(set(federation.cohorts) - set(rounds))
    if number > 1 and any(not (federation.run.path / adapter_file(number - 1, c)).is_file() for c in others):
        return None
    for cohort in others:
        round_ = CohortRound(federation.task_of_state(cohort, _before(federation, cohort, number)), set())
        if federation.config.trust.secure_aggregation:
            after = federation.run.path / adapter_file(number, cohort)
            if not after.is_file():
                return None
            round_.merged = load_tensors(after)
        for entry in merges[cohort]["inputs"]:
            name = entry["organization"]
            if round_.merged is not None:
                weight, envelope = signed[name, cohort, entry["update"]]
                round_.accepted[name] = Update(cohort, Packed.of({}), envelope, weight)
                continue
            path = federation.run.round_folder(number) / update_file(cohort, name)
            if not path.is_file():
                return None
            tensors = load_tensors(path)
            if digest(tensors) != entry["update"]:
                raise TrustChainError(f"{path}: is not the update that was merged; restore it")
            weight, envelope = signed[name, cohort, entry["update"]]
            round_.accepted[name] = Update(cohort, Packed.of(tensors), envelope, weight)
        out[cohort] = round_
    return out


def _played(content: dict[str, Any], job: Job) -> dict[str, Fraction]:
    """Recorded efforts of the round."""
    decided = [s for e in content["events"] if (s := statement_of(e))["type"] == "DECISION"]
    return {s["organization"]: Fraction(s["body"]["effort"]) for s in decided if s["organization"] not in job.left}
