"""Closed-form merges: sums over records are exact to remove, and the solutions are what they are said to be."""

import random

import numpy as np
import pytest

from benchmarks.forgetting_dial_closed import (
    HEAD,
    merge_by_grams,
    regmean,
    regression,
    sums_of_record,
    total,
    with_one,
)  # fmt: skip
from trustchain_ray.errors import TrustChainError

DRAWS = np.random.default_rng(3)
RECORDS = [DRAWS.normal(size=(int(DRAWS.integers(1, 9)), 5)).astype(np.float32) for _ in range(40)]
CLASSES = [DRAWS.integers(0, 3, len(record)).tolist() for record in RECORDS]
PARTS = [sums_of_record(record, classes, 3) for record, classes in zip(RECORDS, CLASSES, strict=True)]


def test_a_sum_without_a_record_equals_one_that_never_had_it_in_any_order() -> None:
    shuffled = [part for i, part in enumerate(PARTS) if i != 7]
    random.Random(0).shuffle(shuffled)
    removed, never = total(PARTS) - PARTS[7], total(shuffled)
    assert np.array_equal(removed.gram, never.gram)
    assert np.array_equal(removed.cross, never.cross)
    assert regression(removed, 0.1).tobytes() == regression(never, 0.1).tobytes()
    assert not np.array_equal(never.gram, total(PARTS).gram)


def test_adding_parts_equals_their_total() -> None:
    added = PARTS[0]
    for part in PARTS[1:]:
        added = added + part
    assert np.array_equal(added.gram, total(PARTS).gram)


def test_a_regression_is_ridge_least_squares_in_which_every_record_counts_once() -> None:
    rows = np.concatenate([record / np.sqrt(len(record)) for record in RECORDS]).astype(np.float64)
    wanted = np.concatenate([np.eye(3)[c] / np.sqrt(len(c)) for c in CLASSES])
    level = 0.1 * np.trace(rows.T @ rows) / 5
    found, *_ = np.linalg.lstsq(
        np.concatenate([rows, np.sqrt(level) * np.eye(5)]), np.concatenate([wanted, np.zeros((5, 3))]), rcond=None
    )
    assert np.allclose(regression(total(PARTS), 0.1), found, atol=1e-6)


def test_regmean_is_least_squares_to_what_each_cohort_says_on_its_records() -> None:
    weights = [DRAWS.normal(size=(4, 5)) for _ in range(2)]
    groups = RECORDS[:20], RECORDS[20:]
    grams = [total([sums_of_record(record) for record in group]).gram for group in groups]
    inputs = [np.concatenate([record / np.sqrt(len(record)) for record in group]) for group in groups]
    said = np.concatenate([x @ w.T for x, w in zip(inputs, weights, strict=True)])
    found, *_ = np.linalg.lstsq(np.concatenate(inputs), said, rcond=None)
    assert np.allclose(regmean(weights, grams, 0.0), found.T, atol=1e-5)


def test_regmean_is_the_mean_where_cohorts_are_alike_and_where_nothing_is_known() -> None:
    weights = [DRAWS.normal(size=(4, 5)) for _ in range(3)]
    alike = [total(PARTS).gram] * 3
    assert np.allclose(regmean(weights, alike, 0.1), np.mean(weights, axis=0))
    other = [PARTS[i].gram for i in range(3)]
    assert np.allclose(regmean(weights, other, 1e6), np.mean(weights, axis=0), atol=1e-4)


def test_equal_cohorts_merge_into_themselves_head_and_bias_included() -> None:
    state = {
        "layer.lora_B.weight": DRAWS.normal(size=(4, 5)).astype(np.float32),
        "classifier.bias": DRAWS.normal(size=3).astype(np.float32),
        "classifier.weight": DRAWS.normal(size=(3, 5)).astype(np.float32),
    }
    grams = [{"layer": PARTS[i].gram, HEAD: sums_of_record(with_one(RECORDS[i])).gram} for i in range(2)]
    merged = merge_by_grams([state, state], grams, 0.1)
    assert {name: t.dtype for name, t in merged.items()} == {name: np.dtype(np.float32) for name in state}
    for name, tensor in state.items():
        assert np.allclose(merged[name], tensor, atol=1e-5)


@pytest.mark.parametrize("features", [np.zeros((0, 5)), np.full((2, 5), np.nan)])
def test_a_record_without_finite_features_is_refused(features: np.ndarray) -> None:
    with pytest.raises(TrustChainError, match="finite features"):
        sums_of_record(features)
