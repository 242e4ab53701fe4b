"""Removal against training again without the records: equal bits, cost, time.

    python -m benchmarks.forgetting exactness          # 100 random forget sets on a tiny model
    python -m benchmarks.forgetting cost               # share of the steps and of the time of training again
    python -m benchmarks.forgetting quickstart         # the shipped quickstart: a person, and an organization
    python -m benchmarks.forgetting tofu               # beside approximate methods; needs TRUSTCHAIN_DATA and _BASE
    python -m benchmarks.forgetting dial               # utility against the cost of removals, by cohorts and merging

Each figure is added to `benchmarks/results/forgetting.json` as it is measured; what the file holds is not measured
again unless `--fresh` is given.
"""

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from benchmarks.common import continued, parser, quiet, table
from benchmarks.warm_pools import WarmPools
from ledger.removal import ORGANIZATION, RECORD, SUBJECT
from ledger.verify import verify_run
from trustchain_ray.config import Config
from trustchain_ray.config_files import load_config
from trustchain_ray.data import load_holdings, organization_names
from trustchain_ray.forgetting.plan import Ask
from trustchain_ray.forgetting.unlearn import unlearn
from trustchain_ray.keys import derive
from trustchain_ray.sampling import inclusion_steps
from trustchain_ray.train import train

ROOT = Path(__file__).parents[1]
DEPARTMENTS = {
    "cardiology": "a racing pulse", "neurology": "a numb hand", "urology": "flank pain", "hematology": "pale gums",
}  # fmt: skip
TINY = """
run: {{name: tiny, key: {key}}}
model:
  max_length: 48
  made: {{hidden: 32, layers: 1, heads: 2, intermediate: 64, vocabulary: 320, warmup_steps: 2, warmup_batch: 8}}
  lora: {{rank: 4, alpha: 8, targets: [q_proj, v_proj, down_proj]}}
data: {{train: train.jsonl, public: public.jsonl, test_share: 0.1, columns: {{subject: subject}}}}
training: {{engine: torch, batch_size: 8, sampling_rate: {rate}, lr: 1.0e-2}}
federation: {{rounds: {rounds}, local_steps: {steps}, weights: equal, evaluate_every: 100}}
resources: {{mode: pooled, workers: 2}}
ledger: {{anchor_every: 100, witnesses: false}}
"""


def records(folder: Path, organizations: int, each: int, key: str, **values: Any) -> str:
    """Write made-up records of persons with three each; the path of a configuration for them."""
    folder.mkdir(parents=True)
    rows = []
    for o in range(organizations):
        for i in range(each):
            department, complaint = list(DEPARTMENTS.items())[(i * 7 + o) % 4]
            rows.append(
                {
                    "id": f"r-{o}-{i}",
                    "subject": f"p-{o}-{i // 3}",
                    "organization": f"hospital_{o}",
                    "prompt": f"Patient {i} of hospital {o} has {complaint}. Department:",
                    "answer": f" {department}",
                }
            )
    for name, chosen in (("train", rows), ("public", rows[:9])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chosen))
    path = folder / "config.yaml"
    path.write_text(TINY.format(key=key, **values))
    return str(path)


def load(config: str, *overrides: str) -> Config:
    """A configuration whose keys lie beside it."""
    return load_config([config], [f"run.keystore={Path(config).parent / 'keys'}", *overrides])


def exactness(done: dict[str, Any], save: Callable[[], None], count: int, sentiment: int) -> None:
    """Random forget sets, removed one after the other from runs, each compared with a fresh run without all so far."""
    shards = ["federation.cohorts=by_shard", "federation.shards_per_organization=4"]
    short = ["federation.rounds=3", "federation.baselines=[]", "federation.evaluate_every=100"]
    pools = WarmPools()
    for first in range(0, count, PER_RUN):
        with tempfile.TemporaryDirectory() as folder:
            config = records(Path(folder) / "data", 4, 90, f"exact-{first}", rate=0.1, rounds=3, steps=3)
            cases = range(first, min(first + PER_RUN, count))
            _removed_in_turn(done, save, pools, "tiny", cases, folder, config, shards)
    if "TRUSTCHAIN_DATA" not in os.environ:
        print("the sentiment model is left out: TRUSTCHAIN_DATA is not set")
        return
    for first in range(0, sentiment, PER_RUN):
        with tempfile.TemporaryDirectory() as folder:
            config = str(ROOT / "configs" / "sentiment.yaml")
            small = ["data.limit=80", "data.test_limit=10", "training.sampling_rate=0.1"]
            small += ["federation.personalization=none", *shards, *short]
            cases = range(first, min(first + PER_RUN, sentiment))
            _removed_in_turn(done, save, pools, "sentiment", cases, folder, config, small)


PER_RUN = 10


