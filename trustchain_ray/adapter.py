"""Adapters as named float32 tensors: one buffer to move, one digest, safetensors to store.

Names are those of PEFT's adapter files, so that what is published loads with `PeftModel.from_pretrained`.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from ledger.canonical import safetensors_entries, tensors_digest, write_atomic
from trustchain_ray.errors import TrustChainError

Tensors = dict[str, np.ndarray]
LORA_A, LORA_B = ".lora_A.weight", ".lora_B.weight"


@dataclass(frozen=True)
class Layout:
    """Names and shapes of the tensors of a buffer, in the order of their names."""

    shapes: tuple[tuple[str, tuple[int, ...]], ...]

    @classmethod
    def of(cls, tensors: Mapping[str, np.ndarray]) -> "Layout":
        return cls(tuple((name, tuple(tensors[name].shape)) for name in sorted(tensors)))

    @property
    def size(self) -> int:
        """Number of float32 values."""
        return sum(int(np.prod(shape)) for _, shape in self.shapes)

    def pack(self, tensors: Mapping[str, np.ndarray]) -> np.ndarray:
        """One contiguous float32 buffer of shape ``(size,)``."""
        buffer = np.empty(self.size, np.float32)
        offset = 0
        for name, shape in self.shapes:
            end = offset + int(np.prod(shape))
            buffer[offset:end] = np.asarray(tensors[name], np.float32).reshape(-1)
            offset = end
        return buffer

    def unpack(self, buffer: np.ndarray) -> Tensors:
        """Views into a buffer, by name."""
        tensors, offset = {}, 0
        for name, shape in self.shapes:
            end = offset + int(np.prod(shape))
            tensors[name] = buffer[offset:end].reshape(shape)
            offset = end
        return tensors


def digest(tensors: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over the canonical encoding (sorted names, dtype, shape, little-endian bytes)."""
    return tensors_digest(
        {name: ("F32", tuple(t.shape), np.ascontiguousarray(t, "<f4").data) for name, t in tensors.items()}
    )


def serialise(tensors: Mapping[str, np.ndarray], metadata: dict[str, str] | None = None) -> bytes:
    """The bytes of a safetensors file, the same for the same tensors."""
    return save({name: np.asarray(tensors[name], "<f4", order="C") for name in sorted(tensors)}, metadata)


def save_tensors(path: Path, tensors: Mapping[str, np.ndarray], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file whole or not at all."""
    write_atomic(path, serialise(tensors, metadata))


def load_tensors(path: Path) -> Tensors:
    """Read a safetensors file strictly; the tensors are copies.

    Raises
    ------
    TrustChainError
        The file is missing or damaged, or holds something other than float32.
    """
    try:
        entries, _ = safetensors_entries(path)
    except Exception as error:
        raise TrustChainError(f"{os.fspath(path)} is not a usable adapter file: {error}") from None
    tensors = {}
    for name, (dtype, shape, data) in entries.items():
        if dtype != "F32":
            raise TrustChainError(f"{path}: tensor {name} has type {dtype}; adapters are stored as F32")
        tensors[name] = np.frombuffer(data, "<f4").reshape(shape).copy()
    return tensors


def layers(tensors: Mapping[str, np.ndarray]) -> list[str]:
    """Prefixes of the layers that have a LoRA B, sorted."""
    return sorted(name.removesuffix(LORA_B) for name in tensors if name.endswith(LORA_B))


def head(tensors: Mapping[str, np.ndarray]) -> Tensors:
    """The tensors that are not LoRA factors: a classification head that is trained in full."""
    return {name: t for name, t in tensors.items() if not name.endswith((LORA_A, LORA_B))}
