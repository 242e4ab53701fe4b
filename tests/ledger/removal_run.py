"""Runs from which records are removed, with every event and file of the removal, in the order of a real one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fake_run import COHORT, ORGANIZATIONS, RUN, FakeRun, adapter

from ledger import certificate as ct
from ledger import events as ev
from ledger import layout, provenance
from ledger.canonical import canonical_json, sha256_hex
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
    APPROXIMATE,
    BITWISE,
    EXACT_BITWISE,
    EXACT_METHODS,
    ORGANIZATION,
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

REQUEST = sha256_hex(b"request 0")
FORGOTTEN = ("bank-3", "bank-7")
FIRST_ROUND = 2
RECORDS = 12
STEPS = 4
ONE = {COHORT: list(ORGANIZATIONS)}


def record(name: str) -> dict[str, Any]:
    return {"id": name, "subject": f"person of {name}", "prompt": "Is the loan approved?", "answer": name[-1]}


@dataclass
class Ask:
    """A request: records by name, or the whole organization; ``signer`` where that is not the organization."""

    organization: str
    names: Sequence[str] = ()
    signer: str = ""
    request: str = ""
    removed: list[Removed] = field(default_factory=list)

    @property
    def scope(self) -> str:
        return SUBJECT if self.names else ORGANIZATION


@dataclass
class Withdrawn:
    """A removal that has begun."""

    removal: str
    asks: list[Ask]
    method: str
    first: dict[str, int]  # by cohort
    shards: list[Shard]
    sources: list[provenance.Source]
    models: list[str]
    until: int
    steps: int = 0


class CohortRun(FakeRun):
    """A run with several cohorts that commits to its records, and from which some are removed."""

    def __init__(self, base: Path, cohorts: Mapping[str, list[str]] = ONE, *, run: str = RUN) -> None:
        super().__init__(base / "run", base / "keys", run=run)
        self.initial = adapter(self.dir / "rounds" / "0000" / "initial.safetensors", 1)
        self.manifest |= {"cohorts": dict(cohorts), "initial": dict.fromkeys(cohorts, self.initial)}
        self.chain: dict[str, dict[int, str]] = {cohort: {0: self.initial} for cohort in cohorts}
        self.values, self.count = {self.initial: 1}, 1
        self.steps = self.last = 0
        self.left: set[str] = set()
        self.asked = 0
        self.salts = {f"{who}-{i}": sha256_hex(f"{who}-{i}".encode())[:32].encode()
                      for who in ORGANIZATIONS for i in range(RECORDS)}  # fmt: skip
        self.trees = {
            (who, cohort): ManifestTree.of([self.commitment(name) for name in self.records(who, cohort)])
            for cohort, members in cohorts.items()
            for who in members
        }
        self.generation = dict.fromkeys(self.trees, 0)

    def records(self, who: str, cohort: str) -> list[str]:
        own = [name for name, members in self.manifest["cohorts"].items() if who in members]
        return [f"{who}-{i}" for i in range(RECORDS) if own[i % len(own)] == cohort]

    def commitment(self, name: str) -> str:
        return commit(self.salts[name], record(name))

    def begin(self, open_chain: Callable[[Path], PublicChain] | None = None, *, rounds: int = 3,
              anchored: bool = False) -> None:  # fmt: skip
        """Everything up to the given round."""
        chains = None if open_chain is None else (open_chain(self.dir / layout.CHAIN), None)
        self.open(anchored=anchored, chains=chains)
        self.submit(self.opening())
        self.submit([self.shard(who, cohort) for who, cohort in self.trees])
        for round_ in range(1, rounds + 1):
            self.train(round_)

    def shard(self, who: str, cohort: str) -> Envelope:
        tree = self.trees[who, cohort]
        body = {"cohort": cohort, "split": "train", "generation": self.generation[who, cohort]}
        return self.event(who, ev.SHARD_MANIFEST, {**body, "records": tree.size, "root": tree.root})

    def train(self, round_: int) -> None:
        made = [self.event(who, ev.DECISION, {"round": round_, "effort": "1"}) for who in self.identities_left()]
        for cohort, members in self.manifest["cohorts"].items():
            present = [who for who in members if who not in self.left]
            made += self.merged(cohort, round_, present)
            self.steps += STEPS * len(present)
        self.last = round_
        self.submit([*made, self.evaluated(round_), self.checkpoint_of(round_)])

    def identities_left(self) -> list[str]:
        return [who for who in ORGANIZATIONS if who not in self.left]

    def merged(self, cohort: str, round_: int, members: Sequence[str], replay: str | None = None,
               kept: Mapping[str, str | None] | None = None, **changes: Any) -> list[Envelope]:  # fmt: skip
        """UPDATE events and the MERGE of them, with its file. Members that are in `kept` state again what they stated
        in that removal (None: in training)."""
        chain = self.chain[cohort]
        base = chain[round_] if round_ in chain else chain[round_ - 1]
        extra = {} if replay is None else {"replay": replay}
        made, inputs = [], []
        for who in members:
            again = kept is not None and who in kept
            said = kept[who] if kept is not None and who in kept else replay
            update = sha256_hex(f"{who} {cohort} {round_} {said}".encode())
            body = {"round": round_, "cohort": cohort, "base": base, "update": update, "weight": 10, "steps": STEPS}
            digests = [sha256_hex(f"{update} {i}".encode()) for i in range(STEPS)]
            trace: dict[str, Any] = {"kept": True} if again else {} if replay is None else {"trace": digests}
            made.append(self.event(who, ev.UPDATE, {**body, **trace, **extra}))
            inputs.append({"organization": who, "update": update, "weight": 10})
        file = f"rounds/{round_:04d}/{cohort}.safetensors"
        if inputs:
            self.count += 1
        digest = adapter(self.dir / file, self.count if inputs else self.values[base])
        self.values[digest] = self.count if inputs else self.values[base]
        chain[round_] = digest
        merge = {"round": round_, "cohort": cohort, "base": base, "inputs": inputs, "adapter": digest, "file": file,
                 "file_sha256": sha256_hex((self.dir / file).read_bytes()), **extra}  # fmt: skip
        return [*made, self.event(COORDINATOR, ev.MERGE, merge | changes)]

    def evaluated(self, round_: int, replay: str | None = None) -> Envelope:
        extra = {} if replay is None else {"replay": replay}
        return self.event(COORDINATOR, ev.EVALUATION, {"round": round_, "scores": {"federated": "0.60"}, **extra})

    def checkpoint_of(self, round_: int, replay: str | None = None) -> Envelope:
        name = f"rounds/{round_:04d}/round.json"
        extra = {} if replay is None else {"replay": replay}
        (self.dir / name).write_bytes(canonical_json({"round": round_, **extra}))
        digest = sha256_hex((self.dir / name).read_bytes())
        return self.event(COORDINATOR, ev.CHECKPOINT, {"round": round_, "file": name, "digest": digest, **extra})

    def released(self, adapters: Mapping[str, str], replay: str | None = None) -> Envelope:
        self.count += 1
        digest = adapter(self.dir / layout.ADAPTER, self.count)
        files = {layout.ADAPTER: sha256_hex((self.dir / layout.ADAPTER).read_bytes())}
        extra = {} if replay is None else {"replay": replay}
        body = {"model_digest": digest, "files": files, "adapters": dict(adapters), **extra}
        return self.event(COORDINATOR, ev.MODEL_RELEASE, body)

    def newest(self, cohorts: Sequence[str] | None = None) -> dict[str, str]:
        chosen = self.chain if cohorts is None else cohorts
        return {cohort: self.chain[cohort][max(self.chain[cohort])] for cohort in chosen}

    def finish(self) -> None:
        """Release the model, and close the run."""
        self.submit([self.released(self.newest())])
        done = {"rounds": self.last, "model_digest": model_digest(self)}
        self.submit([self.event(COORDINATOR, ev.RUN_COMPLETE, done)])

    def withdraw(self, asks: Sequence[Ask], first: Mapping[str, int], method: str = "replay") -> Withdrawn:
        """Request, withdrawal, revocation, new shards; the files go."""
        shards, sources = [], []
        for ask in asks:
            ask.request = sha256_hex(f"request {self.asked}".encode())
            self.asked += 1
            self._choose(ask)
            self.submit([self.event(ask.signer or ask.organization, ev.UNLEARN_REQUEST, {
                "request": ask.request, "organization": ask.organization, "scope": ask.scope, "method": method,
                "removed": removed_digest(ask.removed)})])  # fmt: skip
            if ask.scope == ORGANIZATION:
                self.left.add(ask.organization)
        for (who, cohort), gone in self._gone(asks).items():
            old = self.trees[who, cohort]
            whole = who in self.left
            new = ManifestTree.of([]) if whole else old.removed(gone)
            proof = "" if whole else old.deletion_proof(gone)
            shards.append(Shard(who, cohort, old.root, new.root, first[cohort], proof))
            sources.append(provenance.Source(who, cohort, old.root, first[cohort]))
            self.trees[who, cohort] = new
            self.generation[who, cohort] += 1
        graph = provenance.from_events(read_events(self), self.manifest)
        models = sorted({n.digest for n in provenance.closure(graph, sources) if n.kind == provenance.MODEL})
        exact = method in EXACT_METHODS
        first = {cohort: start for cohort, start in first.items() if start <= self.last}  # others read no record yet
        removal = sha256_hex(f"removal {asks[0].request}".encode())
        until = len(read_events(self))
        said = {"removal": removal, "requests": [ask.request for ask in asks],
                "cohorts": dict(first) if exact else {}, "models": models}  # fmt: skip
        self.submit([self.event(COORDINATOR, ev.UNLEARN_WITHDRAWN, said)])
        if exact and first:
            self._delete(first)
        self.submit([
            self.event(COORDINATOR, ev.MODEL_REVOKED,
                       {"model_digest": digest, "request": asks[0].request, "reason": "records are removed"})
            for digest in models
        ])  # fmt: skip
        there = [shard for shard in shards if not any(ask.signer for ask in asks)]  # an absent one signs nothing
        self.submit([self.shard(shard.organization, shard.cohort) for shard in there])
        return Withdrawn(removal, list(asks), method, dict(first), shards, sources, models, until)

    def _choose(self, ask: Ask) -> None:
        for cohort, members in self.manifest["cohorts"].items():
            names = set(ask.names) & set(self.records(ask.organization, cohort))
            if ask.organization in members and (names or not ask.names):
                ask.removed.append(Removed(cohort, sorted(self.commitment(name) for name in names)))

    def _gone(self, asks: Sequence[Ask]) -> dict[tuple[str, str], list[str]]:
        gone: dict[tuple[str, str], list[str]] = {}
        for ask in asks:
            for removed in ask.removed:
                gone.setdefault((ask.organization, removed.cohort), []).extend(removed.commitments)
        return gone

    def _delete(self, first: Mapping[str, int]) -> None:
        for cohort, start in first.items():
            for round_ in [round_ for round_ in self.chain[cohort] if round_ >= start]:
                del self.chain[cohort][round_]
                (self.dir / f"rounds/{round_:04d}/{cohort}.safetensors").unlink(missing_ok=True)
        for round_ in range(min(first.values()), self.last + 1):
            (self.dir / f"rounds/{round_:04d}/round.json").unlink(missing_ok=True)

    def interim(self, begun: Withdrawn) -> None:
        """The model without the withdrawn cohorts."""
        self.submit([self.released(self.newest([c for c in self.chain if c not in begun.first]), begun.removal)])

    def replay(self, begun: Withdrawn, kept: Mapping[str, str | None] | None = None) -> None:
        """All withdrawn rounds again, and the model; of the first one some members keep their updates."""
        for round_ in range(min(begun.first.values()), self.last + 1):
            for cohort in sorted(c for c, start in begun.first.items() if start <= round_):
                members = [who for who in self.manifest["cohorts"][cohort] if who not in self.left]
                keep = kept if round_ == begun.first[cohort] else None
                self.submit(self.merged(cohort, round_, members, begun.removal, keep))
                begun.steps += STEPS * (len(members) - len(keep or ()))
            self.submit([self.checkpoint_of(round_, begun.removal)])
        self.submit([self.released(self.newest(), begun.removal), self.evaluated(self.last, begun.removal)])

    def edit(self, begun: Withdrawn) -> None:
        """One more merge on top, as an approximate method makes it."""
        for cohort in begun.first:
            members = [ask.organization for ask in begun.asks]
            self.submit(self.merged(cohort, self.last, members, begun.removal))
            begun.steps += STEPS * len(members)
        self.submit([self.released(self.newest(), begun.removal), self.evaluated(self.last, begun.removal)])

    def stated(self, begun: Withdrawn, **changes: Any) -> Removal:
        """What the certificate says."""
        events = read_events(self)
        graph = provenance.from_events(events, self.manifest)
        closure = entries_of(graph, provenance.closure(graph, begun.sources, begun.until), begun.until)
        exact = begun.method in EXACT_METHODS
        replayed = {e.name.rpartition("@")[0] for e in closure if e.kind == provenance.ADAPTER and e.new}
        start = [Start(c, n - 1, self.chain[c][n - 1]) for c, n in begun.first.items() if exact and c in replayed]
        new = model_digest(self)
        old = next((e.old for e in reversed(closure) if e.kind == provenance.MODEL), new)
        said: dict[str, Any] = {
            "run": self.run,
            "issuers": sorted({ask.signer or ask.organization for ask in begun.asks}),
            "guarantee": EXACT_BITWISE if exact else APPROXIMATE,
            "method": begun.method,
            "reproducibility": {
                "class": BITWISE, "environments": {who: sha256_hex(b"environment") for who in ORGANIZATIONS},
            },
            "digests": {"manifest": sha256_hex((self.dir / "manifest.json").read_bytes()), "code": sha256_hex(b"code")},
            "keys": {"run": sha256_hex(b"key")},
            "requests": [Request(ask.request, ask.organization, ask.scope, ask.removed) for ask in begun.asks],
            "shards": begun.shards,
            "closure": closure,
            "start": start,
            "steps": {"replayed": begun.steps, "total": self.steps},
            "model": {"old": old, "new": new},
            "withdrawn": sorted({e.old for e in closure if e.kind == provenance.MODEL and e.old != e.new}),
            "cost": {"steps": "0.667"},
            "timings": {"withdrawn_s": "0.8"},
            "checks": {"mia_auc": "0.503"},
        }  # fmt: skip
        return Removal(**{**said, **changes})

    def certify(self, begun: Withdrawn, auditor: str | None = None, **changes: Any) -> tuple[Removal, bytes]:
        """Sign the certificate, log that the removal is executed, and put the certificate into the run."""
        removal = self.stated(begun, **changes)
        signed = ct.build(removal, [self.identities[who] for who in removal.issuers])
        if auditor is not None:
            signed = ct.counter_sign(signed, self.identities[auditor])
        digest = ct.parse(signed).digest
        self.certificate_path(begun).parent.mkdir(exist_ok=True)
        self.certificate_path(begun).write_bytes(signed)
        executed = {
            "requests": [ask.request for ask in begun.asks], "certificate": digest, "guarantee": removal.guarantee,
            "old_model_digest": removal.model["old"], "new_model_digest": removal.model["new"],
            "steps_replayed": removal.steps["replayed"], "steps_total": removal.steps["total"],
        }  # fmt: skip
        self.submit([self.event(COORDINATOR, ev.UNLEARN_EXEC, executed)])
        if auditor is not None:
            attested = {"certificate": digest, "mode": "reexecute", "steps": begun.steps, "result": "same"}
            self.submit([self.event(auditor, ev.UNLEARN_ATTEST, attested)])
        self.service.sign_head()
        assert self.service.drain()
        self.certificate_path(begun).write_bytes(publish_from(self.dir, signed, self.coordinator))
        return removal, signed

    def certificate_path(self, begun: Withdrawn) -> Path:
        return self.dir / layout.CERTIFICATES / f"{begun.asks[0].request[:16]}.json"

    def remove(self, asks: Sequence[Ask], first: Mapping[str, int], method: str = "replay",
               auditor: str | None = None) -> Withdrawn:  # fmt: skip
        """A whole removal."""
        begun = self.withdraw(asks, first, method)
        if method in EXACT_METHODS:
            self.interim(begun)
        if method == "replay":
            self.replay(begun)
        elif method not in EXACT_METHODS:
            self.edit(begun)
        self.certify(begun, auditor)
        return begun


@dataclass
class RemovalRun:
    """What the tests of certificates and receipts need; ``removal`` is what ``certificate`` states."""

    run: CohortRun
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
        return self.run.commitment(name)


def removal_run(base: Path, open_chain: Callable[[Path], PublicChain] | None = None) -> RemovalRun:
    """A run from which two records of the bank are removed, sealed; on an embedded chain or the one that is given."""
    run = CohortRun(base)
    run.begin(open_chain, anchored=True)
    run.submit([run.released(run.newest())])
    before = {who: run.trees[who, COHORT] for who in ORGANIZATIONS}
    forgotten = [run.commitment(name) for name in FORGOTTEN]
    receipt = issue(
        run.identities["bank"], run.run, [entry_of(COHORT, before["bank"], forgotten)],
        [opening_of(run.salts[name], record(name)) for name in FORGOTTEN],
    )  # fmt: skip
    begun = run.withdraw([Ask("bank", FORGOTTEN)], {COHORT: FIRST_ROUND})
    run.interim(begun)
    run.replay(begun)
    removal, signed = run.certify(begun, "clinic")
    certificate = run.certificate_path(begun).read_bytes()
    run.service.seal()
    trees = {**before, "bank after": run.trees["bank", COHORT]}
    return RemovalRun(run, run.salts, trees, removal, signed, certificate, receipt)


def model_digest(run: FakeRun) -> str:
    return str([event for event in read_events(run) if event.type == ev.MODEL_RELEASE][-1].body["model_digest"])


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
