"""PEFT adapter folders, and the torch engine that they are loaded into."""

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trustchain_ray.adapter import LORA_A, LORA_B, Tensors, digest, load_tensors
from trustchain_ray.config import Config
from trustchain_ray.engines.torch_engine import TorchEngine
from trustchain_ray.errors import TrustChainError, UsageError
from trustchain_ray.forgetting.metrics.scoring import AdapterState
from trustchain_ray.models import base_digest, quietly
from trustchain_ray.run_directory import RunDirectory

PLAIN: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "use_rslora": (False, None),
    "use_dora": (False, None),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
}
"""Settings of an adapter that change what its tensors mean, and the values that the engine knows."""


@dataclass(frozen=True)
class Adapter:
    """A published adapter.

    Attributes
    ----------
    folder : where it lies.
    tensors : float32, by PEFT name.
    alpha : `lora_alpha`; ``B A`` counts alpha / rank.
    digest : of the tensors, as logs name models.
    base : digest of the base model (:func:`trustchain_ray.models.base_digest`).
    """

    folder: Path
    tensors: Tensors
    alpha: float
    digest: str
    base: str

    @property
    def state(self) -> AdapterState:
        """As an engine loads it. A stacked form needs no change of the base: its stack is this adapter."""
        return AdapterState(self.tensors, self.alpha)

    @property
    def rank(self) -> int:
        return max(int(tensor.shape[0]) for name, tensor in self.tensors.items() if name.endswith(LORA_A))


def read_adapter(where: str | Path) -> Adapter:
    """The released model of a run directory, or a PEFT adapter folder.

    Raises
    ------
    UsageError
        Neither of them, or a run without a model.
    TrustChainError
        Damaged files, or an adapter that is more than plain LoRA.
    """
    path = Path(where)
    if (path / "config.yaml").is_file():
        if not (path / "model").is_dir():
            raise UsageError(f"{path} has released no model yet: trustchain train --resume {path}")
        return _read(path / "model", str(RunDirectory(path).read_json("manifest.json")["base"]))
    if not (path / "adapter_config.json").is_file():
        raise UsageError(f"{path} is neither a run directory (config.yaml) nor an adapter folder (adapter_config.json)")
    return _read(path, None)


def _read(folder: Path, base: str | None) -> Adapter:
    name = folder / "adapter_config.json"
    try:
        settings = json.loads(name.read_text(encoding="utf-8"))
        alpha = float(settings["lora_alpha"])
        base = base or base_digest(str(settings["base_model_name_or_path"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrustChainError(f"{name} is missing or damaged: {error}") from None
    for key, known in PLAIN.items():
        if settings.get(key, known[0]) not in known:
            raise TrustChainError(f"{name}: {key}={settings[key]!r} cannot be evaluated; plain LoRA adapters can")
    tensors = load_tensors(folder / "adapter_model.safetensors")
    if not any(key.endswith(LORA_A) for key in tensors):
        raise TrustChainError(f"{folder}: holds no LoRA factors; it is not a LoRA adapter")
    return Adapter(folder, tensors, alpha, digest(tensors), base)


def open_engine(config: Config, base: str, adapters: Sequence[Adapter]) -> TorchEngine:
    """The torch engine with a base, wide enough for all of the adapters.

    Parameters
    ----------
    config : of a run; its engine, rank and Ray settings do not count.
    base : folder or hub id.

    Raises
    ------
    TrustChainError
        An adapter of another base, or for other layers.
    """
    config = copy.deepcopy(config)
    config.training.engine = "torch"
    config.model.lora.rank, config.model.lora.ranks = max(adapter.rank for adapter in adapters), {}
    expected = base_digest(base)
    for adapter in adapters:
        if adapter.base != expected:
            raise TrustChainError(
                f"{adapter.folder} was trained on another base ({adapter.base[:16]}) than the run's ({expected[:16]}); "
                "only adapters of one base can be compared"
            )
    wants_gpu = torch.cuda.is_available() and config.resources.gpus_per_worker > 0
    with quietly():
        engine = TorchEngine(config, base, "cuda:0" if wants_gpu else "cpu")
    for adapter in adapters:
        _check_layers(adapter, engine.shapes())
    return engine


def _check_layers(adapter: Adapter, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse tensors that the engine has not, or not in this size (but for the rank)."""
    different = sorted(set(adapter.tensors) ^ set(shapes))
    if different:
        raise TrustChainError(
            f"{adapter.folder} has other layers than the run's model (model.lora.targets): {different[0]}"
            + (f" and {len(different) - 1} more" if len(different) > 1 else "")
        )
    for name, tensor in adapter.tensors.items():
        rank_axis = 0 if name.endswith(LORA_A) else 1 if name.endswith(LORA_B) else None
        if tensor.ndim != len(shapes[name]) or any(
            size != expected
            for axis, (size, expected) in enumerate(zip(tensor.shape, shapes[name], strict=True))
            if axis != rank_axis
        ):
            raise TrustChainError(f"{adapter.folder}: {name} has shape {tensor.shape}, the base needs {shapes[name]}")
