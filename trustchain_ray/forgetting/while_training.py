"""Removal from a run that is training: carried out between two rounds by the process that trains."""

import time
from collections.abc import Callable
from typing import Any

from ledger.removal import ORGANIZATION
from trustchain_ray.errors import TrustChainError, UsageError
from trustchain_ray.federation import Federation
from trustchain_ray.forgetting.amendments import Amendments
from trustchain_ray.forgetting.history import History
from trustchain_ray.forgetting.inbox import take_up
from trustchain_ray.forgetting.job import DONE
from trustchain_ray.forgetting.plan import Ask, make_plan
from trustchain_ray.forgetting.unlearn import carry_out, result_of
from trustchain_ray.forgetting.withdraw import begin, withdraw

Progress = Callable[[str], None]


def expel_planters(federation: Federation, progress: Progress) -> int:
    """Remove what organizations ever sent that planted triggers as `trust.expel` scans found, all of them together; one
    after another where that is impossible.

    What they sent before a scan saw the trigger leaves the model, too: afterwards it is the one of a training without
    them. Where that is impossible (one does not answer, or a privacy budget pays for no replay) it stays, is refused
    round by round, and `progress` gets the reason; a resumed run tries again.

    Returns
    -------
    int
        Removals that were carried out.

    Raises
    ------
    TrustChainError
        A removal was begun and could not be finished, as in :func:`take_requests`.
    """
    least, planted = federation.config.trust.expel, federation.reputation.planted
    caught = [n for n in federation.names if least and len(planted[n]) >= least and n not in federation.spared]
    if not caught:
        return 0
    progress(f"expelled for planting triggers: {', '.join(caught)}; what they ever sent is removed")
    if _expel(federation, caught, progress):
        return 1
    if len(caught) > 1:
        return sum(_expel(federation, [name], progress) for name in caught)
    return 0


def _expel(federation: Federation, names: list[str], progress: Progress) -> bool:
    """Whether organizations were removed; a single one that cannot be is spared until the run is resumed."""
    try:
        _remove(federation, [Ask(scope=ORGANIZATION, organization=n) for n in names], "replay", {}, progress)
    except TrustChainError as refused:
        if _is_begun(federation):
            raise
        if len(names) == 1:
            federation.spared.add(names[0])
        progress(f"  not removed{' together' if len(names) > 1 else ''}: {refused}")
        return False
    return True


def take_requests(federation: Federation, progress: Progress) -> int:
    """Carry out the requests that wait in the run's inbox; how many there were.

    Raises
    ------
    TrustChainError
        A removal was begun and could not be finished; `trustchain unlearn RUN` goes on with it, then `--resume`.
    """

    def handle(asks: list[Ask], method: str, options: dict[str, str]) -> dict[str, Any]:
        if method == "drop" and any(ask.scope != ORGANIZATION for ask in asks):
            raise UsageError("--method drop while the run trains would end the cohort; use replay, or wait for its end")
        return _remove(federation, asks, method, options, progress)

    return take_up(federation.run.path, handle, lambda: _is_begun(federation))


def _is_begun(federation: Federation) -> bool:
    """Whether a removal is under way that must be finished."""
    return Amendments.read(federation.run).unfinished is not None


def _remove(
    federation: Federation, asks: list[Ask], method: str, options: dict[str, str], progress: Progress
) -> dict[str, Any]:
    federation.writer.flush()
    federation.ask_ledger("flush")
    history = History.read(federation.run.path, federation.manifest)
    plan = make_plan(federation, history, asks, method)
    progress(f"a removal was asked for after round {federation.finished}")
    job = begin(federation, plan, history, time.time(), options)
    federation.amended = Amendments.read(federation.run)
    federation.contributions.forget()
    job = carry_out(federation, withdraw(federation, job), progress, evaluate=False)
    job = job.at(federation.run, DONE)
    federation.amended = Amendments.read(federation.run)
    return result_of(federation, job)
