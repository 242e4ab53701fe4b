"""Forms of the adapter: what their merges are as changes of the weights, and that they can go on training."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest

from trustchain_ray import forms
from trustchain_ray.adapter import LORA_A, LORA_B, Tensors, digest, head, layers
from trustchain_ray.forms.products import factor, stack
from trustchain_ray.initial import fresh_adapter

ALPHA = 6.0
AdapterOf = Callable[..., Tensors]


def product(tensors: Tensors, layer: str, scale: float = 1.0) -> np.ndarray:
    return scale * tensors[layer + LORA_B].astype(float) @ tensors[layer + LORA_A].astype(float)


def mean_product(updates: list[Tensors], weights: list[int], layer: str) -> np.ndarray:
    """Weighted mean of the members' weight changes, each scaled by its own alpha / rank."""
    terms = [w * product(u, layer, ALPHA / u[layer + LORA_A].shape[0]) for u, w in zip(updates, weights, strict=True)]
    return sum(terms) / sum(weights)


def close(a: np.ndarray, b: np.ndarray) -> None:
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 * np.abs(b).max())


@pytest.fixture
def updates(adapter_of: AdapterOf) -> list[Tensors]:
    return [adapter_of(seed, head=True) for seed in range(3)]


WEIGHTS = [2, 5, 1]


def test_ffa_merges_the_mean_of_b_exactly(adapter_of: AdapterOf):
    form = forms.get("ffa")
    fresh = adapter_of(0, head=True)
    state = form.initial(fresh, 3)
    assert not any(name.endswith(LORA_A) for name in state), "A is frozen: it neither moves nor changes"
    trained = [form.initial(adapter_of(seed, head=True), 3) for seed in (1, 2)]
    merged = form.merge(state, [form.update(state, t) for t in trained], [1, 3], 1.0, ALPHA)
    for name in state:
        np.testing.assert_allclose(merged[name], (trained[0][name] + 3.0 * trained[1][name]) / 4, atol=1e-6)
    full, scale = form.published(merged, fresh, ALPHA)
    assert scale == ALPHA / 3
    for layer in layers(fresh):
        members = [t[layer + LORA_B].astype(float) @ fresh[layer + LORA_A] for t in trained]
        np.testing.assert_allclose(product(full, layer), (members[0] + 3 * members[1]) / 4, atol=1e-5)


@pytest.mark.parametrize("name", ["ffa", "fedavg"])
def test_order_of_the_members_changes_no_bit(name: str, adapter_of: AdapterOf, updates: list[Tensors]):
    form = forms.get(name)
    state = form.initial(adapter_of(9, head=True), 3)
    changes = [form.update(state, form.initial(u, 3)) for u in updates]
    digests = {
        digest(form.merge(state, [changes[i] for i in order], [WEIGHTS[i] for i in order], 0.7, ALPHA))
        for order in itertools.permutations(range(3))
    }
    assert len(digests) == 1


@pytest.mark.parametrize("name", ["ffa", "fedavg", "svd", "flora"])
def test_the_same_members_give_the_same_bits(name: str, adapter_of: AdapterOf, updates: list[Tensors]):
    form = forms.get(name)
    state = form.initial(adapter_of(9, head=True), 3)
    changes = [form.update(state, {n: u[n] for n in (u if form.TRAINS_A else state)}) for u in updates]
    first = form.merge(state, changes, WEIGHTS, 0.7, ALPHA)
    assert digest(first) == digest(form.merge(state, changes, WEIGHTS, 0.7, ALPHA))
    assert all(t.dtype == np.float32 for t in first.values())


def test_averaging_a_and_b_separately_is_biased(adapter_of: AdapterOf):
    form = forms.get("fedavg")
    state = form.initial(adapter_of(9), 3)
    trained = [adapter_of(1), adapter_of(2)]
    merged = form.merge(state, [form.update(state, t) for t in trained], [1, 1], 1.0, ALPHA)
    for layer in layers(state):
        for factor_name in (LORA_A, LORA_B):
            mean = (trained[0][layer + factor_name] + trained[1][layer + factor_name]) / 2
            np.testing.assert_allclose(merged[layer + factor_name], mean, atol=1e-6)
        true = (product(trained[0], layer) + product(trained[1], layer)) / 2
        assert np.linalg.norm(product(merged, layer) - true) > 0.2 * np.linalg.norm(true)


