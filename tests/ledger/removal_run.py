"""A finished run from which two records of the bank are removed, with every event and file of the removal."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fake_run import COHORT, ORGANIZATIONS, FakeRun, adapter

from ledger import certificate as ct
from ledger import events as ev
from ledger import layout, provenance
from ledger.canonical import sha256_hex
from ledger.commitments import commit
from ledger.dsse import Envelope
from ledger.events import Event, read_event
from ledger.identity import COORDINATOR
from ledger.log import SqliteLog
from ledger.manifest_tree import ManifestTree
from ledger.merkle import MerkleLog, leaf_hash
from ledger.public import PublicChain
from ledger.publication import publish_from
from ledger.receipts import entry_of, issue, opening_of
from ledger.removal import (
    BITWISE,
    EXACT_BITWISE,
    SUBJECT,
    Removal,
    Removed,
    Request,
    Shard,
    Start,
    entries_of,
    removed_digest,
)
from ledger.verify_certificate import RunLog

if provenance.SHARD_MANIFEST not in ev.TYPES:  # until the registry of events knows it
    ev.REQUIRED[provenance.SHARD_MANIFEST] = {}
    ev.TYPES = frozenset(ev.REQUIRED)

REQUEST = sha256_hex(b"a random id")
FORGOTTEN = ("bank-3", "bank-7")
FIRST_ROUND = 2


def record(name: str) -> dict[str, Any]:
    return {"id": name, "subject": f"person of {name}", "prompt": "Is the loan approved?", "answer": name[-1]}


@dataclass
class RemovalRun:
    """What the tests need of it; ``removal`` is what ``certificate`` states."""

    run: FakeRun
    salts: dict[str, bytes]
    trees: dict[str, ManifestTree]
    removal: Removal
    signed: bytes
    certificate: bytes
    receipt: bytes

    @property
    def log(self) -> RunLog:
        return RunLog(read_events(self.run), self.run.manifest, tree_of(self.run))

    @property
    def keys(self) -> dict[str, str]:
        return {name: identity.public_hex for name, identity in self.run.identities.items()}

    def commitment(self, name: str) -> str:
        return commit(self.salts[name], record(name))


def tree_of(run: FakeRun) -> MerkleLog:
    log = SqliteLog(run.dir / "ledger" / "log.sqlite", read_only=True)
    try:
        return MerkleLog.of([leaf_hash(log.leaf(index)) for index in range(log.size)])
    finally:
        log.close()


def read_events(run: FakeRun) -> list[Event]:
    log = SqliteLog(run.dir / "ledger" / "log.sqlite", read_only=True)
    try:
        return [read_event(envelope, log.keys()) for _, envelope in log.events()]
    finally:
        log.close()


def removal_run(base: Path, open_chain: Callable[[Path], PublicChain] | None = None) -> RemovalRun:
    """Make it, with an embedded public chain, or the one that ``open_chain`` opens in a folder."""
    run = FakeRun(base / "run", base / "keys")
    run.open(chains=None if open_chain is None else (open_chain(run.dir / layout.CHAIN), None))
    run.submit(run.opening())
    names = {who: [f"{who}-{i}" for i in range(12)] for who in ORGANIZATIONS}
    salts = {name: sha256_hex(name.encode())[:32].encode() for who in names for name in names[who]}
    commits = {who: [commit(salts[name], record(name)) for name in names[who]] for who in names}
    trees = {who: ManifestTree.of(commits[who]) for who in names}
    run.submit([_shard(run, who, tree, 0) for who, tree in trees.items()])
    for round_ in (1, 2, 3):
        run.submit(run.round(round_))
    run.submit([run.release()])
    forgotten = sorted(commit(salts[name], record(name)) for name in FORGOTTEN)
    receipt = issue(
        run.identities["bank"], run.run, [entry_of(COHORT, trees["bank"], forgotten)],
        [opening_of(salts[name], record(name)) for name in FORGOTTEN],
    )  # fmt: skip
    new_tree = trees["bank"].removed(forgotten)
    removed = [Removed(COHORT, forgotten)]
    old_model = _model_digest(run)
    run.submit(_withdrawal(run, removed, old_model, new_tree))
    until = len(read_events(run)) - 3  # position of UNLEARN_WITHDRAWN
    run.submit(_replay(run))
    events = read_events(run)
    assert events[until].type == ev.UNLEARN_WITHDRAWN
    graph = provenance.from_events(events, run.manifest)
    source = provenance.Source("bank", COHORT, trees["bank"].root, FIRST_ROUND)
    closure = entries_of(graph, provenance.closure(graph, [source], until), until)
    start = next(node for node in graph.nodes if (node.kind, node.name) == ("adapter", f"{COHORT}@1"))
    proof = trees["bank"].deletion_proof(forgotten)
    removal = Removal(
        run=run.run,
        issuers=["bank"],
        guarantee=EXACT_BITWISE,
        method="replay",
        reproducibility={"class": BITWISE, "environments": {who: sha256_hex(b"environment") for who in ORGANIZATIONS}},
        digests={"manifest": sha256_hex((run.dir / "manifest.json").read_bytes()), "code": sha256_hex(b"code")},
        keys={"run": sha256_hex(b"key")},
        requests=[Request(REQUEST, "bank", SUBJECT, removed)],
        shards=[Shard("bank", COHORT, trees["bank"].root, new_tree.root, FIRST_ROUND, proof)],
        closure=closure,
        start=[Start(COHORT, 1, start.digest)],
        steps={"replayed": 16, "total": 24},
        model={"old": old_model, "new": _model_digest(run)},
        withdrawn=[old_model],
        cost={"steps": "0.667"},
        timings={"withdrawn_s": "0.8"},
        checks={"mia_auc": "0.503"},
    )
    signed = ct.counter_sign(ct.build(removal, [run.identities["bank"]]), run.identities["clinic"])
    run.submit(_executed(run, removal, ct.parse(signed).digest))
    run.service.sign_head()
    assert run.service.drain()
    certificate = publish_from(run.dir, signed, run.coordinator)
    run.service.seal()
    return RemovalRun(run, salts, {**trees, "bank after": new_tree}, removal, signed, certificate, receipt)


def _shard(run: FakeRun, who: str, tree: ManifestTree, generation: int) -> Envelope:
    body = {"cohort": COHORT, "split": "train", "generation": generation, "records": tree.size, "root": tree.root}
    return run.event(who, provenance.SHARD_MANIFEST, body)


def _model_digest(run: FakeRun) -> str:
    return str([event for event in read_events(run) if event.type == ev.MODEL_RELEASE][-1].body["model_digest"])


def _withdrawal(run: FakeRun, removed: list[Removed], old_model: str, tree: ManifestTree) -> list[Envelope]:
    asked = {
        "request": REQUEST, "organization": "bank", "scope": SUBJECT, "method": "replay",
        "removed": removed_digest(removed),
    }  # fmt: skip
    withdrawn = {"requests": [REQUEST], "cohorts": [COHORT], "models": [old_model]}
    revoked = {"model_digest": old_model, "request": REQUEST, "reason": "records are removed"}
    return [
        run.event("bank", ev.UNLEARN_REQUEST, asked),
        run.event(COORDINATOR, ev.UNLEARN_WITHDRAWN, withdrawn),
        run.event(COORDINATOR, ev.MODEL_REVOKED, revoked),
        _shard(run, "bank", tree, 1),
    ]


def _replay(run: FakeRun) -> list[Envelope]:
    run.base = next(e for e in read_events(run) if e.type == ev.MERGE and e.round == 1).body["adapter"]
    made = []
    for round_ in (2, 3):
        updates = [(who, {**run.update(who, round_), "update": sha256_hex(f"replay {who} {round_}".encode())})
                   for who in ORGANIZATIONS]  # fmt: skip
        merge = {**run.merge(round_, updates), "adapter": adapter(run.dir / f"rounds/{round_:04d}/{COHORT}.safetensors",
                                                                 100 + round_)}  # fmt: skip
        made += [run.event(who, ev.UPDATE, body) for who, body in updates]
        made.append(run.event(COORDINATOR, ev.MERGE, merge))
        scores = {"round": round_, "scores": {"federated": "0.60"}, "replay": REQUEST}
        made += [run.event(COORDINATOR, ev.EVALUATION, scores), _checkpoint(run, round_)]
        run.base = merge["adapter"]
    digest = adapter(run.dir / "model" / "adapter_model.safetensors", 98)
    files = {name: sha256_hex((run.dir / name).read_bytes()) for name in ("model/adapter_model.safetensors",)}
    release = {"model_digest": digest, "files": files, "adapters": {COHORT: run.base}}
    return [*made, run.event(COORDINATOR, ev.MODEL_RELEASE, release)]


def _checkpoint(run: FakeRun, round_: int) -> Envelope:
    name = f"rounds/{round_:04d}/round.json"
    body = {"round": round_, "file": name, "digest": sha256_hex(f"replayed {round_}".encode())}
    return run.event(COORDINATOR, ev.CHECKPOINT, body)


def _executed(run: FakeRun, removal: Removal, digest: str) -> list[Envelope]:
    executed = {
        "requests": [REQUEST], "certificate": digest, "guarantee": removal.guarantee,
        "old_model_digest": removal.model["old"], "new_model_digest": removal.model["new"],
        "steps_replayed": 16, "steps_total": 24,
    }  # fmt: skip
    attested = {"certificate": digest, "mode": "reexecute", "steps": 16, "result": "same"}
    return [
        run.event(COORDINATOR, ev.UNLEARN_EXEC, executed),
        run.event("clinic", ev.UNLEARN_ATTEST, attested),
    ]
