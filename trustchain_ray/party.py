"""What an organization has: its identity, its records, its workers, and the terms of the run."""

from collections.abc import Callable
from typing import Any

from ledger.identity import load_or_create
from trustchain_ray import calls, forms
from trustchain_ray.cohorts import records_of
from trustchain_ray.config import Config
from trustchain_ray.custody import Custody, custody_folder
from trustchain_ray.data import Holdings, load_holdings
from trustchain_ray.exchange import CohortTask, Terms
from trustchain_ray.forgetting.holder import Holder
from trustchain_ray.initial import fresh_adapter
from trustchain_ray.keys import derive
from trustchain_ray.keystore import keystore
from trustchain_ray.participation import Decider
from trustchain_ray.privacy.member import MemberPrivacy
from trustchain_ray.privacy.noise import load_or_create_secret
from trustchain_ray.sampling import sampling_rate
from trustchain_ray.secure_aggregation.member import SecureMember
from trustchain_ray.worker import Packed, Worker
from trustchain_ray.worker_group import LocalGroup, WorkerGroup


class Party:
    """One party of the federation, before it does anything; see :class:`trustchain_ray.organization.Organization`.

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
        self.plans: dict[tuple[str, int], list[list[int]]] = {}  # by cohort and generation
        self.decider: Decider | None = None
        self.privacy: MemberPrivacy | None = None
        self.secure: SecureMember | None = None

    def memory(self) -> dict[str, int]:
        return dict(self.group.call("memory"))

    def _privacy(self) -> MemberPrivacy | None:
        """The privacy mechanism and account, made when the run begins."""
        if self.privacy is None and self.config.privacy.dp != "none":
            names = self._cohort_names(self.config.federation)
            records = {c: [self.holdings.train[i] for i in self._indices(c)] for c in names}
            rates = {c: sampling_rate(self.config.training, len(rows)) for c, rows in records.items()}
            folder = custody_folder(self.config, self.run)
            self.privacy = MemberPrivacy(self.config, folder, self.run, self.name, records, rates)
        return self.privacy

    def _secure(self) -> SecureMember:
        """This organization's side of secure sums, made when it is first needed."""
        if self.secure is None:
            secret = load_or_create_secret(self.name, keystore(self.config))
            path = custody_folder(self.config, self.run) / f"{self.name}.secure.json"
            self.secure = SecureMember(self.identity, self.run, secret, path)
        return self.secure

    def _holder(self) -> Holder:
        federation, key = self.config.federation, self.config.run.key
        shards = {c: records_of(federation, key, self.name, c, self.held.train) for c in self._cohort_names(federation)}
        privacy = self._privacy() if self._samples_in_secret() else None
        return Holder(
            self.identity,
            self.run,
            self.custody,
            self.held,
            shards,
            self._sampling_key,
            privacy.rounds if privacy is not None else None,
        )

    def _sampling_key(self, generation: int = 0) -> bytes:
        """Decides which steps read which record.

        From the run's key, so that whoever has the records can train again. Under privacy from the organization's own
        secret: the account counts on sampling, which protects nobody from those who can compute its outcome; and anew
        in every replay (its `generation`), since the account composes its steps with those before as independent ones.
        """
        if self._samples_in_secret():
            secret = load_or_create_secret(self.name, keystore(self.config))
            return derive(secret, "sampling", self.run, self.name, str(generation))
        return derive(self.config.run.key, "sampling", self.name)

    def _samples_in_secret(self) -> bool:
        return self.config.privacy.dp in ("record", "subject")

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
            self.terms, self.terms_of = calls.get(terms[0]), terms[0]
            self.plans.clear()
            self._start_workers(self.terms.base)
            self._remember("freeze", self.terms.fresh)
        return self.terms

    @property
    def _agreed(self) -> Terms:
        assert self.terms is not None
        return self.terms

    def _begin(self, number: int, task: CohortTask) -> tuple[Any, Packed | None]:
        """Where the workers start from: for `ffa` and `fedavg` the state itself, passed on without a copy."""
        lora = self.config.model.lora
        if lora.form in ("ffa", "fedavg"):
            return task.state, None
        purpose = f"{number}/{self.name}/{task.cohort}"
        rank = lora.ranks.get(self.name, lora.rank)
        state = value_of(task.state).tensors()
        fresh = fresh_adapter(self._agreed.shapes, self.config.run.key, purpose, rank, lora.form)
        begun = self.form.start(state, fresh, lora.alpha)
        return Packed.of(begun), Packed.of(state) if self.form.RESIDUAL else None

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

    def close(self) -> None:
        """End workers of its own and give back what they held: a placement group outlives the actor that made it."""
        if isinstance(self.group, WorkerGroup):
            self.group.close()

    def _remember(self, method: str, *args: Any) -> None:
        """Set workers up; a rebuilt group is set up again the same way."""
        if isinstance(self.group, WorkerGroup):
            self.group.remember(method, *args)
        else:
            self.group.call(method, *args)


def value_of(state: Any) -> Packed:
    """A state that came by value, by reference, or as a reference inside a list."""
    if isinstance(state, list):
        state = state[0]
    packed = calls.value(state)
    assert isinstance(packed, Packed)
    return packed
