"""Learning with RLlib: equilibria of small games, going on after a stop, the commands."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from envs import ClosedFormSurface, GameConfig, OrganizationType, Payoff
from envs.best_response import policies_nash_conv
from envs.dynamics import FEATURES, Dynamics
from envs.stage_game import stage_game
from trustchain_ray.cli import main
from trustchain_ray.cluster import cluster
from trustchain_ray.config import Config
from trustchain_ray.policy.assess import schedule
from trustchain_ray.policy.learn import Learned, learn
from trustchain_ray.policy.settings import LearningConfig

SMALL = LearningConfig(env_steps=3_000, games=32, hidden=[32], lr=3e-3, iterations=3, target_every=500)


@pytest.fixture(scope="module")
def session() -> Iterator[None]:
    config = Config()
    config.resources.mode = "pooled"
    with cluster(config, 1):
        yield


def pair(unit_cost: float = 2e-4, horizon: int = 2, **changes: float) -> GameConfig:
    """Two organizations, the second with twice the records."""
    parties = tuple(OrganizationType(f"hospital_{i}", 600 * (i + 1), 0.8, unit_cost, 1.0) for i in range(2))
    return GameConfig(parties, ClosedFormSurface(0.9, 1 / 1500), Payoff.LEAVE_ONE_OUT, 2.0, horizon, **changes)


def learned(game: GameConfig, folder: Path, settings: LearningConfig = SMALL) -> Learned:
    return learn(game, settings, "key", folder, lambda line: None)


@pytest.fixture(scope="module")
def one(session: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Learned, Path]:
    folder = tmp_path_factory.mktemp("learned")
    return learned(pair(), folder), folder


def test_policies_are_an_equilibrium_and_the_curve_says_so(one: tuple[Learned, Path]):
    found = policies_nash_conv(Dynamics(stage_game(pair())), one[0].policies.policies()).relative
    assert found <= 0.02
    assert [steps for steps, _ in one[0].curve] == [1024, 2048, 3072]
    assert min(value for _, value in one[0].curve) == pytest.approx(max(found, 0.0))
    assert one[0].policies.game == pair().digest()


def test_event_files_for_tensorboard_are_written(one: tuple[Learned, Path]):
    files = list((one[1] / "tensorboard").glob("events.out.tfevents.*"))
    assert len(files) == 1
    written = files[0].read_bytes()
    for tag in (b"nash_conv", b"episode_return_mean/hospital_1", b"qf_loss/hospital_0"):
        assert tag in written


def test_a_stopped_learning_goes_on_to_the_same_policies(one: tuple[Learned, Path], tmp_path: Path):
    def stop(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn(pair(), SMALL, "key", tmp_path, stop)
    (tmp_path / "checkpoints" / "part").mkdir()  # of a kill while the next one was written
    lines: list[str] = []
    resumed = learn(pair(), SMALL, "key", tmp_path, lines.append, resume=True)
    assert lines[0] == "going on after 1024 of 3000 rounds of the game"
    assert resumed.policies.digest() == one[0].policies.digest()
    assert resumed.curve == one[0].curve


def test_exported_policies_act_as_rllibs_modules(session: None):
    """The NumPy network and RLlib's module, on the same observations; a shared module knows who it plays for."""
    import torch

    from trustchain_ray.policy.algorithm import dqn_config
    from trustchain_ray.policy.runner import SHARED, with_identity

    seen = np.random.default_rng(0).random((200, 2, len(FEATURES)), dtype=np.float32)
    for shared in (False, True):
        algorithm = dqn_config(pair(), replace(SMALL, shared=shared), b"key").build_algo()
        try:
            algorithm.training_step()
            networks, modules = algorithm.greedy().networks, algorithm.env_runner.module
            view = torch.from_numpy(with_identity(seen) if shared else seen)
            for i, name in enumerate(pair().names):
                module = modules[SHARED if shared else name]
                with torch.no_grad():
                    wanted = module.compute_q_values({"obs": view[:, i]})["qf_preds"].numpy()
                np.testing.assert_allclose(networks[name].q_values(seen[:, i]), wanted, atol=1e-5)
                np.testing.assert_array_equal(networks[name](seen[:, i]), wanted.argmax(axis=1))
        finally:
            algorithm.stop()


