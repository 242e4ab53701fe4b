# ruff: noqa: RUF009 - `_f` makes a field, it is no default
"""Configuration of sweeps (section `sweep`)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from trustchain_ray.policy.settings import _f


@dataclass
class SweepConfig:
    parameters: dict[str, Any] = _f(
        {},
        "The grid: any dotted key with a list of values or a range {from, to, count, scale: linear | log}; null: none.",
    )
    task: str = _f("policy", "policy (learn policies of the game) | train (run real federations).")
    learner: str = _f("tabular", "Of the task policy: tabular (Q-tables) | dqn (participation.learning).")
    episodes: int = _f(2_000, "Episodes of a tabular learning.")
    repeats: int = _f(5, "Repeats of a point with other random choices: learning seeds, or keys of real runs.")
    concurrent: int = _f(0, "Points at work at the same time; 0: as many as fit into the cluster.")
    restarts: int = _f(2, "Begin a point again at most so often when its process dies.")
    axis: str = _f("", "Parameter on the horizontal axis of the plots; empty: the numeric one with most values.")


# In the form of the tables of `trustchain_ray.config`.
CHOICES = {"sweep.task": ("policy", "train"), "sweep.learner": ("tabular", "dqn")}
RANGES: tuple[tuple[str, float | None, float | None], ...] = (
    ("sweep.episodes", 1, None),
    ("sweep.repeats", 1, None),
    ("sweep.concurrent", 0, None),
    ("sweep.restarts", 0, None),
)


def problems(settings: SweepConfig) -> Iterator[str]:
    """Yield what `CHOICES` and `RANGES` cannot say; the values of parameters are checked when a sweep begins."""
    if settings.axis and settings.parameters and settings.axis not in settings.parameters:
        yield f"sweep.axis={settings.axis!r}: is not in sweep.parameters ({', '.join(map(str, settings.parameters))})"
