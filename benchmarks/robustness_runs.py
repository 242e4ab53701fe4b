"""Runs of the robustness benchmark: records of eight organizations, and a federation with hostile members."""

import json
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import ray

from benchmarks.attacks import TRIGGER, Attack, Board, Plan, RemoteBenchPool, Row
from trustchain_ray.base import prepare_base
from trustchain_ray.compare import collect
from trustchain_ray.config import Config, SourceConfig, check
from trustchain_ray.config_files import load_config, to_yaml
from trustchain_ray.federation import CohortRound, Federation
from trustchain_ray.forgetting.while_training import expel_planters
from trustchain_ray.pool import Member
from trustchain_ray.run_directory import RunDirectory
from trustchain_ray.worker import Packed

ROOT = Path(__file__).parents[1]
HOSTILE = {"sentiment": ("shop_amazon", "twitter_b"), "clinic": ("clinic_1", "clinic_5")}


@dataclass(frozen=True)
class Holder:
    """Rows of one organization and the classes that it uses."""

    train: list[Row]
    test: list[Row]
    classes: tuple[str, ...]


def sentiment() -> dict[str, Holder]:
    """The seven sources of `configs/sentiment.yaml`; that of tweets in general is cut into two organizations."""
    folder = Path(os.environ["TRUSTCHAIN_DATA"]) / "fed_sentiment"
    config = load_config([str(ROOT / "configs" / "sentiment.yaml")], [])
    holders = {}
    for name, source in config.data.organizations.items():
        train, test = (_read(folder / f"{name}_{split}.jsonl") for split in ("train", "test"))
        classes = tuple(source.labels or config.model.labels)
        if name == "twitter_general":
            holders["twitter_a"] = Holder(train[::2], test[::2], classes)
            holders["twitter_b"] = Holder(train[1::2], test[1::2], classes)
        else:
            holders[name] = Holder(train, test, classes)
    return holders


def clinic() -> dict[str, Holder]:
    """The patients of `configs/quickstart.yaml`, dealt out to eight clinics."""
    folder = ROOT / "configs" / "clinic"
    train, test = _read(folder / "train.jsonl"), _read(folder / "test.jsonl")
    classes = tuple(sorted({row["answer"] for row in train}))
    place = {row["subject"]: i % 8 for i, row in enumerate({r["subject"]: r for r in train + test}.values())}
    return {
        f"clinic_{i}": Holder(*([r for r in rows if place[r["subject"]] == i] for rows in (train, test)), classes)
        for i in range(8)
    }


