"""The runs of the dial: three federations, divided into cohorts in every way, and what a removal from each would cost.

They lie below a work folder and are not trained again; one that was cut short is gone on with.
"""

import contextlib
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray

from benchmarks.common import quiet
from ledger.removal import ORGANIZATION, RECORD
from trustchain_ray.config import Config
from trustchain_ray.config_files import load_config
from trustchain_ray.data import load_holdings
from trustchain_ray.federation import Federation
from trustchain_ray.forgetting.history import History
from trustchain_ray.forgetting.plan import Ask, make_plan
from trustchain_ray.run_directory import RunDirectory
from trustchain_ray.train import resume, train

ROOT = Path(__file__).parents[1]
WORK = ROOT / "runs" / "forgetting-dial"
EQUAL_STEPS, EQUAL_TOTAL = "equal steps per cohort", "equal total steps"
Save = Callable[[], None]


@dataclass(frozen=True)
class Layout:
    """Who trains with whom: a value of `federation.cohorts`, and the shards of every organization."""

    cohorts: str
    shards: int = 1

    @property
    def name(self) -> str:
        return self.cohorts if self.shards == 1 else f"{self.cohorts}, {self.shards} shards"


BASE = (Layout("one"), *(Layout("by_shard", s) for s in (2, 4, 8)), Layout("groups"), Layout("by_organization"))
ALL = (*BASE, *(Layout("by_both", s) for s in (2, 4, 8)))
FEW = (Layout("one"), Layout("by_shard", 4), Layout("groups"), Layout("by_organization"), Layout("by_both", 4))
SHARDED = tuple(layout for layout in FEW if layout.shards > 1)


@dataclass(frozen=True)
class Series:
    """A federation's layouts, with one thing held equal among them."""

    federation: str
    name: str
    layouts: tuple[Layout, ...]
    seeds: int
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Shape:
    """How a federation is trained: rounds and local steps of a member in the layout `one`, rate at which a step reads
    a record, named groups, and what else differs from the configuration."""

    rounds: int
    local_steps: int
    rate: float
    groups: Mapping[str, Sequence[str]]
    overrides: tuple[str, ...] = ()


SENTIMENT, QUICKSTART, TOFU = "sentiment", "quickstart", "tofu"
SHAPES = {
    SENTIMENT: Shape(
        12, 5, 8 / 200,
        {"reviews": ("critics_rt", "movies_imdb", "shop_amazon"),
         "others": ("airline_tweets", "finance_news", "finance_tweets", "twitter_general")},
        ("data.limit=200", "data.test_limit=80"),
    ),
    QUICKSTART: Shape(6, 20, 0.066, {"first": ("east", "north"), "second": ("south", "west")}),
    TOFU: Shape(6, 10, 16 / 400, {"first": ("org_0", "org_1"), "second": ("org_2", "org_3")}, ("data.limit=400",)),
}  # fmt: skip
TRUNK = tuple(layout for layout in FEW if layout.cohorts != "groups")
SERIES = (
    Series(QUICKSTART, EQUAL_STEPS, ALL, 2),
    Series(SENTIMENT, EQUAL_STEPS, FEW, 2),
    Series(TOFU, EQUAL_STEPS, FEW, 1),
    Series(QUICKSTART, "no public warm-up", TRUNK, 1, ("model.made.warmup_steps=0",)),
    Series(QUICKSTART, "twice the public warm-up", TRUNK, 1, ("model.made.warmup_steps=500",)),
    Series(SENTIMENT, EQUAL_TOTAL, SHARDED, 1),
)
SMALL = (Layout("one"), Layout("groups"), Layout("by_both", 2))
TINY_SERIES = (
    Series(QUICKSTART, EQUAL_STEPS, SMALL, 1),
    Series(SENTIMENT, EQUAL_STEPS, SMALL[:2], 1),
    Series(TOFU, EQUAL_STEPS, (Layout("by_organization"),), 1),
    Series(SENTIMENT, EQUAL_TOTAL, (Layout("by_shard", 2),), 1),
)
METRICS = {SENTIMENT: "accuracy", QUICKSTART: "accuracy", TOFU: "token_accuracy"}


