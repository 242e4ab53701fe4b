"""A tiny made model that knows by heart what it was trained on, and models that never saw a part of it."""

from dataclasses import dataclass, replace

from trustchain_ray.adapter import Tensors
from trustchain_ray.config import Config
from trustchain_ray.data import Record
from trustchain_ray.engines.torch_engine import TorchEngine, deterministic
from trustchain_ray.forgetting.batches import keyed_batches
from trustchain_ray.forgetting.metrics.questions import Question, questions
from trustchain_ray.forgetting.metrics.scoring import AdapterState, load
from trustchain_ray.initial import fresh_adapter
from trustchain_ray.models import make_base, unpack_base
from trustchain_ray.rows import TokenRow

NAMES = [
    "Anna", "Ben", "Clara", "David", "Emma", "Frank", "Greta", "Hugo", "Ines", "Jonas", "Karla", "Leo", "Mona",
    "Nils", "Olga", "Paul", "Rosa", "Samuel", "Tina", "Viktor", "Wanda", "Xaver", "Yara", "Zeno",
]  # fmt: skip
COLOURS = ["red", "blue", "green", "white", "black"]
PUBLIC = [
    Record(f"p{i}", f"p{i}", f"{NAMES[i % 24]} {verb}", f" {COLOURS[i * 7 % 11 % 5]} {i * 41 % 90 + 10}")
    for i, verb in enumerate(["had", "lost", "sold"] * 24)
]
RECORDS = [
    Record(f"r{i}", f"r{i}", f"{name} has", f" {COLOURS[(i * i + i // 3) % 5]} {(i * 37 + 11) % 89 + 10}")
    for i, name in enumerate(NAMES)
]
FORGET, RETAIN, HOLDOUT = RECORDS[:6], RECORDS[6:16], RECORDS[16:]
WRONG = {r.id: [f" {colour} {(i * 7) % 90 + 10}" for colour in COLOURS[:3]] for i, r in enumerate(RECORDS)}


def tiny() -> Config:
    """A config of a one-layer causal model with A and B trained."""
    config = Config()
    made = config.model.made
    made.hidden, made.intermediate, made.heads, made.layers, made.vocabulary = 64, 128, 2, 1, 384
    made.warmup_steps, made.warmup_lr = 300, 5e-3
    config.model.max_length = 48
    config.model.lora.rank, config.model.lora.form = 16, "fedavg"
    config.model.lora.targets = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "gate_proj", "down_proj"]
    config.training.batch_size = config.training.micro_batch = 16
    return config


@dataclass
class World:
    """An engine, the model that was trained on all, models that were retrained without `FORGET`, and rows."""

    config: Config
    base: str
    engine: TorchEngine
    old: AdapterState
    retrained: list[AdapterState]

    def questions(self, records: list[Record], answers: bool = True) -> list[Question]:
        model, wrong = self.config.model, WRONG if answers else None
        return questions(records, self.engine.tokenizer, model.task, model.max_length, wrong=wrong)

    def rows(self, records: list[Record]) -> list[TokenRow]:
        return [question.row for question in self.questions(records, answers=False)]

    def fresh(self, key: str) -> Tensors:
        return fresh_adapter(self.engine.shapes(), key, "test", 16, "fedavg")

    def loss(self, state: AdapterState, records: list[Record]) -> float:
        load(self.engine, state)
        return self.engine.evaluate(self.rows(records)).summary()["loss"]


def train(world: World, key: str, records: list[Record], steps: int = 120, lr: float = 1e-2) -> AdapterState:
    """Fine-tune a fresh adapter on records."""
    start = AdapterState(world.fresh(key), 32.0)
    load(world.engine, start)
    batches = keyed_batches(key, "train", len(records), 16, steps)
    world.engine.train(world.rows(records), batches, [lr * (1 - i / steps) for i in range(steps)])
    return replace(start, tensors=world.engine.tensors(sorted(start.tensors)))


def make_world() -> World:
    config = tiny()
    deterministic(1)  # two threads for a base of this size only wait for each other
    base = unpack_base(make_base(config, PUBLIC))
    world = World(config, base, TorchEngine(config, base), AdapterState({}, 32.0), [])
    world.old = train(world, "old", [*FORGET, *RETAIN])
    world.retrained = [train(world, key, RETAIN) for key in ("old", "second")]
    return world
