import itertools
from dataclasses import replace

import numpy as np
import pytest

from envs import GameError, Payoff, parallel_env
from envs.best_response import best_response, constant_policy, policies_nash_conv, policy_values
from envs.dynamics import FEATURES, Dynamics
from envs.oracles import pure_equilibria
from envs.stage_game import stage_game

SEEN = FEATURES.index("participation_last")
BUDGET = FEATURES.index("budget_left")


def grudger(observations):
    """Full effort while the others are in, else out: the rivals react, so the response must look ahead."""
    return np.where((observations[:, SEEN] > 0.4) | (observations[:, FEATURES.index("time")] == 0), 2, 0)


def strict(observations):
    """Full effort only while everybody gives full effort."""
    return np.where((observations[:, SEEN] == 1.0) | (observations[:, FEATURES.index("time")] == 0), 2, 0)


def hoarder(observations):
    return np.where(observations[:, BUDGET] > 0.3, 1, 2)


def returns(game, plan, policies, organization):
    """Play a plan against policies in the PettingZoo environment; the discounted return of the planner."""
    single = parallel_env(game)
    views, _ = single.reset()
    total = 0.0
    for t, own in enumerate(plan):
        asked = {name: int(policies[i](views[name][None])[0]) for i, name in enumerate(game.names)}
        asked[game.names[organization]] = own
        views, rewards, _, _, _ = single.step(asked)
        total += game.discount**t * rewards[game.names[organization]]
    return total


def tight(make_game, payoff, seed):
    game = make_game(payoff, seed, organizations=3, horizon=4)
    budgets = (1.5, 2.0, None)
    parties = tuple(replace(p, budget=b) for p, b in zip(game.organizations, budgets, strict=True))
    return replace(game, organizations=parties)


@pytest.mark.slow
@pytest.mark.parametrize("payoff", [Payoff.PUBLIC_GOOD, Payoff.SHAPLEY, Payoff.PROPORTIONAL_SPLIT])
def test_the_best_response_beats_every_plan(make_game, payoff):
    for seed in range(2):
        game = tight(make_game, payoff, seed)
        dynamics, policies = Dynamics(stage_game(game)), [grudger, hoarder, grudger]
        for organization in range(3):
            best = best_response(dynamics, policies, organization)
            by_force = max(
                returns(game, plan, policies, organization) for plan in itertools.product(range(3), repeat=4)
            )
            assert best.value == pytest.approx(by_force, abs=1e-12)
            assert returns(game, best.plan, policies, organization) == pytest.approx(best.value, abs=1e-12)


def test_looking_ahead_matters(make_game):
    """A short-sighted organization stays out and loses its strict rivals, a far-sighted one keeps them."""
    game = make_game(Payoff.PUBLIC_GOOD, 2, organizations=3, horizon=4)
    parties = tuple(replace(p, unit_cost=5e-4, value=1.0, records=1000) for p in game.organizations)
    game = replace(game, organizations=parties, discount=1.0)
    far = best_response(Dynamics(stage_game(game)), [strict] * 3, 0)
    near = best_response(Dynamics(stage_game(replace(game, discount=0.0))), [strict] * 3, 0)
    assert near.plan[0] == 0
    assert far.plan == (2, 2, 2, 0)
    assert returns(game, far.plan, [strict] * 3, 0) > returns(game, near.plan, [strict] * 3, 0)


@pytest.mark.parametrize("payoff", Payoff)
def test_nash_conv_is_zero_at_a_repeated_equilibrium_and_positive_off_it(make_game, payoff):
    game = make_game(payoff, 6)
    dynamics = Dynamics(stage_game(game))
    equilibrium = pure_equilibria(dynamics.stage)[0]
    at = policies_nash_conv(dynamics, [constant_policy(int(action)) for action in equilibrium])
    assert at.total == pytest.approx(0.0, abs=1e-12)
    moved = equilibrium.copy()
    moved[0] = (moved[0] + 1) % 3
    off = policies_nash_conv(dynamics, [constant_policy(int(action)) for action in moved])
    assert off.gains[0] > 1e-6
    assert off.total == pytest.approx(off.gains.sum())
    span = (dynamics.stage.rewards.max() - dynamics.stage.rewards.min()) * sum(0.95**t for t in range(4))
    assert off.relative == pytest.approx(off.total / span)


def test_values_are_the_returns_of_the_environment(make_game):
    game = tight(make_game, Payoff.SHAPLEY, 0)
    policies = [grudger, hoarder, grudger]
    single = parallel_env(game)
    views, _ = single.reset()
    total, t = np.zeros(3), 0
    while single.agents:
        asked = {name: int(policies[i](views[name][None])[0]) for i, name in enumerate(game.names)}
        views, rewards, _, _, _ = single.step(asked)
        total += game.discount**t * np.array(list(rewards.values()))
        t += 1
    np.testing.assert_allclose(policy_values(Dynamics(stage_game(game)), policies), total, atol=1e-15)


def test_bad_policies_are_refused(make_game):
    dynamics = Dynamics(stage_game(make_game(Payoff.SHAPLEY, 0, organizations=2)))
    out = constant_policy(0)
    with pytest.raises(GameError, match="1 for 2 organizations"):
        policy_values(dynamics, [out])
    with pytest.raises(GameError, match="'hospital-1' asks for action 7"):
        policy_values(dynamics, [out, constant_policy(7)])
    with pytest.raises(GameError, match=r"'hospital-1': returned shape \(\)"):
        policy_values(dynamics, [out, lambda observations: np.int64(0)])
    with pytest.raises(GameError, match="more than 5 reachable states"):
        best_response(dynamics, [out, out], 0, max_states=5)
