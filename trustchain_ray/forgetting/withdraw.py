"""The first half of a removal: records are taken out, cohorts withdrawn, and the model without them published."""

import json
import secrets
import time
from typing import Any

from ledger import provenance
from ledger.removal import EXACT_METHODS, TRAIN, Shard
from trustchain_ray.federation import Federation
from trustchain_ray.forgetting.history import History
from trustchain_ray.forgetting.holder import Taken
from trustchain_ray.forgetting.job import WITHDRAWN, Job, jobs_of, taken_row
from trustchain_ray.forgetting.kept import kept_updates, touched_by
from trustchain_ray.forgetting.place import step_seconds
from trustchain_ray.forgetting.plan import Plan
from trustchain_ray.publish import publish
from trustchain_ray.round_writer import adapter_file, update_file, update_folder
from trustchain_ray.run_directory import explain_writes
from trustchain_ray.statements import statement_of


def begin(
    federation: Federation, plan: Plan, history: History, asked: float, options: dict[str, str] | None = None
) -> Job:
    """Have the organizations take the records out, and make the removal durable: from here on it is carried out.

    Parameters
    ----------
    asked
        When the request came, in seconds since 1970.
    options
        Of an approximate method.
    """
    number, removal = len(jobs_of(federation.run)) + 1, secrets.token_hex(32)
    taken: dict[str, Taken] = {}
    events: list[dict[str, Any]] = []
    calls = {
        name: federation.members[name].call("reserve", removal, wanted, plan.usages[name], plan.method)
        for name, wanted in plan.wanted.items()
    }
    for name, call in calls.items():
        taken[name], requests = federation.answer(name, call)
        events += requests
    slots = {name: [(s.cohort, s.split) for s in part.shards] for name, part in taken.items()}
    shards = {n: federation.members[n].call("shard_events", number, own) for n, own in slots.items() if own}
    requests_made = [
        {"request": one.request, "organization": name, "scope": one.asked.scope}
        for name, wanted in plan.wanted.items()
        for one in wanted
        if taken[name].removed[one.request]
    ]
    return Job(
        number=number,
        removal=removal,
        method=plan.method,
        requests=requests_made,
        cohorts=plan.cohorts if plan.method in EXACT_METHODS else {},
        dropped=plan.dropped,
        left=plan.left,
        rounds=federation.finished,
        counts={name: part.counts for name, part in taken.items()},
        steps=plan.steps,
        models=_models(history, [shard for part in taken.values() for shard in part.shards]),
        taken={name: taken_row(part) for name, part in taken.items()},
        events=[*events, *(e for n, call in shards.items() for e in federation.answer(n, call))],
        options=options or {},
        privacy=_spent(federation),
        facts={
            "asked": repr(asked),
            "steps_replayed": str(plan.steps_replayed),
            "steps_total": str(plan.steps_total),
            "step_s": repr(step_seconds(federation.run, plan.steps)),
        },
    ).write(federation.run)


def withdraw(federation: Federation, job: Job) -> Job:
    """Log the withdrawal, delete what depends on the records, and publish the model without the cohorts."""
    run = federation.run
    apply_terms(federation, job)
    for cohort in job.cohorts:
        federation.states.pop(cohort, None)
    requests = [event for event in job.events if _type(event) == "UNLEARN_REQUEST"]
    shards = [event for event in job.events if _type(event) != "UNLEARN_REQUEST"]
    ids = [row["request"] for row in job.requests]
    withdrawn = {"removal": job.removal, "requests": ids, "cohorts": job.cohorts, "models": sorted(job.models)}
    revoked = [
        federation.event("MODEL_REVOKED", {"model_digest": m, "request": ids[0], "reason": "records are removed"})
        for m in job.models
    ]
    federation.submit([*requests, federation.event("UNLEARN_WITHDRAWN", withdrawn), *revoked, *shards])
    release: dict[str, Any] = {}
    if job.models and job.method in EXACT_METHODS:
        release = publish_model(federation, job)
    for cohort, first in job.cohorts.items():
        _delete(federation, job, cohort, first)
    _forget_figures(federation, min(job.cohorts.values(), default=job.rounds + 1))
    federation.gather("forget_own", names=set(federation.members) - federation.offline)
    federation.ask_ledger("flush")
    seconds = time.time() - float(job.facts["asked"])
    return job.at(run, WITHDRAWN, withdrawn_s=f"{seconds:.3f}", interim=release.get("model_digest", ""))


def _spent(federation: Federation) -> dict[str, dict[str, str]]:
    """What the privacy accounts say, by organization."""
    if federation.config.privacy.dp == "none":
        return {}
    online = set(federation.names) - federation.offline
    spent: dict[str, dict[str, str]] = federation.gather("privacy_spent", names=online)
    return spent


def apply_terms(federation: Federation, job: Job) -> None:
    """Who and what is left, from now on."""
    federation.names = [name for name in federation.names if name not in job.left]
    cohorts = {c: [n for n in members if n not in job.left] for c, members in federation.cohorts.items()}
    federation.cohorts = {c: members for c, members in cohorts.items() if members and c not in job.dropped}
    for name, counts in job.counts.items():
        federation.counts.get(name, {}).update(counts)


def publish_model(federation: Federation, job: Job) -> dict[str, Any]:
    """Publish the merge of the cohorts that stand, and log its release; its digest and files."""
    config = federation.config
    tensors, scale = federation.form.published(federation.model(), federation.fresh, config.model.lora.alpha)
    release = publish(config, federation.run, tensors, scale, config.model.lora.form)
    federation.log_event("MODEL_RELEASE", {**release, "adapters": federation.adapters(), "replay": job.removal})
    return release


def _models(history: History, shards: list[Shard]) -> list[str]:
    """Released models that depend on the records."""
    sources = sources_of(shards)
    nodes = provenance.closure(history.graph, sources) if sources else []
    return list(dict.fromkeys(node.digest for node in nodes if node.kind == provenance.MODEL))


def sources_of(shards: list[Shard]) -> list[provenance.Source]:
    """Shards as sources of a closure."""
    return [
        provenance.Source(
            s.organization, s.cohort if s.split == TRAIN else provenance.TEST, s.old_root, max(1, s.round)
        )
        for s in shards
    ]


def _delete(federation: Federation, job: Job, cohort: str, first: int) -> None:
    """The cohort's adapters and single updates from a round on, but for those of the first one that a replay keeps."""
    number, kept = first, set[str]()
    if cohort not in job.dropped:
        kept = set(kept_updates(federation, cohort, first, touched_by(job, cohort)))
    while (folder := federation.run.round_folder(number)).is_dir():
        path, updates = federation.run.path / adapter_file(number, cohort), folder / update_folder(cohort)
        with explain_writes(path):
            path.unlink(missing_ok=True)
            for name in [path.stem for path in updates.glob("*.safetensors")] if updates.is_dir() else []:
                if number > first or name not in kept:
                    (folder / update_file(cohort, name)).unlink()
        number += 1


def _forget_figures(federation: Federation, first: int) -> None:
    """Losses and scores of withdrawn rounds and models."""
    path = federation.run.path / "metrics.jsonl"
    if path.is_file():
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
        kept = [row for row in rows if "round" in row and row["round"] < first]
        federation.run.write("metrics.jsonl", "".join(json.dumps(row) + "\n" for row in kept).encode())


def _type(envelope: dict[str, Any]) -> str:
    return str(statement_of(envelope)["type"])
