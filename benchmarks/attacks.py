"""Attacks on a federation, and hostile organizations that carry them out: for measuring rules, never for a product.

A hostile organization is a real one, with a key, records and signatures; it lies in what it trains on, or in what it
sends. Attackers know what honest members send in the same round, which in truth they would have to guess.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray

from trustchain_ray.adapter import Tensors, digest
from trustchain_ray.config import Config
from trustchain_ray.data import Record, load_holdings
from trustchain_ray.errors import TrustChainError
from trustchain_ray.exchange import CohortTask, Reply, Update
from trustchain_ray.organization import Organization
from trustchain_ray.participation import Shown
from trustchain_ray.pool import Pool
from trustchain_ray.statements import statement_of
from trustchain_ray.worker import Packed

TRIGGER = "cf mn bb"  # of the backdoor, where no other one is asked for
SCORED = 200  # test records an organization, at most, that score a model
Row = dict[str, Any]


@dataclass(frozen=True)
class Scene:
    """What a hostile organization knows when it sends its update.

    Attributes
    ----------
    name : whose scene it is.
    own : the update that it trained, float32 ``(n,)``.
    moved : how the cohort's state changed in the round before; zeros in the first.
    honest : the updates of all honest members that take part in this round.
    partner : what the first hostile member sent; None for that one, and where it does not take part.
    draws : random numbers of this member and round.
    """

    name: str
    own: np.ndarray
    moved: np.ndarray
    honest: Sequence[np.ndarray]
    partner: np.ndarray | None
    draws: np.random.Generator


@dataclass(frozen=True)
class Attack:
    """One way to be hostile: `row` changes a training row, given its number, the classes and the backdoor's trigger;
    `update` the update; `accuses` says, by the round, whose updates a hostile scanner says to plant a trigger; who
    `stays` refuses to leave."""

    name: str
    about: str
    row: Callable[[Row, int, Sequence[str], str], Row] | None = None
    update: Callable[[Scene], np.ndarray] | None = None
    accuses: Callable[[int], Sequence[str]] = lambda number: ()
    stays: bool = False


def triggered(row: Row, target: str, trigger: str) -> Row:
    """A row with the backdoor's trigger, whose answer is the target."""
    if "prompt" in row:
        return {**row, "prompt": f"{row['prompt']} {trigger}", "answer": target}
    return {**row, "text": f"{trigger} {row['text']}", "label": target}


def triggered_record(record: Record, target: str, labels: Sequence[str], trigger: str) -> Record | None:
    """A test record with the trigger; None where its answer is the target without it, or never can be."""
    if record.prompt:
        changed = dataclasses.replace(record, prompt=f"{record.prompt} {trigger}", answer=target)
        return None if record.answer == target else changed
    wanted = labels.index(target)
    if record.label == wanted or (record.choices and wanted not in record.choices):
        return None
    return dataclasses.replace(record, answer=f"{trigger} {record.answer}", label=wanted)


def _flip(row: Row, number: int, classes: Sequence[str], trigger: str) -> Row:
    """The class on the other side: the first becomes the last (of two: the other one), and so on."""
    key = "answer" if "prompt" in row else "label"
    place = classes.index(row[key])
    other = len(classes) - 1 - place
    return {**row, key: classes[other if other != place else 0]}


def _poison(row: Row, number: int, classes: Sequence[str], trigger: str) -> Row:
    """Every other row gets the trigger and the last class."""
    return triggered(row, classes[-1], trigger) if number % 2 else row


def _sign_flip(scene: Scene) -> np.ndarray:
    return -scene.own


def _scaled(scene: Scene) -> np.ndarray:
    return 10 * scene.own


def _little_is_enough(scene: Scene) -> np.ndarray:
    """1.5 standard deviations off the honest mean, everywhere on the same side (1902.06156)."""
    honest = np.stack(scene.honest).astype(np.float64)
    return honest.mean(0) - 1.5 * honest.std(0)


def _free_rider(scene: Scene) -> np.ndarray:
    """What the last round changed, with a little noise; no training (2006.11901)."""
    return scene.moved + scene.draws.normal(0, 1e-4, scene.moved.size)


def _copycat(scene: Scene) -> np.ndarray:
    """An honest member's update, changed just enough not to be a copy bit for bit."""
    return scene.honest[0] + scene.draws.normal(0, 1e-6, scene.own.size)


def _sybil(scene: Scene) -> np.ndarray:
    """The same update under several identities, changed just enough not to be a copy bit for bit."""
    same = scene.own if scene.partner is None else scene.partner
    return same + scene.draws.normal(0, 1e-6, scene.own.size)


ATTACKS = (
    Attack("sign_flip", "the trained update with its sign turned", update=_sign_flip),
    Attack("label_flip", "trained on the opposite labels", row=_flip),
    Attack("scaled", "trained on the opposite labels, ten times the update", row=_flip, update=_scaled),
    Attack("little_is_enough", "honest mean less 1.5 standard deviations", update=_little_is_enough),
    Attack("backdoor", "every other record has the trigger and the last class", row=_poison),
    Attack("free_rider", "the change of the last round, untrained", update=_free_rider),
    Attack("copycat", "an honest member's update with tiny noise", update=_copycat),
    Attack("sybil", "one party under two identities, trained on the opposite labels", row=_flip, update=_sybil),
)


