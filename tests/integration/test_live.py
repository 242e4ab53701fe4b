"""Live mode: the game with the real federation behind it, trained against, and compared with a measured surface."""

import argparse
import dataclasses
import json
import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import ray
from pettingzoo.test import parallel_api_test

from envs import GameError, MeasuredSurface
from envs.dynamics import FEATURES
from ledger.verify import verify_run
from trustchain_ray.cluster import cluster
from trustchain_ray.config import Config
from trustchain_ray.config_files import load_config
from trustchain_ray.live import LiveParticipation
from trustchain_ray.measure import command as measure
from trustchain_ray.participation import EFFORTS, recorded_schedule

pytestmark = pytest.mark.long

CASES = {
    "cardiology": "a racing pulse",
    "neurology": "a numb hand",
    "urology": "flank pain",
    "hematology": "pale gums",
}


@pytest.fixture(scope="module")
def wards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two hospitals with two departments each that are asked about all four: neither can do without the other."""
    folder, cases = tmp_path_factory.mktemp("wards"), list(CASES.items())
    train, test = [], []
    for number, name in enumerate(("alpha", "beta")):
        for i in range(40):
            label, complaint = cases[2 * number + i % 2]
            text = f"Patient {i} has {complaint}"
            train.append({"id": f"{name}-{i}", "organization": name, "text": text, "label": label})
        for i in range(20):
            label, complaint = cases[i % 4]
            text = f"Patient {i + 50} has {complaint}"
            test.append({"id": f"{name}-test-{i}", "organization": name, "text": text, "label": label})
    for file, rows in (("train", train), ("test", test)):
        (folder / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = folder / "wards.yaml"
    path.write_text(
        f"""
run: {{name: wards, key: wards, keystore: {folder / "keys"}}}
model:
  task: classification
  labels: [{", ".join(CASES)}]
  max_length: 32
  made: {{hidden: 32, layers: 1, heads: 2, intermediate: 64, vocabulary: 320}}
  lora: {{rank: 4, alpha: 8, targets: [q_proj, v_proj, down_proj]}}
data: {{train: train.jsonl, test: test.jsonl, public: train.jsonl}}
training: {{engine: torch, batch_size: 8, sampling_rate: 0.2, lr: 3.0e-3}}
federation: {{rounds: 1, local_steps: 8}}
participation: {{terms: {{unit_cost: 1.0e-3}}}}
ledger: {{public: {{kind: none}}, witnesses: false}}
resources: {{mode: pooled}}
"""
    )
    return str(path)


@pytest.fixture(scope="module")
def base(wards: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The base model with its head in a folder: where they are made, they depend on the run's key."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from trustchain_ray.data import load_public
    from trustchain_ray.models import make_base, unpack_base

    read, folder = load_config([wards], []), tmp_path_factory.mktemp("base")
    made = unpack_base(make_base(read, load_public(read, read.data.public)))
    torch.manual_seed(1)
    AutoModelForSequenceClassification.from_pretrained(made, num_labels=len(CASES)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(made).save_pretrained(folder)
    return f"model.base={folder}"


@pytest.fixture(scope="module")
def session(wards: str) -> Iterator[None]:
    with cluster(load_config([wards], []), 2):
        yield


def test_it_passes_pettingzoos_test_and_every_episode_is_a_run_of_its_own(
    session: None, wards: str, tmp_path: Path
) -> None:
    env = LiveParticipation(load_config([wards], ["federation.rounds=2"]), tmp_path)
    try:
        with pytest.raises(GameError, match="call reset"):
            env.step({"alpha": 0, "beta": 0})
        parallel_api_test(env, num_cycles=5)
        assert env.run == tmp_path / "wards-2"
    finally:
        env.close()
    for name in ("wards", "wards-2"):
        assert verify_run(tmp_path / name).ok
        assert len(recorded_schedule(tmp_path / name)) == 2
    efforts = recorded_schedule(tmp_path / "wards-2")[-1]  # signed by the organizations
    assert [Fraction(efforts[name]) for name in ("alpha", "beta")] == [EFFORTS[a] for a in env.state_now.last]


@pytest.fixture(scope="module")
def surface(session: None, wards: str, base: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The federation measured over all joint efforts, with keys that the live one does not have."""
    out = tmp_path_factory.mktemp("surface") / "surface.json"
    parser = argparse.ArgumentParser()
    measure.add_arguments(parser)
    asked = ["-c", wards, base, "run.key=measured", "--validation", "tests", "--repeats", "8", "--workers", "1"]
    assert measure.run(parser.parse_args([*asked, "--out", str(out)])) == 0
    return out


