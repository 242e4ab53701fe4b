"""Real DeepSpeed at every ZeRO stage on one and two ranks: it answers all that the torch engine answers."""

import os
import pickle
import socket
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from tiny import RECORDS, base_of, classifier, draw, only, rows_of, script, tiny

from trustchain_ray.adapter import LORA_A, LORA_B
from trustchain_ray.config import Config
from trustchain_ray.engines import deepspeed_engine
from trustchain_ray.engines.deepspeed_engine import DeepSpeedEngine
from trustchain_ray.engines.torch_engine import TorchEngine
from trustchain_ray.errors import TrustChainError
from trustchain_ray.worker import Packed, Trained
from trustchain_ray.worker_group import WorkerGroup

pytestmark = pytest.mark.slow  # DeepSpeed takes longest to import and to begin

Case = tuple[Config, str, int]  # a config, its base and the size below which ZeRO-3 keeps a parameter whole
CASES = ["zero0", "zero1", "zero2", "zero3", "zero3-persistent", "checkpointing", "head2", "head3"]


def cases(folder: Path) -> dict[str, Case]:
    # Clipping and weight decay are on, so that the order of scaling, clipping and decay counts.
    options: dict[str, Any] = {"weight_decay": 0.1, "max_grad_norm": 0.02}
    base, head = base_of(tiny()), str(folder)
    out: dict[str, Case] = {f"zero{stage}": (tiny(zero_stage=stage, **options), base, 0) for stage in range(4)}
    out["zero3-persistent"] = (tiny(zero_stage=3, **options), base, deepspeed_engine.PERSISTENT_BELOW)
    out["checkpointing"] = (tiny(zero_stage=3, gradient_checkpointing=True), base, 0)
    out["head2"] = (classifier(folder, zero_stage=2, **options), head, 0)
    out["head3"] = (classifier(folder, zero_stage=3, **options), head, 0)
    return out


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def rank_process(rank: int, world: int, port: int, folder: Path, todo: dict[str, Case]) -> None:
    """One rank: all cases one after another, their answers in a file."""
    if world > 1:
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK="0")
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    warnings.simplefilter("ignore")
    answers = {}
    for label, (config, base, persistent) in todo.items():
        deepspeed_engine.PERSISTENT_BELOW = persistent
        engine = DeepSpeedEngine(config, base, "cpu", rank, world)
        answers[label] = script(engine, config) | extras(engine, config)
    (folder / f"{world}-{rank}").write_bytes(pickle.dumps(answers))


def extras(engine: DeepSpeedEngine, config: Config) -> dict[str, Any]:
    """What is asked of DeepSpeed alone: where parameters lie, and a gradient that is not finite."""
    start, rows = draw(engine, 1), rows_of(engine, config)
    local = {name: parameter.numel() for name, parameter in engine.adapter.parameters.items()}
    try:
        broken = {name: np.full_like(tensor, np.nan) for name, tensor in start.items() if name.endswith(LORA_B)}
        engine.load(broken, config.model.lora.alpha)
        engine.train(rows, [[0, 1]], [0.01])
        refused = "" if np.isnan(engine.tensors(sorted(broken))[sorted(broken)[0]]).any() else "trained on"
    except TrustChainError as error:
        refused = str(error)
    none = {name: np.zeros_like(tensor) for name, tensor in start.items()}
    engine.load(start, config.model.lora.alpha, residual=none)  # the script left one in the base
    engine.train(rows, [[0, 1, 2]], [0.01])
    return {
        "local": local,
        "refused": refused,
        "after refusal": engine.tensors(sorted(start)),
        "memory": engine.memory(),
    }


def spawn(world: int, folder: Path, todo: dict[str, Case]) -> list[dict[str, dict[str, Any]]]:
    torch.multiprocessing.spawn(rank_process, (world, free_port(), folder, todo), nprocs=world)
    return [pickle.loads((folder / f"{world}-{rank}").read_bytes()) for rank in range(world)]


