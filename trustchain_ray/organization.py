"""An organization: its identity, its records, its decisions and its workers. Records never leave it."""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import ray

from ledger.errors import LedgerError
from ledger.events import make_event, read_event
from ledger.identity import load, public_document
from ledger.key_events import rotation_event
from ledger.removal import Removal
from ledger.witness import Stale, Witness
from trustchain_ray.adapter import digest
from trustchain_ray.checks import Refused, check_values
from trustchain_ray.custody import Shard
from trustchain_ray.errors import TrustChainError
from trustchain_ray.exchange import NO_REMOVAL, CohortTask, Reply, Update
from trustchain_ray.forgetting.holder import Found, Taken, Usage, Wanted
from trustchain_ray.keystore import keystore, personal_folder, witness_folder
from trustchain_ray.participation import Decider, Shown
from trustchain_ray.party import value_of
from trustchain_ray.privacy.member import MemberPrivacy
from trustchain_ray.rates import learning_rates
from trustchain_ray.sampling import plan
from trustchain_ray.secure_aggregation.member import Answer
from trustchain_ray.serving import Serving
from trustchain_ray.worker import Packed, Trained


class Organization(Serving):
    """One party of the federation. In dedicated mode a Ray actor with a worker group of its own."""

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

    def rotation(self, registered: dict[str, str]) -> dict[str, Any] | None:
        """KEY_ROTATION, signed with the key that the run knows, where this organization has another one since.

        Parameters
        ----------
        registered : key ids by organization, as the run publishes them.

        Raises
        ------
        LedgerError
            The key that the run knows is not among the retired ones of the key folder.
        """
        known = registered[self.name]
        if known == self.identity.key_id:
            return None
        return rotation_event(load(self.name, keystore(self.config), known), self.identity, self.run)

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
        made, withheld = self._train_cohorts(number, tasks, removal)
        spend = self._spend(number, removal)
        return Reply(self.name, {}, made, time.perf_counter() - began, spend, withheld=withheld)

    def state_again(self, envelope: dict[str, Any], removal: str) -> dict[str, Any] | None:
        """An own UPDATE, stated again as part of a removal that changes nothing of it; None where it takes records of
        that shard, or the UPDATE is not signed with the key in use."""
        try:
            event = read_event(envelope, {self.identity.key_id: self.identity.public_hex})
        except LedgerError:
            return None
        body = event.body
        if (event.type, event.run, event.organization) != ("UPDATE", self.run, self.name):
            return None
        if body["cohort"] not in self._cohort_names(self.config.federation) or self._pending(body["cohort"]):
            return None
        said = {name: body[name] for name in ("round", "cohort", "base", "update", "weight", "steps")}
        return self.sign_event("UPDATE", {**said, "replay": removal, "kept": True})

    def affords(self, rounds: dict[str, list[int]]) -> list[str]:
        """Of cohorts whose rounds, of so many steps, are to be replayed, those that the privacy budget pays not for."""
        privacy = self._privacy()
        return privacy.unaffordable(rounds) if privacy else []

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
                packed = value_of(begun)
                trained: Trained = self.group.call("unlearn", self.name, forget, packed, residual, method, options)
                body = {
                    "round": number, "cohort": task.cohort, "base": task.digest, "weight": 1,
                    "update": digest(trained.update.tensors()), "steps": len(trained.losses), "replay": removal,
                }  # fmt: skip
                envelope = self.sign_event("UPDATE", body)
                updates.append(Update(task.cohort, trained.update, envelope, 1, trained.losses, trained.seconds))
        return Reply(self.name, {}, updates, time.perf_counter() - began)

    def train(self, terms: list[Any], number: int, tasks: list[CohortTask], shown: Shown | None = None) -> Reply:
        """Decide, train and sign one round (1-based `number`)."""
        began = time.perf_counter()
        agreed = self._agree(terms)
        if self.decider is None:
            self.decider = Decider(self.config, self.name, agreed.records, agreed.schedule)
        effort = self.decider.decide(number, shown or Shown())
        decision = self.sign_event("DECISION", {"round": number, "effort": str(effort)})
        steps = int(self.config.federation.local_steps * effort)
        made, withheld = self._train_cohorts(number, [(task, steps) for task in tasks if effort])
        spent = bool(effort and self._privacy() and not made and not withheld)
        return Reply(self.name, decision, made, time.perf_counter() - began, self._spend(number), spent, withheld)

    def scan(self, terms: list[Any], number: int, purpose: str, state: list[Any], put: list[Any]) -> dict[str, str]:
        """Who planted a trigger in a state, and which one (`trust.scan_every`); `put` is what each member put in."""
        self._agree(terms)
        found: dict[str, str] = self.group.call("scan", self.name, value_of(state), ray.get(put[0]), purpose)
        return found

    def secure_join(self, cohort: str, data: bytes) -> Answer:
        """Answer the announcement of a secure sum; see :class:`SecureMember`."""
        keys, rotated = (self.terms.keys, self.terms.rotated) if self.terms else ({}, {})
        return self._secure().join(keys, rotated, cohort, data)

    def secure_answer(self, cohort: str, data: bytes) -> Answer:
        """Answer the coordinator's next message of a secure sum."""
        return self._secure().answer(cohort, data)

    def _train_cohorts(
        self, number: int, tasks: Sequence[tuple[CohortTask, int]], removal: str | None = None
    ) -> tuple[list[Update], dict[str, str]]:
        """Train cohorts for so many steps each: the updates, and why others are withheld, by cohort."""
        made, withheld = [], {}
        if self.config.trust.secure_aggregation:
            self._secure().begin()
        for task, steps in tasks:
            try:
                update = self._train_cohort(number, task, steps, removal)
            except Refused as refused:
                withheld[task.cohort] = str(refused)
            else:
                made += [update] if update is not None else []
        return made, withheld

    def _train_cohort(self, number: int, task: CohortTask, steps: int, removal: str | None = None) -> Update | None:
        federation, indices = self.config.federation, self._indices(task.cohort)
        if not indices:
            return None
        privacy, generation = self._privacy(), 0
        if privacy:
            if digest(value_of(task.state).tensors()) != task.digest:
                raise Refused("the adapter that came is not the one that the task names")
            generation = self._generation(privacy, number, task, removal)
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
        own_steps = [[indices[i] for i in step] for step in self._plan(task.cohort, generation)[first : first + steps]]
        total = federation.rounds * federation.local_steps
        rates = learning_rates(self.config.training, first, steps, total)
        begun, residual = self._begin(number, task)
        trace, private = removal is not None, None
        if privacy:
            subjects = [record.subject for record in self.holdings.train]
            private = privacy.steps(task.cohort, number, task.digest, subjects, generation)
            trace = trace and private is not None  # of steps that are not noised nothing leaves
        trained: Trained = self.group.call(
            "train", self.name, begun, residual, own_steps, rates, None, False, trace, private
        )
        if privacy:
            packed = trained.update
            noised = privacy.update(task.cohort, number, task.digest, packed.buffer, generation)
            trained = dataclasses.replace(trained, update=Packed(packed.layout, noised), losses=[], records=0)
        weight = (len(indices) if federation.weights == "records" else 1) * steps
        said, leaving = digest(trained.update.tensors()), trained.update
        if self.config.trust.secure_aggregation:
            secure, limit = self._secure(), self.config.trust.max_update_norm
            check_values(trained.update, value_of(task.state).layout, limit)  # masked, nobody else can
            said = secure.keyed(said)
            secure.hold(task.cohort, number, removal, trained.update.buffer, weight, said)
            leaving, trained = Packed.of({}), dataclasses.replace(trained, trace=list(map(secure.keyed, trained.trace)))
        body = {
            "round": number,
            "cohort": task.cohort,
            "base": task.digest,
            "update": said,
            "weight": weight,
            "steps": steps,
        }
        if removal is not None:
            body |= {"replay": removal, "trace": trained.trace}
        envelope = self.sign_event("UPDATE", body)
        return Update(
            task.cohort,
            leaving,
            envelope,
            weight,
            trained.losses,
            trained.seconds,
            trained.records,
            trained.resident,
        )

    def _generation(self, privacy: MemberPrivacy, number: int, task: CohortTask, removal: str | None) -> int:
        """Of the noise and the sampling of a round that is trained, replayed, or, without a removal, re-executed."""
        if removal == NO_REMOVAL:
            trained = privacy.trained_generation(task.cohort, number, task.digest)
            if trained is not None:
                return trained
        ids = [self.holdings.train[i].id for i in self._indices(task.cohort)]
        return privacy.generation(task.cohort, ids, None if removal == NO_REMOVAL else removal)

    def _plan(self, cohort: str, generation: int) -> list[list[int]]:
        """Steps of the whole run, as positions among the member's records."""
        if (cohort, generation) not in self.plans:
            federation = self.config.federation
            ids = [self.holdings.train[i].id for i in self._indices(cohort)]
            rate = self._agreed.rates[self.name][cohort]
            total = federation.rounds * federation.local_steps
            self.plans[cohort, generation] = plan(self._sampling_key(generation), ids, rate, total)
        return self.plans[cohort, generation]

    def _spend(self, number: int, removal: str | None = None) -> list[dict[str, Any]]:
        """A signed PRIVACY_SPEND event after a round; none without privacy."""
        privacy = self._privacy()
        if privacy is None:
            return []
        replay = {"replay": removal} if removal else {}
        return [self.sign_event("PRIVACY_SPEND", {"round": number, **privacy.spent(), **replay})]


RemoteOrganization: Any = ray.remote(Organization)
