"""Approximate removal: an unlearning method on the adapters as they stand. Its result is labelled `APPROXIMATE`."""

import time
from collections.abc import Callable

from ledger.removal import TRAIN
from trustchain_ray.checks import MALFORMED, Refused
from trustchain_ray.errors import TrustChainError
from trustchain_ray.federation import CohortRound, Federation
from trustchain_ray.forgetting.holder import Taken
from trustchain_ray.forgetting.job import REPLAYED, Job
from trustchain_ray.forgetting.replay import write_round

Progress = Callable[[str], None]


def unlearn_approximately(federation: Federation, job: Job, progress: Progress) -> Job:
    """Have the holders of the records apply the method to their cohorts' newest adapters, one after the other."""
    began, number = time.perf_counter(), job.rounds
    content = federation.run.read_json(f"rounds/{number:04d}/round.json")
    if content.get("replay") != job.removal:
        before = dict(federation.states)
        holders = {n: sorted({s.cohort for s in part.shards if s.split == TRAIN}) for n, part in _taken(job)}
        cohorts = sorted({cohort for own in holders.values() for cohort in own})
        rounds = {c: CohortRound(federation.task_of(c), set()) for c in cohorts}
        options = {name: float(value) for name, value in job.options.items()}
        events, steps = [], 0
        for name, own in holders.items():
            tasks = [rounds[c].task for c in own]
            call = federation.members[name].call(
                "unlearn", federation.terms_ref, number, tasks, job.removal, job.method, options
            )
            reply = federation.answer(name, call, long=True)
            try:
                events += federation.accept_updates(number, name, reply, rounds, job.removal)
            except (Refused, *MALFORMED) as refused:
                raise TrustChainError(f"organization {name!r}: its answer was refused: {refused}") from None
            steps += sum(len(update.losses) for update in reply.updates)
            progress(f"{job.method} at {name}: {steps} steps")
        for cohort in cohorts:
            body = federation.merge(number, cohort, rounds[cohort], server_step=1.0)
            events.append(federation.event("MERGE", {**body, "replay": job.removal}))
        job = job.at(federation.run, job.stage, steps_replayed=str(steps))
        write_round(federation, job, number, cohorts, before, rounds, events)
    seconds = time.perf_counter() - began
    return job.at(federation.run, REPLAYED, replayed_s=f"{seconds:.3f}")


def _taken(job: Job) -> list[tuple[str, Taken]]:
    return [(name, part) for name in sorted(job.taken) if (part := job.taken_of(name)) is not None]
