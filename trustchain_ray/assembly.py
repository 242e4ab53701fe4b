"""Bringing a federation together: organizations, ledger, terms, and where the run stands."""

import contextlib
import secrets
import time
from collections.abc import Collection
from fractions import Fraction
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ledger.canonical import sha256_hex
from ledger.errors import LedgerError
from ledger.events import make_event
from ledger.identity import COORDINATOR, public_document
from trustchain_ray import calls, forms
from trustchain_ray.adapter import Tensors, digest, load_tensors, save_tensors
from trustchain_ray.base import prepare_base
from trustchain_ray.calls import reason_of
from trustchain_ray.cohorts import cohorts_of
from trustchain_ray.config import Config
from trustchain_ray.data import organization_names
from trustchain_ray.errors import TrustChainError
from trustchain_ray.exchange import Terms
from trustchain_ray.forgetting.amendments import Amendments
from trustchain_ray.initial import fresh_adapter
from trustchain_ray.keystore import coordinator_identity
from trustchain_ray.ledger_actor import Ledger, RemoteLedger
from trustchain_ray.manifest import build_manifest, check_same
from trustchain_ray.organization import Organization
from trustchain_ray.participation import Schedule, load_schedule, manifest_entry
from trustchain_ray.pool import Member, start_members
from trustchain_ray.robust.contributions import Contributions
from trustchain_ray.robust.reputation import Reputation, audits_of
from trustchain_ray.robust.settings import check_cohorts
from trustchain_ray.round_writer import FROZEN, INITIAL, FinishedRound, RoundWriter, adapter_file
from trustchain_ray.run_directory import RunDirectory
from trustchain_ray.run_keys import announce_rotations, check_members
from trustchain_ray.sampling import sampling_rate
from trustchain_ray.settlement import Settlement
from trustchain_ray.statements import statement_of
from trustchain_ray.worker import Packed, Worker

ONLINE_S = 60.0
"""A run that is opened again waits so long for an organization to answer at all."""

CLOSE_S = 5.0
"""Organizations have so long to end their workers."""


