"""The payoff rules against their formulas, written a second time, and the theory table."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from envs import ClosedFormSurface, GameConfig, GameError, OrganizationType, Payoff
from envs.oracles import budget_balance, potential_defect, potential_weights, pure_equilibria, welfare_optimum
from envs.payoffs.shapley import coalition_potential
from envs.shapley import exact_shapley
from envs.stage_game import stage_game

POTENTIAL = [Payoff.PUBLIC_GOOD, Payoff.LEAVE_ONE_OUT, Payoff.SHAPLEY, Payoff.EQUAL_SPLIT]


def quality(game, efforts):
    records = sum(e * p.data_quality * p.records for e, p in zip(efforts, game.organizations, strict=True))
    return game.surface.ceiling * (1 - np.exp(-game.surface.steepness * records))


def benefit(game, efforts, i):
    """One benefit, straight from its formula."""
    parties, inside = game.organizations, [e > 0 for e in efforts]
    if game.payoff is Payoff.PUBLIC_GOOD:
        return parties[i].value * quality(game, efforts)
    if game.payoff is Payoff.LEAVE_ONE_OUT:
        without = [0.0 if j == i else e for j, e in enumerate(efforts)]
        return game.reward * (quality(game, efforts) - quality(game, without))
    if game.payoff is Payoff.SHAPLEY:

        def value(coalition):
            return quality(game, [e if j in coalition else 0.0 for j, e in enumerate(efforts)])

        return game.reward * exact_shapley(value, len(parties)).values[i]
    if game.payoff is Payoff.EQUAL_SPLIT:
        return game.reward / sum(inside) if inside[i] else 0.0
    brought = [e * p.data_quality * p.records for e, p in zip(efforts, parties, strict=True)]
    return game.reward * brought[i] / sum(brought) if brought[i] else 0.0


@pytest.mark.parametrize("payoff", Payoff)
def test_the_table_is_the_formula(make_game, payoff):
    game = make_game(payoff, 3, organizations=3, reward=1.7, rank_cost=0.1, epsilon_per_round=2.0, competition=0.3)
    parties = tuple(replace(p, privacy_price=0.01, replay_duty=0.2) for p in game.organizations)
    game = replace(game, organizations=parties)
    stage = stage_game(game)
    for row, efforts in enumerate(itertools.product((0.0, 0.5, 1.0), repeat=3)):
        own = [benefit(game, efforts, i) for i in range(3)]
        cost = [
            e * (p.unit_cost * p.records * (1 + 0.1 * 8) * 1.2 + 0.01 * 2.0)
            for e, p in zip(efforts, parties, strict=True)
        ]
        payoffs = [own[i] - 0.3 * (sum(own) - own[i]) / 2 - cost[i] for i in range(3)]
        np.testing.assert_allclose(stage.benefits[row], own, atol=1e-12)
        np.testing.assert_allclose(stage.rewards[row] * stage.scale, payoffs, atol=1e-12)
        welfare = sum(p.value for p in parties) * quality(game, efforts) - sum(cost)
        assert stage.welfare[row] == pytest.approx(welfare, abs=1e-12)
    assert np.abs(stage.rewards).max() == 1.0


@pytest.mark.parametrize("payoff", POTENTIAL)
def test_four_rules_are_potential_games(make_game, payoff):
    for seed in range(20):
        stage = stage_game(make_game(payoff, seed, organizations=3))
        assert potential_defect(stage, potential_weights(stage)) < 1e-12
        assert len(pure_equilibria(stage)) >= 1


def test_the_proportional_split_is_not_a_potential_game(make_game):
    defects = [potential_defect(stage_game(make_game(Payoff.PROPORTIONAL_SPLIT, seed, 3))) for seed in range(20)]
    assert min(defects) > 0.05


def test_the_public_good_needs_its_weights(make_game):
    stage = stage_game(make_game(Payoff.PUBLIC_GOOD, 0))
    assert potential_defect(stage) > 0.01


@pytest.mark.parametrize("payoff", POTENTIAL)
def test_the_named_potentials_are_potentials(make_game, payoff):
    """Every single deviation changes the potential by the deviator's gain over its weight."""
    game = make_game(payoff, 5)
    stage = stage_game(game)
    gain, costs = stage.quality - stage.quality[0], stage.costs
    weights = potential_weights(stage)
    participants = (stage.profiles.actions > 0).sum(axis=1)
    harmonic = np.array([sum(1 / k for k in range(1, n + 1)) for n in participants])
    potential = {
        Payoff.PUBLIC_GOOD: gain - (costs / weights).sum(axis=1),
        Payoff.LEAVE_ONE_OUT: game.reward * gain - costs.sum(axis=1),
        Payoff.SHAPLEY: game.reward * coalition_potential(stage.profiles, gain) - costs.sum(axis=1),
        Payoff.EQUAL_SPLIT: game.reward * harmonic - costs.sum(axis=1),
    }[payoff]
    for i in range(len(game.organizations)):
        for action in (1, 2):
            to = stage.profiles.without[:, i] + action * stage.profiles.strides[i]
            gained = (stage.rewards[to, i] - stage.rewards[:, i]) * stage.scale / weights[i]
            np.testing.assert_allclose(potential[to] - potential, gained, atol=1e-12)


