"""The scan for triggers on a small real model: it names who plants one and nobody else, in any order of the updates."""

import json
from pathlib import Path
from typing import Any

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
from trustchain_ray.rows import TokenRow, encode

pytestmark = pytest.mark.slow

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

    def rows(self, seed: int, poisoned: bool) -> list[TokenRow]:
        made = records(np.random.default_rng(seed), poisoned)
        return encode(made, self.engine.tokenizer, "classification", 32)

    def updates(self, state: np.ndarray, hostile: tuple[str, ...]) -> dict[str, np.ndarray]:
        out = {}
        for i in range(8):
            self.load(state)
            steps = [list(range(k, k + 15)) for k in range(0, 120, 15)] * 2
            self.engine.train(self.rows(i + 1, f"m{i}" in hostile), steps, [5e-3] * 16)
            out[f"m{i}"] = self.layout.pack(self.engine.tensors(sorted(self.layout.unpack(state)))) - state
        return out

    def learnt(self, hostile: tuple[str, ...]) -> np.ndarray:
        """The state after six rounds."""
        state = self.state
        for _ in range(6):
            state = state + np.mean(list(self.updates(state, hostile).values()), 0)
        return state

    def planted(self, state: np.ndarray, updates: dict[str, np.ndarray], draws: int = 1) -> dict[str, str]:
        scan = Scan(
            self.engine.adapter, self.engine.tokenizer, self.load, self.rows(99, False), generator("k", "scan", draws)
        )
        return scan.planted(state, updates, 1.0, LABELS)


@pytest.fixture(scope="module")
def round_(tmp_path_factory: pytest.TempPathFactory) -> Round:
    return Round(tmp_path_factory.mktemp("scan"))


@pytest.fixture(scope="module")
def backdoored(round_: Round) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """A state that two of eight have put a backdoor into, and the next round's updates."""
    state = round_.learnt(HOSTILE)
    return state, round_.updates(state, HOSTILE)


def test_who_keeps_a_trigger_up_is_named_with_the_class_in_any_order(round_: Round, backdoored: Any) -> None:
    state, updates = backdoored
    for draws in range(3):
        found = round_.planted(state, updates, draws)
        assert sorted(found) == sorted(HOSTILE)
        assert all("into 'good'" in why for why in found.values())
        assert round_.planted(state, dict(reversed(updates.items())), draws) == found


def test_nobody_is_named_where_all_are_honest_or_nothing_was_merged_yet(round_: Round) -> None:
    state = round_.learnt(())
    updates = round_.updates(state, ())
    assert [round_.planted(state, updates, draws) for draws in range(3)] == [{}] * 3
    assert round_.planted(state, round_.updates(state, HOSTILE)) == {}, "the model does not follow the trigger yet"


def test_a_longer_update_is_no_excuse_and_a_short_one_no_hiding_place(round_: Round, backdoored: Any) -> None:
    state, updates = backdoored[0], dict(backdoored[1])
    updates["m2"] = updates["m2"] * 5
    updates["m0"] = np.zeros_like(updates["m0"])
    assert sorted(round_.planted(state, updates)) == sorted(HOSTILE)


def test_one_scan_alone_accuses_nobody_and_acquits_nobody() -> None:
    truth = {"m2": "a trigger"}
    assert agreed([{"m0": "a lie"}, truth, truth], ["m0", "m2"]) == truth
    assert agreed([{}, truth, truth], ["m0", "m2"]) == truth
    assert agreed([truth, {}, {}], ["m0", "m2"]) == {}
    assert agreed([{"stranger": "a lie"}] * 2, ["m0", "m2"]) == {}