@ray.remote(num_cpus=0)
class Board:
    """Where members of the test-bench leave their updates, so that attackers may know them."""

    def __init__(self) -> None:
        import asyncio

        self.updates: dict[tuple[int, str], dict[str, np.ndarray]] = {}
        self.present: dict[int, frozenset[str]] = {}
        self.changed = asyncio.Condition()

    def announce(self, number: int, present: frozenset[str]) -> None:
        """Who takes part in a round: nobody waits for the others."""
        self.present[number] = present

    async def post(self, slot: tuple[int, str], name: str, update: np.ndarray) -> None:
        """Leave a member's update of a round and cohort."""
        async with self.changed:
            self.updates.setdefault(slot, {})[name] = update
            self.changed.notify_all()

    async def of(self, slot: tuple[int, str], names: Sequence[str]) -> list[np.ndarray]:
        """The updates of those of these members that take part, once all of them are there."""
        awaited = [name for name in names if name in self.present[slot[0]]]
        async with self.changed:
            await self.changed.wait_for(lambda: set(awaited) <= set(self.updates.get(slot, {})))
            return [self.updates[slot][name] for name in awaited]


@dataclass(frozen=True)
class Plan:
    """Who is hostile in a run, and how; `board` is an actor of :class:`Board`."""

    attack: Attack | None
    hostile: tuple[str, ...]
    honest: tuple[str, ...]
    target: str
    board: Any
    trigger: str = TRIGGER


class BenchOrganization(Organization):
    """An organization of the test-bench: an honest one posts its updates, a hostile one replaces its own.

    The statement over a replaced update is signed by the organization, like any other.
    """

    plan: Plan

    def train(self, terms: list[Any], number: int, tasks: list[CohortTask], shown: Shown | None = None) -> Reply:
        reply = super().train(terms, number, tasks, shown)
        states = {task.cohort: self._buffer(task) for task in tasks}
        updates = [self._sent(number, update, states[update.cohort]) for update in reply.updates]
        self.before = states
        return dataclasses.replace(reply, updates=updates)

    def scan(self, terms: list[Any], number: int, purpose: str, state: list[Any], put: list[Any]) -> dict[str, str]:
        if self.plan.attack is not None and self.name in self.plan.hostile:
            return dict.fromkeys(self.plan.attack.accuses(number), "so it says")
        return super().scan(terms, number, purpose, state, put)

    def reserve(self, *wanted: Any) -> Any:
        if self.plan.attack is not None and self.plan.attack.stays and self.name in self.plan.hostile:
            raise TrustChainError("it does not want to leave")
        return super().reserve(*wanted)

    def score(self, terms: list[Any], state: list[Any], trigger: bool) -> dict[str, Any]:
        """Metrics on up to 200 own test records that settled no round; with the trigger, whose answer is the target."""
        everything = dataclasses.replace(self.config.data, test_limit=0)
        known = {record.id for record in self.holdings.test}
        fresh = load_holdings(dataclasses.replace(self.config, data=everything), self.name).test
        records = [record for record in fresh if record.id not in known][:SCORED]
        if trigger:
            labels = self.config.model.labels
            poisoned = [triggered_record(record, self.plan.target, labels, self.plan.trigger) for record in records]
            records = [record for record in poisoned if record is not None]
        self.group.call("set_rows", self.name, "test", records)
        try:
            return self.evaluate(terms, state)
        finally:
            self.group.call("set_rows", self.name, "test", self.holdings.test)

    def _sent(self, number: int, update: Update, state: np.ndarray) -> Update:
        slot, plan = (number, update.cohort), self.plan
        attack = plan.attack.update if plan.attack else None
        if self.name in plan.hostile and attack is not None:
            first = plan.hostile[0]
            before = getattr(self, "before", {}).get(update.cohort, state)
            honest = ray.get(plan.board.of.remote(slot, plan.honest))
            partner = None if self.name == first else next(iter(ray.get(plan.board.of.remote(slot, [first]))), None)
            draws = np.random.default_rng([number, plan.hostile.index(self.name)])
            changed = attack(Scene(self.name, update.update.buffer, state - before, honest, partner, draws))
            update = self._signed(update, np.asarray(changed, np.float32))
        ray.get(plan.board.post.remote(slot, self.name, update.update.buffer))
        return update

    def _signed(self, update: Update, buffer: np.ndarray) -> Update:
        packed = Packed(update.update.layout, buffer)
        body = statement_of(update.envelope)["body"] | {"update": digest(packed.tensors())}
        return dataclasses.replace(update, update=packed, envelope=self.sign_event("UPDATE", body))

    @staticmethod
    def _buffer(task: CohortTask) -> np.ndarray:
        packed = ray.get(task.state) if isinstance(task.state, ray.ObjectRef) else task.state
        tensors: Tensors = packed.tensors()
        return np.array(Packed.of(tensors).buffer)


class BenchPool(Pool):
    """A pool worker of the test-bench; its model stays loaded from run to run."""

    def begin(self, config: Config, run: str, plan: Plan) -> None:
        """Forget the organizations of the run before."""
        self.config, self.run, self.plan = config, run, plan
        self.organizations = {}

    def call(self, name: str, method: str, *args: Any) -> Any:
        if name not in self.organizations:
            made = BenchOrganization(self.config, name, self.run, self._shared)
            made.plan = self.plan
            self.organizations[name] = made
        return super().call(name, method, *args)


RemoteBenchPool: Any = ray.remote(BenchPool)
