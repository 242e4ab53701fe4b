"""Isolated, federated, personalised and centralised training beside each other, over seeds.

    TRUSTCHAIN_DATA=... TRUSTCHAIN_MINILM=... python -m benchmarks.federations sentiment
    TRUSTCHAIN_DATA=... TRUSTCHAIN_BASE=...   python -m benchmarks.federations tofu

Every row gets the same number of training steps an organization, the same learning-rate schedule and rate. Each
seed is one real run (`trustchain train -c configs/NAME.yaml run.key=NAME-SEED`), verified afterwards. The key
decides everything random: which records are taken, sampling, initial adapter.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, parser, spread, table, write

ROOT = Path(__file__).parents[1]
ROWS = ("isolated", "federated", "personalised", "centralised")


def main() -> None:
    arguments = parser("", __doc__)
    arguments.add_argument("name", choices=["sentiment", "tofu"])
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments.add_argument("overrides", nargs="*", metavar="key=value")
    options = arguments.parse_intermixed_args()
    out = options.out if options.out != RESULTS / ".json" else RESULTS / f"{options.name}.json"
    runs = []
    for seed in options.seeds:
        runs.append(one_run(options.name, seed, options.overrides))
        write(out, summary(options.name, options.seeds[: len(runs)], runs, options.overrides))
    metric = "accuracy" if options.name == "sentiment" else "token_accuracy"
    rows = []
    for row in [row for row in ROWS if row in runs[0]["scores"]]:
        found = spread([run["scores"][row][metric] for run in runs])
        rows.append([row, f"{found['mean']:.3f} ± {found['sd']:.3f}", by_organization(runs, row, metric)])
    print(table(["training", metric, "per organization (mean over seeds)"], rows))


def one_run(name: str, seed: int, overrides: list[str]) -> dict[str, Any]:
    """One seed: train, verify; scores, the curve over rounds and times."""
    with tempfile.TemporaryDirectory() as folder:
        run = f"{folder}/run"
        environment = {**os.environ, "TRUSTCHAIN_HOME": f"{folder}/home"}
        command = [sys.executable, "-m", "trustchain_ray"]
        config = [f"configs/{name}.yaml", f"run.key={name}-{seed}", *overrides]
        trained = subprocess.run(
            [*command, "train", "-c", *config, "--run", run, "--json"],
            cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        subprocess.run([*command, "verify", run], cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
        rows = [json.loads(line) for line in Path(run, "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    result = json.loads(trained.stdout.splitlines()[-1])
    curve = [{"round": row["round"], **row["scores"]} for row in rows if "scores" in row and "round" in row]
    return {
        "seed": seed,
        "scores": result["scores"],
        "curve": curve,
        "seconds": result["seconds"],
        "model_digest": result["model_digest"],
    }


def summary(name: str, seeds: list[int], runs: list[dict[str, Any]], overrides: list[str]) -> dict[str, Any]:
    metrics = sorted({m for row in runs[0]["scores"].values() for m in row} - {"by_organization"})
    rows = {
        row: {m: spread([run["scores"][row][m] for run in runs]) for m in metrics if m in runs[0]["scores"][row]}
        for row in ROWS
        if row in runs[0]["scores"]
    }
    return {"config": f"configs/{name}.yaml", "overrides": overrides, "seeds": seeds, "rows": rows, "runs": runs}


def by_organization(runs: list[dict[str, Any]], row: str, metric: str) -> str:
    names = sorted(runs[0]["scores"][row]["by_organization"])
    means = {n: sum(r["scores"][row]["by_organization"][n][metric] for r in runs) / len(runs) for n in names}
    return ", ".join(f"{n} {v:.2f}" for n, v in means.items())


if __name__ == "__main__":
    main()
