"""Relearn time: how soon a few steps bring the forgotten records back."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from trustchain_ray.engines.torch_engine import TorchEngine
from trustchain_ray.errors import TrustChainError
from trustchain_ray.forgetting.batches import keyed_batches
from trustchain_ray.forgetting.metrics.scoring import AdapterState, load
from trustchain_ray.rows import TokenRow


@dataclass(frozen=True)
class Relearning:
    """How the relearning attack trains: the same for every model that is compared.

    Attributes
    ----------
    lr : constant learning rate (AdamW, as in training).
    batch : records of a step.
    most_steps : give up after so many.
    every : measure the loss after so many steps; the resolution of the relearn time.
    slack : nats above the old model's loss that count as back (used by `evaluate_forgetting`).
    """

    lr: float = 1e-3
    batch: int = 8
    most_steps: int = 200
    every: int = 1
    slack: float = 1e-4


@dataclass(frozen=True)
class RelearnTime:
    """`steps` until the loss was reached (0: it never was lost; None: not within the limit), and the losses that
    were measured, the first before any step."""

    steps: int | None
    losses: tuple[float, ...]


def relearn_time(
    engine: TorchEngine,
    start: AdapterState,
    forget: Sequence[TokenRow],
    target: float,
    key: bytes | str,
    known: Sequence[TokenRow] | None = None,
    settings: Relearning | None = None,
) -> RelearnTime:
    """Fine-tune from `start` until the mean loss on the forget set is at most `target`.

    Parameters
    ----------
    target : the loss of the old model on `forget`, by :func:`mean_loss`.
    key : decides the order of the records; the same key for all models.
    known : what the attacker trains on, e.g. a tenth of the forget set or related public text; default: all.

    Raises
    ------
    TrustChainError
        No rows, or settings out of range.
    """
    settings = settings or Relearning()
    rows = list(forget if known is None else known)
    if not forget or not rows:
        raise TrustChainError("relearn time: there are no forget records (or none that the attacker knows)")
    if min(settings.batch, settings.most_steps, settings.every) < 1 or not settings.lr > 0:
        raise TrustChainError("relearn time: lr, batch, most_steps and every must be above 0")
    load(engine, start)
    losses = [mean_loss(engine, forget)]
    reached: list[int] = [0] if losses[0] <= target else []

    def after_step(done: int) -> bool:
        if done % settings.every and done < settings.most_steps:
            return False
        losses.append(mean_loss(engine, forget))
        if losses[-1] <= target:
            reached.append(done)
        return bool(reached)

    if not reached:
        steps = keyed_batches(key, "relearn", len(rows), settings.batch, settings.most_steps)
        engine.train(rows, steps, [settings.lr] * len(steps), sorted(start.tensors), after_step=after_step)
    return RelearnTime(reached[0] if reached else None, tuple(losses))


def relearn_ratio(model: RelearnTime, retrained: RelearnTime) -> float | None:
    """Steps of the model over steps of the retrained one; 1 is ideal, below 1 means that something was left.

    None where the retrained model did not reach the loss either, or had it from the start; infinity where the
    model alone did not.
    """
    if not retrained.steps:
        return None
    return math.inf if model.steps is None else model.steps / retrained.steps


def mean_loss(engine: TorchEngine, rows: Sequence[TokenRow]) -> float:
    """Mean of mean-token losses (nats) under the loaded adapter, in the one rounding that relearn times compare."""
    found = engine.evaluate(rows)
    return found.loss / found.records
