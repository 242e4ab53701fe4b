import json
from fractions import Fraction

import numpy as np
import pytest

from envs import parallel_env
from envs.baselines import myopic_policy
from envs.payoffs import RULES
from envs.stage_game import stage_game
from trustchain_ray.config import Config
from trustchain_ray.errors import TrustChainError
from trustchain_ray.participation import EFFORTS, SCHEDULE, Decider, Shown, load_schedule, run_game
from trustchain_ray.settlement import Settlement

RECORDS = {"east": 300, "north": 200, "south": 100}
HALF, FULL = Fraction(1, 2), Fraction(1)


@pytest.fixture
def settings():
    config = Config()
    config.run.key = "k"
    config.federation.rounds = 4
    config.participation.terms.unit_cost = 1e-3
    config.participation.settle_every = 2
    return config


def test_fixed_ways_to_decide(settings):
    settings.federation.participation = "never"
    assert Decider(settings, "east", RECORDS).decide(1, Shown()) == 0
    settings.federation.participation = "always"
    assert Decider(settings, "east", RECORDS).decide(1, Shown()) == 1
    settings.federation.participation = "random"
    draws = [[Decider(settings, name, RECORDS).decide(n, Shown()) for n in range(1, 30)] for name in ("east", "north")]
    assert set(draws[0]) == set(EFFORTS)
    assert draws[0] != draws[1]
    assert draws[0] == [Decider(settings, "east", RECORDS).decide(n, Shown()) for n in range(1, 30)]


def test_a_policy_sees_in_a_run_what_it_sees_in_the_game(settings, monkeypatch):
    settings.federation.participation = "myopic"
    game = run_game(settings, RECORDS)
    seen = []
    monkeypatch.setattr(
        "trustchain_ray.participation.myopic_policy",
        lambda stage, row: lambda views: seen.append(views[0]) or np.array([2]),
    )
    env = parallel_env(game)
    expected, _ = env.reset()
    shown = Shown()
    for actions in ((2, 1, 0), (0, 2, 1), (1, 1, 1)):
        for name in RECORDS:
            Decider(settings, name, RECORDS).decide(len(shown.played) + 1, shown)
            np.testing.assert_array_equal(seen.pop(), expected[name])
        expected, *_ = env.step(dict(zip(RECORDS, actions, strict=True)))
        played = {name: EFFORTS[a] for name, a in zip(RECORDS, actions, strict=True)}
        shown = Shown((*shown.played, played))
    Decider(settings, "east", RECORDS).decide(4, Shown(shown.played, 0.25))
    assert seen.pop()[9] == 0.25  # the quality that was really measured


def test_myopic_is_the_game_s_and_stays_within_the_budget(settings):
    settings.federation.participation = "myopic"
    game = run_game(settings, RECORDS)
    env = parallel_env(game)
    observations, _ = env.reset()
    action = myopic_policy(stage_game(game), 1)(observations["north"][None])[0]
    assert Decider(settings, "north", RECORDS).decide(1, Shown()) == EFFORTS[action]
    settings.participation.terms.unit_cost = 0.0  # all in
    assert Decider(settings, "north", RECORDS).decide(1, Shown()) == FULL
    settings.participation.terms.budget = 1.5
    spent = ({"north": FULL}, {"north": HALF})
    assert Decider(settings, "north", RECORDS).decide(1, Shown()) == FULL
    assert Decider(settings, "north", RECORDS).decide(2, Shown(spent[:1])) == HALF
    assert Decider(settings, "north", RECORDS).decide(3, Shown(spent)) == 0


def test_a_run_has_one_rank(settings):
    settings.participation.ranks = [4, 8]
    with pytest.raises(TrustChainError, match="rank of a run is fixed"):
        run_game(settings, RECORDS)