def _removed_in_turn(
    done: dict[str, Any],
    save: Callable[[], None],
    pools: WarmPools,
    model: str,
    cases: range,
    folder: str,
    config: str,
    overrides: list[str],
) -> None:
    """One run and its removals; nothing where they are measured already."""
    if all(f"{model}/{case}" in done for case in cases):
        return
    keys, run, draws = f"run.keystore={folder}/keys", f"{folder}/run", random.Random(f"{model}/{cases.start}")
    pools.rewind()
    train(load_config([config], [keys, *overrides]), run, quiet)
    gone: list[str] = []
    for case in cases:
        left = load_config([config], [keys, *overrides, f"data.exclude=[{','.join(gone)}]"])
        ask, exclude = forget_set(left, draws, case)
        gone += exclude
        pools.rewind()
        result = unlearn(run, [ask], "replay", quiet, evaluate=False)
        pools.rewind()
        workers = (1, 2, 4)[case % 3]
        excluded = [f"data.exclude=[{','.join(gone)}]", f"resources.workers={workers}"]
        fresh = train(load_config([config], [keys, *overrides, *excluded]), f"{folder}/fresh-{case}", quiet)
        done[f"{model}/{case}"] = {
            "scope": ask.scope,
            "records": len(exclude) if ask.scope == RECORD else 0,
            "workers": workers,
            "guarantee": result["guarantee"],
            "equal": result["new_model_digest"] == fresh["model_digest"],
            "share": result["steps_replayed"] / max(1, result["steps_total"]),
            "verified": case != cases[-1] or verify_run(run).ok,
        }
        print(f"{model} {case:>3} {ask.scope:<13} workers {workers}  {done[f'{model}/{case}']}", flush=True)
    save()


def forget_set(config: Config, draws: random.Random, case: int) -> tuple[Ask, list[str]]:
    """A random request, and the entries of `data.exclude` that say the same."""
    names = organization_names(config)
    organization = draws.choice(names)
    if case % 10 == 9:
        return Ask(ORGANIZATION, (), organization), [f"{organization}/*"]
    holdings = load_holdings(config, organization).train
    if draws.random() < 0.5:
        subject = draws.choice(holdings).subject
        return Ask(SUBJECT, (subject,)), [subject]
    ids = sorted({record.id for record in draws.sample(holdings, draws.randint(1, 4))})
    return Ask(RECORD, tuple(ids), organization), ids


@dataclass(frozen=True)
class Layout:
    """A federation whose members are removed from: one worker trains it, so that time is work."""

    organizations: int
    shards: int
    cohorts: str
    scope: str
    rounds: int = 20

    def overrides(self) -> list[str]:
        made = {"hidden": 192, "layers": 4, "heads": 4, "intermediate": 384}
        return [
            f"federation.cohorts={self.cohorts}", f"federation.shards_per_organization={self.shards}",
            "federation.keep_updates=all", "resources.workers=1", *(f"model.made.{k}={v}" for k, v in made.items()),
        ]  # fmt: skip


LAYOUTS = {
    "one": Layout(4, 1, "one", RECORD),
    "by_shard, 4 x 8": Layout(4, 8, "by_shard", RECORD),
    "by_both, 7 x 4": Layout(7, 4, "by_both", RECORD),
    "by_organization, 7": Layout(7, 1, "by_organization", ORGANIZATION, 80),
}
STEPS, USES, BATCH = 12, 3, 8


def expected_share(config: Config, layout: Layout) -> float:
    """Mean share of all steps that the removal of one record replays, over all records."""
    federation, shares = config.federation, list[float]()
    cohorts = {"one": 1, "by_shard": layout.shards, "by_both": layout.organizations * layout.shards}[layout.cohorts]
    kept = 0.0 if layout.cohorts == "by_both" else 1 - 1 / layout.organizations  # of the first replayed round
    for name in organization_names(config):
        key = derive(config.run.key, "sampling", name)
        for record in load_holdings(config, name).train:
            total = federation.rounds * federation.local_steps
            steps = inclusion_steps(key, record.id, config.training.sampling_rate, total)
            rounds = federation.rounds - steps[0] // federation.local_steps - kept if steps else 0.0
            shares.append(rounds / federation.rounds / cohorts)
    return statistics.mean(shares)


