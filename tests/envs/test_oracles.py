import itertools
import math

import numpy as np
import pytest

from envs import ClosedFormSurface, GameConfig, GameError, OrganizationType, Payoff
from envs.oracles import (
    budget_balance,
    deviation_gains,
    individual_rationality,
    nash_conv,
    payoff_range,
    potential_defect,
    price_of_anarchy,
    pure_equilibria,
    welfare_optimum,
)
from envs.stage_game import StageGame, stage_game


def two_player(first, second, welfare=None):
    """Return a stage game whose rewards are two 3 x 3 matrices."""
    parties = tuple(OrganizationType(name, 1, 1.0, 0.0, 1.0) for name in ("row", "column"))
    base = stage_game(GameConfig(parties, ClosedFormSurface(1.0, 1.0), Payoff.SHAPLEY, 1.0))
    fields = {name: getattr(base, name) for name in StageGame.__dataclass_fields__}
    rewards = np.stack([np.ravel(first), np.ravel(second)], axis=1).astype(float)
    fields["rewards"] = rewards
    fields["welfare"] = rewards.sum(axis=1) if welfare is None else np.ravel(welfare).astype(float)
    return StageGame(**fields)


# The prisoner's dilemma with a dominated third action.
DILEMMA = np.array([[3, 0, -9], [5, 1, -9], [-10, -10, -10]])
PENNIES = np.array([[1, -1, -9], [-1, 1, -9], [-10, -10, -10]])


def test_a_known_game():
    stage = two_player(DILEMMA, DILEMMA.T)
    assert pure_equilibria(stage).tolist() == [[1, 1]]
    assert nash_conv(stage, np.array([[0, 0], [1, 1], [0, 1]])).tolist() == [4.0, 0.0, 1.0]
    actions, best = welfare_optimum(stage)
    assert (actions.tolist(), best) == ([0, 0], 6.0)
    assert price_of_anarchy(stage) == 3.0
    assert payoff_range(stage) == 15.0


def test_a_game_without_pure_equilibrium():
    column = -PENNIES
    column[2, :], column[:, 2] = -9, -10
    stage = two_player(PENNIES, column)
    assert pure_equilibria(stage).shape == (0, 2)
    with pytest.raises(GameError, match="no pure equilibrium"):
        price_of_anarchy(stage)
    # Matching pennies: the cycle sums to 8, over a range of 11.
    assert potential_defect(stage) >= 8 / 11


def test_an_equilibrium_without_welfare_has_an_infinite_price():
    assert price_of_anarchy(two_player(DILEMMA, DILEMMA.T, welfare=DILEMMA + DILEMMA.T - 2)) == math.inf
    assert price_of_anarchy(two_player(DILEMMA, DILEMMA.T, welfare=np.zeros((3, 3)))) == 1.0


@pytest.mark.parametrize("payoff", Payoff)
def test_equilibria_and_gains_by_plain_loops(make_game, payoff):
    stage = stage_game(make_game(payoff, 4, organizations=3))
    rewards = {tuple(a): r for a, r in zip(stage.profiles.actions.tolist(), stage.rewards.tolist(), strict=True)}
    equilibria, gains = [], []
    for profile in itertools.product(range(3), repeat=3):
        row = [
            max(rewards[(*profile[:i], other, *profile[i + 1 :])][i] for other in range(3)) - rewards[profile][i]
            for i in range(3)
        ]
        gains.append(row)
        if max(row) <= 1e-12:
            equilibria.append(list(profile))
    assert pure_equilibria(stage).tolist() == equilibria
    np.testing.assert_allclose(deviation_gains(stage), gains, atol=1e-15)
    np.testing.assert_allclose(nash_conv(stage, stage.profiles.actions), np.sum(gains, axis=1), atol=1e-14)


def test_individual_rationality_holds_where_payoffs_are_not_negative(make_game):
    stage = stage_game(make_game(Payoff.EQUAL_SPLIT, 0))
    fine = individual_rationality(stage)
    assert fine[0].all()
    np.testing.assert_array_equal(fine, stage.rewards >= -1e-12)
    # At equilibrium nobody pays to be in: staying out gives 0 under a split.
    rows = (pure_equilibria(stage) * stage.profiles.strides).sum(axis=1)
    assert fine[rows].all()
    assert not fine.all()


def test_budget_balance_is_funds_less_benefits(make_game):
    stage = stage_game(make_game(Payoff.LEAVE_ONE_OUT, 0))
    full = budget_balance(stage)[-1]
    without = [stage.quality[stage.profiles.without[-1, i]] for i in range(4)]
    paid = sum(stage.quality[-1] - quality for quality in without)
    assert full == pytest.approx(stage.game.reward * (stage.quality[-1] - paid))


def test_a_lone_organization_has_its_own_optimum_as_equilibrium(make_game):
    stage = stage_game(make_game(Payoff.PUBLIC_GOOD, 0, organizations=1))
    actions, _ = welfare_optimum(stage)
    assert pure_equilibria(stage).tolist() == [actions.tolist()]
    assert price_of_anarchy(stage) == 1.0
    assert potential_defect(stage) == 0.0