@pytest.fixture(scope="module")
def todo(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    return cases(tmp_path_factory.mktemp("classifier"))


@pytest.fixture(scope="module")
def expected(todo: dict[str, Case]) -> dict[str, dict[str, Any]]:
    return {label: script(TorchEngine(c, base), c) for label, (c, base, _) in todo.items()}


@pytest.fixture(scope="module", params=[pytest.param(1, marks=pytest.mark.long), 2], ids=["one-rank", "two-ranks"])
def ranks(
    request: pytest.FixtureRequest, todo: dict[str, Case], tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, dict[str, Any]]]:
    return spawn(request.param, tmp_path_factory.mktemp("answers"), todo)


@pytest.mark.parametrize("label", CASES)
def test_every_answer_is_the_torch_engines(
    label: str, ranks: list[dict[str, dict[str, Any]]], expected: dict[str, dict[str, Any]]
) -> None:
    for key, wanted in expected[label].items():
        answers = [answer[label][key] for answer in ranks]
        for answer in answers:
            if isinstance(wanted, dict):
                assert answer.keys() == wanted.keys()
                for name, value in wanted.items():
                    message = f"{label}, {key}: {name}"
                    np.testing.assert_allclose(answer[name], value, rtol=0, atol=1e-5, err_msg=message)
            else:
                np.testing.assert_allclose(answer, wanted, rtol=0, atol=1e-5, err_msg=f"{label}, {key}")
        np.testing.assert_equal(answers[-1], answers[0])  # the ranks agree to the bit


@pytest.mark.parametrize("label", CASES)
def test_what_is_sent_is_whole_loaded_to_the_bit_and_changed_by_training(
    label: str, ranks: list[dict[str, dict[str, Any]]], todo: dict[str, Case]
) -> None:
    answer, (config, base, _) = ranks[0][label], todo[label]
    torch_engine = TorchEngine(config, base)
    frozen = {name for name in torch_engine.shapes() if config.model.lora.form == "ffa" and name.endswith(LORA_A)}
    for key, seed in (("loaded", 1), ("reloaded", 2)):
        np.testing.assert_equal(answer[key], draw(torch_engine, seed))
    assert {name: t.shape for name, t in answer["several"].items()} == torch_engine.shapes()
    for before, after in (("loaded", "one step"), ("reloaded", "several"), ("several", "continued")):
        changed = {n for n, t in answer[after].items() if not np.array_equal(t, answer[before][n])}
        assert changed == set(torch_engine.shapes()) - frozen, (before, after)
    alone = {n for n, t in answer["only"].items() if not np.array_equal(t, answer["reloaded"][n])}
    assert alone == set(only(torch_engine))


@pytest.mark.parametrize("label", CASES)
def test_a_gradient_that_is_not_finite_is_named_and_leaves_nothing_behind(
    label: str, ranks: list[dict[str, dict[str, Any]]], expected: dict[str, dict[str, Any]]
) -> None:
    answer = ranks[0][label]
    if label == "zero0":
        assert answer["refused"] == ""  # as in torch: the tensors are not finite, and the update is refused
    else:
        assert "not finite" in answer["refused"]
    for name, value in expected[label]["one step"].items():
        np.testing.assert_allclose(answer["after refusal"][name], value, rtol=0, atol=1e-5)


def test_zero_3_really_partitions(ranks: list[dict[str, dict[str, Any]]]) -> None:
    assert not any(ranks[0]["zero3"]["local"].values())  # empty until gathered
    assert all(ranks[0]["zero2"]["local"].values())
    assert all(ranks[0]["zero3-persistent"]["local"].values())
    assert ranks[0]["zero3"]["memory"]["resident"] > 0


