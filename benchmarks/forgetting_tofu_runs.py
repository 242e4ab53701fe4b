"""The runs of the TOFU benchmark: whole, without a forget set, after a removal, and of one cohort for all.

They lie below a work folder and are not trained again; one that was cut short is gone on with. See
:mod:`benchmarks.forgetting_tofu`.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trustchain_ray.config import Config
from trustchain_ray.config_files import load_config
from trustchain_ray.data import Record
from trustchain_ray.engines.torch_engine import TorchEngine
from trustchain_ray.errors import TrustChainError
from trustchain_ray.evaluate.adapters import read_adapter
from trustchain_ray.evaluate.questions import questions_of_file, read_records
from trustchain_ray.forgetting.metrics.measuring import Settings
from trustchain_ray.forgetting.metrics.questions import Question
from trustchain_ray.keys import derive

ROOT = Path(__file__).parents[1]
WORK = ROOT / "runs" / "forgetting-tofu"
SETS = {"forget01": 198, "forget05": 190, "forget10": 180}
"""The first author of each set; all behind it are forgotten, too."""
RETAINED, HELD_OUT = range(160), range(160, 180)
SHARDS = 4
Groups = dict[str, list[Question]]
Save = Callable[[], None]


@dataclass(frozen=True)
class Scale:
    """How much is trained and measured; the defaults are those of the checked-in result."""

    rounds: int = 5
    local_steps: int = 8
    batch: int = 8
    retained_authors: int = 40
    sets: tuple[str, ...] = tuple(SETS)
    measured: int = 80  # most records of a forget set; the methods always get all of it
    records: int = 40  # most of any other set
    new_tokens: int = 64
    relearned: int = 40
    relearn_steps: int = 50
    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    epochs: tuple[int, ...] = (2, 5)


TINY = Scale(1, 2, 16, 20, ("forget01",), 9, 9, 6, 6, 3, (1e-3,), (1,))


class Runs:
    """The records, the runs of all seeds below `work`, and what was measured so far."""

    def __init__(self, done: dict[str, Any], save: Save, seeds: Sequence[int], work: Path, scale: Scale) -> None:
        self.done, self.save, self.seeds, self.work, self.scale = done, save, seeds, work, scale
        self.data = Path(os.environ.get("TRUSTCHAIN_DATA", ROOT / "data")) / "tofu"
        self.train_file, self.holdout_file = self._write_records()
        self.settings = Settings(new_tokens=scale.new_tokens, quantisations=(), relearning=None)

    def _write_records(self) -> tuple[Path, Path]:
        """Records with ids that no author has, since `data.exclude` and requests name both."""
        source = self.data / "tofu_full.jsonl"
        if not source.is_file():
            raise TrustChainError(f"there is no {source}; set TRUSTCHAIN_DATA to a folder that holds tofu/")
        self.work.mkdir(parents=True, exist_ok=True)
        files = self.work / "train.jsonl", self.work / "holdout.jsonl"
        lines: tuple[list[str], list[str]] = ([], [])
        for text in source.read_text(encoding="utf-8").splitlines():
            row = json.loads(text)
            number = row["author"]
            row |= {"id": f"question-{row['id']}", "author": author(number)}
            if number in HELD_OUT or number < self.scale.retained_authors or number >= min(SETS.values()):
                lines[number in HELD_OUT].append(json.dumps(row) + "\n")
        for path, rows in zip(files, lines, strict=True):
            path.write_text("".join(rows), encoding="utf-8")
        return files

    def train(self, name: str, seed: int, *overrides: str) -> Path:
        """A run by the command line; one that was cut short is gone on with."""
        run, home = self.work / f"seed-{seed}" / name / "run", self.work / f"seed-{seed}" / name / "home"
        if (run / "result.json").is_file():
            return run
        began, records = time.perf_counter(), (self.scale.retained_authors + 200 - min(SETS.values())) * 20
        if (run / "config.yaml").is_file():
            command("train", "--resume", str(run), home=home)
        else:
            command(
                "train", "-c", str(ROOT / "configs" / "tofu.yaml"), "--run", str(run),
                f"run.key=tofu-{seed}", f"data.train={self.train_file}", "data.limit=0",
                f"data.test={self.data / 'world_facts_perturbed.jsonl'}", f"federation.rounds={self.scale.rounds}",
                f"federation.local_steps={self.scale.local_steps}", "federation.cohorts=by_shard",
                f"federation.shards_per_organization={SHARDS}", "federation.weights=equal",
                f"training.batch_size={self.scale.batch}",
                f"training.sampling_rate={min(1.0, self.scale.batch * 4 * SHARDS / records):.6f}",
                "federation.baselines=[]", "federation.personalization=none", "federation.evaluate_every=1000",
                *overrides, home=home,
            )  # fmt: skip
        self.note(f"seed {seed}/{name}", {"training_s": round(time.perf_counter() - began, 1)})
        return run

    def full(self, seed: int) -> Path:
        """The run of all authors."""
        return self.train("full", seed)

    def one(self, seed: int) -> Path:
        """The run of one cohort for all: as many training steps, and each record in as many of them."""
        rate = load_config([str(self.full(seed) / "config.yaml")], []).training.sampling_rate
        return self.train(
            "one", seed, "federation.cohorts=one", "federation.shards_per_organization=1",
            f"federation.rounds={SHARDS * self.scale.rounds}", f"training.sampling_rate={rate / SHARDS:.6f}",
        )  # fmt: skip

    def retrained(self, seed: int, name: str) -> Path:
        """The run that never had the authors of a set."""
        authors = ",".join(author(number) for number in range(SETS[name], 200))
        return self.train(f"{name}-never", seed, f"data.exclude=[{authors}]")

    def replayed(self, seed: int, name: str) -> Path:
        """A copy of the whole run, from which the authors of a set were removed."""
        folder, full = self.work / f"seed-{seed}" / f"{name}-replay", self.full(seed)
        run, key = folder / "run", f"seed {seed}/{name}/replay/removal"
        if key in self.done and run.is_dir():
            return run
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(full.parent, folder)
        authors = [author(number) for number in range(SETS[name], 200)]
        began = time.perf_counter()
        result = command("unlearn", str(run), "--subject", *authors, "--no-evaluate", home=folder / "home")
        never = read_adapter(self.retrained(seed, name))
        self.note(
            key,
            {
                "guarantee": result["guarantee"],
                "equal": result["new_model_digest"] == never.digest,
                "steps_share": result["steps_replayed"] / result["steps_total"],
                "removal_s": round(time.perf_counter() - began, 1),
            },
        )
        return run

    def note(self, name: str, value: dict[str, Any]) -> None:
        self.done[name] = value
        print(f"{name:<40}{json.dumps(value)}", flush=True)
        self.save()

    def sample(self, engine: TorchEngine, path: Path, most: int | None, authors: range | None = None) -> list[Question]:
        """At most so many records of a file (of some authors), by an order that is the same for all seeds."""
        config = self.config(self.seeds[0])
        names = None if authors is None else {author(number) for number in authors}
        records = [r for r in read_records(config, str(path), "TOFU") if names is None or r.subject in names]
        return questions_of_file(config, str(path), sorted(records, key=_order)[:most], engine.tokenizer)

    def forgotten(self, engine: TorchEngine, name: str, most: int | None = None) -> list[Question]:
        """The records of a forget set."""
        return self.sample(engine, self.train_file, most, range(SETS[name], 200))

    def groups(self, engine: TorchEngine, name: str) -> Groups:
        """What is measured: TOFU's four sets, and held-out authors."""
        most = self.scale.records
        return {
            "forget": self.forgotten(engine, name, self.scale.measured),
            "retain": self.sample(engine, self.train_file, most, RETAINED),
            "holdout": self.sample(engine, self.holdout_file, most),
            "real_authors": self.sample(engine, self.data / "real_authors_perturbed.jsonl", most),
            "world_facts": self.sample(engine, self.data / "world_facts_perturbed.jsonl", most),
        }

    def config(self, seed: int) -> Config:
        return load_config([str(self.work / f"seed-{seed}" / "full" / "run" / "config.yaml")], [])


def author(number: int) -> str:
    """The subject of a TOFU author."""
    return f"author-{number:03d}"


def command(*arguments: str, home: Path) -> dict[str, Any]:
    """One call of the command line in its own process, on a Ray cluster of its own."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {"TRUSTCHAIN_HOME": str(home)}
    said = subprocess.run(
        [sys.executable, "-m", "trustchain_ray", *arguments, "--json"],
        cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    return dict(json.loads(said.stdout.splitlines()[-1]))


def _order(record: Record) -> bytes:
    return derive("tofu", "sample", record.id)
