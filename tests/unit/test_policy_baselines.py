"""Baseline policies: what they play, and that they fit the oracles."""

import numpy as np
import pytest

from envs import ClosedFormSurface, GameConfig, GameError, OrganizationType, Payoff
from envs.baselines import BASELINES, baseline_policies, myopic_policy
from envs.best_response import joint_actions, policies_nash_conv
from envs.dynamics import Dynamics
from envs.oracles import pure_equilibria
from envs.stage_game import stage_game


def federation(payoff: Payoff = Payoff.LEAVE_ONE_OUT, horizon: int = 4, **changes: float) -> GameConfig:
    """Three organizations of different size and cost."""
    parties = tuple(
        OrganizationType(f"hospital_{i}", 400 * (i + 1), 0.8, changes.get("unit_cost", 1e-4 * (3 - i)), 0.5 + 0.2 * i)
        for i in range(3)
    )
    return GameConfig(parties, ClosedFormSurface(0.9, 1 / 1500), payoff, reward=2.0, horizon=horizon)


def played(game: GameConfig, name: str, seed: int = 0) -> np.ndarray:
    """Actions of an episode, (rounds, organizations)."""
    dynamics = Dynamics(stage_game(game))
    policies = baseline_policies(name, dynamics.stage, np.random.default_rng(seed))
    state, rows = dynamics.start((1,)), []
    while not dynamics.done(state):
        wanted = joint_actions(dynamics, policies, state)
        rows.append(wanted[0])
        state, _ = dynamics.step(state, wanted)
    return np.array(rows)


def test_always_and_never_are_constant():
    assert (played(federation(), "always") == 2).all()
    assert (played(federation(), "never") == 0).all()


def test_random_plans_repeat_by_seed_and_use_all_actions():
    game = federation(horizon=40)
    one = played(game, "random", 3)
    assert np.array_equal(one, played(game, "random", 3))
    assert not np.array_equal(one, played(game, "random", 4))
    assert set(one.ravel()) == {0, 1, 2}
    assert not np.array_equal(one[:, 0], one[:, 1])


def test_myopic_answers_the_last_round():
    """With three equal organizations, who was in tells as much as how many were."""
    parties = tuple(OrganizationType(f"o{i}", 1000, 0.8, 3e-4, 1.0) for i in range(3))
    game = GameConfig(parties, ClosedFormSurface(0.9, 1 / 1500), Payoff.LEAVE_ONE_OUT, 2.0, horizon=3)
    dynamics = Dynamics(stage_game(game))
    policy, answers = myopic_policy(dynamics.stage, 0), set()
    for others in (0, 2):
        state = dynamics.start((1,))
        state, _ = dynamics.step(state, np.array([[1, others, others]]))
        rows = [int(dynamics.profile(np.array([action, others, others]))) for action in range(3)]
        best = int(dynamics.stage.rewards[rows, 0].argmax())
        assert policy(dynamics.observe(state)[:, 0]).tolist() == [best]
        answers.add(best)
    assert len(answers) == 2


def test_myopic_stays_at_an_equilibrium_that_it_can_see():
    """At no cost, everybody in is the only equilibrium, and the answer to anything."""
    game = federation(unit_cost=0.0)
    assert pure_equilibria(stage_game(game)).tolist() == [[2, 2, 2]]
    assert (played(game, "myopic") == 2).all()


@pytest.mark.parametrize("name", BASELINES)
def test_the_oracles_judge_every_baseline(name: str):
    dynamics = Dynamics(stage_game(federation()))
    policies = baseline_policies(name, dynamics.stage, np.random.default_rng(0))
    assert policies_nash_conv(dynamics, policies).total >= -1e-12


def test_an_unknown_baseline_is_refused():
    with pytest.raises(GameError, match=r"baseline 'greedy': give one of always, never, random, myopic"):
        baseline_policies("greedy", stage_game(federation()), np.random.default_rng(0))
