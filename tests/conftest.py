"""A small real federation, run by the real command line, that the tests of this folder share."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
DEPARTMENTS = {
    "cardiology": "a racing pulse",
    "neurology": "a numb hand",
    "urology": "flank pain",
    "hematology": "pale gums",
}


@dataclass
class Command:
    """The command line in its own process, with its own key store; on a Ray cluster of its own, or on `address`."""

    home: Path
    address: str | None = None

    def environment(self, shared: bool = True) -> dict[str, str]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        joined = {"RAY_ADDRESS": self.address} if shared and self.address else {}
        return {**clean, **joined, "TRUSTCHAIN_HOME": str(self.home), "HF_HUB_OFFLINE": "1"}

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "trustchain_ray", *arguments],
            cwd=ROOT,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, code: int = 0) -> tuple[str, str]:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=280)
        assert process.returncode == code, f"exit {process.returncode}\n{out}\n{err}"
        return out, err

    def train(self, *arguments: str) -> dict[str, Any]:
        out, _ = self.run("train", *arguments, "--json")
        result: dict[str, Any] = json.loads(out.splitlines()[-1])
        return result


@pytest.fixture(scope="session")
def command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    """On one cluster for all tests: starting Ray takes longer than what most of them do with it."""
    from ray_head import ray_head

    home = tmp_path_factory.mktemp("home")
    with ray_head(Command(home).environment(), 16, dashboard=False) as head:
        yield Command(home, head.address)


@pytest.fixture(scope="session")
def alone(command: Command) -> Command:
    """Each run on a cluster of its own, whose processes are its children and have its environment."""
    return Command(command.home)


def write_patients(folder: Path, organizations: Sequence[str], each: int, every: int) -> None:
    """Files of training records, of public ones, and of test records: one of so many of the training records."""
    rows = []
    for organization in organizations:
        for i in range(each):
            department, complaint = list(DEPARTMENTS.items())[i % 4]
            rows.append(
                {
                    "id": f"{organization}-{i}",
                    "organization": organization,
                    "prompt": f"Patient {i} of {organization} has {complaint}. Department:",
                    "answer": f" {department}",
                }
            )
    for name, chosen in (("train", rows), ("test", rows[::every]), ("public", rows[:8])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chosen))


@pytest.fixture(scope="session")
def config(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of a configuration: two organizations, three rounds, a tiny model made from public records."""
    folder = tmp_path_factory.mktemp("data")
    write_patients(folder, ("alpha", "beta"), 40, 5)
    path = folder / "small.yaml"
    path.write_text(
        """
run: {name: small, key: small}
model:
  max_length: 48
  made: {hidden: 32, layers: 1, heads: 2, intermediate: 64, vocabulary: 320, warmup_steps: 5, warmup_batch: 8}
  lora: {rank: 4, alpha: 8, targets: [q_proj, v_proj, down_proj]}
data: {train: train.jsonl, test: test.jsonl, public: public.jsonl}
training: {engine: torch, batch_size: 8, sampling_rate: 0.2, lr: 1.0e-2}
federation: {rounds: 3, local_steps: 4}
ledger: {anchor_every: 2}
"""
    )
    return str(path)


@pytest.fixture(scope="session")
def four(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of a configuration: four organizations, two shards each."""
    folder = tmp_path_factory.mktemp("four")
    write_patients(folder, ("alpha", "beta", "delta", "gamma"), 18, 9)
    path = folder / "four.yaml"
    path.write_text(
        """
run: {name: four, key: four}
model:
  max_length: 48
  made: {hidden: 32, layers: 1, heads: 2, intermediate: 64, vocabulary: 320, warmup_steps: 2, warmup_batch: 8}
  lora: {rank: 4, alpha: 8, targets: [q_proj, v_proj]}
data: {train: train.jsonl, test: test.jsonl, public: public.jsonl}
training: {engine: torch, batch_size: 8, sampling_rate: 0.2, lr: 1.0e-2}
federation: {rounds: 3, local_steps: 2, cohorts: by_shard, shards_per_organization: 2, evaluate_every: 3}
resources: {mode: pooled, workers: 1}
"""
    )
    return str(path)


@pytest.fixture(scope="session")
def finished(command: Command, config: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The result of one undisturbed run in dedicated mode."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    return command.train("-c", config, "--run", str(folder), "federation.baselines=[isolated, centralised]")
