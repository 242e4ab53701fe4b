"""How forgetting is measured, from `--set KEY=VALUE`."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from trustchain_ray.config import Config
from trustchain_ray.errors import UsageError
from trustchain_ray.forgetting.metrics.measuring import Settings
from trustchain_ray.forgetting.metrics.quantisation import KINDS
from trustchain_ray.forgetting.metrics.relearning import Relearning

MARGINS = ("loss", "probability", "log_truth_ratio", "rouge")
INFINITE = float("inf")
RECORDS = 200
"""Most records of the run in a default set."""

ATTACKED = 1000
"""Most members, and most others, of an organization that attacks are measured on by default."""


@dataclass(frozen=True)
class Measurement:
    """How to measure, and most records of the run in a default set."""

    settings: Settings
    records: int = RECORDS


def _whole(least: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        value = int(text)
        if value < least:
            raise ValueError(f"must be at least {least}")
        return value

    return read


def _number(least: float, most: float) -> Callable[[str], float]:
    def read(text: str) -> float:
        value = float(text)
        if math.isinf(value):
            raise ValueError("must be finite")
        if not least < value <= most:
            raise ValueError(f"must be above {least:g}" + (f" and at most {most:g}" if most < INFINITE else ""))
        return value

    return read


def _kinds(text: str) -> tuple[str, ...]:
    kinds = tuple(kind for kind in text.split(",") if kind != "none")
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise ValueError(f"{unknown[0]!r} is none of {', '.join(KINDS)}, none")
    return kinds


KEYS: dict[str, Callable[[str], Any]] = {
    "records": _whole(1),
    "new_tokens": _whole(0),
    "min_k": _number(0, 1),
    "confidence": _number(0, 0.9999),
    "batch": _whole(1),
    "quantisations": _kinds,
    **{f"margin.{metric}": _number(0, INFINITE) for metric in MARGINS},
    "relearn.lr": _number(0, INFINITE),
    "relearn.batch": _whole(1),
    "relearn.most_steps": _whole(1),
    "relearn.every": _whole(1),
    "relearn.slack": _number(-INFINITE, INFINITE),
}


def measurement_of(pairs: Sequence[str], config: Config, relearn: bool = True) -> Measurement:
    """Settings from pairs; generated answers are by default as long as `model.max_length` lets answers be.

    Raises
    ------
    UsageError
        An unknown key, a value out of range, or ROUGE of a classification.
    """
    causal = config.model.task == "causal"
    values: dict[str, Any] = {"new_tokens": min(Settings().new_tokens, config.model.max_length) if causal else 0}
    values |= _read(pairs, tuple(KEYS))
    if values["new_tokens"] and not causal:
        raise UsageError("--set new_tokens: ROUGE reads generated answers, and this run's model is a classification")
    records = values.pop("records", RECORDS)
    parts: dict[str, dict[str, Any]] = {"margin": {}, "relearn": {}}
    for key in [key for key in values if "." in key]:
        part, name = key.split(".")
        parts[part][name] = values.pop(key)
    relearning = dataclasses.replace(Relearning(), **parts["relearn"]) if relearn else None
    return Measurement(Settings(**values, margins=parts["margin"], relearning=relearning), records)


def attack_settings_of(pairs: Sequence[str]) -> Measurement:
    """How attacks on privacy are measured, from pairs; 1,000 records of an organization at most unless they say.

    Raises
    ------
    UsageError
        An unknown key, or a value out of range.
    """
    values = _read(pairs, ("records", "min_k", "confidence", "batch"))
    records = values.pop("records", ATTACKED)
    return Measurement(Settings(**values, new_tokens=0, quantisations=(), relearning=None), records)


def _read(pairs: Sequence[str], keys: Sequence[str]) -> dict[str, Any]:
    """Values of pairs whose keys are among some."""
    values = {}
    for pair in pairs:
        key, _, text = pair.partition("=")
        if key not in keys:
            raise UsageError(f"--set {pair}: there is no {key!r}; there are {', '.join(keys)}")
        try:
            values[key] = KEYS[key](text)
        except ValueError as error:
            raise UsageError(f"--set {pair}: {error}") from None
    return values