def test_svd_merges_the_mean_in_product_space(adapter_of: AdapterOf):
    form = forms.get("svd")
    state = form.initial(adapter_of(9, rank=12, head=True), 12)  # a rank at which nothing is lost
    trained = [adapter_of(seed, rank=rank, head=True) for seed, rank in ((1, 3), (2, 3), (3, 1))]
    merged = form.merge(state, [form.update(state, t) for t in trained], WEIGHTS, 1.0, ALPHA)
    for layer in layers(state):
        close(product(merged, layer), mean_product(trained, WEIGHTS, layer))
    half = form.merge(state, [form.update(state, t) for t in trained], WEIGHTS, 0.5, ALPHA)
    for layer in layers(state):
        close(product(half, layer), (product(state, layer) + mean_product(trained, WEIGHTS, layer)) / 2)
    mean = sum(w * t["classifier.weight"].astype(float) for w, t in zip(WEIGHTS, trained, strict=True)) / 8
    np.testing.assert_allclose(merged["classifier.weight"], mean, atol=1e-6)


def test_svd_cut_to_its_rank_is_the_best_approximation(adapter_of: AdapterOf, updates: list[Tensors]):
    form = forms.get("svd")
    state = form.initial(adapter_of(9, head=True), 3)
    merged = form.merge(state, [form.update(state, u) for u in updates], WEIGHTS, 1.0, ALPHA)
    for layer in layers(state):
        true = mean_product(updates, WEIGHTS, layer)
        singular = np.linalg.svd(true, compute_uv=False)
        assert merged[layer + LORA_A].shape[0] == 3
        assert np.linalg.norm(product(merged, layer) - true) == pytest.approx(np.linalg.norm(singular[3:]), rel=1e-4)


@pytest.mark.parametrize("rank", [1, 2, 3, 4])
def test_svd_starts_a_member_at_its_own_rank(adapter_of: AdapterOf, updates: list[Tensors], rank: int):
    form = forms.get("svd")
    state = form.initial(adapter_of(9, head=True), 3)
    state = form.merge(state, [form.update(state, u) for u in updates], WEIGHTS, 1.0, ALPHA)
    fresh = adapter_of(10, rank=rank, head=True)
    begun = form.start(state, fresh, ALPHA)
    assert {n: t.shape for n, t in begun.items()} == {n: t.shape for n, t in fresh.items()}
    assert all(t.dtype == np.float32 for t in begun.values())
    for layer in layers(state):
        true = product(state, layer)
        lost = np.linalg.svd(true, compute_uv=False)[rank:]
        distance = np.linalg.norm(product(begun, layer, ALPHA / rank) - true)
        assert distance == pytest.approx(np.linalg.norm(lost), rel=1e-3, abs=1e-5)
        assert np.abs(begun[layer + LORA_A]).max(1).min() > 0, "a row of zeros in A and B would never train"


def test_flora_is_exact_over_rounds_and_mixed_ranks(adapter_of: AdapterOf):
    form = forms.get("flora")
    widths = ((4, 5), (24, 20), (3, 30))  # layers that fill up at different numbers of stacked rows
    state = form.initial(adapter_of(9, widths=widths, head=True), 3)
    expected = {layer: np.zeros((out, width)) for layer, (out, width) in zip(layers(state), widths, strict=True)}
    for number in range(6):
        trained = [adapter_of(100 * number + i, rank, widths, head=True) for i, rank in enumerate((1, 2, 4))]
        begun = [form.start(state, t, ALPHA) for t in trained]
        changes = [form.update(b, t) for b, t in zip(begun, trained, strict=True)]
        state = form.merge(state, changes, WEIGHTS, 0.5, ALPHA)
        for layer in expected:
            expected[layer] += 0.5 * mean_product(trained, WEIGHTS, layer)
            close(product(state, layer), expected[layer])
            assert state[layer + LORA_A].shape[0] <= min(expected[layer].shape)


