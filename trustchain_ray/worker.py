"""A worker: one rank that holds the resident base model, the adapter and its engine for the whole run."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray

from trustchain_ray import forms
from trustchain_ray.adapter import Layout, Tensors, digest
from trustchain_ray.config import Config
from trustchain_ray.data import Record
from trustchain_ray.keys import generator
from trustchain_ray.privacy.steps import PrivateSteps
from trustchain_ray.rows import Rows, encode


@dataclass(frozen=True)
class Packed:
    """Tensors as they move: a layout and one contiguous float32 buffer."""

    layout: Layout
    buffer: np.ndarray

    @classmethod
    def of(cls, tensors: Tensors) -> "Packed":
        layout = Layout.of(tensors)
        return cls(layout, layout.pack(tensors))

    def tensors(self) -> Tensors:
        return self.layout.unpack(self.buffer)


@dataclass(frozen=True)
class Trained:
    """What a worker gives back: the update, the loss of each step, and what it cost: seconds of the steps alone,
    records read, resident bytes; and where it was asked for, the digest of the trained tensors after each step."""

    update: Packed
    losses: list[float]
    seconds: float
    records: int
    resident: int
    trace: list[str] = field(default_factory=list)


class Worker:
    """One rank. Every method is called on all ranks of a group with the same arguments."""

    def __init__(self, config: Config, base: Any, rank: int = 0, world_size: int = 1) -> None:
        import torch

        from trustchain_ray import engines
        from trustchain_ray.models import base_digest, unpack_base

        self.config, self.rank = config, rank
        folder = base if isinstance(base, str) else unpack_base(ray.get(base[0]))
        device = "cuda:0" if torch.cuda.is_available() and config.resources.gpus_per_worker > 0 else "cpu"
        self.engine = engines.make(config, folder, device, rank=rank, world_size=world_size)
        self.form = forms.get(config.model.lora.form)
        self.base = base_digest(folder)
        self.steps_are_seen = engines.choose(config) == "torch"
        self.rows: dict[tuple[str, str], Rows] = {}

    def describe(self) -> dict[str, Any]:
        """Shapes of the adapter, the fresh head, the digest of the base and the hardware class."""
        return {
            "shapes": self.engine.shapes(),
            "head": self.engine.fresh_head(),
            "base": self.base,
            "environment": environment(self.config),
            "pid": os.getpid(),
        }

    def set_rows(self, owner: str, split: str, records: Sequence[Record]) -> None:
        """Take records, tokenised once, when they are read; `train` and `evaluate` name them by owner and split."""
        model = self.config.model
        self.rows[owner, split] = Rows(records, self.engine.tokenizer, model.task, model.max_length)

    def freeze(self, fresh: Packed) -> None:
        """Put the shared fresh adapter in place: its A stays for the whole run where the form does not train it."""
        self.engine.load(fresh.tensors(), self.config.model.lora.alpha)

    def train(
        self,
        owner: str,
        begun: Packed,
        residual: Packed | None,
        steps: Sequence[Sequence[int]],
        rates: Sequence[float],
        only: Sequence[str] | None = None,
        whole: bool = False,
        trace: bool = False,
        private: PrivateSteps | None = None,
    ) -> Trained | None:
        """Train local steps from `begun` on the owner's records; rank 0 returns the update (or the trained
        tensors as a `whole`). `trace` asks for the digests of all steps (torch engine; others give none).
        `private` clips and noises every step; losses and digests of steps, which are not private, stay here then."""
        tensors = begun.tensors()
        self.engine.load(tensors, self.config.model.lora.alpha, residual.tensors() if residual else None)
        digests: list[str] = []

        def note(_: int) -> bool:
            digests.append(digest(self.engine.tensors(sorted(tensors))))
            return False

        extra: dict[str, Any] = {"after_step": note} if trace and self.steps_are_seen else {}
        if private is not None:
            extra["private"] = private
        began = time.perf_counter()
        losses = self.engine.train(self.rows[owner, "train"], steps, rates, only, **extra)
        seconds = time.perf_counter() - began
        trained = self.engine.tensors(sorted(tensors))
        trained = {name: t[tuple(slice(0, size) for size in tensors[name].shape)] for name, t in trained.items()}
        if self.rank:
            return None
        update = Packed.of(trained if whole else self.form.update(tensors, trained))
        read = 0 if private else sum(map(len, steps))  # how many records a step read is theirs, too
        losses = [] if private else losses
        return Trained(update, losses, seconds, read, self.engine.memory()["resident"], digests)

    def evaluate(self, owner: str, split: str, tensors: Packed, residual: Packed | None) -> Any:
        """Metrics of an adapter on the owner's records (rank 0; the others take part where the engine needs them)."""
        self.engine.load(tensors.tensors(), self.config.model.lora.alpha, residual.tensors() if residual else None)
        return self.engine.evaluate(self.rows[owner, split])

    def scan(self, owner: str, state: Packed, put: dict[str, np.ndarray], purpose: str) -> dict[str, str]:
        """Organizations that planted a trigger in a state, of which `put` says who put in what, as the owner's test
        records show; see :class:`trustchain_ray.robust.triggers.Scan`."""
        from trustchain_ray.robust.triggers import Scan

        engine, alpha, layout = self.engine, self.config.model.lora.alpha, state.layout

        def load(buffer: np.ndarray) -> None:
            engine.load(layout.unpack(np.asarray(buffer, np.float32)), alpha)

        adapter: Any = getattr(engine, "adapter")  # noqa: B009 - of the torch engine alone
        draws = generator(self.config.run.key, "scan", purpose)
        scan = Scan(adapter, engine.tokenizer, load, self.rows[owner, "test"], draws)
        return scan.planted(state.buffer, put, self.config.model.labels)

    def answers(self, records: Sequence[Record], tensors: Packed, residual: Packed | None) -> list[dict[str, str]]:
        """What an adapter says to the prompts of records (`said`), and how probable it finds their own answer, as the
        mean over tokens (`probability`). Torch engine; others give nothing."""
        if not self.steps_are_seen:
            return []
        from trustchain_ray.forgetting.metrics.answers import answers

        self.engine.load(tensors.tensors(), self.config.model.lora.alpha, residual.tensors() if residual else None)
        return answers(self.engine, records, self.config)

    def unlearn(
        self,
        owner: str,
        forget: Sequence[Record],
        begun: Packed,
        residual: Packed | None,
        method: str,
        options: dict[str, float],
    ) -> Trained:
        """Apply an approximate method to an adapter; the owner's training records are what is retained.

        Raises
        ------
        TrustChainError
            As :func:`trustchain_ray.forgetting.approximate.loop.unlearn_approximately`.
        """
        from trustchain_ray.forgetting.approximate.worker import unlearn

        tensors, began = begun.tensors(), time.perf_counter()
        rows = encode(forget, self.engine.tokenizer, self.config.model.task, self.config.model.max_length)
        result = unlearn(self.engine, self.config, rows, self.rows[owner, "train"], tensors, residual, method, options)
        update = Packed.of(self.form.update(tensors, {n: result.tensors[n] for n in tensors}))
        seconds = time.perf_counter() - began
        return Trained(update, result.losses, seconds, result.records_read, self.engine.memory()["resident"])

    def memory(self) -> dict[str, int]:
        return self.engine.memory()


def environment(config: Config) -> dict[str, str]:
    """The hardware class: what bitwise equality depends on."""
    import platform

    import peft
    import torch
    import transformers

    from trustchain_ray import engines

    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else _cpu_name()
    return {
        "device": device,
        "engine": engines.choose(config),
        "numpy": np.__version__,
        "peft": peft.__version__,
        "python": platform.python_version(),
        "threads": str(config.training.threads),
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
    }


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = {line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")}
        return " / ".join(sorted(names)) or "cpu"
    except OSError:
        return "cpu"
