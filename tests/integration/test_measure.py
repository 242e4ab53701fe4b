"""`trustchain measure`: real trainings, the surface that the game plays, killed and resumed, and what it refuses."""

import argparse
import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from tests_support import adapters_of

from envs import GameConfig, GameError, MeasuredSurface, OrganizationType, Payoff, parallel_env
from trustchain_ray.config import Config
from trustchain_ray.config_files import load_config
from trustchain_ray.errors import TrustChainError, UsageError
from trustchain_ray.measure.command import add_arguments, run
from trustchain_ray.measure.store import Store

pytestmark = pytest.mark.long

HALF, ONE, OUT = Fraction(1, 2), Fraction(1), Fraction(0)
SMALL = ["--ranks", "4", "--efforts", "0,1", "--mode", "federated", "--metric", "token_accuracy", "--workers", "1"]
COMMAND = """
import argparse, sys
from trustchain_ray.measure.command import add_arguments, run

parser = argparse.ArgumentParser()
add_arguments(parser)
sys.exit(run(parser.parse_args()))
"""


def measure(*arguments: str) -> int:
    """The verb in this process, on the Ray session that the tests share."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args(arguments))


@pytest.fixture(scope="module")
def session() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def surface(session: None, config: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A surface of real federations of two organizations, measured without a disturbance."""
    out = tmp_path_factory.mktemp("surfaces") / "surface.json"
    assert measure("-c", config, *SMALL, "--out", str(out)) == 0
    return out


def result_of(out: Path, name: str) -> dict[str, Any]:
    store = Store.open(out)
    try:
        found = store.load(name)
        assert found is not None
        return found
    finally:
        store.close()


def test_a_federated_point_is_the_real_federation_bit_for_bit(surface: Path, finished: dict[str, Any]) -> None:
    mine = result_of(surface, "federated one rank 4 repeat 0 efforts 1,1")
    assert mine["adapters"] == json.loads(adapters_of(finished["run"])[-1])
    other_key = result_of(surface, "federated one rank 4 repeat 1 efforts 1,1")
    assert other_key["adapters"] != mine["adapters"]


def test_points_carry_their_costs_and_errors(surface: Path) -> None:
    found = MeasuredSurface.load(surface)
    by_efforts = {point.efforts: point for point in found.points}
    assert set(by_efforts) == {(0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0)}
    whole = by_efforts[1.0, 1.0].measurements
    assert whole["update_bytes"] == 2 * by_efforts[1.0, 0.0].measurements["update_bytes"] > 0
    assert whole["records_read"] > by_efforts[1.0, 0.0].measurements["records_read"] > 0
    assert whole["seconds"] > 0
    assert whole["peak_memory_bytes"] > 1e7
    assert whole["epsilon"] is None
    for point in found.points:
        parts = [point.measurements[f"standard_error_{part}"] for part in ("training", "records")]
        assert point.standard_error**2 == pytest.approx(parts[0] ** 2 + parts[1] ** 2)
    assert by_efforts[1.0, 1.0].standard_error > 0
    assert found.provenance["mode"] == "federated"
    assert found.provenance["validation"] == "tests: 16 records"  # the base was trained on data.public


def test_the_game_plays_the_surface_and_refuses_another_rank(surface: Path) -> None:
    found = MeasuredSurface.load(surface)
    types = tuple(OrganizationType(n, 40, 1.0, unit_cost=1e-4, value=1.0) for n in found.organizations)
    env = parallel_env(GameConfig(types, found, Payoff.SHAPLEY, reward=1.0, horizon=2, ranks=(4,)))
    env.reset()
    _, rewards, _, _, _ = env.step(dict.fromkeys(found.organizations, 2))
    assert all(-1.0 <= reward <= 1.0 for reward in rewards.values())
    with pytest.raises(GameError, match="rank 8 was not measured"):
        parallel_env(GameConfig(types, found, Payoff.SHAPLEY, reward=1.0, ranks=(8,)))