@dataclass
class Runs:
    """All runs below `work`, and what was measured of them so far."""

    done: dict[str, Any]
    save: Save
    work: Path
    tiny: bool
    stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def trained(self, series: Series, layout: Layout, seed: int) -> Path:
        """The run of a layout, complete."""
        run = self.work / series.federation / series.name.replace(" ", "-") / f"seed-{seed}" / layout.name / "run"
        run = Path(str(run).replace(", ", "-").replace(" ", "-"))
        if (run / "result.json").is_file():
            return run
        self._start_ray()
        began = time.perf_counter()
        if (run / "config.yaml").is_file():
            resume(str(run), quiet)
        else:
            train(self._config(series, layout, seed), str(run), quiet)
        seconds = time.perf_counter() - began
        print(f"trained {series.federation}, {series.name}, seed {seed}, {layout.name}: {seconds:.0f} s", flush=True)
        return run

    def note(self, name: str, value: dict[str, Any]) -> None:
        """Keep a figure."""
        self.done[name] = value
        self.save()

    def _config(self, series: Series, layout: Layout, seed: int) -> Config:
        shape, name = SHAPES[series.federation], series.federation
        divided = layout.shards if series.name == EQUAL_TOTAL else 1
        groups = ",".join(f"{group}:[{','.join(names)}]" for group, names in shape.groups.items())
        return load_config(
            [str(ROOT / "configs" / f"{name}.yaml")],
            [
                f"run.key={name}-{seed}", f"run.keystore={self.work / 'keys'}", *shape.overrides,
                f"federation.cohorts={layout.cohorts}", f"federation.shards_per_organization={layout.shards}",
                *([f"federation.groups={{{groups}}}"] if layout.cohorts == "groups" else []),
                f"federation.rounds={max(1, (1 if self.tiny else shape.rounds) // divided)}",
                f"federation.local_steps={2 if self.tiny else shape.local_steps}",
                f"training.sampling_rate={min(1.0, shape.rate * divided):.6f}",
                f"federation.baselines={'[isolated]' if layout.cohorts == 'one' else '[]'}",
                "federation.weights=equal", "federation.participation=always", "federation.personalization=none",
                "federation.evaluate_every=1000", "federation.keep_updates=none", "participation.settle_every=0",
                "resources.mode=pooled", "resources.workers=2",
                "ledger.anchor_every=1000", "ledger.witnesses=false", *series.overrides,
                *(["data.limit=24", "data.test_limit=8"] if self.tiny else []),
            ],
        )  # fmt: skip

    def _start_ray(self) -> None:
        """One local cluster for all runs of this process, at the first that has to be trained."""
        if ray.is_initialized():
            return
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        ray.init(
            address="local", num_cpus=8, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1"
        )
        self.stack.callback(ray.shutdown)


def removal_costs(run: Path, samples: int) -> dict[str, Any]:
    """Share of the training steps that a removal would replay, by its own plan; nothing is changed.

    Returns
    -------
    dict
        `record`: mean over so many random records; `organization`: mean over all organizations; `steps`: of the whole
        training; `guarantee`, the weakest of all.
    """
    config = load_config([str(run / "config.yaml")], [])
    draws = random.Random(config.run.key)
    with _reopened(config, run) as federation:
        history = History.read(run, federation.manifest)
        records = [(name, r.id) for name in federation.names for r in load_holdings(config, name).train]
        asks = {
            "record": [Ask(RECORD, (i,), name) for name, i in draws.sample(records, min(samples, len(records)))],
            "organization": [Ask(ORGANIZATION, (), name) for name in federation.names],
        }
        plans = {what: [make_plan(federation, history, [ask], "replay") for ask in each] for what, each in asks.items()}
        steps = sum(n for rows in history.steps(federation.finished).values() for row in rows for n in row.values())
    shares = {what: [plan.describe()["share"] for plan in each] for what, each in plans.items()}
    return {
        **{what: round(statistics.fmean(each), 4) for what, each in shares.items()},
        "steps": steps,
        "guarantee": sorted({plan.guarantee for each in plans.values() for plan in each})[0],
    }


@contextlib.contextmanager
def _reopened(config: Config, run: Path) -> Iterator[Federation]:
    """A run's organizations in this process, without workers; the run stays as it is."""
    directory = RunDirectory.open(run)
    federation = Federation(config, directory, quiet, local=True)
    try:
        federation.reopen(write=False)
        yield federation
    finally:
        federation.close()
        directory.unlock()