def test_schedules_are_read_and_refused(settings, tmp_path):
    path = tmp_path / "schedule.json"
    rows = [{"east": "1", "north": "1/2", "south": "0"}] * 4

    def write(content):
        path.write_text(json.dumps(content))

    write({"format": SCHEDULE, "rounds": rows})
    schedule = load_schedule(path, list(RECORDS), 4)
    settings.federation.participation = "file"
    assert Decider(settings, "north", RECORDS, schedule).decide(2, Shown()) == HALF
    with pytest.raises(TrustChainError, match="covers 4 rounds, the run has 5"):
        load_schedule(path, list(RECORDS), 5)
    with pytest.raises(TrustChainError, match="round 1 is of east, north, south, not of east, west"):
        load_schedule(path, ["east", "west"], 4)
    for effort in ("2", "1/0", "all", None, 0.3):
        write({"format": SCHEDULE, "rounds": [{**rows[0], "east": effort}]})
        with pytest.raises(TrustChainError, match="an effort is 0, 1/2 or 1"):
            load_schedule(path, list(RECORDS), 1)
    for content in ([], {"format": "other", "rounds": []}, {"format": SCHEDULE}, {"format": SCHEDULE, "rounds": [1]}):
        write(content)
        with pytest.raises(TrustChainError, match="not a schedule"):
            load_schedule(path, list(RECORDS), 1)
    with pytest.raises(TrustChainError, match="not a schedule"):
        load_schedule(tmp_path / "missing.json", list(RECORDS), 1)


@pytest.mark.parametrize("rule", RULES)
def test_settled_benefits_are_those_of_the_game_where_quality_is_its_surface(settings, rule):
    """The rules of `envs` on the tabulated game, and here on coalitions that are evaluated one by one."""
    settings.participation.payoff = rule.value
    settings.participation.competition = 0.2
    game = run_game(settings, RECORDS)
    stage = stage_game(game)
    efforts = {"east": FULL, "north": FULL, "south": HALF}
    actions = {name: EFFORTS.index(effort) for name, effort in efforts.items()}

    def row(coalition):
        wanted = [actions[name] if name in coalition else 0 for name in game.names]
        return int(np.flatnonzero((stage.profiles.actions == wanted).all(axis=1))[0])

    asked = []
    settlement = Settlement(settings, RECORDS)
    body = settlement.settle(2, efforts, lambda c: asked.append(c) or float(stage.quality[row(c)]), [80, 20])
    played = row(frozenset(efforts))
    for part, table in (("payments", stage.benefits), ("costs", stage.costs)):
        assert [float(body[part][n]) for n in game.names] == pytest.approx(list(table[played]), abs=1e-6)
    money = {part: np.array([float(body[part][n]) for n in game.names]) for part in ("payments", "losses", "costs")}
    net = money["payments"] - money["losses"] - money["costs"]
    assert net == pytest.approx(stage.rewards[played] * stage.scale, abs=2e-6)
    assert float(body["quality"]) == stage.quality[played] == settlement.shown.quality
    share = stage.quality[played]
    error = (share * (1 - share) * (1 / 80 + 1 / 20)) ** 0.5 / 2
    assert float(body["chance"]) == pytest.approx(game.reward * error, abs=1e-6)
    needed = {"shapley": 8, "leave_one_out": 5}.get(rule.value, 2)
    assert len(set(asked)) == needed


@pytest.mark.parametrize("rule", RULES)
def test_a_misreported_cost_changes_no_payment(settings, rule):
    settings.participation.payoff = rule.value
    efforts = dict.fromkeys(RECORDS, FULL)

    def payments():
        return Settlement(settings, RECORDS).settle(2, efforts, lambda c: 0.5 + 0.1 * len(c), [])["payments"]

    honest = payments()
    settings.participation.terms.unit_cost *= 100
    assert payments() == honest


def test_rounds_are_settled_when_due_and_remembered(settings):
    settlement = Settlement(settings, RECORDS)
    assert [number for number in range(1, 5) if settlement.due(number)] == [2, 4]
    settlement.note({"east": FULL})
    assert settlement.shown.played == ({"east": FULL, "north": 0, "south": 0},)
    settings.participation.settle_every = 3
    assert [number for number in range(1, 5) if settlement.due(number)] == [3, 4]
    settings.participation.settle_every = 0
    assert not any(Settlement(settings, RECORDS).due(number) for number in range(1, 5))


def test_a_diverged_coalition_is_not_paid_for(settings):
    settlement = Settlement(settings, RECORDS)
    with pytest.raises(TrustChainError, match="round 2 cannot be settled: the quality is nan"):
        settlement.settle(2, {"east": FULL}, lambda coalition: float("nan") if coalition else 0.5, [])
    settings.participation.payoff = "shapley"
    with pytest.raises(TrustChainError, match=r"value of coalition \[0\] is nan"):
        Settlement(settings, RECORDS).settle(
            2, {"east": FULL, "north": FULL}, lambda c: float("nan") if c == {"east"} else 0.5, []
        )


def test_nobody_took_part(settings):
    body = Settlement(settings, RECORDS).settle(2, {}, lambda coalition: 0.5, [])
    assert set(body["payments"].values()) == {"0.000000"}