@pytest.mark.long
def test_no_cost_all_in_high_cost_none_and_never_more_in_between(session: None, tmp_path: Path):
    """Comparative statics of what is learned."""
    efforts, brief = [], replace(SMALL, env_steps=1_600, games=64, lr=5e-3, iterations=1)
    for number, cost in enumerate((0.0, 5e-4, 2e-3)):
        game = pair(cost, horizon=1)
        policies = learned(game, tmp_path / str(number), brief).policies
        played = schedule(Dynamics(stage_game(game)), policies.policies())
        efforts.append(played.mean() / 2)
    assert efforts[0] == 1.0
    assert efforts[-1] == 0.0
    assert efforts == sorted(efforts, reverse=True)
    assert 0.0 < efforts[1] < 1.0


@pytest.fixture(scope="module")
def configuration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy")
    rows = [
        {"id": f"r{i}", "organization": ("alpha", "beta")[i % 3 == 0], "text": f"record {i}"} for i in range(30)
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "config.yaml").write_text(
        "run: {name: pair, key: pair}\n"
        "data: {split: column, train: train.jsonl, public: train.jsonl}\n"
        "federation: {rounds: 2}\n"
        "participation:\n"
        "  learning: {env_steps: 2000, games: 32, hidden: [32], lr: 3.0e-3, iterations: 2, target_every: 500}\n",
        encoding="utf-8",
    )
    return folder / "config.yaml"


@pytest.mark.long
def test_train_and_evaluate_report_the_same_and_exit_by_the_threshold(
    session: None, configuration: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = str(tmp_path / "out")
    assert main(["policy", "train", "-c", str(configuration), "--out", out, "--json"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["accepted"]
    assert report["policies"]["learned"]["nash_conv"] <= 0.05
    assert {"welfare_optimum", "price_of_anarchy", "pure_equilibria"} <= set(report["oracles"])
    assert set(report["policies"]) == {"learned", "always", "never", "random", "myopic"}
    assert main(["policy", "evaluate", out, "--json"]) == 0
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert again["policies"] == report["policies"]
    assert again["policies_digest"] == report["policies_digest"]
    # The folder is taken; a finished one is shown again.
    assert main(["policy", "train", "-c", str(configuration), "--out", out]) == 2
    assert main(["policy", "train", "--resume", out]) == 0
    assert "is complete" in capsys.readouterr().err
    # The same policies in another game.
    other = tmp_path / "other.yaml"
    text = configuration.read_text().replace("train.jsonl", str(configuration.parent / "train.jsonl"))
    other.write_text(text.replace("rounds: 2", "rounds: 3"))
    assert main(["policy", "evaluate", out, "-c", str(other)]) == 1
    assert "was made for game" in capsys.readouterr().err


@pytest.mark.long
def test_untrained_policies_are_not_accepted(
    session: None, configuration: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    untrained = [f"participation.{key}" for key in ("learning.env_steps=1", "learning.lr=1e-9", "max_nash_conv=0")]
    out = str(tmp_path / "out")
    assert main(["policy", "train", "-c", str(configuration), *untrained, "--out", out]) == 1
    assert "participation.max_nash_conv allows 0.00%" in capsys.readouterr().err


@pytest.mark.long
def test_a_killed_command_goes_on_to_the_same_policies(configuration: Path, tmp_path: Path):
    def command(*arguments: str) -> list[str]:
        return [sys.executable, "-m", "trustchain_ray", "policy", "train", "--json", *arguments]

    def result(out: Path, *arguments: str) -> str:
        done = subprocess.run(command(*arguments), capture_output=True, text=True, check=True)
        return str(json.loads(done.stdout.splitlines()[-1])["policies_digest"])

    longer = ["-c", str(configuration), "participation.learning.iterations=8"]
    undisturbed = result(tmp_path / "one", *longer, "--out", str(tmp_path / "one"))
    killed = tmp_path / "killed"
    process = subprocess.Popen(
        command(*longer, "--out", str(killed)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    end = time.monotonic() + 120
    while not list(killed.glob("checkpoints/0*")) and time.monotonic() < end:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (killed / "report.json").exists()
    assert result(killed, "--resume", str(killed)) == undisturbed
