"""Training engines behind one interface: `torch` (the canonical deterministic program) and `deepspeed`."""

from typing import TYPE_CHECKING, Any

from trustchain_ray.config import Config

if TYPE_CHECKING:
    from trustchain_ray.engines.base import Engine


def choose(config: Config) -> str:
    """The engine of `training.engine`; `auto` is deepspeed where workers have GPUs, else torch."""
    if config.training.engine != "auto":
        return config.training.engine
    if config.privacy.dp in ("record", "subject", "paper"):
        return "torch"  # the other one sums gradients before a record's can be clipped
    several = config.resources.mode == "dedicated" and config.resources.workers > 1
    return "deepspeed" if several or config.resources.gpus_per_worker > 0 else "torch"


def make(config: Config, base: str, device: str, **ranks: Any) -> "Engine":
    """The configured engine with its model loaded."""
    if choose(config) == "deepspeed":
        from trustchain_ray.engines.deepspeed_engine import DeepSpeedEngine

        return DeepSpeedEngine(config, base, device, **ranks)
    from trustchain_ray.engines.torch_engine import TorchEngine

    return TorchEngine(config, base, device)
