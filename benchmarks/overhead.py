"""What the federation costs beyond training: rounds, the gap between rounds, pooled mode, memory.

    python -m benchmarks.overhead

Each part runs the real command in its own process and reads the metrics that it wrote. The plain PEFT + torch
loop runs in Ray tasks with the same model, rows, batches, threads and priority, before and after the federated
run, so that both see the same machine.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.common import parser, table, write

ROOT = Path(__file__).parents[1]
QUICKSTART = str(ROOT / "configs" / "quickstart.yaml")
LLAMA = ["model.made.hidden=256", "model.made.layers=4", "model.made.intermediate=512", "model.made.warmup_steps=0"]
TWO = ["data.split=dirichlet", "data.split_into=2", "data.dirichlet_alpha=100", "federation.baselines=[]"]
ALWAYS = ["federation.participation=always", "participation.settle_every=0"]


def main() -> None:
    options = parser("overhead", __doc__).parse_args()
    parts = {"round": round_overhead(), "gap": gap_between_rounds(), "pooled": pooled(), "memory": memory()}
    rows = [
        [part, name, f"{value:,.4g}" if isinstance(value, float) else value]
        for part, figures in parts.items()
        for name, value in figures.items()
    ]
    print(table(["part", "figure", "value"], rows))
    write(options.out, {**parts, "seed": "quickstart"})


def round_overhead() -> dict[str, Any]:
    """Examples a second in a federated round against a plain loop; local training lasts about ten seconds."""
    speed = plain_loop(40)
    steps = max(20, int(10 * statistics.median(speed) / 16))
    before = plain_loop(steps)
    rounds = train(
        [*LLAMA, *TWO, "federation.rounds=4", f"federation.local_steps={steps}", "federation.evaluate_every=100"]
    )[1:]
    after = plain_loop(steps)
    plain = sum(before + after) / 2  # two loops at a time
    federated = statistics.median(r["records"] / r["seconds"] for r in rounds)
    return {
        "local_steps": steps,
        "training_seconds": statistics.median(r["longest_training_seconds"] for r in rounds),
        "plain_examples_per_s": plain,
        "federated_examples_per_s": federated,
        "ratio": federated / plain,
    }


def gap_between_rounds() -> dict[str, Any]:
    """Seconds between two rounds' training: eight organizations with workers of their own, 1 M parameters."""
    settings = [*LLAMA, "model.lora.rank=108", "data.split=dirichlet", "data.split_into=8"]
    settings += [
        "data.dirichlet_alpha=100",
        "federation.baselines=[]",
        "federation.rounds=12",
        "federation.local_steps=1",
    ]
    rounds = train([*settings, "federation.evaluate_every=100"])
    gaps = [b["ended"] - a["ended"] - b["longest_training_seconds"] for a, b in pairwise(rounds[1:])]
    return {
        "parameters": rounds[0]["bytes"] // 8 // 4,
        "organizations": 8,
        "seconds": statistics.median(gaps),
        "worst_seconds": max(gaps),
    }


def pooled() -> dict[str, Any]:
    """Milliseconds beyond training for each of 100 organizations in a round, on two pool workers."""
    settings = ["data.split=dirichlet", "data.split_into=100", "data.dirichlet_alpha=20", "data.test_limit=1"]
    settings += [
        "training.sampling_rate=0.5",
        "federation.rounds=8",
        "federation.local_steps=10",
        "federation.baselines=[]",
    ]
    rounds = train([*settings, "federation.evaluate_every=100", "resources.mode=pooled", "resources.workers=2"])
    overheads = [(b["ended"] - a["ended"] - b["training_seconds"] / 2) / 100 for a, b in pairwise(rounds[1:])]
    return {"organizations": 100, "workers": 2, "milliseconds": 1e3 * statistics.median(overheads)}


def memory() -> dict[str, Any]:
    """Growth of a worker between rounds 5 and 30, and of a pool worker from 10 to 100 organizations."""
    rounds = train([*TWO, "federation.rounds=30", "federation.local_steps=5", "federation.evaluate_every=10"])
    few, many = (
        max(r["worker_resident_bytes"] for r in train([
            "data.split=dirichlet", f"data.split_into={n}", "data.dirichlet_alpha=20", "data.test_limit=1",
            "federation.rounds=3", "federation.local_steps=2", "federation.baselines=[]", "resources.mode=pooled",
        ]))
        for n in (10, 100)
    )  # fmt: skip
    fifth, last = rounds[4]["worker_resident_bytes"], rounds[29]["worker_resident_bytes"]
    return {
        "round_5_mb": fifth / 1e6,
        "round_30_mb": last / 1e6,
        "growth": last / fifth - 1,
        "pool_10_organizations_mb": few / 1e6,
        "pool_100_organizations_mb": many / 1e6,
    }


def train(overrides: list[str]) -> list[dict[str, Any]]:
    """Run the command; its metrics, a row a round."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "trustchain_ray",
            "train",
            "-c",
            QUICKSTART,
            "--run",
            f"{folder}/run",
            *ALWAYS,
            *overrides,
        ]
        environment = {**os.environ, "TRUSTCHAIN_HOME": f"{folder}/home"}
        subprocess.run(
            command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        lines = Path(folder, "run", "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if "records" in row]


def plain_loop(steps: int) -> list[float]:
    """Examples a second of two plain loops at a time."""
    import ray

    from trustchain_ray.cluster import cluster
    from trustchain_ray.config_files import load_config

    config = load_config([QUICKSTART], [*LLAMA, *TWO])
    with cluster(config, 2):
        return ray.get(
            [
                ray.remote(_plain).options(runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}}).remote(config, i, steps)
                for i in range(2)
            ]
        )


def _plain(config: Any, index: int, steps: int) -> float:
    import torch

    from trustchain_ray.data import load_holdings, load_public
    from trustchain_ray.models import load_model, load_tokenizer, make_base, unpack_base
    from trustchain_ray.rows import collate, encode
    from trustchain_ray.sampling import plan

    torch.set_num_threads(1)
    base = unpack_base(make_base(config, load_public(config, config.data.public)))
    model, tokenizer = load_model(config, base, "cpu"), load_tokenizer(base)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_B" in name)
    records = load_holdings(config, f"org_{index}").train
    rows = encode(records, tokenizer, "causal", config.model.max_length)
    batches = plan(b"plain", [r.id for r in records], 16 / len(records), steps + 2)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    began, examples = 0.0, 0
    for number, batch in enumerate(batches):
        if number == 2:
            began, examples = time.perf_counter(), 0
        arrays = collate([rows[i] for i in batch] or rows[:1], tokenizer.pad_token_id)
        tokens, mask, targets = (torch.from_numpy(a) for a in (arrays.tokens, arrays.mask, arrays.targets))
        loss = model(input_ids=tokens, attention_mask=mask, labels=targets).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        examples += len(batch)
    return examples / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
