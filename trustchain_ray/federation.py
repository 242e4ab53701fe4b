"""The coordinator: one controller that sets a run up and runs its rounds. It never sees a record."""

import contextlib
import secrets
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ledger.canonical import sha256_hex
from ledger.events import make_event
from ledger.identity import COORDINATOR, load_or_create, public_document
from trustchain_ray import forms
from trustchain_ray.adapter import Layout, Tensors, digest, load_tensors, save_tensors, serialise
from trustchain_ray.base import prepare_base
from trustchain_ray.checks import Refused, check_decision, check_update
from trustchain_ray.cohorts import cohorts_of
from trustchain_ray.compare import collect, mean_scores
from trustchain_ray.config import Config
from trustchain_ray.data import organization_names
from trustchain_ray.errors import TrustChainError
from trustchain_ray.initial import fresh_adapter
from trustchain_ray.keystore import keystore
from trustchain_ray.ledger_actor import RemoteLedger
from trustchain_ray.manifest import build_manifest, check_same
from trustchain_ray.organization import CohortTask, Reply, Terms, Update
from trustchain_ray.participation import Schedule, effort_of, load_schedule, manifest_entry, statement_of
from trustchain_ray.pool import start_members
from trustchain_ray.round_writer import FinishedRound, RoundWriter, adapter_file
from trustchain_ray.run_directory import RunDirectory
from trustchain_ray.settlement import Settlement
from trustchain_ray.worker import Packed

FROZEN, INITIAL = "rounds/0000/frozen.safetensors", "rounds/0000/initial.safetensors"


@dataclass
class CohortRound:
    """A cohort in the current round: who has answered, and what was accepted."""

    task: CohortTask
    waiting: set[str]
    accepted: dict[str, Update] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)  # of the accepted updates, as signed and checked