def test_learning_against_the_real_federation_and_the_surface_that_predicts_it(
    surface: Path, wards: str, base: str, tmp_path: Path
) -> None:
    config: Config = load_config([wards], [base, f"participation.surface={surface}"])
    env = LiveParticipation(config, tmp_path)
    q = np.ones((2, 3))  # optimistic: every action is tried before one is tried again
    seen = []
    try:
        for _ in range(4):
            observations, _ = env.reset()
            assert observations["alpha"][FEATURES.index("quality_last")] == pytest.approx(env.dynamics.stage.quality[0])
            chosen = {name: int(q[i].argmax()) for i, name in enumerate(env.agents)}
            observations, rewards, _, truncated, infos = env.step(chosen)
            assert all(truncated.values())
            for i, name in enumerate(chosen):
                q[i, chosen[name]] = rewards[name]
                quality = observations[name][FEATURES.index("quality_last")]
                assert quality == pytest.approx(infos[name]["quality"])
            seen.append((tuple(chosen.values()), infos["alpha"], rewards))
    finally:
        env.close()
    assert [actions for actions, _, _ in seen[:3]] == [(0, 0), (1, 1), (2, 2)]
    # What was learned: to take part, which pays more than staying out.
    greedy, _, rewards = seen[-1]
    assert min(greedy) > 0
    assert min(rewards.values()) > max(seen[0][2].values()) == 0.0
    _compare_with_surface(MeasuredSurface.load(surface), env, seen)


def _compare_with_surface(surface: MeasuredSurface, env: LiveParticipation, seen: list) -> None:
    """Every round is within two standard errors: those of the surface, and of a single training."""
    points = {point.efforts: point for point in surface.points}
    stage = env.dynamics.stage
    for actions, info, rewards in seen:
        point = points[tuple(action / 2 for action in actions)]
        assert info["predicted_quality"] == point.quality
        training = float(point.measurements["standard_error_training"] or 0.0)
        single = training * math.sqrt(float(point.measurements["repeats"] or 1.0))
        error = math.hypot(point.standard_error, single)
        assert abs(info["quality"] - point.quality) <= 2 * error, (actions, info["quality"], point)
        # Costs are certain, so rewards differ by measured contributions alone.
        row = int(env.dynamics.profile(np.array(actions)))
        assert info["cost"] == pytest.approx(stage.costs[row, 0], abs=1e-6)
        net = rewards["alpha"] * stage.scale
        assert net == pytest.approx(info["benefit"] - info["cost"], abs=2e-6)


def test_a_game_whose_rank_is_chosen_has_no_live_mode(wards: str, tmp_path: Path) -> None:
    from trustchain_ray.errors import TrustChainError

    config = load_config([wards], [])
    ranks = dataclasses.replace(config, participation=dataclasses.replace(config.participation, ranks=[4, 8]))
    with pytest.raises(TrustChainError, match="the LoRA rank of a run is fixed"):
        LiveParticipation(ranks, tmp_path)


def test_an_episode_leaves_the_next_one_its_workers(session: None, wards: str, tmp_path: Path) -> None:
    """Every organization has a worker group of its own, and the cluster has room for one federation."""
    room = int(ray.cluster_resources()["CPU"]) // 2
    own = ["resources.mode=dedicated", "resources.workers=1", f"resources.cpus_per_worker={room}"]
    env = LiveParticipation(load_config([wards], own), tmp_path)
    try:
        for _ in range(2):
            env.reset()
    finally:
        env.close()
    assert {row["state"] for row in ray.util.placement_group_table().values()} == {"REMOVED"}
