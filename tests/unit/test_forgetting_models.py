"""Scores, quantisation, relearning, approximate unlearning and the whole evaluation, on a tiny model."""

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from forgetting_tiny import FORGET, HOLDOUT, RECORDS, RETAIN, World, make_world, tiny

from trustchain_ray.adapter import digest
from trustchain_ray.engines.torch_engine import TorchEngine
from trustchain_ray.errors import TrustChainError
from trustchain_ray.forgetting.approximate import METHODS, Ascent, GradDiff, Npo, Perturb, SimNpo
from trustchain_ray.forgetting.approximate.loop import Loop, unlearn_approximately
from trustchain_ray.forgetting.batches import keyed_batches
from trustchain_ray.forgetting.metrics import quantisation
from trustchain_ray.forgetting.metrics.evaluation import Sets, Settings, evaluate_forgetting
from trustchain_ray.forgetting.metrics.generation import generate
from trustchain_ray.forgetting.metrics.memorisation import exact_memorisation, extraction_strength
from trustchain_ray.forgetting.metrics.questions import questions
from trustchain_ray.forgetting.metrics.relearning import Relearning, RelearnTime, relearn_ratio, relearn_time
from trustchain_ray.forgetting.metrics.scoring import AdapterState, load, losses, score
from trustchain_ray.rows import TokenRow

pytestmark = pytest.mark.slow

# Each method with settings that forget on this model: method, epochs, learning rate.
TUNED = {
    "ascent": (Ascent(), 4, 1e-3),
    "graddiff": (GradDiff(), 10, 1e-3),
    "npo": (Npo(beta=0.5), 10, 1e-3),
    "simnpo": (SimNpo(gamma=0.5), 10, 3e-3),
    "perturb": (Perturb(noise=0.8), 10, 3e-3),
}
ATTACK = Relearning(lr=3e-3, batch=6, most_steps=30, slack=0.05)


@pytest.fixture(scope="module")
def world() -> World:
    return make_world()


