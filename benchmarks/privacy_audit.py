"""The audit of whole runs: is the lower bound on epsilon within the account, and would a defect be seen?

    python -m benchmarks.privacy_audit                # 20 keys
    python -m benchmarks.privacy_audit --seeds 2

A federation of four organizations with 64 canaries each is trained and audited as `trustchain evaluate --privacy` does
it: without privacy, at epsilon 8, at epsilon 3, and with organizations that leave the noise out while their accounts
say epsilon 1. Each run is added to `benchmarks/results/privacy_audit.json` as it is measured; what the file holds is
not measured again unless `--fresh` is given.
"""

import json
import os
import statistics
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import ray

from benchmarks.common import continued, parser, quiet, table
from benchmarks.privacy_audit_runs import RemoteAuditPool, write_records
from trustchain_ray import pool
from trustchain_ray.config import Config
from trustchain_ray.config_files import load_config
from trustchain_ray.data import load_public
from trustchain_ray.evaluate.privacy import measure_privacy
from trustchain_ray.models import make_base
from trustchain_ray.train import train

KINDS = {
    "without privacy": [],
    "epsilon 8": ["privacy.dp=record", "privacy.epsilon=8"],
    "epsilon 3": ["privacy.dp=record", "privacy.epsilon=3"],
    "noise left out, account 1": ["privacy.dp=record", "privacy.epsilon=1"],
}
BROKEN = "noise left out, account 1"


def audit_part(done: dict[str, Any], save: Callable[[], None], seeds: int) -> None:
    """Train and audit a run of every kind for so many keys; what is done already is kept."""
    missing = [(seed, kind) for seed in range(seeds) for kind in KINDS if f"{kind}/{seed}" not in done]
    if not missing:
        return
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if not ray.is_initialized():
            os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
            ray.init(
                address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1"
            )
            stack.callback(ray.shutdown)
        base = _base(folder / "base")
        first = load_config([write_records(folder / "first", 0, base)], [])
        worker = RemoteAuditPool.options(num_cpus=0).remote(first, "none")
        for seed, kind in missing:
            place = folder / f"{seed}-{list(KINDS).index(kind)}"
            done[f"{kind}/{seed}"] = _audited(worker, write_records(place, seed, base), place / "run", kind)
            print(f"{kind} {seed}: {json.dumps(done[f'{kind}/{seed}'])}", flush=True)
            save()


def _base(folder: Path) -> str:
    """The base of all runs, made once from public records."""
    config = load_config([write_records(folder.parent / "public", 0, "made")], [])
    folder.mkdir()
    for name, data in make_base(config, load_public(config, config.data.public)).items():
        (folder / name).write_bytes(data)
    return str(folder)


def _audited(worker: Any, config: str, run: Path, kind: str) -> dict[str, Any]:
    """Train and audit one run on the resident worker."""

    def resident(config: Config, run: str, **options: Any) -> Any:
        ray.get(worker.begin.remote(config, run, kind == BROKEN))
        return worker

    start, pool.start_pool = pool.start_pool, resident
    try:
        train(load_config([config], [f"run.keystore={run.parent}/keys", *KINDS[kind]]), str(run), quiet)
    finally:
        pool.start_pool = start
    measured = measure_privacy(str(run), quiet)
    audit, attacks = measured["audit"]["all"], measured["attacks"]["all"]
    return {
        "bound": audit["bound"]["epsilon"],
        "guesses": audit["bound"]["guesses"],
        "right": audit["bound"]["right"],
        "account": audit["account"]["epsilon"] if audit["account"] else None,
        "canary_auc": audit["auc"]["value"],
        "exposure": audit["mean_exposure"],
        "attacks": {name: found["auc"]["value"] for name, found in attacks["membership"].items()},
        "extraction": attacks["memorisation"]["extraction_strength"],
        "organizations_above": sum(row["kept"] is False for row in measured["audit"]["by_organization"].values()),
    }


def audit_table(done: dict[str, Any]) -> str:
    """Means over keys by kind of run, and in how many runs the bound is within the account."""
    rows = []
    for kind in KINDS:
        found = [row for name, row in done.items() if name.startswith(f"{kind}/")]
        if not found:
            continue
        accounts = [row["account"] for row in found if row["account"] is not None]
        above = sum(row["account"] is not None and row["bound"] > row["account"] for row in found)
        attacks = {name: statistics.mean(row["attacks"][name] for row in found) for name in found[0]["attacks"]}
        best = max(attacks, key=lambda name: attacks[name])
        rows.append(
            [
                kind,
                len(found),
                f"{max(accounts):.2f}" if accounts else "none",
                f"{statistics.mean(row['bound'] for row in found):.2f}",
                f"{max(row['bound'] for row in found):.2f}",
                f"{above} of {len(found)}" if accounts else "",
                f"{statistics.mean(row['canary_auc'] for row in found):.3f}",
                f"{statistics.mean(row['exposure'] for row in found):.2f}",
                f"{best} {attacks[best]:.3f}",
            ]
        )
    header = [
        "run", "keys", "account's epsilon", "lower bound, mean", "largest", "above the account", "canaries, AUC",
        "exposure, bits", "best attack on records, AUC",
    ]  # fmt: skip
    return table(header, rows)


def main() -> None:
    arguments = parser("privacy_audit", __doc__)
    arguments.add_argument("--seeds", type=int, default=20, help="keys")
    arguments.add_argument("--fresh", action="store_true", help="measure everything again")
    options = arguments.parse_args()
    done, save = continued(options, "audit")
    audit_part(done, save, options.seeds)
    print(audit_table(done))


if __name__ == "__main__":
    main()
