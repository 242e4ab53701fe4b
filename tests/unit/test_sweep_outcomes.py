"""Outcomes, their intervals and files: what a sweep says of a game, without Ray."""

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from envs import ClosedFormSurface, GameConfig, OrganizationType, Payoff
from envs.best_response import constant_policy
from envs.oracles import price_of_anarchy, pure_equilibria
from envs.stage_game import stage_game
from ledger.canonical import canonical_json
from trustchain_ray.config import Config
from trustchain_ray.errors import TrustChainError, UsageError
from trustchain_ray.sweep import plots, summary
from trustchain_ray.sweep.outcomes import OUTCOMES, of_equilibria, of_policies
from trustchain_ray.sweep.points import Point
from trustchain_ray.sweep.runner import Swept
from trustchain_ray.sweep.store import Store


def game(payoff: str = "leave_one_out", reward: float = 1.0, **changes: Any) -> GameConfig:
    parties = tuple(
        OrganizationType(name, records, 1.0, unit_cost=4e-4, value=0.5, replay_duty=0.25)
        for name, records in (("a", 200), ("b", 300))
    )
    surface = ClosedFormSurface(0.9, 1 / 150)
    return GameConfig(parties, surface, Payoff(payoff), reward, horizon=4, epsilon_per_round=0.5, **changes)


@pytest.mark.parametrize("reward", [0.4, 1.0, 4.0])
def test_equilibria_that_are_played_have_the_outcomes_of_the_enumeration(reward: float) -> None:
    one = game(reward=reward)
    found, exact, played = pure_equilibria(stage_game(one)), of_equilibria(one), []
    for actions in found:
        outcomes, efforts = of_policies(one, [constant_policy(int(action)) for action in actions])
        assert outcomes["nash_conv"] == 0.0
        assert efforts == [float(action) / 2 for action in actions]
        played.append(outcomes)
    assert exact["count"] == len(found) > 0
    for key in OUTCOMES:
        values = [outcomes[key] for outcomes in played]
        assert exact[key] == pytest.approx([min(values), max(values)]), key
    assert exact["price_of_anarchy"][1] == pytest.approx(price_of_anarchy(stage_game(one)))


def test_what_all_in_costs_and_spends() -> None:
    outcomes, _ = of_policies(game(), [constant_policy(2), constant_policy(2)])
    assert outcomes["participation"] == 1.0
    assert outcomes["quality"] == pytest.approx(0.9 * (1 - math.exp(-500 / 150)))
    assert outcomes["epsilon"] == pytest.approx(4 * 0.5)
    assert outcomes["unlearning_cost"] == pytest.approx(4e-4 * 500 * 0.25)
    assert outcomes["welfare"] == pytest.approx(outcomes["quality"] - 4e-4 * 500 * 1.25)


def test_outcomes_that_there_are_not_are_none() -> None:
    parties = tuple(OrganizationType(name, 100, 1.0, unit_cost=2e-3, value=0.1) for name in "ab")
    dear = GameConfig(parties, ClosedFormSurface(0.9, 1 / 20), Payoff.SHAPLEY, 1.0, horizon=2)
    outcomes, _ = of_policies(dear, [constant_policy(2), constant_policy(2)])
    assert outcomes["epsilon"] is None
    assert outcomes["unlearning_cost"] is None
    assert outcomes["welfare"] < 0
    assert outcomes["price_of_anarchy"] is None


def test_an_interval_is_students() -> None:
    values = [1.0, 2.0, 4.0]
    one = summary.interval(values)
    # t of 2 degrees of freedom at 97.5 %: 4.302653 (any table)
    assert one.half == pytest.approx(4.302653 * np.std(values, ddof=1) / math.sqrt(3), rel=1e-6)
    assert one.mean == pytest.approx(7 / 3)
    assert summary.interval([3.0]) == summary.Interval(3.0, None, 1)
    assert summary.interval([2.0, 2.0]).half == 0.0


def row(repeat: int, one: GameConfig, action: int) -> dict[str, Any]:
    outcomes, efforts = of_policies(one, [constant_policy(action)] * 2)
    named = dict(zip("ab", efforts, strict=True))
    return {"repeat": repeat, "game": one.digest(), "outcomes": outcomes, "efforts": named,
            "equilibrium": of_equilibria(one), "seconds": 0.5}  # fmt: skip


@pytest.fixture
def swept() -> Swept:
    """Two rules at three rewards; the last point failed in its second repeat."""
    points, rows = [], {}
    for payoff in ("shapley", "equal_split"):
        for reward in (0.25, 1.0, 4.0):
            values = {"participation.payoff": payoff, "participation.reward": reward}
            points.append(Point(len(points), values, Config()))
            rows[points[-1].name] = [row(k, game(payoff, reward), 1 + k) for k in range(2)]
    last = points[-1].name
    rows[last] = rows[last][:1]
    return Swept(points, rows, {last: "its process died"}, 6, 1.0)


