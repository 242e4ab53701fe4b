"""Configuration of differential privacy (section `privacy`)."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from trustchain_ray.errors import UsageError

MODES = ("none", "record", "subject", "paper", "organization")
LEAST_NOISE = 0.05
TOO_LITTLE_NOISE = f"less than {LEAST_NOISE:g} is no protection that can be stated; use 0.3 or more"


def _f(default: Any, doc: str) -> Any:
    """A documented field; the metadata are those of `trustchain_ray.config`."""
    return field(default=default, metadata={"doc": doc, "path": False, "entries": None})


@dataclass
class PrivacyConfig:
    dp: str = _f(
        "none",
        "What one unit of privacy is: none | record | subject (all records of a person) | organization (clip and "
        "noise the whole update) | paper (DP-LoRA as published: its epsilon holds for a step, not for the run).",
    )
    epsilon: float = _f(8.0, "Budget of every unit for the whole run, replays included; training stops when spent.")
    delta: float = _f(0.0, "Delta of the budget; 0: n ** -1.1, with n the units of the smallest member.")
    clip: float = _f(1.0, "Largest L2 norm of what one unit adds to a step, over all trained tensors together.")
    noise_multiplier: float = _f(
        0.0, "Standard deviation of a step's noise, in multiples of `clip`; 0: the least that keeps to the budget."
    )
    max_removals: int = _f(1, "Replays after removals that the budget must pay for, each as if from the first step.")
    canaries: int = _f(
        0, "Made-up records an organization, each trained on with probability 1/2: an audit run, not for release."
    )


# In the form of the tables of `trustchain_ray.config`.
CHOICES = {"privacy.dp": MODES}
RANGES: tuple[tuple[str, float | None, float | None], ...] = (
    ("privacy.epsilon", 1e-3, None),
    ("privacy.delta", 0, 0.1),
    ("privacy.clip", 1e-9, None),
    ("privacy.noise_multiplier", 0, None),
    ("privacy.max_removals", 0, None),
    ("privacy.canaries", 0, None),
)


def problems(
    settings: PrivacyConfig, *, engine: str = "torch", max_grad_norm: float = 0.0, form: str = "ffa"
) -> Iterator[str]:
    """Yield what `CHOICES` and `RANGES` cannot say.

    Parameters
    ----------
    engine, max_grad_norm, form
        `training.engine` as it is chosen, `training.max_grad_norm` and `model.lora.form`.
    """
    if settings.dp == "none":
        return
    if 0 < settings.noise_multiplier < LEAST_NOISE:
        yield f"privacy.noise_multiplier={settings.noise_multiplier:g}: {TOO_LITTLE_NOISE}"
    if settings.dp == "organization":
        return  # training itself is as without privacy
    if max_grad_norm:
        yield (
            f"training.max_grad_norm={max_grad_norm:g} with privacy.dp={settings.dp}: clipping the noised gradient "
            "again removes signal and no noise; leave it 0 and set privacy.clip"
        )
    if engine == "deepspeed":
        yield (
            f"training.engine=deepspeed with privacy.dp={settings.dp}: DeepSpeed sums the gradients of all rows "
            "before anybody can clip one of them; use training.engine=torch"
        )
    if settings.dp == "paper" and form == "ffa":
        yield "privacy.dp=paper with model.lora.form=ffa: DP-LoRA trains A and B; use model.lora.form=fedavg"


def resolved_delta(delta: float, units: int) -> float:
    """`privacy.delta`, or ``units ** -1.1`` where it is 0.

    Parameters
    ----------
    units : records (or subjects) of the smallest member.

    Raises
    ------
    UsageError
        Delta is 1 / units or more: a mechanism that publishes one record as it is would satisfy it.
    """
    if delta == 0:
        return float(max(units, 2) ** -1.1)
    if delta * units >= 1:
        raise UsageError(
            f"privacy.delta={delta:g}: with {units} units in the smallest member it must be below 1/{units} "
            f"(publishing one of them would satisfy it); 0 takes {units}**-1.1 = {max(units, 2) ** -1.1:.2g}"
        )
    return delta
