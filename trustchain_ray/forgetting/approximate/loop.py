"""The common loop of the approximate methods: only the adapter is trained, a function of rows, settings and key."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import ClassVar, Protocol

import numpy as np
import torch

from trustchain_ray.adapter import Tensors
from trustchain_ray.engines.torch_engine import Objective, TorchEngine
from trustchain_ray.errors import TrustChainError
from trustchain_ray.forgetting.approximate.perturb import Perturb, current
from trustchain_ray.forgetting.batches import keyed_batches
from trustchain_ray.forgetting.metrics.scoring import AdapterState, load, score
from trustchain_ray.rows import TokenRow


class Method(Protocol):
    """A loss on the records to forget; `gamma` weighs it, `alpha` the plain loss on retained records."""

    @property
    def gamma(self) -> float: ...
    @property
    def alpha(self) -> float: ...

    tasks: ClassVar[tuple[str, ...]]
    needs_reference: ClassVar[bool]

    def forget_loss(self, losses: torch.Tensor, tokens: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        """What is minimised, of each record.

        Parameters
        ----------
        losses : mean-token negative log-likelihoods (nats), ``(records,)``, with gradient.
        tokens : numbers of tokens of the answers, int64 ``(records,)``.
        reference : log-probabilities of the whole answers under the starting adapter; zeros where not needed.
        """


@dataclass(frozen=True)
class Loop:
    """Budget of an approximate method, the same for all that are compared.

    Attributes
    ----------
    epochs : passes over the records to forget.
    batch : records to forget in a step, and as many retained ones.
    lr : constant learning rate (AdamW with the run's weight decay).
    """

    epochs: int = 5
    batch: int = 16
    lr: float = 1e-3


@dataclass(frozen=True)
class Unlearned:
    """The adapter after an approximate method (its guarantee is `APPROXIMATE`), the minimised loss of each step,
    and how many records were read in all."""

    tensors: Tensors
    losses: list[float]
    records_read: int
    guarantee: str = "APPROXIMATE"


def unlearn_approximately(
    engine: TorchEngine,
    method: Method | Perturb,
    start: AdapterState,
    forget: Sequence[TokenRow],
    retain: Sequence[TokenRow],
    key: bytes | str,
    loop: Loop | None = None,
) -> Unlearned:
    """Train the adapter `start` so that it looks as if it had not seen `forget`.

    Each of ``ceil(epochs * forget records / batch)`` steps minimises ``gamma mean_F f + alpha mean_R loss`` over a
    batch of either; `perturb` reads as many retained records in all as the others read of both. Expectations are
    means over records of mean-token losses (open-unlearning takes the mean over all tokens of a batch).
    The tensors that the form trains are trained, and a head.

    Parameters
    ----------
    engine : the torch engine; its adapter is replaced.
    forget, retain : rows; `ascent` alone does without retained ones.
    key : the run's key; equal keys, rows and settings give equal bits on one hardware class.

    Raises
    ------
    TrustChainError
        Another engine, a method that is not defined for the task, no rows, settings out of range, or a loss
        that is no longer finite.
    """
    loop, name = loop or Loop(), type(method).__name__.lower()
    _check(engine, method, name, forget, retain, loop)
    trained = [n for n in sorted(start.tensors) if engine.adapter.parameters[n].requires_grad]
    count = math.ceil(loop.epochs * len(forget) / min(loop.batch, len(forget)))
    rates = [loop.lr] * count
    if isinstance(method, Perturb):
        rows = list(retain)
        steps = keyed_batches(key, f"{name}-retain", len(retain), 2 * min(loop.batch, len(forget)), count)
        losses = method.train(engine, start, trained, rows, steps, rates, key)
    else:
        rows = [*forget, *retain]
        steps = _steps(method, name, len(forget), len(retain), key, loop.batch, count)
        load(engine, start)
        objective = _objective(engine, method, forget, len(retain), loop.batch)
        losses = engine.train(rows, steps, rates, trained, objective=objective)
    tensors = current(engine, start)
    if not np.isfinite(losses).all() or not all(np.isfinite(tensor).all() for tensor in tensors.values()):
        first = int(np.argmin(np.isfinite([*losses, np.nan])))
        raise TrustChainError(f"{name}: the loss is not finite from step {first} of {count}; lower lr or epochs")
    return Unlearned(tensors, losses, sum(map(len, steps)))


def _steps(
    method: Method, name: str, forget: int, retain: int, key: bytes | str, batch: int, count: int
) -> list[list[int]]:
    """Row numbers of each step; retained rows are counted after those to forget."""
    steps = keyed_batches(key, f"{name}-forget", forget, batch, count)
    if method.alpha > 0:
        others = keyed_batches(key, f"{name}-retain", retain, min(batch, forget), count)
        steps = [step + [forget + i for i in other] for step, other in zip(steps, others, strict=True)]
    return steps


def _objective(engine: TorchEngine, method: Method, forget: Sequence[TokenRow], retain: int, batch: int) -> Objective:
    """The loss of a micro-batch; the engine has the starting adapter loaded."""
    reference = torch.zeros(len(forget))
    if method.needs_reference:
        reference = torch.tensor([each.log_probs.sum() for each in score(engine, forget)], dtype=torch.float32)
    taken = min(batch, len(forget))
    others = min(taken, retain)

    def objective(part: Sequence[int], losses: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        forgotten = [i for i, row in enumerate(part) if row < len(forget)]
        kept = [i for i, row in enumerate(part) if row >= len(forget)]
        total = losses.new_zeros(())
        if forgotten:
            known = reference[[part[i] for i in forgotten]].to(losses.device)
            total = total + method.gamma / taken * method.forget_loss(losses[forgotten], tokens[forgotten], known).sum()
        if kept:
            total = total + method.alpha / others * losses[kept].sum()
        return total

    return objective


def _check(
    engine: TorchEngine,
    method: Method | Perturb,
    name: str,
    forget: Sequence[TokenRow],
    retain: Sequence[TokenRow],
    loop: Loop,
) -> None:
    if not isinstance(engine, TorchEngine):
        raise TrustChainError(f"{name}: approximate unlearning runs on the torch engine; set training.engine=torch")
    if engine.adapter.task not in method.tasks:
        raise TrustChainError(
            f"{name} is defined for model.task={' and '.join(method.tasks)}, not {engine.adapter.task}; "
            "use graddiff, npo or perturb"
        )
    if not forget:
        raise TrustChainError(f"{name}: there are no records to forget")
    if not retain and (isinstance(method, Perturb) or method.alpha > 0):
        raise TrustChainError(f"{name}: there are no retained records to keep the model on; use ascent, or give some")
    if loop.epochs < 1 or loop.batch < 1 or not loop.lr > 0:
        raise TrustChainError(f"{name}: epochs={loop.epochs}, batch={loop.batch} and lr={loop.lr:g} must be above 0")
    for option in fields(method):  # type: ignore[arg-type]
        number = getattr(method, option.name)
        positive = option.name in ("beta", "segments")
        if not math.isfinite(number) or number < 0 or (positive and number == 0):
            least = "above 0" if positive else "at least 0"
            raise TrustChainError(f"{name}: {option.name}={number:g} must be {least}")