def test_the_table_has_a_line_a_point_and_marginals_a_line_a_value(swept: Swept) -> None:
    found = summary.results(swept)
    assert len(found) == 6
    assert found[0].outcomes["participation"] == summary.interval([0.5, 1.0])
    assert found[-1].outcomes["participation"] == summary.Interval(0.5, None, 1)
    lines = summary.table(found).splitlines()
    assert len(lines) == 7
    assert lines[0].split()[:3] == ["payoff", "reward", "effort"]
    assert lines[1].split()[:4] == ["shapley", "0.25", "75%", "±318%"]
    parts = summary.marginals(found).split("\n\n")
    assert [len(part.splitlines()) for part in parts] == [3, 4]
    assert parts[1].splitlines()[1].split()[0] == "0.25"


def test_csv_and_json_lines_hold_every_repeat_and_every_failure(swept: Swept) -> None:
    lines = list(csv.DictReader(io.StringIO(summary.to_csv(swept))))
    assert len(lines) == 12  # 11 repeats, 1 failure
    first = lines[0]
    one = swept.rows[swept.points[0].name][0]
    assert (first["participation.payoff"], float(first["participation.reward"])) == ("shapley", 0.25)
    for key in OUTCOMES:
        assert float(first[key]) == one["outcomes"][key]
        assert float(first[f"equilibrium_{key}_least"]) == one["equilibrium"][key][0]
    assert lines[-1]["failed"] == "its process died"
    assert lines[-1]["quality"] == ""
    rows = [json.loads(line) for line in summary.to_json_lines(swept).splitlines()]
    assert [r["outcomes"] for r in rows[:-1]] == [r["outcomes"] for p in swept.points for r in swept.rows[p.name]]
    assert rows[-1]["failed"] == "its process died"


def test_axes_are_the_numeric_parameter_then_the_largest(swept: Swept) -> None:
    found = summary.results(swept)
    assert plots.axes_of(found, "") == ["participation.reward", "participation.payoff"]
    assert plots.axes_of(found, "participation.payoff") == ["participation.payoff", "participation.reward"]
    assert plots.axes_of(found[:1], "") == []


@pytest.mark.slow
def test_plots_draw_outcomes_and_equilibria(swept: Swept, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    found = summary.results(swept)
    written = plots.plot(found, "", tmp_path)
    assert {path.stem for path in written} == set(OUTCOMES)
    for path in written:
        assert path.read_bytes().startswith(b"\x89PNG")
    panel = Figure().subplots()
    plots.fill(panel, "participation", found[:3], "participation.reward", None, [None])
    least, largest, learned = (line.get_ydata() for line in panel.lines[:3])
    assert list(least) == [result.equilibrium["participation"][0] for result in found[:3]]
    assert list(largest) == [result.equilibrium["participation"][1] for result in found[:3]]
    assert list(learned) == [0.75] * 3
    assert panel.get_xscale() == "log"


@pytest.mark.slow
def test_more_parameters_than_axes_make_more_pictures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    one = row(0, game(), 1)
    one["outcomes"] = {key: one["outcomes"][key] if key == "quality" else None for key in OUTCOMES}
    points = [
        Point(number, dict(zip("vwxyz", (number >> i & 1 for i in range(5)), strict=True)), Config())
        for number in range(32)
    ]
    found = summary.results(Swept(points, {point.name: [one] for point in points}))
    written = plots.plot(found, "v", tmp_path)
    assert {path.name for path in written} == {"quality-1.png", "quality-2.png"}


def test_kept_rows_come_back_and_those_of_another_game_are_refused(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "sweep", Config())
    one = row(0, game(), 1)
    store.save("point", {"a": 1}, [one])
    store.close()
    again = Store.open(tmp_path / "sweep")
    try:
        assert again.load("point", one["game"]) == (one,)
        assert again.load("other", one["game"]) == ()
        with pytest.raises(TrustChainError, match="is of another game"):
            again.load("point", game(reward=2.0).digest())
        (tmp_path / "sweep" / "done" / "point.json").write_bytes(canonical_json({"rows": 1}))
        with pytest.raises(TrustChainError, match=r"point\.json is missing or damaged"):
            again.load("point", one["game"])
        with pytest.raises(TrustChainError, match="is in use by process"):
            Store.open(tmp_path / "sweep")
    finally:
        again.close()
    with pytest.raises(UsageError, match="exists already"):
        Store.create(tmp_path / "sweep", Config())
    with pytest.raises(UsageError, match="cannot be resumed"):
        Store.open(tmp_path)
