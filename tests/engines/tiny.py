"""A tiny made model, a handful of records and one script that every engine must answer alike."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from trustchain_ray.config import Config
from trustchain_ray.data import Record
from trustchain_ray.engines.base import Engine
from trustchain_ray.models import make_base, unpack_base
from trustchain_ray.rows import TokenRow, encode

WORDS = ["fever", "cough", "rash", "pain", "cold", "burn", "flu", "cut", "ache", "sprain", "bite"]
RECORDS = [Record(f"r{i}", f"r{i}", f"{word} needs", f"{word[::-1]} rest", i % 2) for i, word in enumerate(WORDS)]


def tiny(**training: Any) -> Config:
    """A config of a two-layer causal model, A and B trained; keyword arguments are training options."""
    config = Config()
    config.model.made.hidden, config.model.made.intermediate = 16, 24
    config.model.made.heads, config.model.made.layers, config.model.made.vocabulary = 2, 2, 300
    config.model.max_length = 32
    config.model.lora.rank, config.model.lora.form = 4, "fedavg"
    config.training.batch_size, config.training.micro_batch = 4, 2
    for name, value in training.items():
        setattr(config.training, name, value)
    return config


def base_of(config: Config) -> str:
    """The folder of the config's made base."""
    return unpack_base(make_base(config, RECORDS))


def classifier(folder: Path, **training: Any) -> Config:
    """A config of a one-layer BERT with a new head, its base saved into a folder; A is frozen."""
    from transformers import AutoTokenizer, BertConfig, BertModel

    config = tiny(**training)
    tokenizer = AutoTokenizer.from_pretrained(base_of(config))
    settings = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=32, pad_token_id=tokenizer.pad_token_id,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(settings).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    config.model.base, config.model.task, config.model.labels = str(folder), "classification", ["no", "yes"]
    config.model.lora.targets, config.model.lora.form = ["query", "value"], "ffa"
    return config


def rows_of(engine: Engine, config: Config) -> list[TokenRow]:
    return encode(RECORDS, engine.tokenizer, config.model.task, config.model.max_length)


def draw(engine: Engine, seed: int, rank: int | None = None) -> dict[str, np.ndarray]:
    """Random tensors of all shapes of the adapter, or of a lower rank."""
    generator, out = np.random.default_rng(seed), {}
    for name, shape in sorted(engine.shapes().items()):
        if rank and ".lora_A." in name:
            shape = (rank, shape[1])
        if rank and ".lora_B." in name:
            shape = (shape[0], rank)
        out[name] = generator.normal(0, 0.3, shape).astype(np.float32)
    return out


def script(engine: Engine, config: Config) -> dict[str, Any]:
    """Loads, trains and evaluates in turn; what each step left, by the name of what it shows."""
    rows, names, out = rows_of(engine, config), sorted(engine.shapes()), {}
    first, second = draw(engine, 1), draw(engine, 2)
    alpha, lr = config.model.lora.alpha, 0.01

    def state(name: str) -> None:
        out[name] = engine.tensors(names)

    engine.load(first, alpha)
    state("loaded")
    out["one step: loss"] = engine.train(rows, [[0, 1, 2]], [lr])
    state("one step")
    engine.load(second, alpha)  # into a live engine: the stale-master trap
    state("reloaded")
    out["several: loss"] = engine.train(rows, [[3, 4, 5, 6, 7], [8], [0, 9], [1, 2, 3]], [lr, lr / 2, lr / 4, lr])
    state("several")
    engine.train(rows, [[5, 6]], [lr])  # goes on from there with new moments
    state("continued")
    engine.load(first, alpha)
    out["empty: loss"] = engine.train(rows, [[0, 1], [], []], [lr, lr, lr])
    state("empty steps")
    engine.load(second, alpha)
    engine.train(rows, [[0, 1], [2, 3]], [lr, lr], only=only(engine))
    state("only")
    engine.train(rows, [[0, 1]], [lr])  # all of them again
    state("after only")
    engine.load(first, alpha)
    out["evaluation"] = vars(engine.evaluate(rows, batch=4))
    engine.load(draw(engine, 3, rank=2), alpha)
    out["lower rank: loss"] = engine.train(rows, [[4, 5]], [lr])
    state("lower rank")
    for seed in (4, 5):  # a residual replaces the one before
        engine.load(first, alpha, residual=draw(engine, seed, rank=3))
        out[f"residual {seed}"] = vars(engine.evaluate(rows))
    out["residual: loss"] = engine.train(rows, [[7, 8]], [lr])
    state("residual: trained")
    out["empty list"] = engine.train(rows, [], [])
    out["no rows: loss"] = engine.train([], [[]], [lr])
    return out


def only(engine: Engine) -> list[str]:
    """The tensors that the script trains alone: a head, or one layer's B."""
    names = sorted(engine.shapes())
    return sorted(engine.fresh_head()) or [name for name in names if ".lora_B." in name][:1]