def command(*arguments: str) -> dict[str, Any]:
    """Run the command line, as a person does: in a process that is alone; the result."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-m", "trustchain_ray", *arguments, "--json"],
        cwd=ROOT, env=environment, check=False, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"trustchain {' '.join(arguments)}: exit {done.returncode}\n{done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def cost(done: dict[str, Any], save: Callable[[], None], repeats: int) -> None:
    """What removals cost, one after the other from one run, of training again without all of them."""
    for name, layout in LAYOUTS.items():
        if name in done:
            continue
        with tempfile.TemporaryDirectory() as folder:
            rate = USES / (layout.rounds * STEPS)  # each record is read so many times, on average
            each = round(BATCH / rate / 2) * layout.shards
            config = records(
                Path(folder) / "data", layout.organizations, each, "cost", rate=rate, rounds=layout.rounds, steps=STEPS
            )
            expected = expected_share(load(config), layout) if layout.scope == RECORD else 0.0
            keys = f"run.keystore={Path(config).parent / 'keys'}"
            run, overrides, draws = f"{folder}/run", [keys, *layout.overrides()], random.Random(name)
            command("train", "-c", config, *overrides, "--run", run)
            names, gone, removals = organization_names(load(config)), list[str](), list[dict[str, float]]()
            whole = layout.scope == ORGANIZATION
            for organization in draws.sample(names, repeats) if whole else draws.choices(names, k=repeats):
                record = draws.choice(load_holdings(load(config), organization).train).id
                gone.append(f"{organization}/*" if whole else record)
                began = time.perf_counter()
                result = command(
                    "unlearn", run, "--organization", organization, *([] if whole else ["--record", record])
                )
                removals.append(
                    {
                        "steps_share": result["steps_replayed"] / result["steps_total"],
                        "withdrawn_s": result["withdrawn_s"],
                        "replayed_s": result["replayed_s"],
                        "removal_s": time.perf_counter() - began,
                    }
                )
                print(f"{name:<20}{json.dumps(removals[-1])}", flush=True)
            began = time.perf_counter()
            exclude = f"data.exclude=[{','.join(gone)}]"
            fresh = command("train", "-c", config, *overrides, exclude, "--run", f"{folder}/fresh")
            done[name] = {
                "removed": layout.scope,
                "records": each * layout.organizations,
                "equal": result["new_model_digest"] == fresh["model_digest"],
                "removals": removals,
                "expected_share": expected,
                "retraining_rounds_s": fresh["seconds"]["rounds"],
                "retraining_s": time.perf_counter() - began,
            }
            print(f"{name:<20}equal {done[name]['equal']}, retraining {done[name]['retraining_s']:.0f} s", flush=True)
            save()


def main() -> None:
    arguments = parser("forgetting", __doc__)
    arguments.add_argument("part", choices=["exactness", "cost", "quickstart", "tofu", "dial"])
    arguments.add_argument("--count", type=int, default=100, help="forget sets (exactness)")
    arguments.add_argument("--sentiment", type=int, default=10, help="forget sets of the sentiment model (exactness)")
    arguments.add_argument("--repeats", type=int, default=5, help="removals of each layout (cost)")
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="keys (tofu, dial)")
    arguments.add_argument("--work", type=Path, help="folder of the runs, which are kept (tofu, dial; default: runs/)")
    arguments.add_argument("--tiny", action="store_true", help="so small that the figures mean nothing (tofu, dial)")
    arguments.add_argument("--fresh", action="store_true", help="measure everything again")
    options = arguments.parse_args()
    done, save = continued(options, options.part)
    if options.part == "cost":  # of commands, each in a process of its own
        cost(done, save, options.repeats)
        print(cost_table(done))
        return
    if options.part in ("tofu", "dial"):  # they start Ray by themselves
        from benchmarks.forgetting_dial import dial_part, dial_table
        from benchmarks.forgetting_tofu import tofu_part, tofu_table

        measure, show = (tofu_part, tofu_table) if options.part == "tofu" else (dial_part, dial_table)
        measure(done, save, options.seeds, options.work, options.tiny)
        print(show(done))
        return
    with ExitStack() as stack:
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        ray.init(
            address="local", num_cpus=64, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1"
        )
        stack.callback(ray.shutdown)
        if options.part == "exactness":
            exactness(done, save, options.count, options.sentiment)
            print(exactness_table(done))
        else:
            from benchmarks.forgetting_quickstart import quickstart

            quickstart(done, save)


def exactness_table(done: dict[str, Any]) -> str:
    """How many are equal, by model and scope."""
    rows = []
    for model in ("tiny", "sentiment"):
        for scope in (RECORD, SUBJECT, ORGANIZATION):
            found = [row for name, row in done.items() if name.startswith(f"{model}/") and row["scope"] == scope]
            if found:
                rows.append([model, scope, f"{sum(row['equal'] for row in found)} of {len(found)}"])
    return table(["model", "removed", "equal"], rows)


def cost_table(done: dict[str, Any]) -> str:
    """Medians by layout."""
    rows = []
    for name, found in done.items():
        middle = {k: statistics.median(row[k] for row in found["removals"]) for k in found["removals"][0]}
        rows.append(
            [
                name, found["removed"], f"{found['expected_share']:.1%}", f"{middle['steps_share']:.1%}",
                f"{middle['replayed_s'] / found['retraining_rounds_s']:.1%}", f"{middle['withdrawn_s']:.2f}",
                f"{middle['removal_s']:.1f}", f"{found['retraining_s']:.1f}",
                f"{middle['removal_s'] / found['retraining_s']:.1%}", "yes" if found["equal"] else "NO",
            ]
        )  # fmt: skip
    header = [
        "cohorts", "removed", "steps, any record", "steps", "training time", "withdrawn after, s", "removal, s",
        "training again, s", "share", "equal bits",
    ]  # fmt: skip
    return table(header, rows)


if __name__ == "__main__":
    main()
