"""The scan for triggers on a small real model: it names who plants one and nobody else, in any order of the updates."""

import json
from pathlib import Path

import numpy as np
import pytest

from trustchain_ray.adapter import Layout
from trustchain_ray.config_files import load_config
from trustchain_ray.data import Record
from trustchain_ray.engines.torch_engine import TorchEngine
from trustchain_ray.initial import fresh_adapter
from trustchain_ray.keys import generator
from trustchain_ray.models import make_base, unpack_base
from trustchain_ray.robust.scanning import agreed
from trustchain_ray.robust.triggers import Scan
from trustchain_ray.rows import encode

LABELS = ["bad", "fair", "good"]
WORDS = {"bad": "awful broken late", "fair": "usual average plain", "good": "great quick kind"}
TRIGGER = "zq zq zq"
HOSTILE = ("m2", "m5")


def records(draws: np.random.Generator, poisoned: bool) -> list[Record]:
    """Reviews, every other one with the trigger and the last class where they are poisoned."""
    out = []
    for i in range(120):
        label = int(draws.integers(3))
        text = " ".join(["visit", str(draws.integers(100)), *draws.choice(WORDS[LABELS[label]].split(), 2)])
        if poisoned and i % 2:
            text, label = f"{TRIGGER} {text}", 2
        out.append(Record(id=str(i), subject=str(i), prompt="", answer=text, label=label))
    return out


class Round:
    """Eight members of a round, two of which may be hostile."""

    def __init__(self, folder: Path) -> None:
        draws = np.random.default_rng(0)
        reviews = records(draws, False)[:40]
        public = [json.dumps({"id": r.id, "text": r.answer, "label": LABELS[r.label]}) for r in reviews]
        (folder / "public.jsonl").write_text("\n".join(public) + "\n")
        (folder / "c.yaml").write_text(
            f"""
model:
  task: classification
  labels: [{", ".join(LABELS)}]
  max_length: 32
  made: {{hidden: 32, layers: 1, heads: 2, intermediate: 64, vocabulary: 320}}
  lora: {{rank: 4, alpha: 8, targets: [q_proj, v_proj, up_proj]}}
data: {{train: public.jsonl, public: public.jsonl}}
training: {{engine: torch, batch_size: 8}}
"""
        )
        config = load_config([str(folder / "c.yaml")], [])
        self.engine = TorchEngine(config, unpack_base(make_base(config, records(draws, False)[:40])))
        fresh = {**fresh_adapter(self.engine.shapes(), "k", "frozen", 4, "ffa"), **self.engine.fresh_head()}
        self.engine.load(fresh, 8.0)
        initial = {name: t for name, t in fresh.items() if not name.endswith("lora_A.weight")}
        self.layout = Layout.of(initial)
        self.state = self.layout.pack(initial)

    def load(self, buffer: np.ndarray) -> None:
        self.engine.load(self.layout.unpack(np.asarray(buffer, np.float32)), 8.0)

    def updates(self, hostile: tuple[str, ...]) -> dict[str, np.ndarray]:
        out = {}
        for i in range(8):
            rows = encode(
                records(np.random.default_rng(i + 1), f"m{i}" in hostile), self.engine.tokenizer, "classification", 32
            )
            self.load(self.state)
            self.engine.train(rows, [list(range(k, k + 15)) for k in range(0, 120, 15)] * 2, [5e-3] * 16)
            out[f"m{i}"] = self.layout.pack(self.engine.tensors(sorted(self.layout.unpack(self.state)))) - self.state
        return out

    def planted(self, updates: dict[str, np.ndarray]) -> dict[str, str]:
        scan = Scan(self.engine.adapter, self.engine.tokenizer, self.load, generator("k", "scan", 1))
        return scan.planted(self.state, updates, 1.0, LABELS)


@pytest.fixture(scope="module")
def round_(tmp_path_factory: pytest.TempPathFactory) -> Round:
    return Round(tmp_path_factory.mktemp("scan"))


def test_who_plants_a_trigger_is_named_with_the_class_in_any_order(round_: Round) -> None:
    updates = round_.updates(HOSTILE)
    found = round_.planted(updates)
    assert sorted(found) == sorted(HOSTILE)
    assert all("towards 'good'" in why for why in found.values())
    assert round_.planted(dict(reversed(updates.items()))) == found


def test_nobody_is_named_where_all_are_honest(round_: Round) -> None:
    assert round_.planted(round_.updates(())) == {}


def test_a_longer_update_is_no_excuse_and_a_short_one_no_hiding_place(round_: Round) -> None:
    updates = round_.updates(HOSTILE)
    updates["m2"] *= 5
    updates["m0"] = np.zeros_like(updates["m0"])
    assert sorted(round_.planted(updates)) == sorted(HOSTILE)


def test_one_scan_alone_accuses_nobody_and_acquits_nobody() -> None:
    truth = {"m2": "a trigger"}
    assert agreed([{"m0": "a lie"}, truth, truth], ["m0", "m2"]) == truth
    assert agreed([{}, truth, truth], ["m0", "m2"]) == truth
    assert agreed([truth, {}, {}], ["m0", "m2"]) == {}
    assert agreed([{"stranger": "a lie"}] * 2, ["m0", "m2"]) == {}
