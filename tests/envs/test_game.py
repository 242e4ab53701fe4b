from dataclasses import replace

import pytest

from envs import (
    ClosedFormSurface,
    GameConfig,
    GameError,
    MeasuredSurface,
    OrganizationType,
    Payoff,
    SurfacePoint,
)
from envs.stage_game import stage_game

CURVE = ClosedFormSurface(0.9, 1e-3)
CLINIC = OrganizationType("clinic", 100, 0.5, 1e-3, 1.0)


def test_zero_organizations_are_refused():
    with pytest.raises(GameError, match="zero organizations"):
        GameConfig((), CURVE, Payoff.SHAPLEY, 1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unit_cost": -1e-3}, "'clinic': unit_cost is -0.001, give a number at least 0"),
        ({"unit_cost": float("nan")}, "'clinic': unit_cost is nan, give a finite number"),
        ({"value": float("inf")}, "'clinic': value is inf"),
        ({"data_quality": 1.1}, "data_quality is 1.1, give a number from 0 to 1"),
        ({"records": 0}, "records is 0"),
        ({"records": 1.5}, "records is 1.5"),
        ({"budget": 0.75}, "budget is 0.75, give a multiple of 0.5"),
        ({"replay_duty": -0.1}, "replay_duty is -0.1"),
        ({"name": ""}, "without a name"),
    ],
)
def test_bad_organizations_are_refused(changes, message):
    with pytest.raises(GameError, match=message):
        replace(CLINIC, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"organizations": (CLINIC, CLINIC)}, "names used twice: clinic"),
        ({"horizon": 0}, "horizon is 0"),
        ({"ranks": ()}, r"ranks is \(\)"),
        ({"ranks": (8, 4)}, "rising order"),
        ({"reward": float("nan")}, "reward is nan"),
        ({"discount": 1.5}, "discount is 1.5, give a number from 0 to 1"),
        ({"competition": -1.0}, "competition is -1.0"),
        ({"payoff": "shapely"}, "give one of public_good"),
        (
            {"organizations": tuple(replace(CLINIC, name=f"c{i}") for i in range(13))},
            "at most 531441",
        ),
    ],
)
def test_bad_games_are_refused(changes, message):
    game = GameConfig((CLINIC,), CURVE, Payoff.SHAPLEY, 1.0)
    with pytest.raises(GameError, match=message):
        replace(game, **changes)


def test_digest_names_the_game(make_game):
    game = make_game(Payoff.SHAPLEY, 0)
    assert game.digest() == make_game(Payoff.SHAPLEY, 0).digest()
    one, two = game.organizations[:2]
    changed = [
        replace(game, payoff=Payoff.LEAVE_ONE_OUT),
        replace(game, horizon=5),
        replace(game, ranks=(4, 8)),
        replace(game, discount=0.9),
        replace(game, surface=ClosedFormSurface(0.9, 1 / 1501)),
        replace(game, organizations=(replace(one, unit_cost=one.unit_cost * 2), *game.organizations[1:])),
        replace(game, organizations=(two, one, *game.organizations[2:])),
    ]
    assert len({game.digest(), *(other.digest() for other in changed)}) == 1 + len(changed)


def test_digest_does_not_tell_whole_floats_from_integers(make_game):
    game = make_game(Payoff.SHAPLEY, 0)
    assert replace(game, reward=1, competition=0).digest() == replace(game, reward=1.0, competition=0.0).digest()
    budgeted = [replace(game.organizations[0], budget=budget) for budget in (2, 2.0, None)]
    digests = [replace(game, organizations=(one,)).digest() for one in budgeted]
    assert digests[0] == digests[1] != digests[2]


def test_digest_reads_the_measured_numbers_not_their_provenance():
    def game(quality, seed, order):
        points = (SurfacePoint((0.0,), (0,), 0.5), SurfacePoint((1.0,), (8,), quality))
        surface = MeasuredSurface(("clinic",), "accuracy", points[::order], {"seed": seed})
        return GameConfig((CLINIC,), surface, Payoff.SHAPLEY, 1.0)

    assert game(0.8, "1", 1).digest() == game(0.8, "2", -1).digest()
    assert game(0.8, "1", 1).digest() != game(0.81, "1", 1).digest()


def test_a_policy_of_another_game_is_refused(make_game):
    game = make_game(Payoff.SHAPLEY, 0)
    game.require_digest(game.digest(), "policy a")
    with pytest.raises(GameError, match="policy a was made for game"):
        game.require_digest(make_game(Payoff.SHAPLEY, 1).digest(), "policy a")


def test_payoffs_that_overflow_are_refused(make_game):
    with (
        pytest.raises(GameError, match="the payoff of organization 'hospital-0' at efforts"),
        pytest.warns(RuntimeWarning),
    ):
        stage_game(make_game(Payoff.PROPORTIONAL_SPLIT, 0, reward=1e308, competition=1e10))
