"""Rules for hostile members: against plain formulas, independent of order, and not to be moved by who is far away."""

import itertools
from typing import Any

import numpy as np
import pytest

from ledger.errors import LedgerError
from ledger.events import MERGE, make_event
from ledger.identity import COORDINATOR, load_or_create
from trustchain_ray.adapter import Layout, Tensors, digest
from trustchain_ray.config import Config
from trustchain_ray.merge import apply_step
from trustchain_ray.robust import geometry
from trustchain_ray.robust.merging import merge_cohorts, merge_updates
from trustchain_ray.robust.rules import Chosen, choose, near_copies
from trustchain_ray.robust.settings import RULES, least_members

Floats = np.ndarray[Any, np.dtype[np.float64]]
ROBUST = RULES[1:]
GRID = 2.0**-24


def updates_of(count: int, size: int = 400, seed: int = 0, far: int = 0, distance: float = 30.0) -> list[np.ndarray]:
    """Updates around a common direction; the last `far` of them lie far away, on the other side."""
    draws = np.random.default_rng(seed)
    common = draws.normal(0, 0.05, size)
    rows = [(common + draws.normal(0, 0.03, size)).astype(np.float32) for _ in range(count)]
    for i in range(count - far, count):
        rows[i] = (-distance * rows[i]).astype(np.float32)
    return rows


def result(chosen: Chosen) -> Floats:
    """The average that a rule stands for, as float64."""
    base = np.zeros(chosen.terms[0].size, np.float32)
    return apply_step(base, chosen.terms, chosen.weights, 1.0).astype(np.float64)


def mixed(x: Floats, hostile: int) -> Floats:
    distances = ((x[:, None] - x[None]) ** 2).sum(2)
    return np.stack([x[np.argsort(row, kind="stable")[: len(x) - hostile]].mean(0) for row in distances])


