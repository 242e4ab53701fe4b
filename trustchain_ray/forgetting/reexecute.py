"""`trustchain verify RUN --reexecute`: do what stands in the log again, and compare digests.

Every update is trained again by the organization that holds its records, from the adapter and for the steps that the
log names; every merge of such updates is computed again. Nothing is written, except where an organization attests
(:mod:`trustchain_ray.forgetting.attest`).
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray

from ledger.report import Check, Report
from trustchain_ray import calls
from trustchain_ray.adapter import Tensors, digest, load_tensors
from trustchain_ray.cluster import cluster
from trustchain_ray.config import Config
from trustchain_ray.config_files import load_config
from trustchain_ray.data import organization_names
from trustchain_ray.errors import TrustChainError, UsageError
from trustchain_ray.exchange import NO_REMOVAL, CohortTask, Reply, Update
from trustchain_ray.federation import Federation
from trustchain_ray.forgetting.attest import Attester, Conditions, issued
from trustchain_ray.forgetting.history import History
from trustchain_ray.forgetting.outcome import Outcome
from trustchain_ray.forgetting.standing import MERGES, Merged, Recorded, compare, pick, replayed, share_of, standing
from trustchain_ray.robust.merging import merge_updates
from trustchain_ray.robust.reputation import SAME
from trustchain_ray.round_writer import INITIAL, adapter_file, update_file
from trustchain_ray.run_directory import RunDirectory
from trustchain_ray.secure_merge import sum_again
from trustchain_ray.statements import statement_of

Progress = Callable[[str], None]


def reexecute(report: Report, folder: str, what: str, attester: str | None, progress: Progress) -> dict[str, Any]:
    """Do a run's training, or its merges, again; the outcome goes into the report of its verification.

    Parameters
    ----------
    report
        Of :func:`ledger.verify.verify_run`. Where it has a failure nothing is done: there is no log to compare with.
    what
        `all`, a share of the updates such as `0.2`, or `merges`. Updates of replays; where nothing was replayed, all
        that stand.
    attester
        Organization that attests the outcome and counter-signs the certificates of the removals.

    Returns
    -------
    dict
        `reexecution`: `steps`, `updates`, `merges`, `left_out`, `same`, `first_difference`, `seconds`,
        `seconds_per_step`; with an attester also `attested`, the result by certificate, and `audited`, by organization.

    Raises
    ------
    UsageError
        A wrong share, not a run directory, or an organization that cannot attest.
    TrustChainError
        The run is in use, a removal is not finished, or an organization whose records are needed does not answer.
    """
    share = None if what == MERGES else share_of(what)
    if report.kind != "run":
        raise UsageError(f"--reexecute needs a run directory; {folder} is a {report.kind}")
    if attester is not None and share is None:
        raise UsageError("--attest needs training to be done again: --reexecute all, or a share")
    if report.failure is not None:
        report.not_checked.append("that training gives the logged digests: not done again, the run does not verify")
        return {"reexecution": None}
    run = RunDirectory.open(Path(folder))
    try:
        config = load_config([str(run.path / "config.yaml")], [])
        history = History.read(run.path, run.read_json("manifest.json"))
        everything = standing(history.events, history.manifest)
        merges = replayed(everything)
        if share is None:
            outcome, attested = merge_again(config, run, merges, Outcome()), None
        else:
            outcome, attested = _train_all(config, run, history, merges, share, attester, progress)
    finally:
        run.unlock()
    outcome.describe(report, what)
    if gone := sorted(set(history.manifest["cohorts"]) - {merged.cohort for merged in everything}):
        why = "dropped, or changed by an approximate method, which nobody can do again without the records"
        report.not_checked.append(f"training of {', '.join(gone)}: {why}")
    for file, result in (attested or {}).items():
        detail = f"{attester} attests {file}: {result}" + (", and counter-signs it" if result == SAME else "")
        report.checks.append(Check("attestation", "ok", detail, file))
    for name, result in outcome.audited.items():
        report.checks.append(Check("audit", "ok", f"{attester} states of the updates of {name}: {result}"))
    if attested == {} and not outcome.audited:
        report.not_checked.append(f"what {attester} could attest: no step of a removal that others issued was chosen")
    said = outcome.to_dict() | ({"attested": attested, "audited": outcome.audited} if attested is not None else {})
    return {"reexecution": said}


def merge_again(config: Config, run: RunDirectory, merges: Sequence[Merged], outcome: Outcome) -> Outcome:
    """Compute merges again from the updates that were kept. Raises TrustChainError where a file was changed."""
    began = time.perf_counter()
    for merged in merges:
        folder = run.round_folder(merged.round)
        files = {u: folder / update_file(merged.cohort, u.organization) for u in merged.updates}
        if not merged.updates:
            continue  # it leaves the adapter as it is; the log was checked for that
        if not _base_file(run, merged).is_file() or not all(path.is_file() for path in files.values()):
            outcome.left_out += 1
            continue
        updates = {recorded: load_tensors(path) for recorded, path in files.items()}
        for recorded, tensors in updates.items():
            if digest(tensors) != recorded.update:
                raise TrustChainError(f"{files[recorded]}: is not the update that was merged; restore it")
        outcome.note_merge(merged, _merge(config, merged, _before(run, merged), updates))
    outcome.seconds = time.perf_counter() - began
    return outcome


def _train_all(
    config: Config,
    run: RunDirectory,
    history: History,
    merges: Sequence[Merged],
    share: float,
    attester: str | None,
    progress: Progress,
) -> tuple[Outcome, dict[str, str] | None]:
    """Train a share of the updates again; the outcome, and what was attested of each certificate."""
    outcome = Outcome()
    possible = [u for merged in merges for u in merged.updates if _base_file(run, merged).is_file()]
    chosen = pick(possible, share) if possible else []
    outcome.left_out = sum(len(merged.updates) for merged in merges) - len(possible)
    certificates = issued(run, history.events)
    federation = Federation(config, run, progress)
    signing = Attester(attester, certificates) if attester is not None else None
    if signing is not None:
        signing.check({recorded.removal for recorded in possible}, federation.names)
    conditions = Conditions(history.manifest, certificates)
    outcome.inconclusive = conditions.other_program(chosen)
    if config.privacy.dp != "none" and any(recorded.removal for recorded in chosen):
        outcome.inconclusive = "the noise of a replay is drawn once, by a key that is in nobody's hands any more"
    if not chosen or outcome.inconclusive:
        _must_conclude(attester, outcome)
        return outcome, None
    with cluster(config, len(organization_names(config))):
        try:
            _check_online(federation, chosen)
            federation.reopen(write=False)
            registered = federation.gather("register", federation.base, names=federation.names, long=True)
            environments = {name: row["worker"]["environment"] for name, row in registered.items()}
            outcome.inconclusive = conditions.other_hardware(chosen, environments)
            if outcome.inconclusive:
                _must_conclude(attester, outcome)
                return outcome, None
            federation.enlist()
            _train_chosen(federation, merges, chosen, outcome, progress)
            if signing is None:
                return outcome, None
            outcome.audited = signing.audited(outcome)
            return outcome, signing.sign(federation, outcome)
        finally:
            federation.close()


def _must_conclude(attester: str | None, outcome: Outcome) -> None:
    """Nobody attests what cannot be compared. Raises TrustChainError."""
    if attester is not None:
        raise TrustChainError(
            f"{attester} cannot attest: a re-execution here cannot be compared bit by bit: {outcome.inconclusive}"
        )


def _train_chosen(
    federation: Federation,
    merges: Sequence[Merged],
    chosen: Sequence[Recorded],
    outcome: Outcome,
    progress: Progress,
) -> None:
    """Train the chosen updates again, round by round, and merge those that are complete."""
    began, wanted, secure = time.perf_counter(), set(chosen), federation.config.trust.secure_aggregation
    for number in sorted({recorded.round for recorded in chosen}):
        here = [recorded for recorded in chosen if recorded.round == number]
        cohorts = {recorded.cohort for recorded in here}
        bases = {m.cohort: _before(federation.run, m) for m in merges if m.round == number and m.cohort in cohorts}
        trained = _train_round(federation, number, here, bases)
        for recorded, update in trained.items():
            body = statement_of(update.envelope)["body"]
            # Of the tensors that came, whatever the statement says; where none come, the sum below shows a lie.
            made = body["update"] if secure else digest(update.update.tensors())
            outcome.note(recorded, compare(recorded, made, update.weight, body["trace"]))
            outcome.training_seconds += update.seconds
        differ = {(d.organization, d.cohort, d.round) for d in outcome.differences}
        for merged in (m for m in merges if m.round == number and m.updates and wanted.issuperset(m.updates)):
            if all((u.organization, u.cohort, u.round) not in differ for u in merged.updates):
                base = bases[merged.cohort]
                if secure:
                    weights = {recorded.organization: recorded.weight for recorded in merged.updates}
                    made = digest(sum_again(federation, number, merged.cohort, base, weights))
                else:
                    tensors = {recorded: trained[recorded].update.tensors() for recorded in merged.updates}
                    made = _merge(federation.config, merged, base, tensors)
                outcome.note_merge(merged, made)
        progress(f"trained {len(here)} updates of round {number} again, {len(outcome.differences)} differences so far")
    outcome.seconds = time.perf_counter() - began


def _train_round(
    federation: Federation, number: int, recorded: Sequence[Recorded], bases: Mapping[str, Tensors]
) -> dict[Recorded, Update]:
    """Train updates of one round again, at all organizations at once. Raises TrustChainError naming who is late."""
    tasks = {cohort: federation.task_of_state(cohort, base) for cohort, base in bases.items()}
    asked = {
        name: [u for u in recorded if u.organization == name] for name in sorted({u.organization for u in recorded})
    }
    refs = {name: _start(federation, number, own, tasks) for name, own in asked.items()}
    _, late = calls.wait(list(refs.values()), federation.config.federation.deadline_s)
    if silent := [name for name, ref in refs.items() if ref in late]:
        seconds = f"federation.deadline_s={federation.config.federation.deadline_s:g}"
        raise TrustChainError(f"{', '.join(silent)} did not train round {number} again within {seconds}")
    trained = {}
    for name, own in asked.items():
        reply: Reply = federation.answer(name, refs[name])
        found = {update.cohort: update for update in reply.updates}
        for one in own:
            if one.cohort not in found:
                raise TrustChainError(
                    f"organization {name!r} has no records of cohort {one.cohort!r} any more, on which it trained in "
                    f"round {number}; restore its data"
                )
            trained[one] = found[one.cohort]
    return trained


def _start(federation: Federation, number: int, own: Sequence[Recorded], tasks: Mapping[str, CohortTask]) -> Any:
    """Start an organization's part of a round; a reference."""
    steps = [(tasks[recorded.cohort], recorded.steps) for recorded in own]
    return federation.members[own[0].organization].call("replay", federation.terms_ref, number, steps, NO_REMOVAL)


