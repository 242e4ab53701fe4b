"""Exact best responses and NashConv of the whole game, against frozen policies.

With the others frozen, one organization faces a Markov decision process with a finite horizon. Its reachable
states are listed round by round and solved backwards: value iteration that is exact after one sweep.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from envs.arrays import Floats, Ints, Observations
from envs.dynamics import Dynamics, State
from envs.errors import GameError
from envs.oracles import payoff_range

MAX_STATES = 2_000_000
# A deterministic policy: observations of one organization, (states, features), to actions, (states,).
Policy = Callable[[Observations], Ints]


@dataclass(frozen=True)
class BestResponse:
    """The best that one organization can do against frozen policies.

    Attributes
    ----------
    value
        Discounted return, reward units.
    plan
        Its actions, one a round: the others being deterministic, a plan is as good as a policy.
    states
        Reachable states, over all rounds.
    """

    value: float
    plan: tuple[int, ...]
    states: int


@dataclass(frozen=True)
class NashConv:
    """How far policies are from an equilibrium of the whole game.

    Attributes
    ----------
    gains
        (organizations,): best response value minus own value.
    values
        (organizations,): discounted returns of the policies.
    total
        NashConv, the sum of the gains.
    relative
        `total` over the range of the discounted return: the stage game's payoff range times sum_t discount^t.
    """

    gains: Floats
    values: Floats
    total: float
    relative: float


def constant_policy(action: int) -> Policy:
    """Return the policy that always asks for one action: 0 never takes part."""
    return lambda observations: np.full(len(observations), action, dtype=np.int64)


def joint_actions(dynamics: Dynamics, policies: Sequence[Policy], state: State) -> Ints:
    """Return what the policies ask for in each state, (states, organizations).

    Raises
    ------
    GameError
        Where the number of policies is wrong or a policy returns something that is no action.
    """
    names = dynamics.game.names
    if len(policies) != len(names):
        raise GameError(f"policies: {len(policies)} for {len(names)} organizations, give one each")
    view = dynamics.observe(state)
    columns = []
    for i, policy in enumerate(policies):
        column = np.asarray(policy(view[:, i]))
        if column.shape != view.shape[:1]:
            raise GameError(
                f"policy of organization {names[i]!r}: returned shape {column.shape} for {len(view)} "
                "observations; return one action each"
            )
        columns.append(column)
    wanted = np.stack(columns, axis=1)
    dynamics.check_actions(wanted)
    return wanted


def policy_values(dynamics: Dynamics, policies: Sequence[Policy]) -> Floats:
    """Return the discounted return of each organization when all follow their policies, (organizations,)."""
    state, total, weight = dynamics.start((1,)), np.zeros(len(dynamics.game.organizations)), 1.0
    while not dynamics.done(state):
        state, rewards = dynamics.step(state, joint_actions(dynamics, policies, state))
        total += weight * rewards[0]
        weight *= dynamics.game.discount
    return total


def best_response(
    dynamics: Dynamics, policies: Sequence[Policy], organization: int, max_states: int = MAX_STATES
) -> BestResponse:
    """Return the exact best response of one organization to the others' frozen policies.

    Parameters
    ----------
    dynamics
        The game.
    policies
        One an organization, deterministic; that of `organization` is not followed.
    organization
        Index of the one that responds.
    max_states
        Refuse a game with more reachable states.

    Raises
    ------
    GameError
        Where a policy misbehaves or there are too many states.
    """
    count, actions = len(dynamics.game.organizations), dynamics.game.action_count
    state, states = dynamics.start((1,)), 1
    levels: list[tuple[Floats, Ints]] = []  # per round: rewards and next state's row, (states, actions)
    while not dynamics.done(state):
        wanted = np.repeat(joint_actions(dynamics, policies, state), actions, axis=0)
        wanted[:, organization] = np.tile(np.arange(actions), len(state.last))
        repeated = State(state.round, np.repeat(state.last, actions, 0), np.repeat(state.spent, actions, 0))
        after, rewards = dynamics.step(repeated, wanted)
        rows, to = np.unique(np.concatenate([after.last, after.spent], axis=1), axis=0, return_inverse=True)
        levels.append((rewards[:, organization].reshape(-1, actions), to.reshape(-1, actions)))
        state = State(after.round, rows[:, :count], rows[:, count:])
        states += len(rows)
        if states > max_states:
            raise GameError(
                f"best response of {dynamics.game.names[organization]!r}: more than {max_states} reachable "
                f"states by round {state.round}; shorten the horizon or raise max_states"
            )
    values, best = np.zeros(len(state.last)), []
    for rewards, to in reversed(levels):
        q_values = rewards + dynamics.game.discount * values[to]
        best.append(q_values.argmax(axis=1))
        values = q_values.max(axis=1)
    plan, row = [], 0
    for choice, (_, to) in zip(reversed(best), levels, strict=True):
        plan.append(int(choice[row]))
        row = int(to[row, choice[row]])
    return BestResponse(float(values[0]), tuple(plan), states)


def policies_nash_conv(dynamics: Dynamics, policies: Sequence[Policy], max_states: int = MAX_STATES) -> NashConv:
    """Return NashConv(pi) = sum_i V_i(best response to pi_-i) - V_i(pi) of deterministic policies.

    See `best_response` for the parameters and errors. 0 exactly at equilibria in Markov policies.
    """
    values = policy_values(dynamics, policies)
    best = [best_response(dynamics, policies, i, max_states).value for i in range(len(values))]
    gains = np.array(best) - values
    span = payoff_range(dynamics.stage) * sum(dynamics.game.discount**t for t in range(dynamics.game.horizon))
    total = float(gains.sum())
    return NashConv(gains, values, total, total / span if span > 0 else 0.0)
