"""The verb `unlearn`: plan, withdraw, replay, release, certify, erase. Read it as a table of contents."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ledger import layout
from ledger.canonical import sha256_hex
from ledger.removal import EXACT_METHODS
from trustchain_ray.adapter import Tensors
from trustchain_ray.begun import read_begun
from trustchain_ray.chain import approval_hint
from trustchain_ray.cluster import cluster
from trustchain_ray.compare import collect, mean_scores, start_personalised
from trustchain_ray.config import Config
from trustchain_ray.data import organization_names
from trustchain_ray.errors import TrustChainError, UsageError
from trustchain_ray.federation import Federation
from trustchain_ray.forgetting.amendments import Amendments
from trustchain_ray.forgetting.certify import certify
from trustchain_ray.forgetting.history import History
from trustchain_ray.forgetting.inbox import await_outcome, leave
from trustchain_ray.forgetting.job import BEGUN, CERTIFIED, DONE, Job
from trustchain_ray.forgetting.place import is_local, trains_here
from trustchain_ray.forgetting.plan import Ask, make_plan
from trustchain_ray.forgetting.replay import is_complete, replay
from trustchain_ray.forgetting.stopgap import unlearn_approximately
from trustchain_ray.forgetting.withdraw import begin, publish_model, withdraw
from trustchain_ray.run_directory import InUse, RunDirectory
from trustchain_ray.worker import Packed

Progress = Callable[[str], None]
SHOWN = 3
"""Removed prompts of an organization that the models before and after are asked."""


def unlearn(
    folder: str,
    asks: Sequence[Ask],
    method: str,
    progress: Progress,
    *,
    options: Mapping[str, str] | None = None,
    dry_run: bool = False,
    evaluate: bool = True,
) -> dict[str, Any]:
    """Remove records, people or organizations from a run; or go on with a removal that was cut short.

    Parameters
    ----------
    asks
        What is to be removed, as one removal with one certificate; empty: only go on.
    method
        Of :data:`ledger.removal.METHODS`.
    options
        Of an approximate method, by name.
    dry_run
        Return the plan; nothing is changed.
    evaluate
        Evaluate the new model at every organization.

    Returns
    -------
    dict
        `guarantee`, `steps_replayed`, `steps_total`, `old_model_digest`, `new_model_digest`, `certificate`, figures.

    Raises
    ------
    UsageError
        Nobody holds what was asked for, it was removed before, or another removal is under way.
    TrustChainError
        Anything that the person who runs it can act on; the same command goes on.
    """
    began = time.time()
    run: RunDirectory | None
    try:
        run = RunDirectory.open(Path(folder))
    except InUse as error:
        run, result = _ask_trainer(error, folder, asks, method, options or {}, progress, dry_run)
        if result is not None:
            return result
    assert run is not None
    try:
        begun = read_begun(run)
        config = begun.config
        verb = _Verb(config, run, list(asks), method, dict(options or {}), progress, dry_run, evaluate, began)
        if is_local(begun):
            with verb.federation(local=True) as federation:
                if verb.carry_out(federation):
                    return verb.result
        with cluster(config, len(organization_names(config))), verb.federation(local=False) as federation:
            verb.carry_out(federation)
        return verb.result
    finally:
        run.unlock()


def _ask_trainer(
    error: InUse,
    folder: str,
    asks: Sequence[Ask],
    method: str,
    options: Mapping[str, str],
    progress: Progress,
    dry_run: bool,
) -> tuple[RunDirectory | None, dict[str, Any] | None]:
    """Leave the request to the process that trains and wait; the result, or the run where that process ended first."""
    if dry_run or not asks:
        raise error
    path, opened = Path(folder), list[RunDirectory]()

    def is_free() -> bool:
        with contextlib.suppress(InUse):
            opened.append(RunDirectory.open(path))
        return bool(opened)

    name = leave(path, asks, method, options)
    progress(f"{error.owner} trains on this run: it carries the request out after its round")
    result = await_outcome(path, name, is_free)
    return (opened[0] if opened else None), result


@dataclass
class _Verb:
    """One call of the verb: as far as that is quicker in this process, else on a cluster."""

    config: Config
    run: RunDirectory
    asks: list[Ask]
    method: str
    options: dict[str, str]
    progress: Progress
    dry_run: bool
    evaluate: bool
    began: float
    begun_here: bool = False
    old_model: Tensors | None = None
    result: dict[str, Any] = field(default_factory=dict)

    @contextlib.contextmanager
    def federation(self, local: bool) -> Iterator[Federation]:
        """The federation as it stands now."""
        federation = Federation(self.config, self.run, self.progress, local)
        try:
            yield federation
        finally:
            federation.close()

    def carry_out(self, federation: Federation) -> bool:
        """Plan, withdraw, replay, release, certify and erase, but for what was done; whether nothing is left to do."""
        job = federation.amended.unfinished
        if job is None and not self.asks:
            raise UsageError("nothing to go on with: name what is to be removed, e.g. --subject ID")
        sealed = (self.run.path / layout.SEAL).is_file()
        federation.reopen(write=not sealed)  # a plan, or a refusal, leaves the seal as it is
        if federation.ledger is not None:
            federation.ask_ledger("flush")
        if job is None:
            history = History.read(self.run.path, federation.manifest)
            plan = make_plan(federation, history, self.asks, self.method)
            if self.dry_run:
                self.result = {"run": str(self.run.path), **plan.describe()}
                return True
            self.old_model = federation.model()
            job = begin(federation, plan, history, self.began, self.options)
            federation.amended, self.asks, self.begun_here = Amendments.read(self.run), [], True
        elif self.asks or self.dry_run:
            raise UsageError(
                f"removal {job.number} of this run is not finished ({job.stage}); finish it first: "
                f"trustchain unlearn {self.run.path}"
            )
        elif not self.begun_here:
            self.begun_here = True
            self.progress(f"going on with removal {job.number} ({job.stage})")
        if federation.ledger is None:
            federation.open_ledger()
        if job.stage == BEGUN:
            job = withdraw(federation, job)
            names = ", ".join(sorted(job.cohorts)) or "nothing"
            self.progress(f"withdrawn: {names}; the model without it stands after {job.facts['withdrawn_s']} s")
        if federation.local and needs_workers(federation, job, self.evaluate) and not trains_here(self.config, job):
            return False
        said = Said(self.old_model)
        job = carry_out(federation, job, self.progress, self.evaluate, said)
        seal_again(federation)
        job = job.at(self.run, DONE)  # after the seal: a removal that is done leaves nothing to do
        self.result = {**result_of(federation, job), "asked": said.rows}
        return True


@dataclass
class Said:
    """What the old model (None: it is not at hand any more) and the new one say to prompts that are removed."""

    old: Tensors | None
    rows: list[dict[str, Any]] = field(default_factory=list)


def needs_workers(federation: Federation, job: Job, evaluate: bool) -> bool:
    """Whether something is left to train or to evaluate."""
    if job.stage in (CERTIFIED, DONE):
        return False
    return evaluate or job.method not in EXACT_METHODS or not is_complete(federation, job)


def carry_out(
    federation: Federation, job: Job, progress: Progress, evaluate: bool = True, said: Said | None = None
) -> Job:
    """Bring a removal that is withdrawn to its end, but for the seal; every step may be repeated."""
    if job.stage not in (CERTIFIED, DONE):
        if needs_workers(federation, job, evaluate):
            federation.enlist()
        if job.method in EXACT_METHODS:
            job = replay(federation, job, progress)
        else:
            job = unlearn_approximately(federation, job, progress)
        federation.ask_ledger("flush")  # a log that is written to meanwhile cannot be read whole
        if job.models or not History.read(federation.run.path, federation.manifest).models():
            publish_model(federation, job)
        scores = _evaluate(federation, job, progress) if evaluate else {}
        if evaluate and said is not None:
            said.rows = _ask(federation, job, said.old)
        job = certify(federation, job)
        progress(f"certified: {job.facts['guarantee']}, {federation.run.path / job.certificate}")
        _rewrite_result(federation, job, scores)
    erased = federation.gather("erase", job.removal, names=set(job.taken))
    if destroyed := sum(erased.values()):
        job = job.at(federation.run, job.stage, salts_destroyed=str(destroyed))
    return job


def _evaluate(federation: Federation, job: Job, progress: Progress) -> dict[str, Any]:
    """Scores of the model as it is now, on what test records are left."""
    model = federation.model()
    rows = {"federated": federation.scores(federation.evaluate(model))}
    if federation.config.federation.personalization != "none":
        rows["personalised"] = collect(start_personalised(federation, model))
    scores = {name: {**mean_scores(row), "by_organization": row} for name, row in rows.items()}
    mean = mean_scores(rows["federated"])
    progress("federated: " + "  ".join(f"{k} {v:.4f}" for k, v in mean.items()))
    federation.run.append_metrics({"final": "federated", "replay": job.removal, "scores": mean})
    body = {"round": job.rounds, "scores": {k: f"{v:.6f}" for k, v in mean.items()}}
    federation.log_event("EVALUATION", {**body, "adapters": federation.adapters(), "replay": job.removal})
    return scores


def _ask(federation: Federation, job: Job, old: Tensors | None) -> list[dict[str, Any]]:
    """What the models before and after say to some of the removed prompts, at the organizations that held them."""
    if old is None:
        return []
    models = {"before": federation.share(Packed.of(old)), "after": federation.share(Packed.of(federation.model()))}
    rows = []
    for name in sorted(set(job.taken) - set(job.left)):
        call = federation.members[name].call("ask_models", federation.terms_ref, models, SHOWN)
        rows += [{"organization": name, **row} for row in federation.answer(name, call)]
    return rows


def _rewrite_result(federation: Federation, job: Job, scores: dict[str, Any]) -> None:
    """What `result.json` says of the model; figures of models that are withdrawn go."""
    path = federation.run.path / "result.json"
    if path.is_file():
        said = json.loads(path.read_text(encoding="utf-8"))
        said |= {
            "model_digest": job.facts["new_model_digest"],
            "scores": scores,
            "adapters": federation.adapters(),
            "removals": [*said.get("removals", []), job.certificate],
        }
        federation.run.write("result.json", (json.dumps(said, indent=2) + "\n").encode())


def seal_again(federation: Federation) -> None:
    """Seal a run that was complete; leave one that is to be resumed as it is."""
    path = federation.run.path / "result.json"
    if path.is_file():
        status = federation.ask_ledger("finish", [], federation.witnesses)
        if status["pending"]:
            raise TrustChainError(f"the log could not be completed: {status}; run the same command again")
        said = json.loads(path.read_text(encoding="utf-8"))
        said |= {"log": {"size": status["size"], "root": status["root"]}, "anchor": status["anchor"]}
        federation.run.write("result.json", (json.dumps(said, indent=2) + "\n").encode())
    else:
        federation.ask_ledger("settle", federation.witnesses)


def result_of(federation: Federation, job: Job) -> dict[str, Any]:
    """What a finished removal is, for scripts."""
    path = federation.run.path / job.certificate
    facts = job.facts
    return {
        "run": str(federation.run.path),
        "removal": job.number,
        "method": job.method,
        "guarantee": facts["guarantee"],
        "reason": facts["reason"],
        "steps_replayed": int(facts["steps_replayed"]),
        "steps_total": int(facts["steps_total"]),
        "old_model_digest": facts["old_model_digest"],
        "new_model_digest": facts["new_model_digest"],
        "certificate": str(path),
        "certificate_sha256": sha256_hex(path.read_bytes()),
        "withdrawn_s": float(facts["withdrawn_s"]),
        "replayed_s": float(facts["replayed_s"]),
        "seconds": round(time.time() - float(facts["asked"]), 3),
        "cohorts": job.cohorts,
        "dropped": job.dropped,
        "organizations_leaving": job.left,
        "asked": [],
        "approve": approval_hint(federation.config, str(federation.run.path), str(path)),
    }
