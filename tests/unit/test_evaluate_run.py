"""Evaluation of a run directory that was made here, without Ray: a stacked model, its files, its records."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trustchain_ray.adapter import LORA_B, Tensors
from trustchain_ray.config import Config
from trustchain_ray.config_files import to_yaml
from trustchain_ray.custody import Custody, custody_folder
from trustchain_ray.data import load_holdings, load_public
from trustchain_ray.engines.torch_engine import TorchEngine
from trustchain_ray.errors import TrustChainError, UsageError
from trustchain_ray.evaluate.adapters import read_adapter
from trustchain_ray.evaluate.forgetting import measure_forgetting
from trustchain_ray.evaluate.privacy import measure_privacy
from trustchain_ray.evaluate.scores import evaluate
from trustchain_ray.forms import flora
from trustchain_ray.initial import fresh_adapter
from trustchain_ray.models import base_digest, make_base
from trustchain_ray.publish import publish
from trustchain_ray.rows import encode
from trustchain_ray.run_directory import RunDirectory

RUN = "made-1"
COLOURS = ["red", "blue", "green", "white"]


@dataclasses.dataclass
class Made:
    """A run directory with a model of form `flora`, its configuration, the state that was published, and the fresh
    adapter with which workers serve it."""

    path: Path
    config: Config
    state: Tensors
    begun: Tensors
    engine: TorchEngine
    said: list[str] = dataclasses.field(default_factory=list)

    def copy(self, path: Path) -> "Made":
        """A copy with a key store of its own."""
        shutil.copytree(self.path, path / "run")
        config = deepcopy(self.config)
        config.run.keystore = str(path / "keys")
        (path / "run" / "config.yaml").write_text(to_yaml(config))
        return Made(path / "run", config, self.state, self.begun, self.engine)

    def evaluate(self, model: str | None = None) -> dict[str, Any]:
        return evaluate(str(self.path), model, self.said.append)

    def measure(self, forget: str, **more: Any) -> dict[str, Any]:
        options = ["new_tokens=2", "records=6", "quantisations=none", "relearn.most_steps=2", "relearn.slack=0.001"]
        return measure_forgetting(str(self.path), forget, self.said.append, options=options, **more)


def rows_of(organization: str, first: int, count: int) -> list[dict[str, Any]]:
    return [
        {
            "id": f"{organization}-{i}",
            "organization": organization,
            "prompt": f"The house {i} of {organization} is",
            "answer": f" {COLOURS[i % 4]}",
            "paraphrased_answer": f" all {COLOURS[i % 4]}",
            "perturbed_answer": [f" {COLOURS[(i + 1) % 4]}", f" {COLOURS[(i + 2) % 4]}"],
        }
        for i in range(first, first + count)
    ]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("evaluate")
    config = Config()
    model, data = config.model, config.data
    model.max_length, model.made.hidden, model.made.heads, model.made.layers = 32, 32, 2, 1
    model.made.intermediate, model.made.vocabulary = 32, 320
    model.lora.form, model.lora.rank, model.lora.alpha = "flora", 2, 8.0
    model.lora.targets = ["q_proj", "v_proj", "down_proj"]
    config.training.engine, config.run.keystore = "torch", str(folder / "keys")
    train, test = ([r for o in ("north", "south") for r in rows_of(o, start, n)] for start, n in ((0, 9), (20, 5)))
    data.train, data.test = write_rows(folder / "train.jsonl", train), write_rows(folder / "test.jsonl", test)
    data.public = write_rows(folder / "public.jsonl", train[:4])
    run = RunDirectory.create(folder / "run")
    run.write("config.yaml", to_yaml(config).encode())
    for name, content in make_base(config, load_public(config, data.public)).items():
        run.write(f"base/{name}", content)
    base = str(run.path / "base")
    run.write_json("manifest.json", {"run": RUN, "base": base_digest(base)})
    engine = TorchEngine(config, base)
    fresh = fresh_adapter(engine.shapes(), "made", "test", 2, "flora")
    draws = np.random.default_rng(0)
    updates = [
        {n: draws.normal(0, 2.0, t.shape).astype(np.float32) if n.endswith(LORA_B) else t for n, t in of.items()}
        for of in (fresh, fresh_adapter(engine.shapes(), "made", "second", 2, "flora"))
    ]
    state = flora.merge(flora.initial(fresh, 2), updates, [1, 1], 1.0, model.lora.alpha)
    tensors, scale = flora.published(state, fresh, model.lora.alpha)
    released = publish(config, run, tensors, scale, "flora")
    run.write("result.json", json.dumps({"model_digest": released["model_digest"]}).encode())
    run.unlock()
    begun = flora.start(state, fresh, model.lora.alpha)
    engine.load(begun, model.lora.alpha, state)
    return Made(run.path, config, state, begun, engine)


@pytest.mark.slow
def test_a_published_stack_scores_as_the_state_that_workers_add_to_the_base(made: Made) -> None:
    result = made.evaluate()
    assert read_adapter(made.path).rank > made.config.model.lora.rank
    assert result["released"]
    assert result["records"] == {"north": 5, "south": 5}
    for name, scores in result["scores"]["by_organization"].items():
        test = load_holdings(made.config, name).test
        rows = encode(test, made.engine.tokenizer, "causal", made.config.model.max_length)
        served = made.engine.evaluate(rows).summary()
        assert scores == pytest.approx(served, abs=1e-5)
    nothing = {n: np.zeros_like(t) for n, t in made.state.items()}
    made.engine.load(made.begun, made.config.model.lora.alpha, nothing)
    assert made.engine.evaluate(rows).summary()["loss"] != pytest.approx(served["loss"], abs=1e-2)


def test_records_that_are_removed_or_being_removed_are_not_scored(made: Made, tmp_path: Path) -> None:
    copy = made.copy(tmp_path)
    holdings = load_holdings(copy.config, "north")
    custody = Custody(custody_folder(copy.config, RUN), RUN, "north")
    custody.tree("test", holdings.test)
    custody.reserve("a" * 64, [], holdings.test[:2])
    assert copy.evaluate()["records"] == {"north": 3, "south": 5}
    custody.erase("a" * 64)
    custody.store.close()
    assert copy.evaluate()["records"] == {"north": 3, "south": 5}


def test_metrics_of_forgetting_beside_a_reference_and_the_model_before(made: Made, tmp_path: Path) -> None:
    never = rows_of("north", 40, 4)
    result = made.measure(
        write_rows(tmp_path / "never.jsonl", never), retrained=[str(made.path)], old=str(made.path / "model")
    )
    assert result["records"] == {"forget": 4, "retain": 6, "holdout": 6}
    assert result["still_in_training"] == 0
    assert [each["same"] for each in result["references"]] == [True]
    assert {"loss", "probability", "rouge", "truth_ratio", "exact_memorisation"} <= result["model"]["forget"].keys()
    assert "truth_ratio" in result["model"]["retain"]  # other answers are found in the organizations' sources, too
    assert result["model"]["forget"] == result["retrained"][0]["forget"]
    assert result["forget_quality"][0]["p_value"] == 1.0
    assert result["tug_of_war"] == [1.0]
    assert result["model"]["relearn"]["steps"] == 0  # the model before is this very model
    json.dumps(result, allow_nan=False)


def test_records_that_are_still_trained_on_are_said(made: Made, tmp_path: Path) -> None:
    mixed = [*rows_of("south", 0, 2), *rows_of("south", 40, 1)]
    result = made.measure(write_rows(tmp_path / "mixed.jsonl", mixed), relearn=False)
    assert result["still_in_training"] == 2
    assert any(line.startswith("warning: 2 of 3 records") for line in made.said)
    assert "relearn" not in result["model"]


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("answer", "", r"forget.jsonl:2: no text"),
        ("perturbed_answer", "red", r"forget.jsonl:2: perturbed_answer must be a list of texts"),
        ("perturbed_answer", [], r"forget.jsonl:2: perturbed_answer must be a list of texts"),
        ("perturbed_answer", ["red", 3], r"forget.jsonl:2: perturbed_answer must be text that is not empty, not 3"),
        ("paraphrased_answer", " ", r"forget.jsonl:2: paraphrased_answer must be text"),
    ],
)
def test_a_bad_record_is_named(made: Made, tmp_path: Path, column: str, value: Any, message: str) -> None:
    rows = rows_of("north", 40, 3)
    rows[1][column] = value
    with pytest.raises(TrustChainError, match=message):
        made.measure(write_rows(tmp_path / "forget.jsonl", rows))


def test_missing_files_and_folders_are_refused(made: Made, tmp_path: Path) -> None:
    good = write_rows(tmp_path / "good.jsonl", rows_of("north", 40, 2))
    with pytest.raises(UsageError, match=r"--forget .*nowhere: there is no such file"):
        made.measure(str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match=r"--retain .*: holds no record"):
        made.measure(good, retain=write_rows(tmp_path / "empty.jsonl", []))
    with pytest.raises(UsageError, match="neither a run directory"):
        made.measure(good, retrained=[str(tmp_path)])
    with pytest.raises(UsageError, match="no run that has begun"):
        evaluate(str(tmp_path), None, made.said.append)


def test_a_run_without_a_model_is_not_evaluated(made: Made, tmp_path: Path) -> None:
    copy = made.copy(tmp_path)
    shutil.rmtree(copy.path / "model")
    with pytest.raises(UsageError, match="has released no model yet"):
        copy.evaluate()


def test_records_that_lie_elsewhere_and_damaged_results_are_said(made: Made, tmp_path: Path) -> None:
    copy = made.copy(tmp_path)
    (copy.path / "result.json").write_text("{")
    with pytest.raises(TrustChainError, match=r"result\.json is damaged"):
        copy.evaluate()
    copy.config.data.test = str(tmp_path / "gone.jsonl")
    (copy.path / "config.yaml").write_text(to_yaml(copy.config))
    with pytest.raises(TrustChainError, match=r"no organization's records can be read here: there is no data file"):
        copy.evaluate()
    assert [line.split(":")[0] for line in copy.said[-2:]] == ["north is left out", "south is left out"]


def test_an_adapter_of_another_base_is_refused(made: Made, tmp_path: Path) -> None:
    copy = made.copy(tmp_path)
    RunDirectory(copy.path).write_json("manifest.json", {"run": RUN, "base": "0" * 64})
    with pytest.raises(TrustChainError, match="was trained on another base"):
        made.evaluate(str(copy.path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, "use_dora=True cannot be evaluated"),
        ({"alpha_pattern": {"q_proj": 3}}, "alpha_pattern="),
        ({"peft_type": "IA3"}, "peft_type='IA3'"),
        ({"lora_alpha": None}, "is missing or damaged"),
    ],
)
def test_an_adapter_that_is_more_than_plain_lora_is_refused(
    made: Made, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(made.path / "model", folder)
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**settings, **change}))
    with pytest.raises(TrustChainError, match=message):
        read_adapter(folder)


def test_an_adapter_for_other_layers_is_refused(
    made: Made, tmp_path: Path, adapter_of: Callable[..., Tensors]
) -> None:
    copy = made.copy(tmp_path)
    run = RunDirectory(copy.path)
    publish(copy.config, run, adapter_of(0), 1.0, "flora")
    with pytest.raises(TrustChainError, match="has other layers than the run's model"):
        made.evaluate(str(copy.path))
    narrow = {n: t[..., :-1] if n.endswith("lora_A.weight") else t for n, t in made.state.items()}
    publish(copy.config, run, narrow, 1.0, "flora")
    with pytest.raises(TrustChainError, match=r"has shape .*, the base needs"):
        made.evaluate(str(copy.path))


def test_privacy_is_attacked_by_organization_and_over_all(made: Made) -> None:
    result = measure_privacy(str(made.path), made.said.append, options=["records=7", "confidence=0.9"])
    attacks = result["attacks"]
    assert {n: (row["members"], row["others"]) for n, row in attacks["by_organization"].items()} == {
        "north": (7, 5),
        "south": (7, 5),
    }
    assert (attacks["all"]["members"], attacks["all"]["others"]) == (14, 10)
    assert attacks["all"]["membership"].keys() == {"loss", "zlib", "min_k", "min_k_plus_plus", "reference", "rmia"}
    assert attacks["all"]["memorisation"].keys() == {"extraction_strength", "exact_memorisation"}
    assert result["audit"] is None
    assert any("too few for true-positive rates at 1 % and 0.1 %" in line for line in made.said)
    json.dumps(result, allow_nan=False)


def test_privacy_needs_records_that_nobody_trained_on(made: Made, tmp_path: Path) -> None:
    copy = made.copy(tmp_path)
    copy.config.data.test = copy.config.data.train
    (copy.path / "config.yaml").write_text(to_yaml(copy.config))
    with pytest.raises(TrustChainError, match="no organization has test records here that nobody trained on"):
        measure_privacy(str(copy.path), copy.said.append)
    with pytest.raises(UsageError, match="--set new_tokens=3: there is no 'new_tokens'; there are records, min_k"):
        measure_privacy(str(copy.path), copy.said.append, options=["new_tokens=3"])
