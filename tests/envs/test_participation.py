"""The environment: PettingZoo's own tests, agreement of the single and the batched form, refusals."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pettingzoo.test import api_test, parallel_api_test, parallel_seed_test, seed_test

from envs import (
    BatchedParticipation,
    ClosedFormSurface,
    GameConfig,
    GameError,
    OrganizationType,
    Payoff,
    env,
    parallel_env,
)
from envs.dynamics import FEATURES
from envs.render import CELL, CURVE, EFFORT_COLORS


@pytest.mark.parametrize("payoff", Payoff)
def test_pettingzoo_api_and_seed_tests(make_game, payoff):
    game = make_game(payoff, 0, ranks=(4, 8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parallel_api_test(parallel_env(game), num_cycles=30)
        parallel_seed_test(lambda: parallel_env(game), num_cycles=10)
        seed_test(lambda: env(game, render_mode="ansi"), num_cycles=10)
    api_test(env(game, render_mode="ansi"), num_cycles=30)


def test_aec_and_parallel_forms_pay_the_same(make_game):
    game = make_game(Payoff.SHAPLEY, 1)
    turns, rounds = env(game), parallel_env(game)
    turns.reset()
    rounds.reset()
    paid = dict.fromkeys(game.names, 0.0)
    for agent in turns.agent_iter():
        _, reward, _, truncated, _ = turns.last()
        paid[agent] += reward
        turns.step(None if truncated else 2)
    total = dict.fromkeys(game.names, 0.0)
    while rounds.agents:
        _, rewards, _, _, _ = rounds.step(dict.fromkeys(game.names, 2))
        for name, reward in rewards.items():
            total[name] += reward
    assert paid == total
    assert any(total.values())


@st.composite
def games(draw):
    count = draw(st.integers(1, 4))
    parties = tuple(
        OrganizationType(
            name=f"o{i}",
            records=draw(st.integers(1, 5000)),
            data_quality=draw(st.floats(0, 1)),
            unit_cost=draw(st.floats(0, 1e-3)),
            value=draw(st.floats(0, 3)),
            privacy_price=draw(st.floats(0, 0.1)),
            replay_duty=draw(st.floats(0, 0.5)),
            budget=draw(st.none() | st.integers(0, 8).map(lambda units: units / 2)),
        )
        for i in range(count)
    )
    return GameConfig(
        organizations=parties,
        surface=ClosedFormSurface(draw(st.floats(0.1, 1)), draw(st.floats(1e-5, 1e-2)), draw(st.floats(0, 16))),
        payoff=draw(st.sampled_from(list(Payoff))),
        reward=draw(st.floats(0, 5)),
        horizon=draw(st.integers(1, 5)),
        ranks=draw(st.sampled_from([(8,), (4, 16)])),
        rank_cost=draw(st.floats(0, 0.2)),
        epsilon_per_round=draw(st.floats(0, 2)),
        competition=draw(st.floats(0, 1)),
    )


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(games(), st.integers(0, 2**32 - 1))
def test_batched_equals_single_to_the_last_bit(game, seed):
    copies = 5
    random = np.random.default_rng(seed)
    actions = random.integers(game.action_count, size=(game.horizon, copies, len(game.organizations)))
    batch = BatchedParticipation(game, copies)
    views, payments, ends = [batch.reset()], [], []
    for joint in actions:
        view, rewards, over = batch.step(joint)
        views.append(view)
        payments.append(rewards)
        ends.append(over)
    single = parallel_env(game)
    for copy in range(copies):
        observations, _ = single.reset()
        for t in range(game.horizon + 1):
            for i, name in enumerate(game.names):
                np.testing.assert_array_equal(observations[name], views[t][copy, i])
                assert single.observation_space(name).contains(observations[name])
            if t == game.horizon:
                break
            asked = dict(zip(game.names, actions[t, copy].tolist(), strict=True))
            observations, rewards, terminated, truncated, _ = single.step(asked)
            assert list(rewards.values()) == payments[t][copy].tolist()
            assert max(map(abs, rewards.values())) <= 1.0
            assert set(truncated.values()) == {ends[t]} == {t + 1 == game.horizon}
            assert not any(terminated.values())
        assert single.agents == []


def test_observations_say_what_happened(make_game):
    game = make_game(Payoff.LEAVE_ONE_OUT, 2, ranks=(4, 8), horizon=4)
    game = replace(game, organizations=(replace(game.organizations[0], budget=1.5), *game.organizations[1:]))
    single = parallel_env(game)
    first, _ = single.reset()
    own = dict(zip(FEATURES, first["hospital-0"].tolist(), strict=True))
    assert (own["time"], own["effort_last"], own["reward_last"], own["budget_left"]) == (0.0, 0.0, 0.5, 0.375)
    actions = {"hospital-0": 4, "hospital-1": 1, "hospital-2": 0, "hospital-3": 2}
    views, rewards, _, _, infos = single.step(actions)
    own = dict(zip(FEATURES, views["hospital-0"].tolist(), strict=True))
    assert own["effort_last"] == 1.0
    assert own["rank_last"] == 1.0
    assert own["reward_last"] == np.float32((rewards["hospital-0"] + 1) / 2)
    assert own["budget_left"] == 0.125
    assert own["participation_last"] == own["participation_mean"] == 2.5 / 4
    assert own["time"] == 0.25
    assert own["quality_last"] == np.float32(infos["hospital-0"]["quality"])
    other = dict(zip(FEATURES, views["hospital-1"].tolist(), strict=True))
    assert (other["effort_last"], other["rank_last"]) == (0.5, 0.5)
    paid = infos["hospital-0"]["benefit"] - infos["hospital-0"]["cost"]
    assert rewards["hospital-0"] * single.dynamics.stage.scale == pytest.approx(paid)


def test_a_budget_limits_what_is_played(make_game):
    game = make_game(Payoff.SHAPLEY, 0, ranks=(4, 8), horizon=4)
    game = replace(game, organizations=(replace(game.organizations[0], budget=1.5), *game.organizations[1:]))
    single = parallel_env(game)
    single.reset()
    played = [single.step(dict.fromkeys(game.names, 4))[4]["hospital-0"]["action"] for _ in range(4)]
    assert played == [4, 3, 0, 0]


def test_bad_actions_are_refused(make_game):
    game = make_game(Payoff.SHAPLEY, 0, organizations=2)
    single = parallel_env(game)
    with pytest.raises(GameError, match="call reset"):
        single.step({"hospital-0": 1, "hospital-1": 1})
    single.reset()
    with pytest.raises(GameError, match=r"no action from \['hospital-1'\]"):
        single.step({"hospital-0": 1})
    with pytest.raises(GameError, match=r"unknown organizations \['mallory'\]"):
        single.step({"hospital-0": 1, "hospital-1": 1, "mallory": 1})
    with pytest.raises(GameError, match="'hospital-1' asks for action 3, give 0 to 2"):
        single.step({"hospital-0": 1, "hospital-1": 3})
    with pytest.raises(GameError, match="integers"):
        single.step({"hospital-0": 1, "hospital-1": 0.5})
    batch = BatchedParticipation(game, 3)
    with pytest.raises(GameError, match=r"shape \(2, 2\), give \(3, 2\)"):
        batch.step(np.zeros((2, 2), dtype=int))
    for _ in range(game.horizon):
        batch.step(np.zeros((3, 2), dtype=int))
    with pytest.raises(GameError, match="horizon is reached"):
        batch.step(np.zeros((3, 2), dtype=int))
    with pytest.raises(GameError, match="count is 0"):
        BatchedParticipation(game, 0)
    with pytest.raises(GameError, match="render_mode is 'human'"):
        parallel_env(game, "human")


def test_rendering(make_game):
    game = make_game(Payoff.EQUAL_SPLIT, 0, organizations=3, horizon=5)
    text, picture = parallel_env(game, "ansi"), parallel_env(game, "rgb_array")
    for form in (text, picture):
        form.reset()
        form.step({"hospital-0": 0, "hospital-1": 1, "hospital-2": 2})
    lines = text.render().splitlines()
    assert lines[0] == "equal_split, round 1 of 5"
    assert [line.split("|")[1] for line in lines[1:4]] == ["     ", "▄    ", "█    "]
    pixels = picture.render()
    assert (pixels.shape, pixels.dtype) == ((3 * CELL + CURVE, 5 * CELL, 3), np.uint8)
    assert [tuple(pixels[row * CELL, 0]) for row in range(3)] == list(EFFORT_COLORS)
    assert parallel_env(game).render() is None
