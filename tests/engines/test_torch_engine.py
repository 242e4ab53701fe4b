"""The canonical program: the same rows give the same bits, and the interface means what it says."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import RECORDS, base_of, classifier, draw, only, rows_of, script, tiny

from trustchain_ray.adapter import LORA_A, LORA_B
from trustchain_ray.engines.torch_engine import TorchEngine


@pytest.fixture(scope="module")
def base() -> str:
    return base_of(tiny())


def test_two_engines_give_the_same_bits(base: str) -> None:
    config = tiny(weight_decay=0.1, max_grad_norm=0.02)
    first = script(TorchEngine(config, base), config)
    torch.rand(7)  # what else the process drew must not matter
    second = script(TorchEngine(config, base), config)
    assert first.keys() == second.keys()
    np.testing.assert_equal(second, first)


def test_a_step_is_adamw_on_the_sum_of_record_losses_over_the_batch_size(base: str) -> None:
    config = tiny(micro_batch=2)
    engine = TorchEngine(config, base)
    rows, names = rows_of(engine, config), sorted(engine.shapes())
    engine.load(draw(engine, 1), 8.0)
    begun = engine.tensors(names)
    (loss,) = engine.train(rows, [[0, 1, 2]], [0.01])
    trained = engine.tensors(names)

    engine.load(begun, 8.0)
    parameters = [engine.adapter.parameters[name] for name in names]
    losses = [engine.adapter.record_losses([rows[i]], engine.adapter.model)[0] for i in range(3)]
    total = torch.cat(losses).sum() / config.training.batch_size
    gradients = torch.autograd.grad(total, parameters)
    assert loss == pytest.approx(float(total.detach()), rel=1e-5)
    for name, gradient in zip(names, gradients, strict=True):
        expected = begun[name] - 0.01 * np.sign(gradient.numpy())  # the first step of Adam
        clear = np.abs(gradient.numpy()) > 1e-5
        assert clear.mean() > 0.9
        np.testing.assert_allclose(trained[name][clear], expected[clear], atol=2e-5)


def test_the_gradient_of_a_step_is_clipped(base: str) -> None:
    answers = [script(TorchEngine(c, base), c)["several"] for c in (tiny(), tiny(max_grad_norm=0.02))]
    assert max(np.abs(answers[1][name] - tensor).max() for name, tensor in answers[0].items()) > 1e-3


def test_an_empty_step_moves_by_its_moments_and_a_new_call_has_none(base: str) -> None:
    config = tiny()
    engine = TorchEngine(config, base)
    rows, names = rows_of(engine, config), sorted(engine.shapes())
    start = draw(engine, 1)

    def after(*calls: list[list[int]]) -> dict[str, np.ndarray]:
        engine.load(start, 8.0)
        for steps in calls:
            engine.train(rows, steps, [0.01] * len(steps))
        return engine.tensors(names)

    one = after([[0, 1]])
    with_empty, in_two_calls = after([[0, 1], []]), after([[0, 1]], [[]])
    assert all(not np.array_equal(with_empty[n], one[n]) for n in names)
    np.testing.assert_equal(in_two_calls, one)


def test_a_lower_rank_is_padded_with_zeros_that_stay_zero_and_scaled_by_its_own_rank(base: str) -> None:
    config = tiny()
    engine = TorchEngine(config, base)
    rows, low, names = rows_of(engine, config), draw(engine, 3, rank=2), sorted(engine.shapes())
    engine.load(low, 8.0)
    padded_loss = engine.evaluate(rows).loss
    engine.train(rows, [[0, 1], [2]], [0.01, 0.01])
    for name, tensor in engine.tensors(names).items():
        inside = tuple(slice(0, size) for size in low[name].shape)
        assert not np.array_equal(tensor[inside], low[name])
        outside = np.ones(tensor.shape, bool)
        outside[inside] = False
        assert outside.any()
        assert not tensor[outside].any()

    small = tiny()
    small.model.lora.rank = 2  # a model that was built with that rank
    exact = TorchEngine(small, base)
    exact.load(low, 8.0)
    assert padded_loss == pytest.approx(exact.evaluate(rows).loss, abs=1e-5)


def test_a_residual_is_added_to_the_original_base_each_time(base: str) -> None:
    config = tiny()
    engine = TorchEngine(config, base)
    zero = {name: np.zeros(shape, np.float32) for name, shape in engine.shapes().items()}
    layer, module = sorted(engine.adapter.lora.items())[0]
    before = module.base_layer.weight.detach().clone().numpy()
    for seed in (4, 5):
        residual = draw(engine, seed, rank=3)
        engine.load(zero, 8.0, residual=residual)
        product = residual[layer + LORA_B] @ residual[layer + LORA_A]
        np.testing.assert_allclose(module.base_layer.weight.detach().numpy(), before + product, atol=1e-6)
    engine.load(zero, 8.0, residual=zero)
    np.testing.assert_array_equal(module.base_layer.weight.detach().numpy(), before)


def test_only_the_named_tensors_are_trained(base: str) -> None:
    config = tiny(weight_decay=0.1)
    engine = TorchEngine(config, base)
    names, start = sorted(engine.shapes()), draw(engine, 1)
    engine.load(start, 8.0)
    engine.train(rows_of(engine, config), [[0, 1]], [0.01], only=only(engine))
    changed = [n for n, t in engine.tensors(names).items() if not np.array_equal(t, start[n])]
    assert changed == only(engine)


@pytest.mark.parametrize("form", ["ffa", "fedavg"])
def test_gradient_checkpointing_trains_b_as_without(base: str, form: str) -> None:
    trained = []
    for checkpointing in (False, True):
        config = tiny(gradient_checkpointing=checkpointing)
        config.model.lora.form = form
        engine = TorchEngine(config, base)
        names = sorted(engine.shapes())
        start = {n: t if n.endswith(LORA_A) else np.zeros_like(t) for n, t in draw(engine, 1).items()}
        engine.load(start, 8.0)
        engine.train(rows_of(engine, config), [[0, 1]], [0.01])
        trained.append(engine.tensors(names))
        assert all(trained[-1][n].any() for n in names if n.endswith(LORA_B))
        assert all(np.array_equal(trained[-1][n], start[n]) for n in names if n.endswith(LORA_A))
    np.testing.assert_equal(trained[1], trained[0])


def test_a_classification_trains_its_head_from_the_run_key(tmp_path: Path) -> None:
    config = classifier(tmp_path, lr=0.01)
    engine, again = TorchEngine(config, str(tmp_path)), TorchEngine(config, str(tmp_path))
    head = engine.fresh_head()
    assert head
    assert not any(name.endswith((LORA_A, LORA_B)) for name in head)
    np.testing.assert_equal(again.fresh_head(), head)
    rows, steps = rows_of(engine, config), [list(range(len(RECORDS)))] * 20
    before = engine.evaluate(rows)
    engine.train(rows, steps, [0.05] * 20)
    after = engine.evaluate(rows)
    assert after.loss < before.loss
    assert after.records == len(RECORDS)
    assert after.tokens == 0
    np.testing.assert_equal(engine.fresh_head(), head)  # the initial tensors, not the trained ones
    config.run.key = "another"
    other = TorchEngine(config, str(tmp_path)).fresh_head()
    assert not all(np.array_equal(other[name], head[name]) for name in head)