def _read(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def config_of(name: str, holders: dict[str, Holder], files: Path, overrides: Sequence[str]) -> Config:
    """The federation of some holders, whose files lie in a folder."""
    yaml = {"sentiment": "sentiment.yaml", "clinic": "quickstart.yaml"}[name]
    settings = [
        "federation.baselines=[]", "federation.personalization=none", "federation.participation=always",
        "participation.settle_every=0", "federation.cohorts=one", "federation.shards_per_organization=1",
        "federation.weights=equal", "federation.quorum=0.625", "federation.keep_updates=none",
        "resources.mode=pooled", "ledger.witnesses=false", "ledger.public.kind=none", "ledger.anchor_every=1000",
    ]  # fmt: skip
    config = load_config([str(ROOT / "configs" / yaml)], [*settings, "trust.rule=mean", "trust.hostile=0"])
    config.data.split = "sources"
    config.data.organizations = {
        org: SourceConfig(
            train=str(files / f"{org}_train.jsonl"),
            test=str(files / f"{org}_test.jsonl"),
            labels=list(holder.classes) if config.model.task == "classification" else [],
        )
        for org, holder in holders.items()
    }
    path = files / "config.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    return load_config([str(path)], list(overrides))


def write_records(
    holders: dict[str, Holder], files: Path, attack: Attack | None, hostile: Sequence[str], trigger: str
) -> None:
    """Files of all organizations; those of hostile ones as the attack changes them."""
    files.mkdir(parents=True, exist_ok=True)
    for org, holder in holders.items():
        train = holder.train
        if attack is not None and attack.row is not None and org in hostile:
            train = [attack.row(row, i, holder.classes, trigger) for i, row in enumerate(train)]
        for split, rows in (("train", train), ("test", holder.test)):
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (files / f"{org}_{split}.jsonl").write_text(text, encoding="utf-8")


class BenchFederation(Federation):
    """A federation with hostile members; it remembers how far members are from each other, and what rules took."""

    plan: Plan
    pools: "Pools"

    def train_round(self, number: int, behind: Callable[[], Any] | None = None) -> tuple[dict[str, Any], Any]:
        excluded = self.reputation.excluded(self.config.trust.exclude_below)
        ray.get(self.plan.board.announce.remote(number, frozenset(self.names) - excluded.keys()))
        return super().train_round(number, behind)

    def merge(self, number: int, name: str, cohort: CohortRound, server_step: float | None = None) -> dict[str, Any]:
        body = super().merge(number, name, cohort, server_step)
        for org in set(self.cohorts[name]) - {entry["organization"] for entry in body["inputs"]}:
            self.shares[org].append(0.0)
            self.excluded_rounds[org] = self.excluded_rounds.get(org, 0) + 1
        for entry in body["inputs"]:
            self.shares[entry["organization"]].append(float(entry.get("share", 1 / len(body["inputs"]))))
        buffers = {org: u.update.buffer.astype(np.float64) for org, u in sorted(cohort.accepted.items())}
        for a, b in combinations(buffers, 2):
            scale = float(np.linalg.norm(buffers[a]) * np.linalg.norm(buffers[b])) or 1.0
            cosine = float(buffers[a] @ buffers[b]) / scale
            self.cosines[a].append(cosine)
            self.cosines[b].append(cosine)
        return body

    def _start_members(self) -> None:
        self.shares: dict[str, list[float]] = defaultdict(list)
        self.cosines: dict[str, list[float]] = defaultdict(list)
        self.excluded_rounds: dict[str, int] = {}
        self.base = prepare_base(self.config, self.run, self.progress)
        ray.get([pool.begin.remote(self.config, self.id, self.plan) for pool in self.pools.all])
        actors = {name: self.pools.of(i, name, self.plan) for i, name in enumerate(self.names)}
        self.members = {name: Member(name, actor, True) for name, actor in actors.items()}


class Pools:
    """Pool workers that stay from run to run: honest members share two, hostile ones have one, where they wait."""

    def __init__(self, config: Config) -> None:
        threads = str(config.training.threads)
        environment = {"env_vars": {"OMP_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}}
        remote = RemoteBenchPool.options(runtime_env=environment, num_cpus=0)
        self.all = [remote.remote(config, "none") for _ in range(3)]

    def of(self, number: int, name: str, plan: Plan) -> Any:
        return self.all[2] if name in plan.hostile and plan.attack is not None else self.all[number % 2]


@dataclass
class Bench:
    """Everything that the runs of a benchmark share."""

    name: str
    work: Path
    overrides: list[str]
    hostile: tuple[str, ...] = ()
    trigger: str = TRIGGER
    pools: Pools | None = None
    base: Path | None = None
    holders: dict[str, Holder] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.holders = sentiment() if self.name == "sentiment" else clinic()
        self.hostile = self.hostile or HOSTILE[self.name]
        self.honest = tuple(sorted(set(self.holders) - set(self.hostile)))
        self.target = next(iter(self.holders.values())).classes[-1]

    def run(self, attack: Attack | None, rule: Sequence[str], alone: bool = False) -> dict[str, Any]:
        """Train one federation; figures of its final model.

        Parameters
        ----------
        attack
            Of the hostile organizations; None: they are honest.
        rule
            Overrides of `trust`.
        alone
            Without the hostile organizations.

        Returns
        -------
        dict
            `accuracy` (mean over the six honest organizations' test records, but for those that settled rounds),
            `by_organization`, `backdoor` (share of their test records that get the target once they have the trigger),
            `shares` and `cosines` by organization (means over rounds), `excluded` (rounds by organization), `refused`,
            `expelled`, `seconds` of the rounds without replays.
        """
        folder, holders = self.work / "run", dict(self.holders)
        if alone:
            holders = {org: holder for org, holder in holders.items() if org in self.honest}
        shutil.rmtree(folder, ignore_errors=True)
        write_records(holders, self.work / "records", attack, self.hostile, self.trigger)
        config = config_of(self.name, holders, self.work / "records", [*self.overrides, *rule])
        check(config)
        run = RunDirectory.create(folder)
        run.write("config.yaml", to_yaml(config).encode())
        if self.base is not None:
            shutil.copytree(self.base, run.path / "base")
        lines: list[str] = []
        federation = BenchFederation(config, run, lines.append)
        self.pools = federation.pools = self.pools or Pools(config)
        federation.plan = Plan(attack, self.hostile, self.honest, self.target, Board.remote(), self.trigger)
        try:
            federation.start()
            metrics = []
            for number in range(1, config.federation.rounds + 1):
                metrics.append(federation.train_round(number)[0])
                expel_planters(federation, lines.append)
            scores, backdoor = self._scores(federation)
            federation.writer.close()
            federation.ask_ledger("flush")
        finally:
            federation.close()
            for actor in (federation.ledger, federation.plan.board):
                if actor is not None:
                    ray.kill(actor)
            run.unlock()
        if self.base is None and (run.path / "base").is_dir():
            self.base = Path(shutil.copytree(run.path / "base", self.work / "base", dirs_exist_ok=True))
        return {
            "accuracy": float(np.mean([scores[org]["accuracy"] for org in self.honest])),
            "backdoor": float(np.mean([backdoor[org]["accuracy"] for org in self.honest if backdoor[org]])),
            "by_organization": {org: round(row["accuracy"], 4) for org, row in scores.items()},
            "shares": {org: round(float(np.mean(found)), 4) for org, found in sorted(federation.shares.items())},
            "cosines": {org: round(float(np.mean(found)), 4) for org, found in sorted(federation.cosines.items())},
            "excluded": federation.excluded_rounds,
            "refused": sum("refused" in line for line in lines),
            "expelled": sorted(set(federation.registered) - set(federation.names)),
            "seconds": round(sum(row["seconds"] for row in metrics), 1),
        }

    def _scores(self, federation: BenchFederation) -> tuple[dict[str, Any], dict[str, Any]]:
        model = federation.model()
        packed = [ray.put(Packed.of(model))]
        plain, backdoor = (
            {org: federation.members[org].call("score", federation.terms_ref, packed, how) for org in self.honest}
            for how in (False, True)
        )
        return collect(plain), collect(backdoor)