def _check_online(federation: Federation, chosen: Iterable[Recorded]) -> None:
    """Whose records are needed is there, as far as the cluster says it. Raises TrustChainError."""
    needed = {recorded.organization for recorded in chosen}
    missing = sorted(needed - set(federation.names))
    if federation.config.resources.pin_organizations:
        have = ray.cluster_resources()
        missing = sorted({*missing, *(name for name in federation.names if f"org_{name}" not in have)})
    if missing:
        raise TrustChainError(
            f"{', '.join(missing)} must be online, with its records, to train again what it trained; "
            "start its nodes, or check the merges alone: --reexecute merges"
        )


def _base_file(run: RunDirectory, merged: Merged) -> Path:
    """Where the adapter before a merge lies, where it was kept."""
    return run.path / (adapter_file(merged.round - 1, merged.cohort) if merged.round > 1 else INITIAL)


def _before(run: RunDirectory, merged: Merged) -> Tensors:
    """The adapter before a merge. Raises TrustChainError where it was changed."""
    path = _base_file(run, merged)
    tensors = load_tensors(path)
    if digest(tensors) != merged.base:
        raise TrustChainError(f"{path}: is not the adapter that round {merged.round} began with; restore it")
    return tensors


def _merge(config: Config, merged: Merged, base: Tensors, updates: Mapping[Recorded, Tensors]) -> str:
    """Digest of the merge of updates into an adapter; empty where the rule gives other shares than were logged."""
    again = merge_updates(config, base, {u.organization: (tensors, u.weight) for u, tensors in updates.items()})
    shares = tuple(again.shares[u.organization] for u in merged.updates) if again.shares else ()
    return digest(again.state) if shares == merged.shares else ""