def reference(rule: str, x: Floats, weights: list[int], hostile: int) -> Floats:
    """The textbook formula, in float64, of updates (members, values)."""
    norms, share = np.linalg.norm(x, axis=1), np.array(weights) / sum(weights)
    if rule == "mean":
        return share @ x
    if rule == "norm_bound":
        bound = np.sort(norms)[(len(x) - 1) // 2]
        return (share * np.minimum(1, bound / norms)) @ x
    if rule == "trimmed_mean":
        return np.sort(x, 0)[hostile : len(x) - hostile].mean(0)
    if rule == "median":
        return np.median(x, 0)
    if rule == "multi_krum":
        distances = np.sort(((x[:, None] - x[None]) ** 2).sum(2), 1)[:, 1 : len(x) - hostile - 1]
        return x[np.argsort(distances.sum(1), kind="stable")[: len(x) - hostile]].mean(0)
    point = x.mean(0)
    for _ in range(500):
        pull = 1 / np.maximum(np.linalg.norm(x - point, axis=1), 1e-12)
        point = pull @ x / pull.sum()
    return point


@pytest.mark.parametrize("mixing", [False, True])
@pytest.mark.parametrize(("count", "hostile"), [(7, 2), (8, 2), (11, 3)])
@pytest.mark.parametrize("rule", RULES)
def test_a_rule_is_its_formula(rule: str, count: int, hostile: int, mixing: bool):
    rows, weights = updates_of(count, seed=count, far=hostile, distance=3.0), list(range(1, count + 1))
    x = np.stack(rows).astype(np.float64)
    expected = reference(rule, mixed(x, hostile) if mixing and rule != "mean" else x, weights, hostile)
    found = result(choose(rule, rows, weights, hostile, mixing))
    # Weiszfeld stops after a fixed number of steps, and its weights are integers
    tolerance = 2e-4 * np.abs(expected).max() if rule == "geometric_median" else 2 * GRID
    np.testing.assert_allclose(found, expected, atol=tolerance, rtol=1e-6)


@pytest.mark.parametrize("mixing", [False, True])
@pytest.mark.parametrize("rule", ROBUST)
def test_hostile_updates_move_the_mean_far_and_a_rule_hardly(rule: str, mixing: bool):
    rows = updates_of(8, far=2)
    honest = np.stack(rows[:6]).astype(np.float64)
    centre, radius = honest.mean(0), max(np.linalg.norm(honest - honest.mean(0), axis=1))
    off = np.linalg.norm(result(choose(rule, rows, [1] * 8, 2, mixing)) - centre)
    assert off < (2 * radius if rule == "norm_bound" else radius), "beyond what honest members differ by"
    assert np.linalg.norm(result(choose("mean", rows, [1] * 8)) - centre) > 5 * radius


@pytest.mark.parametrize("mixing", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_shares_say_what_of_whom_is_in_the_result(rule: str, mixing: bool):
    rows = updates_of(8, far=2)
    chosen = choose(rule, rows, [3, 1, 1, 1, 1, 1, 1, 3], 2, mixing)
    assert all(0 <= share <= 1 for share in chosen.shares)
    assert sum(chosen.shares) <= 1 + 1e-9
    if rule != "norm_bound":
        assert sum(chosen.shares) == pytest.approx(1)
    honest, hostile = min(chosen.shares[:6]), max(chosen.shares[6:])
    if rule == "mean":
        assert chosen.shares == [3 / 12, *[1 / 12] * 6, 3 / 12]
    elif rule == "multi_krum":
        assert (honest, hostile) == (1 / 6, 0) or mixing
        assert hostile <= 1 / 6
    elif not mixing:
        assert hostile < honest
    if rule in ("multi_krum", "geometric_median", "mean"):  # a combination of whole updates: it can be checked
        x = np.stack(rows).astype(np.float64)
        np.testing.assert_allclose(result(chosen), np.array(chosen.shares) @ x, atol=3 * GRID)


def tensors_of(buffer: np.ndarray) -> Tensors:
    return {"layer.lora_B.weight": buffer[:300].reshape(30, 10), "classifier.weight": buffer[300:].reshape(2, -1)}


def config_of(rule: str, hostile: int = 2, mixing: bool = False) -> Config:
    config = Config()
    config.trust.rule, config.trust.hostile, config.trust.mixing = rule, hostile, mixing
    return config


@pytest.mark.parametrize("mixing", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_a_merge_depends_on_the_set_of_updates_alone(rule: str, mixing: bool):
    rows = updates_of(8, far=2)
    named = {f"member_{i}": (tensors_of(row), 3 + i) for i, row in enumerate(rows)}
    config, state = config_of(rule, mixing=mixing), tensors_of(updates_of(1, seed=9)[0])
    merged = merge_updates(config, state, named)
    for order in ([7, 0, 6, 1, 5, 2, 4, 3], [3, 4, 2, 5, 1, 6, 0, 7]):
        again = merge_updates(config, state, {f"member_{i}": named[f"member_{i}"] for i in order})
        assert (digest(again.state), again.shares) == (digest(merged.state), merged.shares)
    less = {name: one for name, one in named.items() if name != "member_3"}
    fresh = merge_updates(config, state, dict(reversed(less.items())))
    assert digest(fresh.state) == digest(merge_updates(config, state, less).state) != digest(merged.state)
    assert digest(merge_updates(config, state, {}).state) == digest(state)


def test_the_number_of_threads_changes_no_bit():
    from threadpoolctl import threadpool_limits

    rows = updates_of(9, size=60_000, far=2)
    for rule in ROBUST:
        found = []
        for threads in (1, 4):
            with threadpool_limits(threads):
                found.append(result(choose(rule, rows, [1] * 9, 2, mixing=True)).tobytes())
        assert found[0] == found[1], rule


def test_inner_products_are_exact(monkeypatch: pytest.MonkeyPatch):
    draws = np.random.default_rng(1)
    rows = [draws.uniform(-64, 64, 50).astype(np.float32) for _ in range(4)]
    rows[0][:2] = 64.0, -64.0
    integers = [[round(float(value) * 2**24) for value in row] for row in rows]
    exact = [[sum(a * b for a, b in zip(x, y, strict=True)) for y in integers] for x in integers]
    assert geometry.gram(rows) == exact
    monkeypatch.setattr(geometry, "BLOCK", 7)
    assert geometry.gram(rows) == exact
    distances = geometry.squared_distances(exact)
    for i, j in itertools.product(range(4), repeat=2):
        assert distances[i][j] == sum((a - b) ** 2 for a, b in zip(integers[i], integers[j], strict=True))
    assert geometry.of_sums(exact, [[0, 2], [1]])[0][1] == exact[0][1] + exact[2][1]


def test_ties_go_to_the_first_name():
    rows = list(np.eye(8, dtype=np.float32))  # as far from each other
    chosen = choose("multi_krum", rows, [1] * 8, 2)
    assert chosen.shares == [1 / 6] * 6 + [0, 0]
    assert geometry.nearest([[0, 0, 0], [0, 0, 0], [0, 0, 0]], 2) == [[0, 1], [0, 1], [0, 2]]


@pytest.mark.parametrize("rule", ROBUST)
def test_near_copies_count_once_and_share_what_is_taken(rule: str):
    """One party under three names, with noise; nobody can tell whose update it was first."""
    rows, draws = updates_of(7), np.random.default_rng(1)
    size = float(np.linalg.norm(rows[2]))
    noisy = [rows[2] + draws.normal(0, 0.03 * size / np.sqrt(rows[2].size), rows[2].size) for _ in range(2)]
    copies = [*rows, *(one.astype(np.float32) for one in noisy)]
    weights = [1, 2, 3, 1, 1, 1, 1]
    once, thrice = choose(rule, rows, [1, 2, 4, 1, 1, 1, 1], 2), choose(rule, copies, [*weights, 4, 1], 2)
    assert result(thrice).tolist() == result(once).tolist()
    assert [thrice.shares[i] for i in (2, 7, 8)] == [once.shares[2] / 3] * 3
    assert thrice.shares[:2] == once.shares[:2]
    assert thrice.stands == once.stands
    far = [*rows, (rows[2] + draws.normal(0, 0.3 * size / np.sqrt(rows[2].size), rows[2].size)).astype(np.float32)]
    assert near_copies(geometry.gram(far)) == [[i] for i in range(8)]


@pytest.mark.parametrize("mixing", [False, True])
@pytest.mark.parametrize("rule", ROBUST)
@pytest.mark.parametrize("count", [1, 2, 3, 4, 6])
def test_too_few_updates_are_merged_as_well_as_they_can_be(rule: str, count: int, mixing: bool):
    rows = updates_of(count)
    chosen = choose(rule, rows, [1] * count, 2, mixing)
    assert chosen.stands == max(stands for stands in range(3) if not stands or count >= least_members(rule, stands))
    found = result(chosen)
    low, high = np.min(rows, 0), np.max(rows, 0)
    if rule != "norm_bound":
        assert (found >= low - 2 * GRID).all()
        assert (found <= high + 2 * GRID).all()
    if count == 1:
        np.testing.assert_allclose(found, rows[0], atol=GRID)


def test_equal_and_empty_updates():
    zeros, ones = np.zeros(6, np.float32), np.ones(6, np.float32)
    for rule in ROBUST:
        assert result(choose(rule, [ones] * 7, [1] * 7, 2)).tolist() == [1.0] * 6, rule
        assert result(choose(rule, [zeros] * 7, [1] * 7, 2)).tolist() == [0.0] * 6, rule
        few = result(choose(rule, [zeros] * 5 + [ones * 60] * 2, [1] * 7, 2))
        assert few.max() < 1e-3, f"{rule}: two of seven decide"


def test_an_approximate_removal_is_averaged_whatever_the_rule():
    rows = updates_of(8, far=2)
    named = {f"member_{i}": (tensors_of(row), 1) for i, row in enumerate(rows)}
    state = tensors_of(updates_of(1, seed=9)[0])
    plain, robust = (merge_updates(config_of(rule), state, named, 1.0) for rule in ("mean", "median"))
    assert digest(plain.state) == digest(robust.state)
    assert robust.shares == {}


@pytest.mark.parametrize("rule", RULES)
def test_cohorts_make_the_model_by_the_rule_between_them(rule: str):
    begin, rows = tensors_of(updates_of(1, seed=9)[0]), updates_of(7, far=1)
    states = [{name: value + tensors_of(row)[name] for name, value in begin.items()} for row in rows]
    config = Config()
    config.trust.across, config.trust.hostile = rule, int(rule != "mean")
    model, layout = merge_cohorts(config, begin, states, [1] * 7), Layout.of(begin)
    changes = [layout.pack(state) - layout.pack(begin) for state in states]
    chosen = choose(rule, changes, [1] * 7, 1)
    assert digest(model) == digest(layout.unpack(apply_step(layout.pack(begin), chosen.terms, chosen.weights, 1.0)))
    honest = np.mean(changes[:6], 0)
    moved = np.linalg.norm(layout.pack(model) - layout.pack(begin) - honest) / np.linalg.norm(honest)
    assert (moved > 3) == (rule == "mean")
    assert digest(merge_cohorts(config, begin, states[:1], [1])) == digest(states[0])


def test_a_merge_event_says_the_shares(tmp_path: Any):
    coordinator = load_or_create(COORDINATOR, tmp_path)

    def event(share: object) -> None:
        entry = {"organization": "north", "update": "ab" * 32, "weight": 3, "share": share}
        body = {"round": 1, "cohort": "all", "base": "cd" * 32, "adapter": "ef" * 32, "file": "x", "inputs": [entry]}
        make_event(coordinator, "run-1", MERGE, body)

    for good in ("0.000000", "0.166667", "1.000000"):
        event(good)
    for bad in ("1.000001", "0.5", "-0.500000", 0, None, "nan", "0.166667\n"):
        with pytest.raises(LedgerError, match=r"share .* is no number from 0 to 1"):
            event(bad)