def test_killed_and_resumed_is_the_surface_of_the_undisturbed_command(
    command: Any, config: str, surface: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "killed.json"
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, "-c", config, *SMALL, "--out", str(out)],
        env=command.environment(), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    lines, children = [], list[psutil.Process]()
    for line in process.stderr:
        lines.append(line)
        if line.startswith("2/6"):
            children = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(signal.SIGKILL)
            break
    process.wait(60)
    for child in children:
        with contextlib.suppress(psutil.Error):
            child.kill()
    assert process.returncode == -signal.SIGKILL, "".join(lines)
    assert not out.exists()
    assert measure("--resume", str(out), "--workers", "2", "--json") == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert 0 < summary["trained"] < 6
    assert summary["digest"] == MeasuredSurface.load(surface).provenance["digest"]
    data = out.read_bytes()
    assert measure("--resume", str(out), "--workers", "1", "--json") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["trained"] == 0
    assert out.read_bytes() == data


@pytest.fixture(scope="module")
def base(config: str) -> str:
    """The made base model in a folder, for trainers in this process."""
    from trustchain_ray.data import load_public
    from trustchain_ray.models import make_base, unpack_base

    read = load_config([config], [])
    return unpack_base(make_base(read, load_public(read, read.data.public)))


def trainer_of(read: Config, source: str = "tests") -> Any:
    from trustchain_ray.measure.trainer import Trainer

    return Trainer(read, ["alpha", "beta"], source)


@pytest.mark.parametrize("form", ["ffa", "flora"])
def test_merges_are_the_federation_whose_cohorts_are_organizations(config: str, base: str, form: str) -> None:
    """N trainings alone give every coalition's model of `cohorts: by_organization`, at any efforts."""
    trainer = trainer_of(load_config([config], ["federation.cohorts=by_organization", f"model.lora.form={form}"]))
    pairs = [("alpha", HALF), ("alpha", ONE), ("beta", ONE)]
    alone = {pair: trainer.call(base, "alone", "by_organization", 2, 0, *pair) for pair in pairs}
    qualities = []
    for joint in ((ONE, ONE), (HALF, ONE), (OUT, ONE)):
        merged = trainer.call(base, "merged", "by_organization", 2, 0, alone, joint)
        federated = trainer.call(base, "federated", "by_organization", 2, 0, joint)
        assert merged["blocks"] == federated["blocks"]
        qualities.append(json.dumps(merged["blocks"]))
    assert len(set(qualities)) == 3


def test_a_training_that_diverges_is_named(config: str, base: str) -> None:
    trainer = trainer_of(load_config([config], ["training.lr=1e30"]))
    with pytest.raises(TrustChainError, match=r"alpha diverged in round 1 .*training\.lr"):
        trainer.call(base, "federated", "one", 4, 0, (ONE, OUT))


def test_a_single_validation_record_has_no_standard_error(config: str, base: str, tmp_path: Path) -> None:
    (tmp_path / "one.jsonl").write_text('{"id": "1", "prompt": "Who?", "answer": " me"}\n')
    trainer = trainer_of(load_config([config], [f"data.validation={tmp_path / 'one.jsonl'}"]), "validation")
    with pytest.raises(UsageError, match=r"1 validation record\(s\).*at least two"):
        trainer.call(base, "describe")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a configuration"),
        (["--resume", "nowhere.json"], "no begun measurement"),
        (["--resume", "nowhere.json", "-c", "CONFIG"], "leave -c"),
        (["-c", "CONFIG", "--ranks", "0"], "--ranks"),
        (["-c", "CONFIG", "--efforts", "0,2"], "outside"),
        (["-c", "CONFIG", "--coalitions", "none"], "--coalitions"),
        (["-c", "CONFIG", "--repeats", "0"], "--repeats"),
        (["-c", "CONFIG", "--metric", "beauty"], "--metric"),
        (["-c", "CONFIG", "--validation", "validation"], "data.validation is empty"),
        (["-c", "CONFIG", "data.test=''", "data.test_share=0"], "no validation records"),
        (["-c", "CONFIG", "data.split=subject", "data.split_into=1"], "at least two"),
        (["-c", "CONFIG", "model.lora.form=svd", "model.lora.ranks={alpha: 2}"], "model.lora.ranks"),
    ],
)
def test_one_clear_message_before_anything_starts(
    config: str, tmp_path: Path, arguments: list[str], message: str
) -> None:
    filled = [config if argument == "CONFIG" else argument for argument in arguments]
    if "--resume" not in filled:
        filled += ["--out", str(tmp_path / "surface.json")]
    with pytest.raises(UsageError) as caught:
        measure(*filled)
    assert message in str(caught.value)
    assert not list(tmp_path.iterdir())
