"""Policies and games as files: they come back, and what does not fit is refused. No Ray here."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from envs import ClosedFormSurface, GameConfig, MeasuredSurface, OrganizationType, Payoff, SurfacePoint
from envs.best_response import policies_nash_conv
from envs.dynamics import FEATURES, Dynamics
from envs.stage_game import stage_game
from trustchain_ray.config import Config
from trustchain_ray.errors import TrustChainError, UsageError
from trustchain_ray.policy.assess import assess
from trustchain_ray.policy.game import build_game, load_game, save_game
from trustchain_ray.policy.q_policies import QNetwork, QPolicies
from trustchain_ray.policy.settings import ParticipationConfig, TermsConfig

RECORDS = {"east": 300, "north": 500}


@pytest.fixture
def game() -> GameConfig:
    return build_game(Config(), ParticipationConfig(horizon=3), RECORDS)


def network(seed: int, inputs: int, identity: np.ndarray | None = None) -> QNetwork:
    draws = np.random.default_rng(seed)

    def layer(out: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        return draws.normal(size=(out, width)).astype(np.float32), draws.normal(size=out).astype(np.float32)

    return QNetwork((layer(8, inputs), layer(6, 8)), layer(3, 6), layer(1, 6), identity)


@pytest.fixture
def learned(game: GameConfig) -> QPolicies:
    return QPolicies(game.digest(), {name: network(i, len(FEATURES)) for i, name in enumerate(game.names)})


def test_policies_come_back_and_act_the_same(tmp_path: Path, game: GameConfig, learned: QPolicies):
    learned.save(tmp_path)
    loaded = QPolicies.load(tmp_path, game)
    assert loaded.digest() == learned.digest()
    seen = np.random.default_rng(0).random((50, len(FEATURES)), dtype=np.float32)
    for name in game.names:
        np.testing.assert_array_equal(loaded.networks[name].q_values(seen), learned.networks[name].q_values(seen))
        assert loaded.networks[name](seen).shape == (50,)
    assert policies_nash_conv(Dynamics(stage_game(game)), loaded.policies()).total >= 0


def test_a_shared_network_plays_by_who_it_is(tmp_path: Path, game: GameConfig):
    eye = np.eye(2, dtype=np.float32)
    one = network(0, len(FEATURES) + 2)
    shared = QPolicies(game.digest(), {name: replace(one, identity=eye[i]) for i, name in enumerate(game.names)})
    shared.save(tmp_path)
    loaded = QPolicies.load(tmp_path, game)
    seen = np.random.default_rng(0).random((50, len(FEATURES)), dtype=np.float32)
    east, north = (loaded.networks[name].q_values(seen) for name in game.names)
    assert not np.allclose(east, north)
    np.testing.assert_array_equal(north, shared.networks["north"].q_values(seen))


def test_a_policy_for_another_game_is_refused(tmp_path: Path, game: GameConfig, learned: QPolicies):
    learned.save(tmp_path)
    with pytest.raises(TrustChainError, match=r"was made for game .* train a policy for this game"):
        QPolicies.load(tmp_path, replace(game, reward=game.reward * 2))


@pytest.mark.parametrize("damage", ["weights", "header", "other organizations", "gone"])
def test_damaged_policies_are_refused(tmp_path: Path, game: GameConfig, learned: QPolicies, damage: str):
    learned.save(tmp_path)
    header = json.loads((tmp_path / "policy.json").read_text())
    if damage == "weights":
        QPolicies(learned.game, {n: network(9 + i, 13) for i, n in enumerate(game.names)}).save(tmp_path / "other")
        (tmp_path / "policy.safetensors").write_bytes((tmp_path / "other" / "policy.safetensors").read_bytes())
    elif damage == "header":
        (tmp_path / "policy.json").write_text(json.dumps(header | {"format": "trustchain-policy/9"}))
    elif damage == "other organizations":
        (tmp_path / "policy.json").write_text(json.dumps(header | {"organizations": ["north", "east"]}))
    else:
        (tmp_path / "policy.safetensors").unlink()
    with pytest.raises(TrustChainError, match=r"policy"):
        QPolicies.load(tmp_path, game)


def test_the_game_comes_back(tmp_path: Path, game: GameConfig):
    save_game(game, tmp_path)
    assert load_game(tmp_path) == game
    with pytest.raises(TrustChainError, match="missing or damaged"):
        load_game(tmp_path / "nowhere")


def test_a_measured_game_comes_back_and_a_changed_surface_does_not(tmp_path: Path):
    names = tuple(RECORDS)
    points = tuple(
        SurfacePoint.at_rank((a, b), 8, 0.2 + 0.3 * a + 0.2 * b) for a in (0.0, 1.0) for b in (0.0, 1.0)
    )
    MeasuredSurface(names, "accuracy", points, {"model": "test"}).save(tmp_path / "measured.json")
    settings = ParticipationConfig(horizon=2, surface=str(tmp_path / "measured.json"))
    game = build_game(Config(), settings, RECORDS)
    save_game(game, tmp_path / "kept")
    assert load_game(tmp_path / "kept").digest() == game.digest()
    text = (tmp_path / "kept" / "surface.json").read_text()
    (tmp_path / "kept" / "surface.json").write_text(text.replace("0.7", "0.6"))
    with pytest.raises(TrustChainError, match="was changed after training"):
        load_game(tmp_path / "kept")


def test_the_configuration_makes_the_game(game: GameConfig):
    assert game.names == ("east", "north")
    assert [one.records for one in game.organizations] == [300, 500]
    assert (game.ranks, game.reward, game.payoff) == ((8,), 2.0, Payoff.LEAVE_ONE_OUT)
    assert isinstance(game.surface, ClosedFormSurface)
    # All at full effort: 95 % of the ceiling.
    assert stage_game(game).quality[-1] == pytest.approx(0.95 * 0.9)
    own = ParticipationConfig(terms=TermsConfig(value=3.0), organizations={"north": TermsConfig(budget=2.5, value=1.0)})
    other = build_game(Config(), own, RECORDS)
    assert other.organizations == (
        OrganizationType("east", 300, 1.0, 1e-4, 3.0),
        OrganizationType("north", 500, 1.0, 1e-4, 1.0, budget=2.5),
    )
    assert other.horizon == Config().federation.rounds


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (ParticipationConfig(terms=TermsConfig(unit_cost=-1.0)), r"organization 'east': unit_cost is -1.0"),
        (ParticipationConfig(terms=TermsConfig(value=float("nan"))), r"value is nan, give a finite number"),
        (ParticipationConfig(reward=float("nan")), r"reward is nan, give a finite number"),
        (ParticipationConfig(terms=TermsConfig(budget=1.2)), r"budget is 1.2, give a multiple of 0.5"),
        (ParticipationConfig(surface="nowhere.json"), r"nowhere.json: not a trustchain-surface/1 file"),
        (ParticipationConfig(ranks=[8, 4]), r"give different positive ranks in rising order"),
    ],
)
def test_impossible_games_are_refused(settings: ParticipationConfig, message: str):
    with pytest.raises(TrustChainError, match=message):
        build_game(Config(), settings, RECORDS)


def test_terms_of_an_unknown_organization_and_no_organization_are_refused():
    with pytest.raises(UsageError, match=r"there is no organization west; there are east, north"):
        build_game(Config(), ParticipationConfig(organizations={"west": TermsConfig()}), RECORDS)
    with pytest.raises(TrustChainError, match="zero organizations"):
        build_game(Config(), ParticipationConfig(), {})


def test_an_uncovered_rank_is_refused(tmp_path: Path):
    points = tuple(SurfacePoint.at_rank((a, b), 4, 0.5) for a in (0.0, 1.0) for b in (0.0, 1.0))
    MeasuredSurface(tuple(RECORDS), "accuracy", points, {}).save(tmp_path / "four.json")
    with pytest.raises(TrustChainError, match=r"rank 8 was not measured"):
        build_game(Config(), ParticipationConfig(surface=str(tmp_path / "four.json")), RECORDS)


def test_judged_by_the_oracles(game: GameConfig):
    """Everybody in, at a small cost, is the only equilibrium: accepted; staying out is not."""
    full: Callable[[np.ndarray], np.ndarray] = lambda seen: np.full(len(seen), 2)  # noqa: E731
    out: Callable[[np.ndarray], np.ndarray] = lambda seen: np.zeros(len(seen), dtype=np.int64)  # noqa: E731
    good, bad = (assess(game, [policy] * 2, "key", 0.05) for policy in (full, out))
    assert good["accepted"]
    assert not bad["accepted"]
    assert good["policies"]["learned"] == good["policies"]["always"]
    assert bad["policies"]["learned"] == bad["policies"]["never"]
    assert good["policies"]["learned"]["price_of_anarchy"] == pytest.approx(1.0)
    assert bad["policies"]["learned"]["price_of_anarchy"] is None
    assert good["policies"]["learned"]["individual_rationality"] == 1.0
    assert 0.0 < good["policies"]["random"]["participation"] < 1.0
    json.dumps(good, allow_nan=False)