@pytest.mark.long
def test_a_bfloat16_base_keeps_a_float32_adapter(tmp_path: Path) -> None:
    base, todo = base_of(tiny()), {}
    for stage in (2, 3):
        config = tiny(zero_stage=stage)
        config.model.dtype = "bfloat16"
        todo[str(stage)] = (config, base, 0)
    (answers,) = spawn(1, tmp_path, todo)
    wanted = script(TorchEngine(config, base), config)
    for answer in answers.values():
        np.testing.assert_equal(answer["loaded"], wanted["loaded"])  # not rounded
        assert any(np.any(t.astype(np.float64) != _rounded(t)) for t in answer["several"].values())
        for key in ("one step: loss", "several: loss", "lower rank: loss"):
            np.testing.assert_allclose(answer[key], wanted[key], rtol=5e-3)
        for key in ("one step", "several"):  # Adam turns rounding of the smallest gradients into whole steps
            off = np.concatenate([np.abs(answer[key][n] - t).ravel() for n, t in wanted[key].items()])
            assert np.mean(off > 1e-3) < 0.02, key


def _rounded(tensor: np.ndarray) -> np.ndarray:
    return torch.from_numpy(tensor).bfloat16().double().numpy()


def test_ranks_that_would_share_a_gpu_are_refused() -> None:
    config = tiny()
    config.resources.workers, config.resources.gpus_per_worker = 2, 0.5
    with pytest.raises(TrustChainError, match=r"gpus_per_worker=0\.5.*two ranks on one GPU"):
        DeepSpeedEngine(config, "unused", "cuda:0", rank=0, world_size=2)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    folder = str(Path(__file__).parent)
    # Workers unpickle records by the module that made them; the tests' folder must be on their path.
    environment = {"env_vars": {"PYTHONPATH": folder}}
    ray.init(address="local", num_cpus=4, include_dashboard=False, runtime_env=environment)
    yield
    ray.shutdown()


def on_two_ranks() -> Config:
    config = tiny(engine="deepspeed", zero_stage=2)
    config.resources.workers = 2
    return config


def train_in_group(group: WorkerGroup, begun: dict[str, np.ndarray]) -> Trained:
    """One call as an organization makes it."""
    group.remember("set_rows", "clinic", "train", RECORDS)
    group.remember("freeze", Packed.of(begun))
    steps = [[0, 1, 2], [], [3, 4, 5, 6, 7]]
    trained = group.call("train", "clinic", Packed.of(begun), None, steps, [0.01] * 3, None, True)
    assert isinstance(trained, Trained)
    return trained


def check_trained(trained: Trained, config: Config, seed: int) -> None:
    engine = TorchEngine(config, base_of(config))
    engine.load(draw(engine, seed), config.model.lora.alpha)
    losses = engine.train(rows_of(engine, config), [[0, 1, 2], [], [3, 4, 5, 6, 7]], [0.01] * 3)
    tensors = trained.update.tensors()
    assert tensors.keys() == engine.shapes().keys()
    for name, value in engine.tensors(sorted(tensors)).items():
        np.testing.assert_allclose(tensors[name], value, rtol=0, atol=1e-5, err_msg=name)
    np.testing.assert_allclose(trained.losses, losses, atol=1e-5)
    assert trained.records == 8


@pytest.mark.long
def test_a_worker_group_of_two_ranks_trains(cluster: None) -> None:
    config = on_two_ranks()
    group = WorkerGroup(config, base_of(config), "clinic")
    try:
        assert group.call("describe")["environment"]["engine"] == "deepspeed"
        begun = draw(TorchEngine(config, base_of(config)), 1)
        check_trained(train_in_group(group, begun), config, 1)
    finally:
        group.close()


@pytest.mark.long
def test_two_worker_groups_on_one_node_do_not_collide(cluster: None) -> None:
    config = on_two_ranks()
    base, seeds = base_of(config), [1, 2]
    engine = TorchEngine(config, base)
    with ThreadPoolExecutor(2) as threads:
        groups = list(threads.map(lambda name: WorkerGroup(config, base, name), ["east", "west"]))
        try:
            answers = list(threads.map(train_in_group, groups, [draw(engine, seed) for seed in seeds]))
            for trained, seed in zip(answers, seeds, strict=True):
                check_trained(trained, config, seed)
        finally:
            for group in groups:
                group.close()
