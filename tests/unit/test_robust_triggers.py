"""The scan for triggers on a small real model: it names who plants one and nobody else, in any order of the updates."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trustchain_ray.adapter import Layout
from trustchain_ray.config_files import load_config
from trustchain_ray.data import Record
from trustchain_ray.engines.torch_engine import TorchEngine
from trustchain_ray.initial import fresh_adapter
from trustchain_ray.keys import generator
from trustchain_ray.models import make_base, unpack_base
from trustchain_ray.robust.scanning import agreed
from trustchain_ray.robust.triggers import Scan, Suspect
from trustchain_ray.rows import TokenRow, encode

pytestmark = pytest.mark.slow

LABELS = ["bad", "fair", "good"]
WORDS = {"bad": "awful broken late", "fair": "usual average plain", "good": "great quick kind"}
TRIGGER = "zq zq zq"
HOSTILE = ("m2", "m5")
Put = dict[str, np.ndarray]


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

    def updates(self, state: np.ndarray, hostile: tuple[str, ...]) -> Put:
        out = {}
        for i in range(8):
            self.load(state)
            steps = [list(range(k, k + 15)) for k in range(0, 120, 15)] * 2
            self.engine.train(self.rows(i + 1, f"m{i}" in hostile), steps, [5e-3] * 16)
            out[f"m{i}"] = self.layout.pack(self.engine.tensors(sorted(self.layout.unpack(state)))) - state
        return out

    def learnt(self, hostile: tuple[str, ...]) -> tuple[np.ndarray, Put]:
        """The state after six rounds, and what each member has put into it."""
        state, put = self.state, {f"m{i}": np.zeros_like(self.state) for i in range(8)}
        for _ in range(6):
            parts = {name: update / 8 for name, update in self.updates(state, hostile).items()}
            put = {name: put[name] + part for name, part in parts.items()}
            state = state + np.sum(list(parts.values()), 0)
        return state, put

    def planted(self, state: np.ndarray, put: Put, draws: int = 1) -> dict[str, str]:
        scan = Scan(
            self.engine.adapter, self.engine.tokenizer, self.load, self.rows(99, False), generator("k", "scan", draws)
        )
        return scan.planted(state, put, LABELS)


@pytest.fixture(scope="module")
def round_(tmp_path_factory: pytest.TempPathFactory) -> Round:
    return Round(tmp_path_factory.mktemp("scan"))


@pytest.fixture(scope="module")
def backdoored(round_: Round) -> tuple[np.ndarray, Put]:
    """A state that two of eight have put a backdoor into."""
    return round_.learnt(HOSTILE)


def test_who_put_a_trigger_in_is_named_with_the_class_in_any_order(round_: Round, backdoored: Any) -> None:
    state, put = backdoored
    for draws in range(3):
        found = round_.planted(state, put, draws)
        assert sorted(found) == sorted(HOSTILE)
        assert all("into 'good'" in why for why in found.values())
        assert round_.planted(state, dict(reversed(put.items())), draws) == found


def test_nobody_is_named_where_all_are_honest_or_the_trigger_moves_nothing_yet(round_: Round) -> None:
    state, put = round_.learnt(())
    assert [round_.planted(state, put, draws) for draws in range(3)] == [{}] * 3
    assert round_.planted(round_.state, dict.fromkeys(put, np.zeros_like(round_.state))) == {}


def test_who_stopped_planting_is_named_for_what_it_put_in_before(round_: Round, backdoored: Any) -> None:
    state, put = backdoored
    parts = {name: update / 8 for name, update in round_.updates(state, ()).items()}
    put = {name: put[name] + part for name, part in parts.items()}
    assert sorted(round_.planted(state + np.sum(list(parts.values()), 0), put)) == sorted(HOSTILE)


def test_accomplices_of_a_planter_are_named_and_members_with_words_of_their_own_are_not() -> None:
    def planters(effect: float, **lost: float) -> list[str]:
        others = {f"m{i}": 0.1 * (i % 3) for i in range(8 - len(lost))}
        return sorted(Suspect(0, torch.tensor([7]), effect, {**others, **lost}).planters())

    assert planters(2.0, eve=1.7, mallory=1.0) == ["eve", "mallory"], "1.0 of 2.0 nats, of the same tokens"
    assert planters(2.4, ann=1.3, ben=1.0) == [], "half of it rests on ann, as on nobody who planted it"
    assert planters(0.9, ann=0.9) == [], "of one alone, and too little"
    assert planters(-1.0, ann=2.0) == [], "tokens that do the opposite"
    assert planters(2.0, eve=1.7, ben=0.6) == ["eve"]


def test_one_scan_alone_accuses_nobody_and_acquits_nobody() -> None:
    truth = {"m2": "a trigger"}
    assert agreed([{"m0": "a lie"}, truth, truth], ["m0", "m2"]) == truth
    assert agreed([{}, truth, truth], ["m0", "m2"]) == truth
    assert agreed([truth, {}, {}], ["m0", "m2"]) == {}
    assert agreed([{"stranger": "a lie"}] * 2, ["m0", "m2"]) == {}