@pytest.mark.parametrize("name", ["svd", "flora"])
def test_the_first_start_can_be_trained(name: str, adapter_of: AdapterOf):
    form = forms.get(name)
    shapes = {n: t.shape for n, t in adapter_of(0, rank=4).items()}
    shared = fresh_adapter(shapes, "key", "frozen", 3, name)
    state = form.initial(shared, 3)
    for rank in (1, 2, 3, 4):
        begun = form.start(state, fresh_adapter(shapes, "key", "1/north/all", rank, name), ALPHA)
        for layer in layers(begun):
            assert begun[layer + LORA_A].shape[0] == begun[layer + LORA_B].shape[1] == rank
            assert np.abs(begun[layer + LORA_A]).max(1).min() > 0
            assert not begun[layer + LORA_B].any()


@pytest.mark.parametrize("name", ["svd", "flora"])
def test_a_merge_of_nothing_learnt_can_still_be_trained(name: str, adapter_of: AdapterOf):
    form = forms.get(name)
    shapes = {n: t.shape for n, t in adapter_of(0, rank=3).items()}
    state = form.initial(fresh_adapter(shapes, "key", "frozen", 3, name), 3)
    fresh = fresh_adapter(shapes, "key", "1/north/all", 3, name)
    untouched = form.start(state, fresh, ALPHA)
    state = form.merge(state, [form.update(untouched, untouched)], [1], 1.0, ALPHA)
    begun = form.start(state, fresh, ALPHA)
    for layer in layers(begun):
        assert np.abs(begun[layer + LORA_A]).max(1).min() > 0
        assert not product(state, layer).any()


@pytest.mark.parametrize("name", ["ffa", "fedavg", "svd", "flora"])
def test_one_cohort_is_the_model_itself(name: str, adapter_of: AdapterOf):
    form = forms.get(name)
    begin = form.initial(adapter_of(0, head=True), 3)
    state = form.initial(adapter_of(1, head=True), 3)
    assert form.merge_cohorts(begin, [state], [7], 1.0) is state


@pytest.mark.parametrize("name", ["svd", "flora"])
def test_cohorts_merge_exactly_in_product_space(name: str, adapter_of: AdapterOf):
    form = forms.get(name)
    begin = form.initial(fresh_adapter({n: t.shape for n, t in adapter_of(0).items()}, "k", "f", 3, name), 3)
    begin |= head(adapter_of(0, head=True))
    states = [adapter_of(seed, head=True) for seed in (1, 2)]
    model = form.merge_cohorts(begin, states, [1, 3], 0.8)
    for layer in layers(begin):
        close(product(model, layer), 0.8 * (product(states[0], layer) + 3 * product(states[1], layer)) / 4)
    moved = [s["classifier.weight"] - begin["classifier.weight"] for s in states]
    expected = begin["classifier.weight"] + 0.8 * (moved[0] + 3 * moved[1]) / 4
    np.testing.assert_allclose(model["classifier.weight"], expected, atol=1e-6)
    assert form.published(model, {}, ALPHA)[1] == 1.0


@pytest.mark.parametrize("name", ["ffa", "fedavg"])
def test_cohorts_merge_by_their_weights(name: str, adapter_of: AdapterOf):
    form = forms.get(name)
    begin, one, two = (form.initial(adapter_of(seed, head=True), 3) for seed in range(3))
    model = form.merge_cohorts(begin, [one, two], [1, 3], 0.8)
    for n in begin:
        moved = ((one[n] - begin[n]) + 3 * (two[n] - begin[n])) / 4
        np.testing.assert_allclose(model[n], begin[n] + 0.8 * moved, atol=1e-6)


def test_factors_are_orthonormal_and_their_signs_fixed(adapter_of: AdapterOf):
    stacked = stack([adapter_of(1), adapter_of(2)], [1.0, -0.5])
    factored = factor(stacked, 4)
    flipped = {n: -t for n, t in stacked.items()}  # (-B)(-A) is the same product
    assert digest(factor(flipped, 4)) == digest(factored)
    for layer in layers(factored):
        a = factored[layer + LORA_A]
        np.testing.assert_allclose(a @ a.T, np.eye(len(a)), atol=1e-6)
        assert (a[np.arange(len(a)), np.abs(a).argmax(1)] > 0).all()