class Federation:
    """A run: organizations, ledger, cohort states and rounds.

    Parameters
    ----------
    run : a locked run directory, new or to be resumed.
    progress : called with one line of text as things happen.
    """

    def __init__(self, config: Config, run: RunDirectory, progress: Any) -> None:
        self.config, self.run, self.progress = config, run, progress
        self.form = forms.get(config.model.lora.form)
        self.identity = load_or_create(COORDINATOR, keystore(config))
        self.names = organization_names(config)
        self.cohorts = cohorts_of(config.federation, self.names)
        self.resumed = (run.path / "manifest.json").is_file()
        self.id = run.read_json("manifest.json")["run"] if self.resumed else f"{config.run.name}-{secrets.token_hex(6)}"
        self.states: dict[str, Tensors] = {}
        self.late: dict[str, Any] = {}  # organizations still at work on an earlier round
        self.finished = 0
        self.ledger_seconds = 0.0  # of this process: what the log and the chains cost the rounds

    def start(self) -> None:
        """Start organizations and ledger, agree on the manifest, load the last finished round."""
        self.base = prepare_base(self.config, self.run, self.progress)
        self.members = {m.name: m for m in start_members(self.config, self.id, self.names)}
        self.registrations = self._gather("register", self.base)
        self.records = {n: int(r["train"]) for n, r in self.registrations.items()}
        self.settlement, self.schedule = Settlement(self.config, self.records), self._schedule()
        shapes = next(iter(self.registrations.values()))["worker"]["shapes"]
        self._agree(shapes)
        self.terms = Terms(
            run=self.id,
            rates={n: {c: float(q) for c, q in r.items()} for n, r in self.manifest["sampling_rates"].items()},
            shapes=shapes,
            fresh=Packed.of(self.fresh),
            base=self.base,
            records=self.records,
            schedule=self.schedule,
        )
        self.terms_ref = [ray.put(self.terms)]
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)  # by the run's files
        self.ledger = RemoteLedger.options(
            num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=here
        ).remote(str(self.run.path), self.id, self.config)
        self.witnesses = list(self.members.values()) if self.config.ledger.witnesses else []
        for silent in self._ask_ledger("start", self.witnesses):
            self.progress(f"going on without an answer of a chain, whose backlog is kept: {silent}")
        self._log_setup()
        self.writer = RoundWriter(self.run, self.config.federation.keep_rounds, self._log_round)
        self._load_rounds()

    def model(self, cohort_states: dict[str, Tensors] | None = None) -> Tensors:
        """The merge of the cohorts (default: as they stand now), in the form's own tensors."""
        cohort_states = self.states if cohort_states is None else cohort_states
        held = {c: sum(self._records(n, c) for n in self.cohorts[c]) for c in sorted(self.cohorts)}
        held = {c: count for c, count in held.items() if count}  # a cohort without records has learnt nothing
        weights = [1] * len(held) if self.config.federation.weights == "equal" else list(held.values())
        states = [cohort_states[c] for c in held]
        merged: Tensors = self.form.merge_cohorts(self.initial, states, weights, self.config.federation.merge_scale)
        return merged

    def train_round(self, number: int, behind: Callable[[], Any] | None = None) -> tuple[dict[str, Any], Any]:
        """One round: tasks out, updates checked and merged as they come, the result handed to the writer.

        `behind` is called once the training is under way; what it starts waits behind it in every organization.

        Returns
        -------
        The round's metrics, and what `behind` returned.
        """
        began = time.perf_counter()
        before = dict(self.states)
        rounds = self._open_round(number)
        events, absent = [], {}
        pending = {}
        for name in self.names:
            tasks = [r.task for c, r in rounds.items() if name in self.cohorts[c]]
            if name in self.late and not self._is_back(name):
                absent[name] = "still at work on an earlier round"
            else:
                call = self.members[name].call("train", self.terms_ref, number, tasks, self.settlement.shown)
                pending[call] = name
        started = behind() if behind else None
        deadline = time.monotonic() + self.config.federation.deadline_s
        replies: dict[str, Reply] = {}
        merged: dict[str, Any] = {}
        while pending:
            done, _ = ray.wait(list(pending), num_returns=1, timeout=max(0.0, deadline - time.monotonic()))
            if not done:
                for ref, name in pending.items():
                    self.late[name] = ref
                    absent[name] = f"no answer within federation.deadline_s={self.config.federation.deadline_s:g}"
                break
            name = pending.pop(done[0])
            try:
                replies[name] = ray.get(done[0])
            except (RayActorError, RayTaskError) as error:
                absent[name] = _reason(error)
                self.progress(f"  {name} is left out of round {number}: {absent[name]}")
                continue
            finally:
                for cohort in rounds.values():
                    cohort.waiting.discard(name)
            try:
                events += self._accept(number, name, replies[name], rounds)
            except Refused as refused:
                del replies[name]
                absent[name] = f"its answer was refused: {refused}"
            for c, cohort in rounds.items():
                if not cohort.waiting and c not in merged:
                    merged[c] = self._merge(number, c, cohort)
        for name, reason in absent.items():
            events.append(self._event("ABSENT", {"round": number, "organization": name, "reason": reason[:500]}))
        self._check_quorum(number, replies, absent)
        for c, cohort in rounds.items():
            if c not in merged:
                merged[c] = self._merge(number, c, cohort)
        seconds = time.perf_counter() - began
        events += self._settle(number, before, rounds, replies)
        return self._close_round(number, rounds, merged, replies, events, seconds), started

    def evaluate(self, model: Tensors) -> dict[str, Any]:
        """Start the evaluation of a model at every organization; references by name."""
        packed = [ray.put(Packed.of(model))]
        return {n: self.members[n].call("evaluate", self.terms_ref, packed) for n in self.names if n not in self.late}

    def adapters(self) -> dict[str, str]:
        """Digests of the cohort adapters."""
        return {cohort: digest(state) for cohort, state in sorted(self.states.items())}

    def log_event(self, kind: str, body: dict[str, Any]) -> None:
        """Sign and send an event of the coordinator."""
        self.submit([self._event(kind, body)])

    def submit(self, envelopes: list[dict[str, Any]]) -> None:
        """Send events to the ledger actor without waiting for it."""
        began = time.perf_counter()
        self.ledger.submit.remote(envelopes)
        self.ledger_seconds += time.perf_counter() - began

    def memory(self) -> dict[str, dict[str, int]]:
        """Memory of each organization's workers in bytes; who does not answer is left out."""
        refs = {n: self.members[n].call("memory") for n in self.names if n not in self.late}
        done, _ = ray.wait(list(refs.values()), num_returns=len(refs), timeout=30)
        answers = {}
        for name, ref in refs.items():
            with contextlib.suppress(RayActorError, RayTaskError):
                if ref in done:
                    answers[name] = ray.get(ref)
        return answers

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self.writer.close()

    def _agree(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Frozen and initial tensors, and the manifest: made once, afterwards only compared."""
        lora, head = self.config.model.lora, next(iter(self.registrations.values()))["worker"]["head"]
        if self.resumed:
            self.fresh = load_tensors(self.run.path / FROZEN)
        else:
            self.fresh = {**fresh_adapter(shapes, self.config.run.key, "frozen", lora.rank, lora.form), **head}
        self.initial: Tensors = self.form.initial(self.fresh, lora.rank)
        config_digest = sha256_hex((self.run.path / "config.yaml").read_bytes())
        manifest = build_manifest(
            self.config,
            self.id,
            config_digest,
            self.cohorts,
            self.registrations,
            self.fresh,
            self.initial,
            manifest_entry(self.config, self.records, self.schedule),
        )
        if self.resumed:
            check_same(self.run.read_json("manifest.json"), manifest, str(self.run.path))
        else:
            (self.run.path / "rounds" / "0000").mkdir(exist_ok=True)
            save_tensors(self.run.path / FROZEN, self.fresh)
            save_tensors(self.run.path / INITIAL, self.initial)
            documents = {n: r["document"] for n, r in self.registrations.items()}
            for name, document in {**documents, COORDINATOR: public_document(self.identity)}.items():
                self.run.write_json(f"identities/{name}.json", document)
            self.run.write_json("manifest.json", manifest)  # last: it marks a run that can be resumed
        self.manifest = manifest

    def _log_setup(self) -> None:
        """Registrations and the manifest; sent again at a resume, which changes nothing."""
        events = [self._event("REGISTER", self._registration(COORDINATOR, public_document(self.identity)))]
        bodies = {n: self._registration(n, r["document"]) for n, r in self.registrations.items()}
        signed = {n: self.members[n].call("sign_event", "REGISTER", body) for n, body in bodies.items()}
        events += [ray.get(signed[n]) for n in self.names]
        data = (self.run.path / "manifest.json").read_bytes()
        body = {"manifest": sha256_hex(data), "config": self.manifest["config"], "frozen": self.manifest["frozen"]}
        events.append(self._event("RUN_MANIFEST", body))
        refused = self._ask_ledger("submit", events)
        if refused:
            raise TrustChainError(f"the ledger refused the registration: {'; '.join(refused)}")

    def _ask_ledger(self, method: str, *args: Any) -> Any:
        try:
            return ray.get(getattr(self.ledger, method).remote(*args))
        except RayTaskError as error:
            raise TrustChainError(f"the ledger cannot work: {_reason(error)}") from None

    def _registration(self, name: str, document: dict[str, str]) -> dict[str, Any]:
        file = (self.run.path / "identities" / f"{name}.json").read_bytes()
        return {
            "organization": name,
            "key_id": document["key_id"],
            "public_key": document["public_key"],
            "document": sha256_hex(file),
        }

    def _load_rounds(self) -> None:
        """The states after the last finished round; all its events are sent to the log again."""
        self.states = dict.fromkeys(self.cohorts, self.initial)
        finished = self.run.finished_rounds()
        for number in finished:
            content = self.run.read_json(f"rounds/{number:04d}/round.json")
            self.submit([*content["events"], self._checkpoint(number)])
            self._recall(content["events"])
        if finished:
            self.finished = finished[-1]
            content = self.run.read_json(f"rounds/{self.finished:04d}/round.json")
            for cohort in self.cohorts:
                path = self.run.path / adapter_file(self.finished, cohort)
                self.states[cohort] = load_tensors(path)
                if digest(self.states[cohort]) != content["adapters"][cohort]:
                    raise TrustChainError(f"{path} was changed after round {self.finished}; restore it before resuming")

    def _recall(self, envelopes: list[dict[str, Any]]) -> None:
        """What a finished round showed, from its own events."""
        statements = [statement_of(envelope) for envelope in envelopes]
        decided = [s for s in statements if s["type"] == "DECISION"]
        self.settlement.note({s["organization"]: Fraction(s["body"]["effort"]) for s in decided})
        for statement in statements:
            if statement["type"] == "REWARD_SETTLEMENT":
                self.settlement.recall(statement["body"])

    def _schedule(self) -> Schedule | None:
        settings = self.config.federation
        if settings.participation != "file":
            return None
        return load_schedule(self.config.participation.schedule, self.names, settings.rounds)

    def _open_round(self, number: int) -> dict[str, CohortRound]:
        rounds = {}
        for cohort, members in self.cohorts.items():
            task = CohortTask(cohort, ray.put(Packed.of(self.states[cohort])), digest(self.states[cohort]))
            rounds[cohort] = CohortRound(task, set(members) - set(self.late))
        return rounds

    def _accept(self, number: int, name: str, reply: Reply, rounds: dict[str, CohortRound]) -> list[dict[str, Any]]:
        """Check the decision and the updates of one organization; events of what was accepted and refused."""
        document = self.registrations[name]["document"]
        keys = {document["key_id"]: document["public_key"]}  # it may sign for itself alone
        check_decision(reply.decision, name, number, keys, self.id)
        events = [reply.decision]
        for update in reply.updates:
            cohort = rounds.get(update.cohort)
            try:
                if cohort is None or name not in self.cohorts[update.cohort]:
                    raise Refused("the organization is not in this cohort")
                records = self._records(name, update.cohort)
                unit = records if self.config.federation.weights == "records" else 1
                update_digest = check_update(
                    update,
                    name,
                    number,
                    cohort.task,
                    self._update_layout(name),
                    keys,
                    self.id,
                    self.config.trust.max_update_norm,
                    unit * self.config.federation.local_steps,
                )
            except Refused as refused:
                cohort_name = str(update.cohort)[:100]
                body = {"round": number, "organization": name, "cohort": cohort_name, "reason": str(refused)}
                events.append(self._event("REFUSED", {**body, "update": digest(update.update.tensors())}))
                self.progress(f"  refused an update of {name}: {refused}")
            else:
                cohort.accepted[name] = update
                cohort.digests[name] = update_digest
                events.append(update.envelope)
        return events

    def _update_layout(self, organization: str) -> Layout:
        """Names and shapes that an update of this organization must have."""
        lora = self.config.model.lora
        rank = lora.ranks.get(organization, lora.rank)
        if lora.form in ("ffa", "fedavg"):
            return Layout.of(self.initial)
        shapes = {n: t for n, t in self.fresh.items() if not n.endswith((".lora_A.weight", ".lora_B.weight"))}
        return Layout.of({**fresh_adapter(self.terms.shapes, "", "layout", rank, lora.form), **shapes})

    def _merge(self, number: int, name: str, cohort: CohortRound) -> dict[str, Any]:
        """Merge a cohort's accepted updates into its state; the body of its MERGE event."""
        self.states[name] = self._merged(self.states[name], cohort, cohort.accepted)
        inputs = [
            {"organization": n, "update": cohort.digests[n], "weight": u.weight}
            for n, u in sorted(cohort.accepted.items())
        ]
        return {
            "round": number,
            "cohort": name,
            "base": cohort.task.digest,
            "inputs": inputs,
            "adapter": digest(self.states[name]),
            "file": adapter_file(number, name),
            "file_sha256": sha256_hex(serialise(self.states[name])),
        }

    def _merged(self, state: Tensors, cohort: CohortRound, members: Collection[str]) -> Tensors:
        """A cohort's state with the accepted updates of some of its members merged in."""
        updates = [cohort.accepted[n] for n in sorted(cohort.accepted) if n in members]
        if not updates:
            return state
        merged: Tensors = self.form.merge(
            state,
            [u.update.tensors() for u in updates],
            [u.weight for u in updates],
            self.config.federation.server_step,
            self.config.model.lora.alpha,
        )
        return merged

    def _settle(
        self, number: int, before: dict[str, Tensors], rounds: dict[str, CohortRound], replies: dict[str, Reply]
    ) -> list[dict[str, Any]]:
        """Remember what was played; the REWARD_SETTLEMENT of a round that is due."""
        played = {n: effort_of(reply.decision) for n, reply in replies.items()}
        self.settlement.note(played)
        if not self.settlement.due(number):
            return []
        merged = {n: played[n] for c in rounds.values() for n in c.accepted}

        def value(coalition: frozenset[str]) -> float:
            states = {c: self._merged(before[c], cohort, coalition) for c, cohort in rounds.items()}
            return mean_scores(collect(self.evaluate(self.model(states))))["accuracy"]

        return [self._event("REWARD_SETTLEMENT", self.settlement.settle(number, merged, value))]

    def _close_round(
        self,
        number: int,
        rounds: dict[str, CohortRound],
        merged: dict[str, Any],
        replies: dict[str, Reply],
        events: list[dict[str, Any]],
        seconds: float,
    ) -> dict[str, Any]:
        updates = [u for c in rounds.values() for u in c.accepted.values()]
        losses = [loss for u in updates for loss in u.losses]
        metrics = {
            "seconds": seconds,
            "ended": time.time(),
            "training_seconds": sum(u.seconds for u in updates),
            "longest_training_seconds": max((sum(u.seconds for u in r.updates) for r in replies.values()), default=0.0),
            "organization_seconds": sum(r.seconds for r in replies.values()),
            "worker_resident_bytes": max((u.resident for u in updates), default=0),
            "records": sum(u.records for u in updates),
            "organizations": len(replies),
            "loss": sum(losses) / len(losses) if losses else 0.0,
            "bytes": sum(u.update.buffer.nbytes for u in updates),
        }
        events += [self._event("MERGE", merged[c]) for c in sorted(merged)]
        adapters = {c: merged[c]["adapter"] for c in merged}
        self.writer.put(FinishedRound(number, dict(self.states), adapters, events, metrics))
        self.finished = number
        return metrics

    def _log_round(self, finished: FinishedRound, data: bytes) -> None:
        self.submit([*finished.events, self._checkpoint(finished.number, data)])

    def _checkpoint(self, number: int, data: bytes | None = None) -> dict[str, Any]:
        file = f"rounds/{number:04d}/round.json"
        data = data if data is not None else (self.run.path / file).read_bytes()
        return self._event("CHECKPOINT", {"round": number, "file": file, "digest": sha256_hex(data)})

    def _check_quorum(self, number: int, replies: dict[str, Reply], absent: dict[str, str]) -> None:
        least = self.config.federation.quorum * len(self.names)
        if len(replies) < max(1, least):
            reasons = "; ".join(f"{n}: {r}" for n, r in sorted(absent.items()))
            raise TrustChainError(
                f"round {number}: {len(replies)} of {len(self.names)} organizations answered, "
                f"federation.quorum={self.config.federation.quorum:g} needs {max(1, least):g}. {reasons}. "
                f"Go on with --resume {self.run.path}"
            )

    def _is_back(self, name: str) -> bool:
        done, _ = ray.wait([self.late[name]], timeout=0)
        if done:
            del self.late[name]
        return bool(done)

    def _records(self, organization: str, cohort: str) -> int:
        return int(self.registrations[organization]["records"][cohort])

    def _event(self, kind: str, body: dict[str, Any]) -> dict[str, Any]:
        return make_event(self.identity, self.id, kind, body)

    def _gather(self, method: str, *args: Any) -> dict[str, Any]:
        """Call a method of every organization; answers by name.

        Raises
        ------
        TrustChainError
            The first failure, with the organization's name.
        """
        refs = {name: member.call(method, *args) for name, member in self.members.items()}
        answers = {}
        for name, ref in refs.items():
            try:
                answers[name] = ray.get(ref)
            except (RayActorError, RayTaskError) as error:
                ray.wait(list(refs.values()), num_returns=len(refs), timeout=30)  # let the others end quietly
                raise TrustChainError(f"organization {name!r}: {_reason(error)}") from None
        return answers


def _reason(error: Exception) -> str:
    """The cause of a remote failure in one line."""
    cause = getattr(error, "cause", None) or error
    lines = [line for line in str(cause).strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(cause).__name__
