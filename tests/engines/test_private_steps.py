"""Private steps: what is clipped is every unit's own gradient, and noise comes once a step."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import RECORDS, base_of, classifier, draw, only, rows_of, tiny

from trustchain_ray.adapter import LORA_A, LORA_B
from trustchain_ray.config import Config
from trustchain_ray.engines.torch_engine import TorchEngine
from trustchain_ray.errors import TrustChainError, UsageError
from trustchain_ray.privacy.gradients import PrivateGradient
from trustchain_ray.privacy.noise import gaussian
from trustchain_ray.privacy.row_gradients import RowGradients
from trustchain_ray.privacy.steps import PrivateSteps

KEY = bytes(range(32))
STEP = [0, 3, 1, 7, 2, 10, 5]
SUBJECTS = ["anna", "bert", "cleo", "anna", "dora", "bert", "emil", "anna", "fred", "gina", "anna"]
ALL = list(range(len(RECORDS)))


@pytest.fixture(scope="module")
def base() -> str:
    return base_of(tiny())


def engine_of(config: Config, base: str) -> TorchEngine:
    engine = TorchEngine(config, base)
    engine.load(draw(engine, 1), config.model.lora.alpha)
    return engine


def gradient_of(engine: TorchEngine, private: PrivateSteps) -> PrivateGradient:
    names = [name for name, parameter in engine.adapter.parameters.items() if parameter.requires_grad]
    return PrivateGradient(engine.adapter, names, engine.loaded, private, engine.training.micro_batch)


def one_by_one(engine: TorchEngine, config: Config, step: Sequence[int]) -> list[dict[str, torch.Tensor]]:
    """Gradients of rows by a backward pass each."""
    rows, out = rows_of(engine, config), []
    parameters = {n: p for n, p in engine.adapter.parameters.items() if p.requires_grad}
    for i in step:
        loss = engine.adapter.record_losses([rows[i]], engine.adapter.model)[0].sum()
        out.append(dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True)))
    return out


def norm_of(unit: dict[str, torch.Tensor]) -> float:
    return float(torch.cat([t.double().flatten() for t in unit.values()]).norm())


def middle(units: Sequence[dict[str, torch.Tensor]]) -> float:
    """A clip norm that about half of the units exceed."""
    norms = sorted(map(norm_of, units))
    return (norms[len(norms) // 2 - 1] + norms[len(norms) // 2]) / 2


def clipped_sum(units: Sequence[dict[str, torch.Tensor]], clip: float) -> dict[str, torch.Tensor]:
    """The sum of units after clipping."""
    total = {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in units[0].items()}
    for unit in units:
        for name, tensor in unit.items():
            total[name] += tensor.double() * min(1.0, clip / norm_of(unit))
    return total


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    apart = sum(float((a[n].double() - b[n].double()).square().sum()) for n in a)
    return (apart / sum(float(b[n].double().square().sum()) for n in b)) ** 0.5


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("form", ["ffa", "fedavg"])
def test_clipped_sums_of_a_causal_model_are_those_of_a_backward_pass_for_each_record(
    base: str, form: str, checkpointing: bool
) -> None:
    config = tiny(micro_batch=3, gradient_checkpointing=checkpointing)
    config.model.lora.form = form
    engine = engine_of(config, base)
    units = one_by_one(engine, config, STEP)
    clip = middle(units)
    sums, loss = gradient_of(engine, PrivateSteps("record", clip, 0.0, KEY)).clipped(rows_of(engine, config), STEP)
    assert distance(sums, clipped_sum(units, clip)) < 1e-5
    assert distance(sums, clipped_sum(units, 2 * clip)) > 1e-2
    rows = [rows_of(engine, config)[i] for i in STEP]
    assert loss == pytest.approx(engine.evaluate(rows).loss / config.training.batch_size, rel=1e-5)


def test_clipped_sums_of_a_classification_include_its_head_and_bias(tmp_path: Path) -> None:
    config = classifier(tmp_path, micro_batch=3)
    engine = engine_of(config, str(tmp_path))
    units = one_by_one(engine, config, STEP)
    clip = middle(units)
    sums, _ = gradient_of(engine, PrivateSteps("record", clip, 0.0, KEY)).clipped(rows_of(engine, config), STEP)
    assert any(name.endswith("bias") for name in sums)
    assert distance(sums, clipped_sum(units, clip)) < 1e-5


@pytest.mark.parametrize("micro_batch", [1, 2, 3, 16])
def test_a_subject_is_clipped_as_a_whole_also_over_micro_batches(base: str, micro_batch: int) -> None:
    config = tiny(micro_batch=micro_batch)
    engine = engine_of(config, base)
    of_subject: dict[str, dict[str, torch.Tensor]] = {}
    for i, unit in zip(ALL, one_by_one(engine, config, ALL), strict=True):
        before = of_subject.setdefault(SUBJECTS[i], {name: torch.zeros_like(t) for name, t in unit.items()})
        of_subject[SUBJECTS[i]] = {name: before[name] + tensor for name, tensor in unit.items()}
    units = list(of_subject.values())
    private = PrivateSteps("subject", middle(units), 0.0, KEY, subjects=SUBJECTS)
    sums, _ = gradient_of(engine, private).clipped(rows_of(engine, config), ALL)
    assert distance(sums, clipped_sum(units, private.clip)) < 1e-5
    assert distance(sums, clipped_sum(one_by_one(engine, config, ALL), private.clip)) > 1e-2


def test_without_noise_and_with_a_wide_clip_a_private_step_is_a_plain_one(base: str) -> None:
    config = tiny()
    engine = engine_of(config, base)
    rows, names = rows_of(engine, config), sorted(engine.shapes())
    parameters = [engine.adapter.parameters[name] for name in names]
    losses, gradients = [], []
    for private in (None, PrivateSteps("record", 1e6, 0.0, KEY)):
        losses.append(engine.train(rows, [STEP], [0.0], private=private))
        gradients.append({n: p.grad.clone() for n, p in zip(names, parameters, strict=True) if p.grad is not None})
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    assert distance(gradients[1], gradients[0]) < 1e-6


@pytest.mark.parametrize(("step", "micro_batch"), [(STEP, 2), (STEP, 16), ([], 2)])
def test_noise_comes_once_a_step_whatever_the_micro_batches_and_in_an_empty_step_too(
    base: str, step: list[int], micro_batch: int
) -> None:
    config = tiny(micro_batch=micro_batch)
    engine = engine_of(config, base)
    gradients = []
    for noise in (0.0, 1.5):
        private = gradient_of(engine, PrivateSteps("record", 0.3, noise, KEY, first=40))
        private.step(rows_of(engine, config), step, 2)
        gradients.append([private.parameters[name].grad for name in sorted(private.parameters)])
    added = torch.cat([(b - a).flatten() for a, b in zip(*gradients, strict=True)]) * config.training.batch_size
    expected = gaussian(KEY, 42, added.numel()) * 1.5 * 0.3
    np.testing.assert_allclose(added.numpy(), expected, atol=2e-6)
    assert added.numpy().std() == pytest.approx(0.45, rel=0.1)


def test_what_comes_out_lies_on_a_grid_that_does_not_depend_on_the_records(base: str) -> None:
    config = tiny()
    engine = engine_of(config, base)
    private = gradient_of(engine, PrivateSteps("record", 0.5, 1.0, KEY))
    sums, _ = private.clipped(rows_of(engine, config), STEP)
    exact = {name: total.clone() for name, total in sums.items()}
    private.release(sums, 0)
    unit = 2.0**-21  # 2**-20 of the deviation 0.5
    for name, parameter in private.parameters.items():
        assert parameter.grad is not None
        on_grid = parameter.grad.double() * config.training.batch_size / unit
        assert torch.equal(on_grid, on_grid.round())
        assert not torch.equal(exact[name] / unit, (exact[name] / unit).round())


def test_the_padding_of_a_lower_rank_gets_no_noise(base: str) -> None:
    config = tiny()
    engine = TorchEngine(config, base)
    low = draw(engine, 3, rank=2)
    engine.load(low, 8.0)
    engine.train(rows_of(engine, config), [STEP, []], [0.01, 0.01], private=PrivateSteps("record", 0.5, 1.0, KEY))
    for name, tensor in engine.tensors(sorted(low)).items():
        inside = tuple(slice(0, size) for size in low[name].shape)
        assert not np.array_equal(tensor[inside], low[name])
        outside = np.ones(tensor.shape, bool)
        outside[inside] = False
        assert outside.any()
        assert not tensor[outside].any()


def test_only_the_named_tensors_get_gradients_and_noise(base: str) -> None:
    config = tiny()
    engine = engine_of(config, base)
    names = sorted(engine.shapes())
    start = engine.tensors(names)
    steps = PrivateSteps("record", 0.5, 1.0, KEY)
    engine.train(rows_of(engine, config), [STEP, []], [0.01, 0.01], only=only(engine), private=steps)
    after = engine.tensors(names)
    assert [n for n in names if not np.array_equal(after[n], start[n])] == only(engine)


def test_the_same_key_gives_the_same_bits_and_another_generation_other_noise(base: str) -> None:
    config = tiny()
    engine = engine_of(config, base)
    start, names, trained = draw(engine, 1), sorted(engine.shapes()), []
    for key in (KEY, KEY, bytes(32)):
        engine.load(start, 8.0)
        engine.train(rows_of(engine, config), [STEP, [4]], [0.01, 0.01], private=PrivateSteps("record", 1.0, 1.0, key))
        trained.append(engine.tensors(names))
    np.testing.assert_equal(trained[1], trained[0])
    assert all(not np.array_equal(trained[2][n], trained[0][n]) for n in names)


def test_on_a_bfloat16_base_gradients_are_float32_and_near_those_of_float32(base: str) -> None:
    sums = []
    for dtype in ("float32", "bfloat16"):
        config = tiny()
        config.model.dtype = dtype
        engine = engine_of(config, base)
        private = gradient_of(engine, PrivateSteps("record", 0.3, 0.0, KEY))
        found, _ = private.clipped(rows_of(engine, config), STEP)
        sums.append(found)
        norm = torch.cat([t.flatten() for t in found.values()]).norm()
        assert 0 < norm <= 0.3 * len(STEP)
        private.release(found, 0)
        assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in private.parameters.values())
    assert 0 < distance(sums[1], sums[0]) < 0.05


def test_a_record_whose_gradient_overflows_counts_nothing(tmp_path: Path) -> None:
    config = classifier(tmp_path, micro_batch=4)
    engine = engine_of(config, str(tmp_path))
    private = gradient_of(engine, PrivateSteps("record", 0.75, 0.0, KEY))
    rows = rows_of(engine, config)
    expected, _ = private.clipped(rows, [0, 1, 3])
    losses = engine.adapter.record_losses

    def overflowing(part, forward):  # type: ignore[no-untyped-def]
        each, right, counted = losses(part, forward)
        weights = torch.tensor([1e38 if row is rows[2] else 1.0 for row in part])
        return each * weights * weights, right, counted

    engine.adapter.record_losses = overflowing  # type: ignore[method-assign]
    sums, _ = private.clipped(rows, [0, 1, 2, 3])
    assert distance(sums, expected) < 1e-5


@pytest.mark.parametrize("task", ["causal", "classification"])
def test_the_loss_of_a_record_does_not_depend_on_the_records_beside_it(base: str, tmp_path: Path, task: str) -> None:
    config = tiny() if task == "causal" else classifier(tmp_path)
    engine = engine_of(config, base if task == "causal" else str(tmp_path))
    rows = rows_of(engine, config)
    assert len({len(row.tokens) for row in rows}) > 1  # padding differs
    with torch.no_grad():
        together = engine.adapter.record_losses(rows, engine.adapter.model)[0]
        alone = torch.cat([engine.adapter.record_losses([row], engine.adapter.model)[0] for row in rows])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)


def test_kept_factors_give_the_same_norms_and_sums_as_kept_gradients() -> None:
    torch.manual_seed(0)
    parameter = torch.nn.Parameter(torch.zeros(40, 30))
    weights = torch.rand(5)
    found = []
    for keep in (True, False):
        torch.manual_seed(1)
        tensor = RowGradients("head", parameter, False, keep)
        for positions in (3, 1):  # a layer that is used twice
            tensor.add(torch.randn(5, positions, 30), torch.randn(5, positions, 40))
        assert bool(tensor.factors) == keep
        found.append((tensor.squares(), tensor.weighted(weights)))
    torch.testing.assert_close(found[0], found[1])


def test_paper_mode_clips_each_matrix_of_the_mean_gradient_by_itself(base: str) -> None:
    config = tiny()
    engine = engine_of(config, base)
    mean = clipped_sum(one_by_one(engine, config, STEP), 1e9)
    norms = {name: float((total / config.training.batch_size).norm()) for name, total in mean.items()}
    clip = sorted(norms.values())[len(norms) // 2]
    private = gradient_of(engine, PrivateSteps("paper", clip, 0.0, KEY))
    private.step(rows_of(engine, config), STEP, 0)
    for name, parameter in private.parameters.items():
        expected = mean[name] / config.training.batch_size * min(1.0, clip / norms[name])
        torch.testing.assert_close(parameter.grad, expected.float(), rtol=1e-4, atol=1e-6)
    noised = gradient_of(engine, PrivateSteps("paper", clip, 2.0, KEY))
    noised.step(rows_of(engine, config), [], 0)
    values = torch.cat([p.grad.flatten() for p in noised.parameters.values() if p.grad is not None])
    assert float(values.std()) == pytest.approx(2 * clip, rel=0.1)
    assert {n.endswith(LORA_A) for n in norms} == {n.endswith(LORA_B) for n in norms} == {True, False}


def test_a_second_clip_and_another_objective_are_refused(base: str) -> None:
    steps = PrivateSteps("record", 1.0, 1.0, KEY)
    engine = engine_of(tiny(max_grad_norm=1.0), base)
    with pytest.raises(UsageError, match=r"max_grad_norm=1 with privacy.dp=record.*set privacy.clip"):
        engine.train([], [[]], [0.1], private=steps)
    engine = engine_of(tiny(), base)
    with pytest.raises(UsageError, match="another objective"):
        engine.train([], [[]], [0.1], objective=lambda part, losses, tokens: losses.sum(), private=steps)
    subjects = PrivateSteps("subject", 1.0, 1.0, KEY, subjects=["a", "b"])
    with pytest.raises(UsageError, match="11 rows but subjects of 2"):
        engine.train(rows_of(engine, tiny()), [[0]], [0.1], private=subjects)


def test_models_whose_records_cannot_be_told_apart_are_refused(base: str) -> None:
    config = tiny()
    engine = engine_of(config, base)
    rows, model = rows_of(engine, config), engine.adapter.model
    name, parameter = next((n, p) for n, p in sorted(engine.adapter.parameters.items()) if n.endswith(LORA_B))

    def adds(module: torch.nn.Module, inputs: object, output: object) -> None:
        output.logits = (1 + parameter.square().sum()) * output.logits  # type: ignore[attr-defined]

    handle = model.register_forward_hook(adds)
    with pytest.raises(TrustChainError, match=f"do not add up to the gradient of {name}"):
        engine.train(rows, [STEP], [0.1], private=PrivateSteps("record", 1.0, 1.0, KEY))
    handle.remove()

    layer = next(m for m in model.modules() if isinstance(m, torch.nn.Linear) and m.weight is parameter)
    flatten = layer.register_forward_pre_hook(lambda module, inputs: (inputs[0].flatten(0, 1),))
    back = layer.register_forward_hook(lambda module, inputs, output: output.unflatten(0, (2, -1)))
    with pytest.raises(TrustChainError, match="for 2 rows: this architecture mixes rows"):
        engine.train(rows, [STEP[:2]], [0.1], private=PrivateSteps("record", 1.0, 1.0, KEY))
    flatten.remove()
    back.remove()

    model.normalisation = torch.nn.BatchNorm1d(4)
    with pytest.raises(TrustChainError, match="normalisation normalises over the batch"):
        gradient_of(engine, PrivateSteps("record", 1.0, 1.0, KEY))


def test_a_trained_tensor_outside_linear_layers_is_refused(base: str) -> None:
    engine = engine_of(tiny(), base)
    engine.adapter.parameters["norm.weight"] = torch.nn.Parameter(torch.ones(3))
    engine.adapter.sizes["norm.weight"] = (3,)
    with pytest.raises(TrustChainError, match=r"norm\.weight is trained but belongs to no linear layer"):
        gradient_of(engine, PrivateSteps("record", 1.0, 1.0, KEY))
