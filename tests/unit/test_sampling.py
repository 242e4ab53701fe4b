"""Keyed Poisson inclusion: its rate, its independence, and frozen values."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trustchain_ray.config import TrainingConfig
from trustchain_ray.keys import derive, generator, torch_seed
from trustchain_ray.sampling import inclusion_steps, plan, sampling_rate

names = st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=6), unique=True, max_size=8)
rates = st.floats(0, 1)


@settings(deadline=None)
@given(st.binary(min_size=1, max_size=8), names, rates, st.integers(0, 40), st.data())
def test_removing_a_record_changes_no_step_of_another(key, ids, rate, steps, data):
    gone = data.draw(st.sampled_from(ids)) if ids else None
    rest = data.draw(st.permutations([i for i in ids if i != gone]))
    before = [[ids[i] for i in step if ids[i] != gone] for step in plan(key, ids, rate, steps)]
    assert [[rest[i] for i in step] for step in plan(key, rest, rate, steps)] == before


@settings(deadline=None)
@given(st.binary(min_size=1, max_size=8), names, rates, st.integers(0, 30), st.integers(0, 30))
def test_a_shorter_plan_is_the_beginning_of_a_longer_one(key, ids, rate, steps, more):
    assert plan(key, ids, rate, steps + more)[:steps] == plan(key, ids, rate, steps)


@settings(deadline=None)
@given(st.binary(min_size=1, max_size=8), names, rates, st.integers(0, 30))
def test_a_plan_names_records_in_the_order_of_their_ids(key, ids, rate, steps):
    batches = plan(key, ids, rate, steps)
    assert len(batches) == steps
    for batch in batches:
        assert [ids[i] for i in batch] == sorted({ids[i] for i in batch})


@pytest.mark.parametrize("rate", [0.01, 0.066, 0.5, 0.97])
def test_inclusion_is_bernoulli_at_the_rate(rate: float):
    records, steps = 2000, 50
    table = np.zeros((records, steps))
    for i in range(records):
        table[i, inclusion_steps(b"rate", f"record {i}", rate, steps)] = 1
    spread = math.sqrt(rate * (1 - rate))
    assert abs(table.mean() - rate) < 4 * spread / math.sqrt(table.size)
    assert np.abs(table.mean(0) - rate).max() < 4.5 * spread / math.sqrt(records), "no step is special"
    # The number of records of a step is binomial, and neighbouring steps know nothing of each other.
    assert table.sum(0).var(ddof=1) / (records * rate * (1 - rate)) == pytest.approx(
        1, abs=4 * math.sqrt(2 / (steps - 1))
    )
    pairs = ((table[:, 1:] - rate) * (table[:, :-1] - rate)).mean() / spread**2
    assert abs(pairs) < 4 / math.sqrt(records * (steps - 1))


def test_rates_of_zero_and_one():
    assert inclusion_steps(b"key", "a", 0.0, 5) == []
    assert inclusion_steps(b"key", "a", 1.0, 5) == [0, 1, 2, 3, 4]
    assert plan(b"key", ["a"], 0.5, 0) == []


@pytest.mark.parametrize("rate", [5e-324, 1e-310, 1e-30, 1 - 2**-53])
def test_rates_at_the_edge_of_floating_point(rate: float):
    included = inclusion_steps(b"key", "a", rate, 1000)
    assert included == ([] if rate < 0.5 else list(range(1000)))


def test_frozen_values():
    # Replays depend on these: a library that changes them breaks every certificate made before.
    key = derive("golden", "sampling", "north")
    assert derive("golden", "sampling", "north").hex() == FROZEN_KEY
    assert inclusion_steps(key, "record-1", 0.1, 100) == FROZEN_TENTH
    assert inclusion_steps(key, "record-2", 0.5, 20) == FROZEN_HALF
    assert torch_seed("golden", "head") == FROZEN_SEED
    assert [int(n) for n in generator("golden", "a", 1).bit_generator.random_raw(2)] == FROZEN_RAW


def test_records_keys_and_purposes_draw_differently():
    steps = {tuple(inclusion_steps(key, record, 0.5, 64)) for key in (b"a", b"b") for record in ("x", "y", "x ")}
    assert len(steps) == 6
    assert derive("k", "a", "b") != derive("k", "ab") != derive("k", "a", "", "b")
    assert derive("k", 1) == derive(b"k", "1")


def test_the_rate_of_a_member():
    assert sampling_rate(TrainingConfig(batch_size=16), 64) == 0.25
    assert sampling_rate(TrainingConfig(batch_size=16), 10) == 1.0
    assert sampling_rate(TrainingConfig(batch_size=16), 0) == 1.0
    assert sampling_rate(TrainingConfig(batch_size=16, sampling_rate=0.066), 64) == 0.066


FROZEN_KEY = "be0d2da75a3d0b7c4ce201d7df26a2ca56715bdd66145ec09f343734f27b38ac"
FROZEN_TENTH = [4, 26, 28, 29, 38, 43, 54, 67, 71]
FROZEN_HALF = [2, 7, 8, 14, 15, 16, 18]
FROZEN_SEED = 6953995671490728776
FROZEN_RAW = [11585311396099884139, 17578285617985308112]
