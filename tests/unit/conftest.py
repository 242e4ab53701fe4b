"""Small configurations, adapters and record files for the tests of plain modules."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trustchain_ray.adapter import Tensors
from trustchain_ray.config import Config, SourceConfig

Rows = list[dict[str, Any]]


@pytest.fixture
def write_jsonl(tmp_path: Path) -> Callable[[str, Rows], str]:
    """Write rows to a JSONL file below the test's folder; returns its path."""

    def write(name: str, rows: Rows) -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return write


@pytest.fixture
def config_of() -> Callable[..., Config]:
    """A configuration whose organization `north` has the given source(s); keywords set fields of `data`."""

    def make(train: str = "", test: str = "", labels: tuple[str, ...] = (), **data: Any) -> Config:
        config = Config()
        config.model.base = "some/model"
        config.data.split = "sources"
        config.data.organizations = {"north": SourceConfig(train=train, test=test)}
        config.data.train, config.data.test = train, test  # of the other splits
        if labels:
            config.model.task, config.model.labels = "classification", list(labels)
        for name, value in data.items():
            setattr(config.data, name, value)
        return config

    return make


@pytest.fixture
def adapter_of() -> Callable[..., Tensors]:
    """Random PEFT tensors: two layers of the given widths (out, in) and, if asked for, a head."""

    def make(
        seed: int,
        rank: int = 3,
        widths: tuple[tuple[int, int], ...] = ((6, 8), (10, 5)),
        head: bool = False,
    ) -> Tensors:
        draws = np.random.default_rng(seed)
        tensors: Tensors = {}
        for i, (out, width) in enumerate(widths):
            tensors[f"layer{i}.lora_A.weight"] = draws.normal(0, 0.3, (rank, width)).astype(np.float32)
            tensors[f"layer{i}.lora_B.weight"] = draws.normal(0, 0.3, (out, rank)).astype(np.float32)
        if head:
            tensors["classifier.weight"] = draws.normal(0, 0.3, (2, 4)).astype(np.float32)
        return tensors

    return make