@pytest.mark.parametrize("payoff", POTENTIAL)
def test_competition_keeps_the_potential(make_game, payoff):
    stage = stage_game(make_game(payoff, 0, competition=0.2))
    assert potential_defect(stage, potential_weights(stage)) < 1e-12


def test_competition_above_the_own_value_has_no_positive_weights(make_game):
    with pytest.raises(GameError, match="loses more to its rivals"):
        potential_weights(stage_game(make_game(Payoff.PUBLIC_GOOD, 0, competition=5.0)))


def test_budgets(make_game):
    balance = {payoff: budget_balance(stage_game(make_game(payoff, 1))) for payoff in Payoff}
    for payoff in (Payoff.PUBLIC_GOOD, Payoff.SHAPLEY, Payoff.EQUAL_SPLIT, Payoff.PROPORTIONAL_SPLIT):
        np.testing.assert_allclose(balance[payoff], 0.0, atol=1e-12)
    # Concave surface: leave-one-out keeps a surplus, and pays in full only a single participant.
    surplus = balance[Payoff.LEAVE_ONE_OUT]
    several = (stage_game(make_game(Payoff.SHAPLEY, 1)).profiles.actions > 0).sum(axis=1) > 1
    assert surplus[several].min() > 0.01
    np.testing.assert_allclose(surplus[~several], 0.0, atol=1e-12)


def test_leave_one_out_at_the_social_value_makes_the_optimum_an_equilibrium(make_game):
    for seed in range(10):
        stage = stage_game(make_game(Payoff.LEAVE_ONE_OUT, seed))
        optimum, _ = welfare_optimum(stage)
        assert optimum.tolist() in pure_equilibria(stage).tolist()


@pytest.mark.parametrize("payoff", [rule for rule in Payoff if rule is not Payoff.PUBLIC_GOOD])
def test_no_payment_reads_a_declared_cost(make_game, payoff):
    game = make_game(payoff, 0)
    liar = replace(game.organizations[0], unit_cost=game.organizations[0].unit_cost * 10, privacy_price=5.0)
    lied = replace(game, organizations=(liar, *game.organizations[1:]))
    np.testing.assert_array_equal(stage_game(lied).benefits, stage_game(game).benefits)


def test_what_splitting_in_two_pays():
    """A Sybil gains under equal split and Shapley, gains nothing under proportional, loses under LOO."""
    whole = tuple(OrganizationType(f"o{i}", 1000, 1.0, 0.0, 1.0) for i in range(3))
    split = (replace(whole[0], records=500), replace(whole[0], name="sybil", records=500), *whole[1:])

    def paid(payoff, parties, identities):
        game = GameConfig(parties, ClosedFormSurface(0.9, 1e-3), payoff, 1.0)
        return float(stage_game(game).benefits[-1, :identities].sum())

    gain = {rule: paid(rule, split, 2) / paid(rule, whole, 1) - 1 for rule in Payoff}
    assert gain[Payoff.EQUAL_SPLIT] == pytest.approx(0.5)
    assert 0.01 < gain[Payoff.SHAPLEY] < 0.2
    assert gain[Payoff.PROPORTIONAL_SPLIT] == pytest.approx(0.0)
    assert gain[Payoff.LEAVE_ONE_OUT] < -0.1


def alike(payoff, unit_cost, reward):
    parties = tuple(OrganizationType(f"o{i}", 1000, 0.8, unit_cost, 1.0) for i in range(4))
    return stage_game(GameConfig(parties, ClosedFormSurface(0.9, 1 / 3000), payoff, reward))


@pytest.mark.parametrize("payoff", Payoff)
def test_comparative_statics_of_the_equilibria(payoff):
    free = pure_equilibria(alike(payoff, 0.0, 2.0))
    assert len(free)
    assert (free > 0).all()
    # Nobody gets more than max(R, v) for anything, so a cost above it at half effort keeps all out.
    assert pure_equilibria(alike(payoff, 2 * 2.0 / 1000 + 1e-6, 2.0)).tolist() == [[0, 0, 0, 0]]

    def participation(unit_cost, reward):
        return int((pure_equilibria(alike(payoff, unit_cost, reward)) > 0).sum(axis=1).max())

    by_cost = [participation(cost / 1000, 2.0) for cost in np.linspace(0.02, 4.01, 25)]
    assert by_cost == sorted(by_cost, reverse=True)
    assert by_cost[0] == 4
    assert by_cost[-1] == 0
    by_reward = [participation(0.3 / 1000, reward) for reward in np.linspace(0.0, 6.0, 25)]
    assert by_reward == sorted(by_reward)
    if payoff is not Payoff.PUBLIC_GOOD:  # R is not read there
        assert by_reward[0] == 0
        assert by_reward[-1] == 4
