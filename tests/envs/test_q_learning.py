from dataclasses import replace

import numpy as np
import pytest

from envs import ClosedFormSurface, GameConfig, GameError, OrganizationType, Payoff
from envs.best_response import best_response, constant_policy, policies_nash_conv, policy_values
from envs.dynamics import Dynamics
from envs.q_learning import QLearningConfig, TabularPolicies, q_learning
from envs.stage_game import stage_game

POTENTIAL = [Payoff.PUBLIC_GOOD, Payoff.LEAVE_ONE_OUT, Payoff.SHAPLEY, Payoff.EQUAL_SPLIT]
SHORT = QLearningConfig(episodes=3000)


@pytest.mark.slow
@pytest.mark.parametrize("payoff", POTENTIAL)
def test_learning_reaches_equilibrium_in_the_potential_games(make_game, payoff):
    """NashConv of the whole game, relative to the payoff range: median over 3 federations and 5 seeds."""
    found, untrained = [], []
    random = np.random.default_rng(0)
    for federation in range(3):
        game = make_game(payoff, federation, horizon=3)
        dynamics = Dynamics(stage_game(game))
        learned = q_learning(game, seed=federation, runs=5)
        found += [policies_nash_conv(dynamics, run.policies()).relative for run in learned]
        guesses = [TabularPolicies(game, random.random(run.q.shape)) for run in learned]
        untrained += [policies_nash_conv(dynamics, guess.policies()).relative for guess in guesses]
    assert np.median(found) <= 0.02
    assert np.median(untrained) > 0.1


def test_a_lone_organization_learns_the_optimal_plan(make_game):
    """Budget and discounting: tight enough that it matters when effort is spent."""
    game = make_game(Payoff.PUBLIC_GOOD, 1, organizations=1, horizon=4)
    lone = replace(game.organizations[0], budget=2.5, unit_cost=1e-5)
    game = replace(game, organizations=(lone,))
    dynamics = Dynamics(stage_game(game))
    best = best_response(dynamics, [constant_policy(0)], 0)
    assert best.plan != (0, 0, 0, 0)
    for run in q_learning(game, seed=0, runs=3, settings=SHORT):
        assert policy_values(dynamics, run.policies())[0] == pytest.approx(best.value, abs=1e-9)


@pytest.mark.slow
def test_comparative_statics_of_what_is_learned():
    """No cost: all in. A cost above any reward: none. In between: never more at a higher cost."""

    def participation(unit_cost):
        parties = tuple(OrganizationType(f"o{i}", 1000, 0.8, unit_cost, 1.0) for i in range(3))
        game = GameConfig(parties, ClosedFormSurface(0.9, 1 / 1500), Payoff.LEAVE_ONE_OUT, 2.0, horizon=1)
        runs = q_learning(game, seed=0, runs=20, settings=SHORT)
        return np.mean([(run.q.argmax(axis=-1)[:, 0, -1] > 0).mean() for run in runs])

    shares = [participation(cost) for cost in (0.0, 2e-4, 4e-4, 6e-4, 9e-4, 2e-3)]
    assert shares[0] == 1.0
    assert shares[-1] == 0.0
    assert shares == sorted(shares, reverse=True)
    assert len(set(shares)) > 2


def test_a_seed_repeats_and_another_differs(make_game):
    game = make_game(Payoff.SHAPLEY, 0, horizon=2)
    brief = QLearningConfig(episodes=50)
    one, same, other = (q_learning(game, seed, 2, brief) for seed in (3, 3, 4))
    assert np.array_equal(one[0].q, same[0].q)
    assert np.array_equal(one[1].q, same[1].q)
    assert not np.array_equal(one[0].q, one[1].q)
    assert not np.array_equal(one[0].q, other[0].q)


def test_save_load_and_refusal_of_another_game(make_game, tmp_path):
    game = make_game(Payoff.SHAPLEY, 0, horizon=2)
    run = q_learning(game, 0, 1, QLearningConfig(episodes=20))[0]
    run.save(tmp_path / "policy.npz")
    loaded = TabularPolicies.load(tmp_path / "policy.npz", game)
    np.testing.assert_array_equal(loaded.q, run.q)
    with pytest.raises(GameError, match=r"policy\.npz was made for game"):
        TabularPolicies.load(tmp_path / "policy.npz", replace(game, discount=0.9))
    (tmp_path / "cut.npz").write_bytes(b"PK")
    with pytest.raises(GameError, match="not a tabular policy"):
        TabularPolicies.load(tmp_path / "cut.npz", game)


@pytest.mark.parametrize(
    "changes",
    [{"episodes": 0}, {"learning_rate": 0.0}, {"exploration": float("nan")}, {"exploration_share": 2.0}],
)
def test_bad_settings_are_refused(changes):
    with pytest.raises(GameError, match=f"Q-learning: {next(iter(changes))}"):
        QLearningConfig(**changes)


def test_zero_runs_are_refused(make_game):
    with pytest.raises(GameError, match="runs is 0"):
        q_learning(make_game(Payoff.SHAPLEY, 0), 0, 0)
