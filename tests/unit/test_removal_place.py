"""Where a removal is carried out."""

import json
from pathlib import Path

import pytest

from trustchain_ray.config import Config
from trustchain_ray.forgetting import place
from trustchain_ray.forgetting.job import Job
from trustchain_ray.run_directory import RunDirectory

STEPS = {"shard_0": [{"alpha": 10, "beta": 10}, {"alpha": 10}], "shard_1": [{"alpha": 10, "beta": 10}, {"alpha": 20}]}


def job(step_s: float | None, **changes: object) -> Job:
    facts = {} if step_s is None else {"step_s": repr(step_s)}
    values = {
        "number": 1, "removal": "0" * 64, "method": "replay", "requests": [], "cohorts": {"shard_0": 1}, "dropped": [],
        "left": [], "rounds": 2, "counts": {}, "steps": STEPS, "models": [], "taken": {}, "events": [], "facts": facts,
    }  # fmt: skip
    return Job(**{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> Config:
    for name in ("RAY_ADDRESS", "RAY_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    return Config()


def test_a_step_takes_what_it_took_in_the_rounds_or_what_an_earlier_removal_knew(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert place.step_seconds(run, STEPS) == 0.0
    rows = [
        {"round": 1, "training_seconds": 8.0}, {"round": 2, "training_seconds": 6.0},
        {"round": 2, "replay": "x"}, {"round": 3, "training_seconds": 99.0}, {"final": "federated"},
    ]  # fmt: skip
    lines = [json.dumps(row) for row in rows]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, '{"round": 1, "training_sec']))
    assert place.step_seconds(run, STEPS) == pytest.approx(14.0 / 70)
    (tmp_path / "metrics.jsonl").unlink()
    job(0.25).write(run)
    assert place.step_seconds(run, STEPS) == 0.25


def test_what_one_worker_does_sooner_than_a_cluster_starts_is_done_here(config: Config) -> None:
    assert place.trains_here(config, job(0.5))  # 30 steps: 15 s alone, 7.5 s at two workers and the start
    assert not place.trains_here(config, job(1.5))
    assert place.trains_here(config, job(1.5, left=["beta"]))  # nobody trains at the same time
    assert place.trains_here(config, job(1.5, cohorts={"shard_0": 2}))
    assert place.trains_here(config, job(1.5, dropped=["shard_0"]))
    assert not place.trains_here(config, job(None))
    assert place.trains_here(config, job(None, cohorts={}))
    config.resources.mode = "pooled"
    assert place.trains_here(config, job(1.5))  # one worker on a cluster, too
    config.resources.workers = 2
    assert not place.trains_here(config, job(1.5))
    assert place.trains_here(config, job(1.5, method="ascent"))


def test_workers_of_a_given_cluster_with_gpus_or_another_engine_train_there(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.resources.gpus_per_worker = 0.5
    assert not place.trains_here(config, job(0.1))
    config.resources.gpus_per_worker, config.training.engine = 0, "deepspeed"
    assert not place.trains_here(config, job(0.1))
    config.training.engine = "torch"
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    assert not place.trains_here(config, job(0.1))