@pytest.fixture(scope="module")
def classifier(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[TorchEngine, AdapterState, list[Any]]:
    """A classification on the same base, an adapter that was trained on all records, and rows of all of them."""
    config = tiny()
    config.model.task, config.model.labels = "classification", ["even", "odd", "never"]
    engine = TorchEngine(config, world.base)
    labelled = [dataclasses.replace(r, label=i % 2, choices=(0, 1)) for i, r in enumerate(RECORDS)]
    rows = questions(labelled, engine.tokenizer, "classification", config.model.max_length)
    load(engine, AdapterState({**world.fresh("classifier"), **engine.fresh_head()}, 32.0))
    engine.train([q.row for q in rows], [list(range(16))] * 25, [1e-2] * 25)
    return engine, AdapterState(engine.tensors(sorted(engine.shapes())), 32.0), rows


def alone(engine: TorchEngine, row: TokenRow) -> torch.Tensor:
    """Log-probabilities of the whole vocabulary at each token of an answer, by one forward pass without padding."""
    tokens = torch.from_numpy(row.tokens.astype(np.int64))[None]
    with torch.no_grad():
        logits = engine.adapter.model(input_ids=tokens).logits[0]
    return torch.log_softmax(logits.double(), -1)[row.answer_start - 1 : -1]


def parameters(engine: TorchEngine) -> str:
    return digest({name: p.detach().numpy() for name, p in engine.adapter.model.named_parameters()})


def test_scores_are_those_of_each_row_alone(world: World) -> None:
    load(world.engine, world.old)
    rows = world.rows(RECORDS)
    scores = score(world.engine, rows, batch=7)
    assert len({len(row.tokens) for row in rows}) > 1
    for row, found in zip(rows, scores, strict=True):
        table = alone(world.engine, row)
        targets = torch.from_numpy(row.tokens[row.answer_start :].astype(np.int64))
        expected = table.gather(1, targets[:, None])[:, 0].numpy()
        np.testing.assert_allclose(found.log_probs, expected, atol=2e-4)
        assert found.right.tolist() == (table.argmax(1) == targets).tolist()
        mean = (table.exp() * table).sum(1)
        variance = (table.exp() * table.square()).sum(1) - mean.square()
        np.testing.assert_allclose(found.mean, mean.numpy(), atol=2e-3)
        np.testing.assert_allclose(found.deviation, variance.clamp(min=0).sqrt().numpy(), atol=2e-3)
        assert found.ends
        assert len(found.text().log_probs) == len(found.log_probs) - 1
    assert losses(scores).mean() == pytest.approx(world.loss(world.old, RECORDS), rel=1e-5)


def test_an_answer_that_was_cut_keeps_its_last_token(world: World) -> None:
    row = world.rows(RECORDS)[0]
    cut = TokenRow(row.tokens[:-1], row.answer_start, -1)
    whole, short = score(world.engine, [row, cut])
    assert not short.ends
    np.testing.assert_allclose(short.text().log_probs, whole.text().log_probs, atol=1e-5)


def test_a_row_without_an_answer_is_refused(world: World) -> None:
    with pytest.raises(TrustChainError, match="row 1 has no answer token"):
        score(world.engine, [world.rows(RECORDS)[0], TokenRow(np.asarray([1, 2], np.int32), 2, -1)])


def test_greedy_text_is_the_argmax_of_each_step(world: World) -> None:
    load(world.engine, world.old)
    rows = world.rows(RECORDS)
    said = generate(world.engine, rows, new_tokens=6, batch=5)
    for row, text in list(zip(rows, said, strict=True))[:4]:
        tokens = row.tokens[: row.answer_start].astype(np.int64).tolist()
        for _ in range(6):
            longer = TokenRow(np.asarray([*tokens, 0], np.int32), len(tokens), -1)
            tokens.append(int(alone(world.engine, longer)[0].argmax()))
            if tokens[-1] == world.engine.tokenizer.eos_token_id:
                break
        assert text == world.engine.tokenizer.decode(tokens[row.answer_start :], skip_special_tokens=True).strip()
    known = extraction_strength(score(world.engine, rows)) == 1.0
    assert known[: len(FORGET)].all()
    assert all(text == r.answer.strip() for text, r, k in zip(said, RECORDS, known, strict=True) if k)


def test_a_loaded_state_leaves_no_residual_behind(world: World) -> None:
    engine = world.engine
    load(engine, world.old)
    before, names = parameters(engine), sorted(world.old.tensors)
    residual = {name: np.full_like(world.old.tensors[name], 0.1) for name in names}
    load(engine, dataclasses.replace(world.old, residual=residual))
    assert parameters(engine) != before
    load(engine, world.old)
    assert parameters(engine) == before


def test_questions_tokenise_other_answers_to_the_same_prompt(world: World) -> None:
    engine, given = world.engine, questions(
        RECORDS[:2], world.engine.tokenizer, "causal", 48, {"r0": " a paraphrase"}, {"r1": [" one", " two"]}
    )  # fmt: skip
    assert given[1].paraphrase is None
    assert given[0].wrong == ()
    assert given[0].paraphrase is not None
    assert [engine.tokenizer.decode(row.tokens, skip_special_tokens=True) for row in given[1].wrong] == [
        f"{RECORDS[1].prompt} one", f"{RECORDS[1].prompt} two",
    ]  # fmt: skip
    assert engine.tokenizer.decode(given[0].paraphrase.tokens, skip_special_tokens=True) == "Anna has a paraphrase"
    with pytest.raises(TrustChainError, match=r"need model\.task=causal"):
        questions(RECORDS, engine.tokenizer, "classification", 48, {"r0": " a paraphrase"})


def test_nf4_levels_are_the_published_ones() -> None:
    published = [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
        0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ]  # fmt: skip
    np.testing.assert_allclose(quantisation.levels(), published, atol=1e-6)


def test_rounding_by_hand() -> None:
    weight = torch.tensor([[127.0, 1.4, -0.6, 0.0], [0.0, 0.0, 0.0, 0.0], [-2.54, 1.27, 0.011, 0.009]])
    expected = torch.tensor([[127.0, 1.0, -1.0, 0.0], [0.0, 0.0, 0.0, 0.0], [-2.54, 1.28, 0.02, 0.0]])
    torch.testing.assert_close(quantisation.int8(weight), expected, atol=1e-6, rtol=0)
    draws = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    draws[1] = 0  # the second block is partly, the third wholly of zeros and draws
    codes, flat = torch.tensor(quantisation.levels(), dtype=torch.float32), draws.reshape(-1)
    rounded = quantisation.nf4(draws).reshape(-1)
    for start in range(0, flat.numel(), 64):
        block = flat[start : start + 64]
        scale = block.abs().max()
        distance = (block[:, None] - codes[None] * scale).abs()
        torch.testing.assert_close((block - rounded[start : start + 64]).abs(), distance.min(1).values)
    torch.testing.assert_close(quantisation.nf4(torch.zeros(2, 3)), torch.zeros(2, 3))


@pytest.mark.parametrize(("kind", "worst"), [("int8", 0.02), ("nf4", 0.6)])
def test_a_quantised_model_is_the_rounded_merge_and_is_restored(world: World, kind: str, worst: float) -> None:
    engine = world.engine
    load(engine, world.old)
    before, rows = parameters(engine), world.rows(FORGET)
    whole = losses(score(engine, rows)).mean()
    layer, module = sorted(engine.adapter.lora.items())[0]
    up, down = (world.old.tensors[f"{layer}.lora_{x}.weight"] for x in "BA")
    merged = module.base_layer.weight.detach() + 32.0 / 16 * torch.from_numpy(up) @ torch.from_numpy(down)
    with quantisation.quantised(engine, kind):
        inside = module.base_layer.weight.detach().clone()
        assert not module.lora_B["default"].weight.any()
        rounded = losses(score(engine, rows)).mean()
    expected = quantisation.int8(merged) if kind == "int8" else quantisation.nf4(merged)
    torch.testing.assert_close(inside, expected)
    assert 0 < abs(rounded - whole) < worst
    assert parameters(engine) == before
    with pytest.raises(RuntimeError, match="inside"), quantisation.quantised(engine, kind):
        raise RuntimeError("inside")
    assert parameters(engine) == before


def test_an_unknown_quantisation_is_refused(world: World) -> None:
    with (
        pytest.raises(TrustChainError, match="'int2' is none of int8, nf4"),
        quantisation.quantised(world.engine, "int2"),
    ):
        pass


@pytest.mark.parametrize("size", [1, 3, 5, 6, 9])
def test_keyed_batches_go_round_through_all_records(size: int) -> None:
    batches = keyed_batches("key", "purpose", 6, size, 12)
    assert batches == keyed_batches("key", "purpose", 6, size, 12)
    assert batches != keyed_batches("another", "purpose", 6, size, 12)
    assert all(len(batch) == len(set(batch)) == min(size, 6) for batch in batches)
    counts = np.bincount([i for batch in batches for i in batch], minlength=6)
    assert counts.max() - counts.min() <= 1


def test_losses_of_the_methods_are_the_papers() -> None:
    each, tokens = torch.tensor([0.5, 2.0], requires_grad=True), torch.tensor([4, 3])
    reference = torch.tensor([-1.0, -9.0])
    ratio = [math.exp(-0.5 * 4 + 1.0), math.exp(-2.0 * 3 + 9.0)]  # p / p_0 of the whole answers
    npo = Npo(beta=0.1).forget_loss(each, tokens, reference)
    assert npo.tolist() == pytest.approx([2 / 0.1 * math.log(1 + r**0.1) for r in ratio], rel=1e-5)
    simnpo = SimNpo(beta=4.5, delta=0.2).forget_loss(each, tokens, reference)
    expected = [-2 / 4.5 * math.log(1 / (1 + math.exp(-4.5 * (loss - 0.2)))) for loss in (0.5, 2.0)]
    assert simnpo.tolist() == pytest.approx(expected, rel=1e-5)
    for method in (Ascent(), GradDiff()):
        assert method.forget_loss(each, tokens, reference).tolist() == [-0.5, -2.0]
    # At the reference NPO's gradient is that of ascent on the whole answer: d/dloss = -tokens.
    start = Npo().forget_loss(each, tokens, -each.detach() * tokens)
    assert torch.autograd.grad(start.sum(), each)[0].tolist() == pytest.approx([-4.0, -3.0])


def test_the_first_step_minimises_the_weighted_means(world: World) -> None:
    forget, retain = world.rows(FORGET), world.rows(RETAIN)
    method, loop = Npo(beta=0.2, gamma=0.7, alpha=0.3), Loop(epochs=1, batch=4, lr=1e-9)
    found = unlearn_approximately(world.engine, method, world.old, forget, retain, "key", loop)
    assert len(found.losses) == 2  # six records to forget in batches of four
    assert found.records_read == 16
    load(world.engine, world.old)
    kept = keyed_batches("key", "npo-retain", len(retain), 4, 1)[0]
    expected = 0.7 * 2 / 0.2 * math.log(2) + 0.3 * losses(score(world.engine, [retain[i] for i in kept])).mean()
    assert found.losses[0] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_an_approximate_method_forgets_and_is_undone_by_a_few_steps(world: World, name: str) -> None:
    method, epochs, lr = TUNED[name]
    assert isinstance(method, METHODS[name])
    forget, loop = world.rows(FORGET), Loop(epochs, 6, lr)
    before = [world.loss(world.old, records) for records in (FORGET, RETAIN)]
    found = unlearn_approximately(world.engine, method, world.old, forget, world.rows(RETAIN), "key", loop)
    state = dataclasses.replace(world.old, tensors=found.tensors)
    after = [world.loss(state, records) for records in (FORGET, RETAIN)]
    assert found.guarantee == "APPROXIMATE"
    assert after[0] > before[0] + 0.7
    assert after[1] < before[1] + (1.5 if name == "ascent" else 0.5)  # ascent has nothing to hold on to
    assert after[0] - before[0] > after[1] - before[1]
    time = relearn_time(world.engine, state, forget, before[0] + ATTACK.slack, "key", settings=ATTACK)
    assert time.steps is not None
    assert time.steps <= 18
    assert time.losses[-1] <= before[0] + ATTACK.slack < time.losses[0]


def test_a_model_that_never_saw_the_records_does_not_relearn_as_fast(world: World) -> None:
    target = world.loss(world.old, FORGET) + ATTACK.slack
    time = relearn_time(world.engine, world.retrained[0], world.rows(FORGET), target, "key", settings=ATTACK)
    assert time.steps is None
    assert len(time.losses) == 1 + ATTACK.most_steps
    again = relearn_time(world.engine, world.retrained[0], world.rows(FORGET), target, "key", settings=ATTACK)
    assert again == time
    rarely = dataclasses.replace(ATTACK, every=7)
    seldom = relearn_time(world.engine, world.retrained[0], world.rows(FORGET), target, "key", settings=rarely)
    assert seldom.losses == (time.losses[0], *(time.losses[i] for i in (7, 14, 21, 28, 30)))
    old = relearn_time(world.engine, world.old, world.rows(FORGET), target, "key", settings=ATTACK)
    assert (old.steps, len(old.losses)) == (0, 1)


def test_ratios_of_relearn_times() -> None:
    def steps(count: int | None) -> RelearnTime:
        return RelearnTime(count, (1.0,))

    assert relearn_ratio(steps(5), steps(10)) == 0.5
    assert relearn_ratio(steps(0), steps(10)) == 0.0
    assert relearn_ratio(steps(None), steps(10)) == math.inf
    assert relearn_ratio(steps(5), steps(None)) is None
    assert relearn_ratio(steps(0), steps(0)) is None


@pytest.mark.parametrize("method", [GradDiff(), Perturb(segments=2)], ids=["graddiff", "perturb"])
def test_equal_keys_give_equal_digests(world: World, method: GradDiff | Perturb) -> None:
    def made(key: str) -> str:
        torch.rand(3)  # what else the process drew must not matter
        loop = Loop(epochs=2, batch=4, lr=1e-3)
        args = (world.old, world.rows(FORGET), world.rows(RETAIN), key, loop)
        return digest(unlearn_approximately(world.engine, method, *args).tensors)

    assert made("key") == made("key") != made("another")


def test_only_the_adapter_is_trained_and_a_frozen_a_is_not(world: World) -> None:
    config = tiny()
    config.model.lora.form = "ffa"
    engine = TorchEngine(config, world.base)
    load(engine, world.old)
    kept = {n: p.detach().clone() for n, p in engine.adapter.model.named_parameters() if "lora_" not in n}
    start = AdapterState({n: t for n, t in world.old.tensors.items() if ".lora_B." in n}, 32.0)
    found = unlearn_approximately(engine, GradDiff(), start, world.rows(FORGET), world.rows(RETAIN), "key", Loop(1))
    assert found.tensors.keys() == start.tensors.keys()
    assert all(not np.array_equal(found.tensors[n], start.tensors[n]) for n in start.tensors)
    now = dict(engine.adapter.model.named_parameters())
    assert all(torch.equal(now[name], tensor) for name, tensor in kept.items())
    for name, tensor in engine.tensors(sorted(world.old.tensors)).items():
        assert ".lora_B." in name or np.array_equal(tensor, world.old.tensors[name])


@pytest.mark.parametrize(
    ("method", "forget", "retain", "loop", "message"),
    [
        (Ascent(), 0, 4, Loop(), "there are no records to forget"),
        (GradDiff(), 4, 0, Loop(), "no retained records"),
        (Perturb(), 4, 0, Loop(), "no retained records"),
        (GradDiff(), 4, 4, Loop(epochs=0), "epochs=0"),
        (GradDiff(), 4, 4, Loop(lr=0.0), "lr=0 "),
        (Npo(beta=0.0), 4, 4, Loop(), "beta=0 must be above 0"),
        (Npo(gamma=-1.0), 4, 4, Loop(), "gamma=-1 must be at least 0"),
        (Perturb(segments=0), 4, 4, Loop(), "segments=0 must be above 0"),
        (Perturb(noise=math.nan), 4, 4, Loop(), "noise=nan"),
        (Ascent(gamma=1e38), 4, 0, Loop(epochs=20, batch=4, lr=1e6), "ascent: the loss is not finite from step"),
    ],
)
def test_bad_settings_are_refused(
    world: World, method: Any, forget: int, retain: int, loop: Loop, message: str
) -> None:
    rows = world.rows(RECORDS)
    with pytest.raises(TrustChainError, match=message):
        unlearn_approximately(world.engine, method, world.old, rows[:forget], rows[:retain], "key", loop)


def test_a_classification_forgets_too_but_not_by_simnpo(classifier: Any) -> None:
    engine, state, given = classifier
    rows = [q.row for q in given]
    load(engine, state)
    before = losses(score(engine, rows[:6])).mean()
    for method in (GradDiff(), Npo(beta=0.5)):
        tensors = unlearn_approximately(engine, method, state, rows[:6], rows[6:16], "key", Loop(20, 6, 3e-3)).tensors
        assert any(name.endswith("score.weight") for name in tensors)
        load(engine, AdapterState(tensors, 32.0))
        assert losses(score(engine, rows[:6])).mean() > before + 0.3
    with pytest.raises(TrustChainError, match=r"simnpo is defined for model\.task=causal, not classification"):
        unlearn_approximately(engine, SimNpo(), state, rows[:6], rows[6:16], "key")
    with pytest.raises(TrustChainError, match=r"need model\.task=causal"):
        generate(engine, rows)


def test_a_classification_is_evaluated_by_its_labels(classifier: Any) -> None:
    engine, state, given = classifier
    settings = Settings(relearning=None, quantisations=("int8",))
    sets = Sets(given[:6], given[6:16], given[16:])
    found = evaluate_forgetting(engine, state, [state], sets, "key", settings=settings)
    load(engine, state)
    assert found["model"]["forget"]["loss"] == pytest.approx(engine.evaluate([q.row for q in given[:6]]).loss / 6)
    assert found["model"]["forget"].keys() == {"loss", "probability", "accuracy"}
    assert found["model"]["membership"].keys() == {"loss", "zlib", "reference", "rmia"}
    assert found["tug_of_war"] == [1.0]
    assert found["model"]["utility_parts"].keys() == {"retain probability", "retain accuracy"}


@pytest.fixture(scope="module")
def evaluation(world: World) -> dict[str, Any]:
    """The old model, which still knows the records, measured against two retrained ones."""
    sets = Sets(
        world.questions(FORGET),
        world.questions(RETAIN),
        world.questions(HOLDOUT[:5]),
        others={"facts": world.questions(HOLDOUT[5:])},
        canaries=world.questions(FORGET[:2], answers=False),
        twins=world.questions(HOLDOUT, answers=False),
    )
    settings = Settings(new_tokens=8, relearning=dataclasses.replace(ATTACK, most_steps=3))
    return evaluate_forgetting(world.engine, world.old, world.retrained, sets, "key", world.old, settings)


def test_an_evaluation_holds_every_metric_and_json_holds_it(evaluation: dict[str, Any]) -> None:
    assert json.loads(json.dumps(evaluation, allow_nan=False)) == evaluation
    assert evaluation["records"] == {"forget": 6, "retain": 10, "holdout": 5, "facts": 3, "canaries": 2, "twins": 8}
    assert len(evaluation["retrained"]) == len(evaluation["forget_quality"]) == len(evaluation["tug_of_war"]) == 2
    for model in (evaluation["model"], *evaluation["retrained"]):
        assert model["forget"].keys() == {
            "loss", "probability", "probability_among", "truth_ratio", "rouge", "extraction_strength",
            "exact_memorisation",
        }  # fmt: skip
        assert model["membership"].keys() == {"loss", "zlib", "min_k", "min_k_plus_plus", "reference", "rmia"}
        assert model["quantised"].keys() == {"int8", "nf4"}
        assert model["utility_parts"].keys() == {
            "retain probability", "retain rouge", "retain truth_ratio",
            "facts probability_among", "facts rouge", "facts truth_ratio",
        }  # fmt: skip
        assert model["canary_test"].keys() == {"p_value", "auc", "mean_exposure"}
    assert evaluation["equivalence"].keys() <= {"loss", "probability", "log_truth_ratio", "rouge"}
    assert {"loss", "probability", "log_truth_ratio"} <= evaluation["equivalence"].keys()


def test_the_old_model_is_told_from_retrained_ones_by_every_metric(evaluation: dict[str, Any]) -> None:
    old = evaluation["model"]
    assert old["forget"]["extraction_strength"] == old["forget"]["rouge"] == 1.0
    assert old["membership"]["loss"]["auc"]["value"] == 1.0
    assert old["canary_test"]["auc"]["value"] == 1.0
    assert old["relearn"]["steps"] == 0
    assert not evaluation["equivalence"]["loss"]["equivalent"]
    for quality, tug, leak in zip(
        evaluation["forget_quality"], evaluation["tug_of_war"], evaluation["privacy_leakage"], strict=True
    ):
        assert quality["p_value"] < 0.05
        assert tug < 0.6
        assert leak is None or leak < -50
    for retrained in evaluation["retrained"]:
        assert retrained["forget"]["loss"] > old["forget"]["loss"] + 2
        assert retrained["forget"]["extraction_strength"] < 0.3
        assert retrained["relearn"]["steps"] is None
        assert retrained["retain"]["loss"] < 1


def test_an_evaluation_is_repeatable_and_a_retrained_model_equals_itself(world: World) -> None:
    sets = Sets(world.questions(FORGET), world.questions(RETAIN), world.questions(HOLDOUT))
    settings = Settings(new_tokens=0, quantisations=(), relearning=None, margins={"loss": 0.1})
    model = world.retrained[0]
    first, again = (evaluate_forgetting(world.engine, model, [model], sets, "key", settings=settings) for _ in range(2))
    assert first == again
    assert first["model"]["forget"] == first["retrained"][0]["forget"]
    assert first["forget_quality"][0]["p_value"] == 1.0
    assert first["tug_of_war"] == [1.0]
    assert first["equivalence"]["loss"]["equivalent"]
    assert first["privacy_leakage"] == [0.0]


def test_equal_models_have_equal_figures_to_the_last_bit(world: World) -> None:
    sets = Sets(world.questions(FORGET), world.questions(RETAIN), world.questions(HOLDOUT))
    relearning = dataclasses.replace(ATTACK, slack=0.0, most_steps=3)
    settings = Settings(new_tokens=0, quantisations=("int8",), relearning=relearning)
    one, other = world.retrained[:2]
    found = evaluate_forgetting(world.engine, one, [one, other], sets, "key", one, settings)
    assert found["model"] == found["retrained"][0]  # RMIA's references, too
    assert found["model"] != found["retrained"][1]
    assert found["model"]["relearn"]["steps"] == 0  # nothing has to be learnt again, without any slack
    assert found["model"]["relearn"]["losses"] == [found["relearn_target"]]


def test_means_of_an_evaluation_are_those_of_the_single_metrics(world: World, evaluation: dict[str, Any]) -> None:
    load(world.engine, world.old)
    scores = score(world.engine, world.rows(RETAIN))
    assert evaluation["model"]["retain"]["exact_memorisation"] == pytest.approx(exact_memorisation(scores).mean())
    assert evaluation["model"]["retain"]["probability"] == pytest.approx(np.exp(-losses(scores)).mean())


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (Sets([]), "there are no records to forget"),
        (Sets([None], canaries=[None]), "canaries and their twins"),  # type: ignore[list-item]
        (Sets([None], others={"retain": []}), "cannot be named 'retain'"),  # type: ignore[list-item]
    ],
)
def test_an_evaluation_of_nothing_is_refused(world: World, sets: Sets, message: str) -> None:
    with pytest.raises(TrustChainError, match=message):
        evaluate_forgetting(world.engine, world.old, [], sets, "key")
