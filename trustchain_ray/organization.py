"""An organization: its identity, its records, its decisions and its workers. Records never leave it."""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ray

from ledger.errors import LedgerError
from ledger.events import make_event
from ledger.identity import load_or_create, public_document
from ledger.removal import Removal
from ledger.witness import Stale, Witness
from trustchain_ray import forms
from trustchain_ray.adapter import Tensors, digest, head, save_tensors
from trustchain_ray.cohorts import records_of
from trustchain_ray.config import Config
from trustchain_ray.custody import Custody, Shard, custody_folder
from trustchain_ray.data import Holdings, Record, load_holdings
from trustchain_ray.errors import TrustChainError
from trustchain_ray.forgetting.holder import Found, Holder, Taken, Usage, Wanted
from trustchain_ray.initial import fresh_adapter
from trustchain_ray.keys import derive
from trustchain_ray.keystore import keystore, personal_folder, witness_folder
from trustchain_ray.participation import Decider, Schedule, Shown
from trustchain_ray.privacy.member import MemberPrivacy
from trustchain_ray.rates import learning_rates
from trustchain_ray.sampling import plan, sampling_rate
from trustchain_ray.worker import Packed, Trained, Worker
from trustchain_ray.worker_group import LocalGroup, WorkerGroup


@dataclass(frozen=True)
class Terms:
    """What all organizations agreed on before round 1 (the manifest, as far as members need it)."""

    run: str
    rates: dict[str, dict[str, float]]  # organization -> cohort -> sampling rate
    shapes: dict[str, tuple[int, ...]]
    fresh: Packed
    base: Any  # the base model: a name, or a reference to its files in a list
    records: dict[str, int] = field(default_factory=dict)  # organization -> training records
    schedule: Schedule | None = None  # efforts, where `federation.participation: file`


@dataclass(frozen=True)
class CohortTask:
    """A cohort's state at the start of a round: by value, or as a reference that workers read in place."""

    cohort: str
    state: Any
    digest: str


@dataclass(frozen=True)
class Update:
    """What a member returns: the update, its signed statement, and figures for the metrics."""

    cohort: str
    update: Packed
    envelope: dict[str, Any]
    weight: int
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    records: int = 0
    resident: int = 0


@dataclass(frozen=True)
class Reply:
    """An organization's part in a round. `seconds` is the whole time inside the organization; `events` what it states
    besides, `spent` whether its privacy budget pays for no further step."""

    organization: str
    decision: dict[str, Any]
    updates: list[Update]
    seconds: float
    events: list[dict[str, Any]] = field(default_factory=list)
    spent: bool = False


