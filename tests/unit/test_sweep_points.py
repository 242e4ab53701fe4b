"""The grid of a sweep: values of parameters, configurations of points, what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trustchain_ray.config import Config
from trustchain_ray.config_files import load_config
from trustchain_ray.errors import UsageError
from trustchain_ray.policy.game import build_game
from trustchain_ray.sweep.points import Point, grid, parameters_of, short_names, values_of
from trustchain_ray.sweep.runner import build_games

Load = Callable[..., list[Point]]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "train.jsonl").write_text(
        "".join(f'{{"id": "{i}", "organization": "{"ab"[i % 2]}", "text": "x"}}\n' for i in range(6))
    )
    path = tmp_path / "sweep.yaml"
    path.write_text("data: {train: train.jsonl, public: train.jsonl}\nsweep:\n  repeats: 2\n")
    return path


@pytest.fixture
def points(file: Path) -> Load:
    def load(parameters: str, *overrides: str) -> list[Point]:
        config = load_config([str(file)], [f"sweep.parameters={parameters}", *overrides])
        return grid(config, str(file))

    return load


@pytest.mark.parametrize(
    ("given", "values"),
    [
        ([0.5, 1, "x", None, [1]], [0.5, 1, "x", None, [1]]),
        ({"from": 2, "to": 32, "count": 5, "scale": "log"}, [2, 4, 8, 16, 32]),
        ({"from": 0.25, "to": 4, "count": 3, "scale": "log"}, [0.25, 1.0, 4.0]),
        ({"from": 0, "to": 1, "count": 5}, [0.0, 0.25, 0.5, 0.75, 1.0]),
        ({"from": 8, "to": 2, "count": 3, "scale": "linear"}, [8, 5, 2]),
    ],
)
def test_values_are_a_list_or_a_range(given: Any, values: list[Any]) -> None:
    found = values_of("some.key", given)
    assert found == values
    assert [type(value) for value in found] == [type(value) for value in values]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (4, "give a list of values"),
        ([], "give a list of values"),
        ([1, 2, 1], "the value 1 stands there twice"),
        ({"from": 1, "to": 2}, "a range is"),
        ({"from": 1, "to": 2, "count": 1}, "a range is"),
        ({"from": 1, "to": 1, "count": 2}, "from and to differ"),
        ({"from": 0, "to": 1, "count": 2, "scale": "log"}, "log scale is of positive numbers"),
        ({"from": 1, "to": 2, "count": 2, "scale": "cubic"}, "scale is linear or log"),
    ],
)
def test_values_that_are_none(given: Any, message: str) -> None:
    with pytest.raises(UsageError, match=f"sweep.parameters: some.key.*{message}"):
        values_of("some.key", given)


def test_points_are_the_product_and_the_last_parameter_changes_first(points: Load) -> None:
    found = points("{model.lora.rank: [4, 8], participation.payoff: [shapley, public_good], model.lora.alpha: [1e-3]}")
    values = [(p.config.model.lora.rank, p.config.participation.payoff) for p in found]
    assert values == [(4, "shapley"), (4, "public_good"), (8, "shapley"), (8, "public_good")]
    assert {p.config.model.lora.alpha for p in found} == {0.001}
    assert found[2].values == {"model.lora.rank": 8, "participation.payoff": "shapley", "model.lora.alpha": 0.001}
    assert len({p.name for p in found}) == 4


def test_any_key_can_be_swept_entries_of_tables_too(points: Load) -> None:
    found = points(
        "{participation.organizations.a.unit_cost: [1, 2], participation.organizations.a.value: [3],"
        " participation.ranks: [[4], [4, 8]], sweep.learner: [tabular, dqn]}"
    )
    assert len(found) == 8
    terms = [p.config.participation.organizations["a"] for p in found]
    assert {(one.unit_cost, one.value) for one in terms} == {(1.0, 3.0), (2.0, 3.0)}
    assert [p.config.participation.ranks for p in found[::2]] == [[4], [4, 8]] * 2
    assert {p.config.sweep.learner for p in found} == {"tabular", "dqn"}


def test_an_override_changes_the_values_of_one_key_and_null_takes_it_out(file: Path) -> None:
    file.write_text(file.read_text() + "  parameters: {model.lora.rank: [4], participation.reward: [1, 2]}\n")
    changes = ["sweep.parameters.model.lora.rank=[8, 16]", "sweep.parameters.participation.reward=null"]
    assert parameters_of(load_config([str(file)], [])) == {"model.lora.rank": [4], "participation.reward": [1, 2]}
    assert parameters_of(load_config([str(file)], changes)) == {"model.lora.rank": [8, 16]}


def test_paths_among_the_values_are_those_of_the_file(file: Path) -> None:
    file.write_text(file.read_text() + "  parameters: {participation.surface: [a.json, train.jsonl]}\n")
    found = parameters_of(load_config([str(file)], []))["participation.surface"]
    assert found == ["a.json", str(file.parent / "train.jsonl")]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ("{}", "sweep.parameters is empty"),
        ("{participation.rewrad: [1]}", "unknown key participation.rewrad; did you mean participation.reward"),
        ("{model.lora.rank: [eight]}", "sweep.parameters: model.lora.rank"),
        ("{model.lora.rank: [0]}", "model.lora.rank=0: must be at least 1"),
        ("{participation: [1]}", "participation is a section of keys"),
        ("{sweep.repeats: [1, 2]}", "sweep.repeats belongs to the sweep as a whole"),
        ("{run: {name: [a]}}", "run.name belongs to the sweep as a whole"),
        ("{data.columns: [{id: a}], data.columns.id: [b]}", "data.columns contains data.columns.id"),
        ("{run.key: {from: 1, to: 10001, count: 10001}}", "10001 points, at most 10000"),
        ("{model.lora.form: [svd, ffa], model.lora.ranks: [{a: 2}]}", "mixed ranks need"),
    ],
)
def test_a_grid_that_cannot_be_is_one_clear_message(points: Load, parameters: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        points(parameters)


def test_a_combination_that_makes_no_sense_is_named(points: Load) -> None:
    with pytest.raises(UsageError, match=r"(?s)the point task=classification  labels=\['a'\]: .*at least two labels"):
        points("{model.task: [classification], model.labels: [[a, b], [a]]}")


def test_values_that_make_sense_only_together(points: Load) -> None:
    found = points("{model.task: [classification], model.labels: [[a, b]]}")
    assert [p.config.model.labels for p in found] == [["a", "b"]]


def test_an_impossible_game_is_refused_with_its_point(points: Load) -> None:
    with pytest.raises(UsageError, match=r"the point ranks=\[8, 4\]: game: ranks"):
        build_games(points("{participation.ranks: [[4], [8, 4]]}"))


def test_workers_that_a_trial_cannot_hold_are_refused(points: Load) -> None:
    more = ["sweep.task=train", "training.engine=deepspeed", "resources.workers=2"]
    with pytest.raises(UsageError, match=r"resources\.workers=2: in a sweep an organization has one rank"):
        build_games(points("{model.lora.rank: [4]}", *more))


def test_short_names_tell_keys_apart() -> None:
    names = short_names(["model.lora.rank", "participation.reward", "training.lr", "model.made.lr"])
    assert list(names.values()) == ["rank", "reward", "training.lr", "made.lr"]


@pytest.mark.parametrize("spread", [0.0, 0.5, 1.0])
def test_the_spread_of_costs_keeps_their_mean(config_of: Callable[..., Config], spread: float) -> None:
    config = config_of("/nowhere/train.jsonl")
    config.participation.cost_spread = spread
    config.participation.terms.unit_cost = 2e-4
    records = {"a": 10, "b": 20, "c": 30, "d": 40, "e": 50}
    costs = [one.unit_cost for one in build_game(config, config.participation, records).organizations]
    assert np.mean(costs) == pytest.approx(2e-4)
    assert sorted(costs) == pytest.approx(np.linspace(1 - spread, 1 + spread, 5) * 2e-4)
    config.run.key = "another"
    other = [one.unit_cost for one in build_game(config, config.participation, records).organizations]
    assert sorted(other) == pytest.approx(sorted(costs))
    assert (other != costs) == (spread > 0)
    assert build_game(config, config.participation, {"a": 10}).organizations[0].unit_cost == 2e-4