class Assembly:
    """The parties of a run and what they agreed on; :class:`trustchain_ray.federation.Federation` runs its rounds.

    Parameters
    ----------
    run : a locked run directory, new or to be resumed.
    progress : called with one line of text as things happen.
    local : organizations and ledger are objects of this process, which need no cluster; they share one worker, made
        when it is first needed. For a run that is :meth:`reopen`-ed.
    """

    def __init__(self, config: Config, run: RunDirectory, progress: Any, local: bool = False) -> None:
        self.config, self.run, self.progress, self.local = config, run, progress, local
        self.form = forms.get(config.model.lora.form)
        self.identity = coordinator_identity(config, run.path)
        self.amended = Amendments.read(run)
        self.registered = organization_names(config)
        self.names = [name for name in self.registered if name not in self.amended.left]
        self.cohorts = self.amended.cohorts(cohorts_of(config.federation, self.registered))
        self.resumed = (run.path / "manifest.json").is_file()
        self.id = run.read_json("manifest.json")["run"] if self.resumed else f"{config.run.name}-{secrets.token_hex(6)}"
        self.offline: set[str] = set()
        self.spared: set[str] = set()  # planters of triggers who could not be removed
        self.revoked: list[str] = []  # organizations whose key was revoked in this run
        self.ledger: Any = None
        self.shared: Worker | None = None
        self.witnesses: list[Member] = []
        self.members: dict[str, Member] = {}
        self.registrations: dict[str, dict[str, Any]] = {}
        self.counts: dict[str, dict[str, int]] = {}
        self.states: dict[str, Tensors] = {}
        self.fresh: Tensors = {}
        self.initial: Tensors = {}
        self.late: dict[str, Any] = {}  # organizations still at work on an earlier round
        self.finished = 0
        self.reputation = Reputation(self.registered)
        self.contributions = Contributions(run, config.federation.server_step)
        self.spent: dict[str, float] = {}  # epsilon as organizations signed it in rounds of before
        self.budget_is_spent = False  # no organization's privacy budget pays for another step
        self.ledger_seconds = 0.0  # of this process: what the log and the chains cost the rounds

    def start(self) -> None:
        """Start organizations and ledger, agree on the manifest, load the last finished round."""
        if self.resumed:
            self.reopen()
            if self.offline:
                raise TrustChainError(
                    f"{', '.join(sorted(self.offline))} must be online when a run is resumed; go on when they are back"
                )
            if self.revoked:
                raise TrustChainError(
                    f"the key of {', '.join(self.revoked)} was revoked in this run: have a new one admitted "
                    f"(trustchain keys readmit), or remove it: trustchain unlearn {self.run.path} --organization NAME"
                )
            self.enlist()
            self._log_setup()
        else:
            self._start_members()
            self.enlist()
            self.open_ledger()
            self._log_setup()
            self._load_rounds()
            self.resumed = True  # what was agreed on is only compared from now on

    def reopen(self, write: bool = True) -> None:
        """Start organizations, without their workers, and the ledger of a run that has begun; load where it stands.

        Parameters
        ----------
        write : open the ledger; without it nothing can be logged, and a sealed run stays sealed.
        """
        self._start_members()
        self.manifest = self.run.read_json("manifest.json")
        self.fresh, self.initial = load_tensors(self.run.path / FROZEN), load_tensors(self.run.path / INITIAL)
        self.records = {name: sum(counts.values()) for name, counts in self.manifest["records"].items()}
        self.counts = self.amended.records(self.manifest["records"])
        self.settlement, self.schedule = Settlement(self.config, self.records), self._schedule()
        self._find_offline()
        if write:
            self.open_ledger()
        self._load_rounds(write)
        if write:
            self._check_accounts()
            self.revoked = announce_rotations(self)  # after what earlier keys signed

    def _check_accounts(self) -> None:
        """No privacy account says less than what its organization signed before. Raises TrustChainError."""
        if not self.spent:
            return
        now = self.gather("privacy_spent", names=set(self.spent) & (set(self.names) - self.offline))
        for name, said in now.items():
            if float(said["epsilon"]) < self.spent[name] - 1e-6:
                raise TrustChainError(
                    f"organization {name!r}: its privacy account says epsilon {said['epsilon']}, and it has signed "
                    f"{self.spent[name]:.6f} in this run: the account was lost or is an older one. Restore "
                    f"custody/<run>/{name}.privacy.json in its TRUSTCHAIN_HOME: without it nobody knows what was spent"
                )

    def enlist(self) -> None:
        """Start the workers and agree on the terms."""
        if self.local:
            self.base = prepare_base(self.config, self.run, self.progress, local=True)
        present = [name for name in self.names if name not in self.offline]
        self.registrations = self.gather("register", self.base, names=present, long=True)
        registered = {n: {c: int(k) for c, k in r["records"].items()} for n, r in self.registrations.items()}
        self.counts = {**self.counts, **registered}
        if not self.resumed:
            self.records = {n: int(r["train"]) for n, r in self.registrations.items()}
            self.settlement, self.schedule = Settlement(self.config, self.records), self._schedule()
        shapes = next(iter(self.registrations.values()))["worker"]["shapes"]
        self._agree(shapes)
        self.set_terms(shapes)

    def set_terms(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Terms of the records as they are now; organizations read them with the next call."""
        rates = {n: {c: self.rate_of(n, c) for c in counts} for n, counts in self.counts.items()}
        asked = self.registrations if self.config.trust.secure_aggregation else ()  # whose members pin keys
        documents = {n: self.run.read_json(f"identities/{n}.json") for n in asked}
        self.terms = Terms(
            run=self.id,
            rates=rates,
            shapes=shapes,
            fresh=Packed.of(self.fresh),
            base=self.base,
            records=self.records,
            schedule=self.schedule,
            keys={**self.public_keys(), COORDINATOR: self.identity.public_hex},
            rotated={n: document for n, document in documents.items() if "rotations" in document},
        )
        self.terms_ref = [self.share(self.terms)]

    def share(self, value: Any) -> Any:
        """A reference to a value that organizations are to read."""
        return calls.Answer(value) if self.local else ray.put(value)

    def public_keys(self) -> dict[str, str]:
        """Public keys (hex) of the organizations that have registered in this process."""
        return {name: row["document"]["public_key"] for name, row in self.registrations.items()}

    def open_ledger(self) -> None:
        """Start the ledger actor and the writer of rounds."""
        if self.local:
            self.ledger = calls.Local(Ledger(str(self.run.path), self.id, self.config))
        else:
            node = ray.get_runtime_context().get_node_id()  # where the run's files are
            here = NodeAffinitySchedulingStrategy(node, soft=False)
            self.ledger = RemoteLedger.options(
                num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=here
            ).remote(str(self.run.path), self.id, self.config)
        self.witnesses = list(self.members.values()) if self.config.ledger.witnesses else []
        for silent in self.ask_ledger("start", self.witnesses):
            self.progress(f"going on without an answer of a chain, whose backlog is kept: {silent}")
        self.writer = RoundWriter(self.run, self.config.federation.keep_rounds, self._log_round)

    def adapters(self) -> dict[str, str]:
        """Digests of the cohort adapters."""
        return {cohort: digest(state) for cohort, state in sorted(self.states.items())}

    def log_event(self, kind: str, body: dict[str, Any]) -> None:
        """Sign and send an event of the coordinator."""
        self.submit([self.event(kind, body)])

    def submit(self, envelopes: list[dict[str, Any]]) -> None:
        """Send events to the ledger actor without waiting for it."""
        began = time.perf_counter()
        self.ledger.submit.remote(envelopes)
        self.ledger_seconds += time.perf_counter() - began

    def event(self, kind: str, body: dict[str, Any]) -> dict[str, Any]:
        """An event that the coordinator signs."""
        return make_event(self.identity, self.id, kind, body)

    def ask_ledger(self, method: str, *args: Any) -> Any:
        """Call a method of the ledger actor and wait. Raises TrustChainError where it cannot do it."""
        try:
            return calls.get(getattr(self.ledger, method).remote(*args))
        except (RayActorError, RayTaskError, LedgerError) as error:
            raise TrustChainError(f"the ledger cannot work: {reason_of(error)}") from None

    def gather(
        self, method: str, *args: Any, names: Collection[str] | None = None, long: bool = False
    ) -> dict[str, Any]:
        """Call a method of every organization (or those named); answers by name. For `long` see :meth:`answer`.

        Raises
        ------
        TrustChainError
            The first failure, with the organization's name.
        """
        asked = {n: m for n, m in self.members.items() if names is None or n in names}
        refs = {name: member.call(method, *args) for name, member in asked.items()}
        answers = {}
        for name, ref in refs.items():
            try:
                answers[name] = self.answer(name, ref, long)
            except TrustChainError:
                calls.wait(list(refs.values()), 30)  # let the others end quietly
                raise
        return answers

    def answer(self, name: str, reference: Any, long: bool = False) -> Any:
        """Wait for an organization's answer: for `federation.deadline_s`, or without end where it is `long` work.

        Raises
        ------
        TrustChainError
            With its name and what went wrong.
        """
        deadline = self.config.federation.deadline_s
        try:
            return calls.get(reference, None if long else deadline)
        except GetTimeoutError:
            raise TrustChainError(
                f"organization {name!r}: no answer within federation.deadline_s={deadline:g}"
            ) from None
        except (RayActorError, RayTaskError, LedgerError) as error:
            raise TrustChainError(f"organization {name!r}: {reason_of(error)}") from None

    def checkpoint(self, number: int, data: bytes | None = None, replay: str | None = None) -> dict[str, Any]:
        """CHECKPOINT of a round's `round.json`; `replay` is the removal that wrote it again."""
        file = f"rounds/{number:04d}/round.json"
        data = data if data is not None else (self.run.path / file).read_bytes()
        extra = {"replay": replay} if replay else {}
        return self.event("CHECKPOINT", {"round": number, "file": file, "digest": sha256_hex(data), **extra})

    def environments(self) -> dict[str, dict[str, str]]:
        """Hardware class of every organization that has registered in this process; else as the run began."""
        if not self.registrations:
            return {n: self.manifest["environments"][n] for n in self.names}
        return {n: r["worker"]["environment"] for n, r in self.registrations.items()}

    def rate_of(self, organization: str, cohort: str) -> float:
        """Sampling rate of a member, as its records are now; under privacy, which counts on it, the first one."""
        if self.config.privacy.dp != "none":
            return float(self.manifest["sampling_rates"][organization][cohort])
        return sampling_rate(self.config.training, self.counts[organization][cohort])

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
        """Let go of the run's files, where this process holds them, and of what organizations reserved."""
        with contextlib.suppress(Exception):
            self.writer.close()
        with contextlib.suppress(Exception):
            calls_out = [m.call("close") for m in self.members.values() if not (self.local or m.pooled)]
            if calls_out:
                ray.wait(calls_out, num_returns=len(calls_out), timeout=CLOSE_S)
        if self.local and self.ledger is not None:
            self.ask_ledger("close")

    def _start_members(self) -> None:
        leaving = self.amended.unfinished.left if self.amended.unfinished is not None else []
        names = sorted({*self.names, *leaving})
        if self.local:
            made = [Member(n, calls.Local(Organization(self.config, n, self.id, self._worker)), False) for n in names]
        else:
            self.base = prepare_base(self.config, self.run, self.progress)
            made = start_members(self.config, self.id, names)
        self.members = {member.name: member for member in made}

    def _worker(self, base: Any) -> Worker:
        """The worker of all organizations of this process, made at the first call."""
        if self.shared is None:
            from trustchain_ray.models import quietly

            with quietly():
                self.shared = Worker(self.config, base)
        return self.shared

    def _find_offline(self) -> None:
        """Who does not answer now; the others forget removals that were cut short before the coordinator knew."""
        calls_out = {n: member.call("reconcile", self.amended.known) for n, member in self.members.items()}
        end = time.monotonic() + min(ONLINE_S, self.config.federation.deadline_s)
        for name, call in calls_out.items():
            try:
                calls.get(call, max(0.0, end - time.monotonic()))
            except (GetTimeoutError, RayActorError):
                self.offline.add(name)
                self.progress(f"{name} does not answer: going on without it as far as that is possible")
            except RayTaskError as error:
                raise TrustChainError(f"organization {name!r}: {reason_of(error)}") from None
        if self.members and self.offline == set(self.members):
            raise TrustChainError(
                f"no organization answers ({', '.join(sorted(self.offline))}): start their nodes, or wait until the "
                f"machine is less busy; then the same command goes on with {self.run.path}"
            )

    def _agree(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Frozen and initial tensors, and the manifest: made once, afterwards only compared."""
        lora, head = self.config.model.lora, next(iter(self.registrations.values()))["worker"]["head"]
        if not self.resumed:
            check_cohorts(self.config, self.cohorts)
            self.fresh = {**fresh_adapter(shapes, self.config.run.key, "frozen", lora.rank, lora.form), **head}
            self.initial = self.form.initial(self.fresh, lora.rank)
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
            self._members(),
        )
        if self.resumed:
            self.amended.check(self.counts, str(self.run.path))
            check_same(self.manifest, manifest, str(self.run.path), bool(self.amended.known))
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
        events = [self.event("REGISTER", self.registration(COORDINATOR, public_document(self.identity)))]
        bodies = {n: self.registration(n, r["document"]) for n, r in self.registrations.items()}
        signed = {n: self.members[n].call("sign_event", "REGISTER", body) for n, body in bodies.items()}
        events += [ray.get(signed[n]) for n in self.names]
        data = (self.run.path / "manifest.json").read_bytes()
        body = {"manifest": sha256_hex(data), "config": self.manifest["config"], "frozen": self.manifest["frozen"]}
        events.append(self.event("RUN_MANIFEST", body))
        if not self.amended.known:  # later generations are logged by the removals that made them
            events += [event for signed in self.gather("shard_events", 0).values() for event in signed]
        refused = self.ask_ledger("submit", events)
        if refused:
            raise TrustChainError(f"the ledger refused the registration: {'; '.join(refused)}")

    def _members(self) -> dict[str, str]:
        """The manifest's entry of the consortium; refuses organizations that are not in it."""
        keys = {name: r["document"]["public_key"] for name, r in self.registrations.items()}
        agreed = self.manifest.get("consortium") if self.resumed else None
        return check_members(self.config, keys, self.identity.public_hex, agreed)

    def registration(self, name: str, document: dict[str, str]) -> dict[str, Any]:
        """Body of an organization's REGISTER, for its document as it is published."""
        file = (self.run.path / "identities" / f"{name}.json").read_bytes()
        return {
            "organization": name,
            "key_id": document["key_id"],
            "public_key": document["public_key"],
            "document": sha256_hex(file),
        }

    def _load_rounds(self, write: bool = True) -> None:
        """The states after the last finished round; the events of all rounds are sent to the log again."""
        self.states = dict.fromkeys(self.cohorts, self.initial)
        finished = self.run.finished_rounds()
        self.reputation = Reputation(self.registered, audits_of(self.run.path) if finished else [])
        for number in finished:
            content = self.run.read_json(f"rounds/{number:04d}/round.json")
            if write:
                self.submit([*content["events"], self.checkpoint(number, replay=content.get("replay"))])
            self._recall(number, content["events"])
        if finished:
            self.finished = finished[-1]
            content = self.run.read_json(f"rounds/{self.finished:04d}/round.json")
            for cohort in list(self.cohorts):
                if cohort in self.amended.withdrawn:
                    del self.states[cohort]
                    continue
                path = self.run.path / adapter_file(self.finished, cohort)
                self.states[cohort] = load_tensors(path)
                if digest(self.states[cohort]) != content["adapters"][cohort]:
                    raise TrustChainError(f"{path} was changed after round {self.finished}; restore it before resuming")

    def _recall(self, number: int, envelopes: list[dict[str, Any]]) -> None:
        """What a finished round showed, from its own events."""
        statements = [statement_of(envelope) for envelope in envelopes]
        self.reputation.note(number, statements)
        decided = [s for s in statements if s["type"] == "DECISION"]
        # a settlement that a removal made again stands last, and counts
        self.settlement.note({s["organization"]: Fraction(s["body"]["effort"]) for s in decided})
        for statement in statements:
            if statement["type"] == "REWARD_SETTLEMENT":
                self.settlement.recall(statement["body"])
            elif statement["type"] == "PRIVACY_SPEND":
                name, epsilon = statement["organization"], float(statement["body"]["epsilon"])
                self.spent[name] = max(epsilon, self.spent.get(name, 0.0))

    def _schedule(self) -> Schedule | None:
        settings = self.config.federation
        if settings.participation != "file":
            return None
        return load_schedule(self.config.participation.schedule, self.registered, settings.rounds)

    def _log_round(self, finished: FinishedRound, data: bytes) -> None:
        self.submit([*finished.events, self.checkpoint(finished.number, data)])

    def _records(self, organization: str, cohort: str) -> int:
        return self.counts[organization][cohort]