class Organization:
    """One party of the federation. In dedicated mode a Ray actor with a worker group of its own.

    Parameters
    ----------
    shared : gives the shared worker of a pool for a base; None: a worker group of its own.
    holdings : records, where they are already read; else they are loaded from the configured source, without those
        that were removed from the run.
    """

    def __init__(
        self,
        config: Config,
        name: str,
        run: str,
        shared: Callable[[Any], Worker] | None = None,
        holdings: Holdings | None = None,
    ) -> None:
        self.config, self.name, self.run = config, name, run
        self.identity = load_or_create(name, keystore(config))
        self.custody = Custody(custody_folder(config, run), run, name)
        self.held = holdings or self.custody.held(load_holdings(config, name))
        self.holdings = holdings or self.custody.kept(self.held)
        self.form = forms.get(config.model.lora.form)
        self.shared = shared
        self.group: Any = None
        self.terms: Terms | None = None
        self.terms_of: Any = None
        self.plans: dict[str, list[list[int]]] = {}
        self.decider: Decider | None = None
        self.privacy: MemberPrivacy | None = None

    def register(self, base: Any) -> dict[str, Any]:
        """Start the workers; what the coordinator learns: the public key, counts, and how the workers are made."""
        self._start_workers(base)
        federation = self.config.federation
        document = public_document(self.identity)
        privacy = self._privacy()
        return {
            "document": document,
            "records": {c: len(self._indices(c)) for c in self._cohort_names(federation)},
            "train": len(self.holdings.train),
            "test": len(self.holdings.test),
            "skipped": dict(self.holdings.skipped),
            "worker": self.group.call("describe"),
            "privacy": privacy.describe() if privacy else {},
        }

    def sign_event(self, kind: str, body: dict[str, Any]) -> dict[str, Any]:
        """A signed event of this organization."""
        return make_event(self.identity, self.run, kind, body)

    def witness(self, log_key: str, note: str, old: int, proof: list[bytes]) -> dict[str, Any]:
        """Cosign a checkpoint of the log, if it extends what this organization cosigned before.

        Parameters
        ----------
        log_key : the coordinator's public key in hex; the first one counts for the run.
        old, proof : consistency proof from this size of the log on.

        Returns
        -------
        dict
            `line`, the signature; or `refused`, why not, and in case it is the wrong proof `size`, what was seen last.
        """
        witness = Witness(self.identity, witness_folder(self.config) / self.name)
        try:
            return {"line": witness.cosign(self.run, log_key, note, proof, old)}
        except Stale as stale:
            return {"refused": str(stale), "size": stale.size}
        except LedgerError as error:
            return {"refused": str(error)}

    def shard_events(self, generation: int, slots: list[Shard] | None = None) -> list[dict[str, Any]]:
        """Signed commitments to the records of every shard (or some); see :meth:`Holder.shard_events`."""
        return self._holder().shard_events(self.holdings, generation, slots)

    def reconcile(self, known: list[str]) -> bool:
        """Forget a removal that the coordinator does not know of: it was cut short before anything was done."""
        released = self.custody.release(known)
        if released:
            self._refresh()
        return released

    def subjects(self) -> dict[str, int]:
        """Number of records by subject that can be removed."""
        return self._holder().overview()

    def look(self, wanted: list[Wanted], usage: Usage) -> Found:
        """What this organization has of some requests; nothing is changed."""
        return self._holder().look(wanted, usage)

    def reserve(
        self, removal: str, wanted: list[Wanted], usage: Usage, method: str
    ) -> tuple[Taken, list[dict[str, Any]]]:
        """Take records out from now on; what was taken, and the signed UNLEARN_REQUEST events."""
        taken = self._holder().reserve(removal, wanted, usage)
        self._refresh()
        return taken, self._holder().request_events(wanted, taken, method)

    def sign_certificate(self, removal: Removal, signed: bytes | None, taken: Taken | None) -> bytes:
        """See :meth:`Holder.sign_certificate`."""
        return self._holder().sign_certificate(removal, signed, taken)

    def attest(self, certificate: bytes, steps: int, result: str) -> tuple[dict[str, Any], bytes]:
        """See :meth:`Holder.attest`."""
        return self._holder().attest(certificate, steps, result)

    def forget_own(self) -> None:
        """Delete the own adapter: it was trained on a model that is withdrawn."""
        (personal_folder(self.config, self.run, self.name) / "own.safetensors").unlink(missing_ok=True)

    def erase(self, removal: str) -> int:
        """Destroy the salts of a removal's records, for good."""
        destroyed = self.custody.erase(removal)
        self.held = self.custody.held(self.held)
        return destroyed

    def replay(self, terms: list[Any], number: int, tasks: list[tuple[CohortTask, int]], removal: str) -> Reply:
        """Train and sign a round again, each cohort for as many steps as it was recorded, without what was removed."""
        began = time.perf_counter()
        self._agree(terms)
        updates = [self._train_cohort(number, task, steps, removal) for task, steps in tasks]
        return Reply(
            self.name, {}, [u for u in updates if u], time.perf_counter() - began, self._spend(number, removal)
        )

    def affords(self, rounds: dict[str, list[int]]) -> list[str]:
        """Of cohorts whose rounds, of so many steps, are to be replayed, those that the privacy budget pays not for."""
        privacy = self._privacy()
        return [c for c, steps in sorted(rounds.items()) if privacy and not privacy.affords(c, steps)]

    def privacy_spent(self) -> dict[str, str]:
        """What the privacy account says now; empty without privacy."""
        privacy = self._privacy()
        return privacy.spent() if privacy else {}

    def unlearn(
        self,
        terms: list[Any],
        number: int,
        tasks: list[CohortTask],
        removal: str,
        method: str,
        options: dict[str, float],
    ) -> Reply:
        """Apply an approximate method to the cohorts' adapters, against the records that are being removed."""
        began = time.perf_counter()
        self._agree(terms)
        updates = []
        for task in tasks:
            forget = self._pending(task.cohort)
            if forget:
                begun, residual = self._begin(number, task)
                packed = _value(begun)
                trained: Trained = self.group.call("unlearn", self.name, forget, packed, residual, method, options)
                body = {
                    "round": number, "cohort": task.cohort, "base": task.digest, "weight": 1,
                    "update": digest(trained.update.tensors()), "steps": len(trained.losses), "replay": removal,
                }  # fmt: skip
                envelope = self.sign_event("UPDATE", body)
                updates.append(Update(task.cohort, trained.update, envelope, 1, trained.losses, trained.seconds))
        return Reply(self.name, {}, updates, time.perf_counter() - began)

    def ask_models(self, terms: list[Any], states: dict[str, Any], most: int) -> list[dict[str, Any]]:
        """What models say to the prompts of up to `most` records that are being removed; by the names in `states`."""
        self._agree(terms)
        records = self._pending()[:most]
        said = {
            name: self.group.call("answers", records, *self._serving(_value(state).tensors()))
            for name, state in states.items()
        }
        return [
            {"prompt": r.prompt or r.answer, "answer": r.answer if r.label < 0 else self.config.model.labels[r.label],
             **{name: rows[i] for name, rows in said.items() if rows}}
            for i, r in enumerate(records)
        ]  # fmt: skip

    def train(self, terms: list[Any], number: int, tasks: list[CohortTask], shown: Shown | None = None) -> Reply:
        """Decide, train and sign one round (1-based `number`)."""
        began = time.perf_counter()
        agreed = self._agree(terms)
        if self.decider is None:
            self.decider = Decider(self.config, self.name, agreed.records, agreed.schedule)
        effort = self.decider.decide(number, shown or Shown())
        decision = self.sign_event("DECISION", {"round": number, "effort": str(effort)})
        steps = int(self.config.federation.local_steps * effort)
        updates = [self._train_cohort(number, task, steps) for task in tasks if effort]
        made = [u for u in updates if u]
        spent = bool(effort and self._privacy() and not made)
        return Reply(self.name, decision, made, time.perf_counter() - began, self._spend(number), spent)

    def evaluate(self, terms: list[Any], state: list[Any]) -> dict[str, Any]:
        """Sums of metrics of the model on this organization's own test records."""
        self._agree(terms)
        return self._evaluate(*self._serving(_value(state).tensors()))

    def isolated(self, terms: list[Any], steps: int) -> dict[str, Any]:
        """Baseline: train alone from the initial adapter for as many steps, and evaluate on the own test records."""
        agreed = self._agree(terms)
        begin = self.form.initial(agreed.fresh.tensors(), self.config.model.lora.rank)
        return self._evaluate(*self._train_alone(begin, 0, learning_rates(self.config.training, 0, steps, steps)))

    def centralised(self, terms: list[Any], steps: int, tests: dict[str, list[Record]]) -> dict[str, Any]:
        """Baseline of a learner that holds everybody's records; metrics on each organization's test records."""
        agreed, metrics = self._agree(terms), {}
        begin = self.form.initial(agreed.fresh.tensors(), self.config.model.lora.rank)
        trained = self._train_alone(begin, 0, learning_rates(self.config.training, 0, steps, steps))
        for name, records in tests.items():
            self.group.call("set_rows", self.name, "test", records)
            metrics[name] = self._evaluate(*trained)
        return metrics

    def personalise(self, terms: list[Any], state: list[Any], steps: int) -> dict[str, Any]:
        """Train an own head or adapter on top of the model; it is kept here, only the metrics are returned."""
        self._agree(terms)
        federation, tensors = self.config.federation, _value(state).tensors()
        only = sorted(head(tensors)) if federation.personalization == "head" else None
        done = federation.rounds * federation.local_steps
        lr = federation.personalization_lr or self.config.training.lr
        training = dataclasses.replace(self.config.training, lr=lr, warmup_steps=0)
        own, residual = self._train_alone(tensors, done, learning_rates(training, 0, steps, steps), only)
        save_tensors(personal_folder(self.config, self.run, self.name) / "own.safetensors", own.tensors())
        return self._evaluate(own, residual)

    def memory(self) -> dict[str, int]:
        return dict(self.group.call("memory"))

    def _train_cohort(self, number: int, task: CohortTask, steps: int, removal: str | None = None) -> Update | None:
        federation, indices = self.config.federation, self._indices(task.cohort)
        if not indices:
            return None
        privacy, generation = self._privacy(), int(removal[:12], 16) if removal else 0
        if privacy:
            affordable = privacy.affordable(task.cohort, number, task.digest, steps, generation)
            if removal and affordable < steps:
                raise TrustChainError(
                    f"the privacy budget does not pay for a replay of {task.cohort} (privacy.max_removals="
                    f"{self.config.privacy.max_removals}); it stays withdrawn"
                )
            steps = affordable
            if not steps:
                return None
            privacy.charge(task.cohort, number, task.digest, steps, generation)
        first = (number - 1) * federation.local_steps
        own_steps = [[indices[i] for i in step] for step in self._plan(task.cohort)[first : first + steps]]
        total = federation.rounds * federation.local_steps
        rates = learning_rates(self.config.training, first, steps, total)
        begun, residual = self._begin(number, task)
        trace = removal is not None
        private = None
        if privacy:
            subjects = [record.subject for record in self.holdings.train]
            private = privacy.steps(task.cohort, number, task.digest, subjects, generation)
        trained: Trained = self.group.call(
            "train", self.name, begun, residual, own_steps, rates, None, False, trace, private
        )
        if privacy:
            packed = trained.update
            noised = privacy.update(task.cohort, number, task.digest, packed.buffer, generation)
            trained = dataclasses.replace(trained, update=Packed(packed.layout, noised), losses=[], trace=trained.trace)
        weight = (len(indices) if federation.weights == "records" else 1) * steps
        body = {
            "round": number,
            "cohort": task.cohort,
            "base": task.digest,
            "update": digest(trained.update.tensors()),
            "weight": weight,
            "steps": steps,
        }
        if removal is not None:
            body |= {"replay": removal, "trace": trained.trace}
        envelope = self.sign_event("UPDATE", body)
        return Update(
            task.cohort,
            trained.update,
            envelope,
            weight,
            trained.losses,
            trained.seconds,
            trained.records,
            trained.resident,
        )

    def _begin(self, number: int, task: CohortTask) -> tuple[Any, Packed | None]:
        """Where the workers start from: for `ffa` and `fedavg` the state itself, passed on without a copy."""
        lora = self.config.model.lora
        if lora.form in ("ffa", "fedavg"):
            return task.state, None
        purpose = f"{number}/{self.name}/{task.cohort}"
        rank = lora.ranks.get(self.name, lora.rank)
        state = _value(task.state).tensors()
        fresh = fresh_adapter(self._agreed.shapes, self.config.run.key, purpose, rank, lora.form)
        begun = self.form.start(state, fresh, lora.alpha)
        return Packed.of(begun), Packed.of(state) if self.form.RESIDUAL else None

    def _serving(self, state: Tensors) -> tuple[Packed, Packed | None]:
        """A state as it is served: an adapter, and for stacked forms a change of the base."""
        begun = self.form.start(state, self._agreed.fresh.tensors(), self.config.model.lora.alpha)
        return Packed.of(begun), Packed.of(state) if self.form.RESIDUAL else None

    def _train_alone(
        self, state: Tensors, first: int, rates: list[float], only: list[str] | None = None
    ) -> tuple[Packed, Packed | None]:
        """Steps on all own records without anybody else, one for each learning rate, the first being step `first`
        of this organization's plan; the trained tensors and the change of the base."""
        ids = [record.id for record in self.holdings.train]
        rate = sampling_rate(self.config.training, len(ids))
        own_plan = plan(derive(self.config.run.key, "sampling", self.name), ids, rate, first + len(rates))[first:]
        begun, residual = self._serving(state)
        trained: Trained = self.group.call("train", self.name, begun, residual, own_plan, rates, only, True)
        return trained.update, residual

    def _evaluate(self, adapter: Packed, residual: Packed | None) -> dict[str, Any]:
        return dict(vars(self.group.call("evaluate", self.name, "test", adapter, residual)))

    def _plan(self, cohort: str) -> list[list[int]]:
        """Steps of the whole run, as positions among the member's records."""
        if cohort not in self.plans:
            federation = self.config.federation
            ids = [self.holdings.train[i].id for i in self._indices(cohort)]
            key = derive(self.config.run.key, "sampling", self.name)
            rate = self._agreed.rates[self.name][cohort]
            self.plans[cohort] = plan(key, ids, rate, federation.rounds * federation.local_steps)
        return self.plans[cohort]

    def _indices(self, cohort: str) -> list[int]:
        return records_of(self.config.federation, self.config.run.key, self.name, cohort, self.holdings.train)

    def _cohort_names(self, federation: Any) -> list[str]:
        shards = range(federation.shards_per_organization)
        if federation.cohorts == "by_shard":
            return [f"shard_{s}" for s in shards]
        if federation.cohorts == "by_both":
            return [f"{self.name}.shard_{s}" for s in shards]
        if federation.cohorts == "groups":
            return [group for group, members in federation.groups.items() if self.name in members]
        return ["all" if federation.cohorts == "one" else self.name]

    def _agree(self, terms: list[Any]) -> Terms:
        """Read terms once; the shared frozen factors go to the workers."""
        if self.terms is None or self.terms_of != terms[0]:
            self.terms, self.terms_of = ray.get(terms[0]), terms[0]
            self.plans.clear()
            self._start_workers(self.terms.base)
            self._remember("freeze", self.terms.fresh)
        return self.terms

    @property
    def _agreed(self) -> Terms:
        assert self.terms is not None
        return self.terms

    def _holder(self) -> Holder:
        federation, key = self.config.federation, self.config.run.key
        shards = {c: records_of(federation, key, self.name, c, self.held.train) for c in self._cohort_names(federation)}
        sampling_key = derive(key, "sampling", self.name)
        return Holder(self.identity, self.run, self.custody, self.held, shards, sampling_key)

    def _privacy(self) -> MemberPrivacy | None:
        """The privacy mechanism and account, made when the run begins."""
        if self.privacy is None and self.config.privacy.dp != "none":
            names = self._cohort_names(self.config.federation)
            records = {c: [self.holdings.train[i] for i in self._indices(c)] for c in names}
            rates = {c: sampling_rate(self.config.training, len(rows)) for c, rows in records.items()}
            folder = custody_folder(self.config, self.run)
            self.privacy = MemberPrivacy(self.config, folder, self.run, self.name, records, rates)
        return self.privacy

    def _spend(self, number: int, removal: str | None = None) -> list[dict[str, Any]]:
        """A signed PRIVACY_SPEND event after a round; none without privacy."""
        privacy = self._privacy()
        if privacy is None:
            return []
        replay = {"replay": removal} if removal else {}
        return [self.sign_event("PRIVACY_SPEND", {"round": number, **privacy.spent(), **replay})]

    def _pending(self, cohort: str | None = None) -> list[Record]:
        """Training records that are being removed (from one cohort)."""
        kept = {record.id for record in self.holdings.train}
        shard = range(len(self.held.train)) if cohort is None else self._holder().shards[cohort]
        return [self.held.train[i] for i in shard if self.held.train[i].id not in kept]

    def _refresh(self) -> None:
        """The records changed: forget what was made of the old ones."""
        self.holdings = self.custody.kept(self.held)
        self.plans.clear()
        if self.group is not None:
            self._remember("set_rows", self.name, "train", self.holdings.train)
            self._remember("set_rows", self.name, "test", self.holdings.test)

    def _start_workers(self, base: Any) -> None:
        """Once: a worker group of its own, or the pool's worker; this organization's records go there."""
        if self.group is None:
            if self.shared is not None:
                self.group = LocalGroup(self.shared(base))
            else:
                self.group = WorkerGroup(self.config, base, f"{self.run}/{self.name}")
            self._remember("set_rows", self.name, "train", self.holdings.train)
            self._remember("set_rows", self.name, "test", self.holdings.test)

    def _remember(self, method: str, *args: Any) -> None:
        """Set workers up; a rebuilt group is set up again the same way."""
        if isinstance(self.group, WorkerGroup):
            self.group.remember(method, *args)
        else:
            self.group.call(method, *args)


def _value(state: Any) -> Packed:
    """A state that came by value, by reference, or as a reference inside a list."""
    if isinstance(state, list):
        state = state[0]
    packed = ray.get(state) if isinstance(state, ray.ObjectRef) else state
    assert isinstance(packed, Packed)
    return packed


RemoteOrganization: Any = ray.remote(Organization)
