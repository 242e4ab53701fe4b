"""Learning rates of all steps of a run: constants of the manifest, never functions of the records."""

import math

from trustchain_ray.config import TrainingConfig


def learning_rates(training: TrainingConfig, first: int, count: int, total: int) -> list[float]:
    """Rates of the steps ``first .. first + count - 1`` of a run of `total` steps."""
    rates = []
    for step in range(first, first + count):
        warmth = min(1.0, (step + 1) / training.warmup_steps) if training.warmup_steps else 1.0
        progress = min(1.0, step / max(1, total))
        decay = {
            "constant": 1.0,
            "linear": 1.0 - progress,
            "cosine": 0.5 * (1.0 + math.cos(math.pi * progress)),
        }[training.schedule]
        rates.append(training.lr * warmth * decay)
    return rates
