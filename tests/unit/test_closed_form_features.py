"""Features of records on the frozen base: at the places where the model answers, and of one record alone."""

import numpy as np
import pytest
import torch

from benchmarks.forgetting_dial_closed import sums_of_record
from benchmarks.forgetting_dial_features import Features, features
from trustchain_ray.adapter import LORA_A
from trustchain_ray.config import Config
from trustchain_ray.data import Record
from trustchain_ray.engines.torch_engine import TorchEngine, deterministic
from trustchain_ray.initial import fresh_adapter
from trustchain_ray.models import make_base, unpack_base
from trustchain_ray.rows import TokenRow, encode

WORDS = ["fever", "rash", "flu"]
RECORDS = [Record(f"r{i}", f"r{i}", f"{word} needs", f" {word[::-1]}") for i, word in enumerate(WORDS)]
RANK = 4


@pytest.fixture(scope="module")
def engine() -> TorchEngine:
    """A one-layer causal model with a frozen A and B = 0."""
    config = Config()
    made = config.model.made
    made.hidden, made.intermediate, made.heads, made.layers, made.vocabulary = 16, 24, 2, 1, 300
    config.model.max_length, config.model.lora.rank = 32, RANK
    deterministic(1)
    engine = TorchEngine(config, unpack_base(make_base(config, RECORDS)))
    engine.load(fresh_adapter(engine.shapes(), "key", "frozen", RANK, "ffa"), 8.0)
    return engine


@pytest.fixture(scope="module")
def rows(engine: TorchEngine) -> list[TokenRow]:
    return encode(RECORDS, engine.tokenizer, "causal", 32)


@pytest.fixture(scope="module")
def found(engine: TorchEngine, rows: list[TokenRow]) -> list[Features]:
    return features(engine, rows)


def test_the_base_s_own_head_on_the_features_gives_its_logits_of_the_answer(
    engine: TorchEngine, rows: list[TokenRow], found: list[Features]
) -> None:
    head = engine.adapter.model.get_base_model().get_output_embeddings().weight.detach().numpy()
    for row, one in zip(rows, found, strict=True):
        with torch.no_grad():
            logits, targets = engine.adapter.logits([row], engine.adapter.model)
        counted = targets[0] != -100
        assert one.classes == targets[0][counted].tolist()
        assert np.allclose(one.answers[:, :-1] @ head.T, logits[0][counted].numpy(), atol=1e-5)
        assert (one.answers[:, -1] == 1).all()


def test_the_gram_matrix_of_a_layer_is_that_of_a_x(
    engine: TorchEngine, rows: list[TokenRow], found: list[Features]
) -> None:
    name = next(name for name in engine.adapter.lora if "q_proj" in name)
    base = engine.adapter.model.get_base_model().model
    with torch.no_grad():
        x = base.layers[0].input_layernorm(base.embed_tokens(torch.from_numpy(rows[0].tokens.astype(np.int64))))
    a = engine.tensors([name + LORA_A])[name + LORA_A]
    wanted = sums_of_record(x.numpy() @ a.T).gram
    assert np.abs(found[0].layers[name] - wanted).max() <= 2  # float32 products in another order
    assert set(found[0].layers) == set(engine.adapter.lora)


def test_features_of_a_record_do_not_depend_on_the_others(
    engine: TorchEngine, rows: list[TokenRow], found: list[Features]
) -> None:
    alone = features(engine, rows[2:])[0]
    assert alone.answers.tobytes() == found[2].answers.tobytes()
    assert all(np.array_equal(gram, found[2].layers[name]) for name, gram in alone.layers.items())
    assert found[2].sums(300).cross.any()
