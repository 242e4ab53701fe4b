"""An approximate method with its options, as a worker applies it."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from trustchain_ray.adapter import Tensors
from trustchain_ray.config import Config
from trustchain_ray.errors import UsageError
from trustchain_ray.forgetting.approximate import METHODS
from trustchain_ray.forgetting.approximate.loop import Loop, Unlearned, unlearn_approximately
from trustchain_ray.forgetting.metrics.scoring import AdapterState
from trustchain_ray.rows import TokenRow
from trustchain_ray.worker import Packed


def settings_of(method: str, options: dict[str, float]) -> tuple[Any, Loop]:
    """A method and its loop from options by name.

    Raises
    ------
    UsageError
        An option that neither has.
    """
    made: list[Any] = []
    left = dict(options)
    for cls in (METHODS[method], Loop):
        kinds = {field.name: field.type for field in fields(cls)}
        own = {name: left.pop(name) for name in list(left) if name in kinds}
        made.append(cls(**{n: int(v) if kinds[n] in (int, "int") else float(v) for n, v in own.items()}))
    if left:
        known = sorted({f.name for cls in (METHODS[method], Loop) for f in fields(cls)})
        raise UsageError(f"{method} has no option {', '.join(sorted(left))}; it has {', '.join(known)}")
    return made[0], made[1]


def unlearn(
    engine: Any,
    config: Config,
    forget: Sequence[TokenRow],
    retain: Sequence[TokenRow],
    begun: Tensors,
    residual: Packed | None,
    method: str,
    options: dict[str, float],
) -> Unlearned:
    """Apply a method to an adapter. Raises as :func:`unlearn_approximately`."""
    chosen, loop = settings_of(method, options)
    state = AdapterState(begun, config.model.lora.alpha, residual.tensors() if residual else None)
    return unlearn_approximately(engine, chosen, state, forget, retain, config.run.key, loop)
