"""The certificate of a removal: built from the log, signed by those whose records they were, published and checked."""

from typing import Any

from ledger import certificate as ct
from ledger import provenance
from ledger.canonical import canonical_json, sha256_hex
from ledger.errors import LedgerError
from ledger.identity import COORDINATOR
from ledger.publication import publish_from
from ledger.removal import (
    BITWISE,
    EXACT_BITWISE,
    EXACT_DISTRIBUTION,
    EXACT_METHODS,
    ORGANIZATION,
    TOLERANCE,
    Removal,
    Request,
    Start,
    entries_of,
)
from trustchain_ray.errors import TrustChainError
from trustchain_ray.federation import Federation
from trustchain_ray.forgetting.history import History
from trustchain_ray.forgetting.job import CERTIFIED, Job
from trustchain_ray.forgetting.withdraw import sources_of
from trustchain_ray.manifest import program_digest


def certify(federation: Federation, job: Job) -> Job:
    """Build, sign, log and publish the certificate; `certificates/<number>.json` of the run.

    Raises
    ------
    TrustChainError
        An issuer does not answer, or refuses what the certificate says.
    """
    run = federation.run
    federation.ask_ledger("flush")
    kept = f"{job.folder}/certificate.json"  # once signed it is the one, whatever a later attempt would measure
    if not (run.path / kept).is_file():
        history = History.read(run.path, run.read_json("manifest.json"))
        run.write(kept, _signed(federation, job, removal_of(federation, job, history)))
    data = (run.path / kept).read_bytes()
    removal = ct.parse(data).removal
    executed = {
        "requests": [request.request for request in removal.requests],
        "certificate": ct.parse(data).digest,
        "guarantee": removal.guarantee,
        "old_model_digest": removal.model["old"],
        "new_model_digest": removal.model["new"],
        "steps_replayed": removal.steps["replayed"],
        "steps_total": removal.steps["total"],
    }
    federation.log_event("UNLEARN_EXEC", executed)
    federation.ask_ledger("settle", federation.witnesses)
    try:
        run.write(job.certificate, publish_from(run.path, data, federation.identity))
    except LedgerError as error:
        raise TrustChainError(str(error)) from None
    return job.at(
        run,
        CERTIFIED,
        guarantee=removal.guarantee,
        reason=_why_not_bitwise(federation, job),
        old_model_digest=removal.model["old"],
        new_model_digest=removal.model["new"],
    )


def removal_of(federation: Federation, job: Job, history: History) -> Removal:
    """What the certificate states."""
    run, until = federation.run, history.withdrawal(job.removal)
    assert until is not None
    taken = {name: part for name in job.taken if (part := job.taken_of(name)) is not None}
    shards = [shard for name in sorted(taken) for shard in taken[name].shards]
    closure = entries_of(history.graph, provenance.closure(history.graph, sources_of(shards), until), until)
    requests = [
        Request(row["request"], row["organization"], row["scope"], taken[row["organization"]].removed[row["request"]])
        for row in job.requests
    ]
    models = [entry for entry in closure if entry.kind == provenance.MODEL]
    standing = history.models()[-1]
    old = models[-1].old if models else standing
    withdrawn = sorted({entry.old for entry in models if entry.old != entry.new})
    environments = federation.environments()
    return Removal(
        run=federation.id,
        issuers=_issuers(job),
        guarantee=_guarantee(federation, job),
        method=job.method,
        reproducibility={
            "class": TOLERANCE if _why_not_bitwise(federation, job) else BITWISE,
            "environments": {name: sha256_hex(canonical_json(value)) for name, value in environments.items()},
        },
        digests={
            "manifest": sha256_hex((run.path / "manifest.json").read_bytes()),
            "base": federation.manifest["base"],
            "program": program_digest(),
        },
        keys={"run": federation.manifest["key"]},
        requests=requests,
        shards=shards,
        closure=closure,
        start=_starts(job, history, closure),
        steps={"replayed": int(job.facts["steps_replayed"]), "total": int(job.facts["steps_total"])},
        model={"old": old, "new": standing if models else old},
        withdrawn=withdrawn,
        noise="fresh" if _draws_noise(federation, job) else "none",
        privacy=_privacy_rows(federation, job),
        timings={name: job.facts[name] for name in ("withdrawn_s", "replayed_s") if name in job.facts},
    )


def _starts(job: Job, history: History, closure: list[Any]) -> list[Start]:
    """The adapter that each replayed cohort goes on from."""
    made = {e.name.rpartition("@")[0] for e in closure if e.kind == provenance.ADAPTER and e.new is not None}
    return [
        Start(cohort, first - 1, history.adapter(cohort, first - 1))
        for cohort, first in sorted(job.cohorts.items())
        if cohort in made
    ]


def _draws_noise(federation: Federation, job: Job) -> bool:
    """Whether steps with privacy noise were taken again."""
    return federation.config.privacy.dp != "none" and int(job.facts["steps_replayed"]) > 0


def _privacy_rows(federation: Federation, job: Job) -> list[dict[str, str]]:
    """What each organization's units had been charged before the removal, and after it."""
    names = [name for name in sorted(job.privacy) if name in federation.names and name not in federation.offline]
    after = federation.gather("privacy_spent", names=names) if names else {}
    return [
        {
            "organization": name,
            "epsilon_before": job.privacy[name]["epsilon"],
            "epsilon_after": after[name]["epsilon"],
            "delta": after[name]["delta"],
        }
        for name in names
    ]


def _issuers(job: Job) -> list[str]:
    """Whose records they were; the coordinator for an organization that leaves."""
    return sorted(
        {COORDINATOR if row["scope"] == ORGANIZATION else row["organization"] for row in job.requests}
    )


def _guarantee(federation: Federation, job: Job) -> str:
    if job.method not in EXACT_METHODS:
        return "APPROXIMATE"
    return EXACT_DISTRIBUTION if _why_not_bitwise(federation, job) else EXACT_BITWISE


def _why_not_bitwise(federation: Federation, job: Job) -> str:
    """Why the replay cannot claim equal bits; empty: it can."""
    if _draws_noise(federation, job):
        return "privacy noise was drawn anew: with the old noise the difference of the models would show the records"
    for name, now in federation.environments().items():
        agreed = federation.manifest["environments"].get(name)
        if now["engine"] != "torch":
            return f"the {now['engine']} engine sums gradients in an order of its own"
        if agreed is not None and agreed != now:
            parts = ", ".join(sorted(key for key in now if now[key] != agreed.get(key)))
            return f"{name} replayed in another hardware class than it trained in ({parts})"
    if federation.manifest.get("program") != program_digest():
        return "the training program of this version is not the one that the run began with"
    return ""


def _signed(federation: Federation, job: Job, removal: Removal) -> bytes:
    """The certificate with the signatures of all issuers."""
    data: bytes | None = None
    for issuer in removal.issuers:
        if issuer == COORDINATOR:
            own = federation.identity
            data = ct.build(removal, [own]) if data is None else ct.counter_sign(data, own)
        else:
            call = federation.members[issuer].call("sign_certificate", removal, data, job.taken_of(issuer))
            data = federation.answer(issuer, call)
    assert data is not None
    return data
