"""Runs of the privacy audit: a small federation with canaries, and one whose organizations leave the noise out."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import ray

from trustchain_ray import party
from trustchain_ray.config import Config
from trustchain_ray.pool import Pool
from trustchain_ray.privacy.member import MemberPrivacy
from trustchain_ray.privacy.steps import PrivateSteps

CONFIG = """
run: {{name: audit, key: {key}}}
model:
  max_length: 48
  base: {base}
  made: {{hidden: 64, layers: 1, heads: 4, intermediate: 128, vocabulary: 320, warmup_steps: 60, warmup_batch: 32}}
  lora: {{rank: 16, alpha: 32, targets: [q_proj, k_proj, v_proj, o_proj, up_proj, gate_proj, down_proj]}}
data: {{train: train.jsonl, test: test.jsonl, public: public.jsonl}}
training: {{engine: torch, batch_size: 32, sampling_rate: 0.5, lr: 2.0e-2, micro_batch: 64}}
federation: {{rounds: 2, local_steps: 30, weights: equal, evaluate_every: 100, keep_updates: all}}
privacy: {{delta: 1.0e-5, canaries: 64, max_removals: 0}}
resources: {{mode: pooled, workers: 1}}
ledger: {{anchor_every: 100, witnesses: false, public: {{kind: none}}}}
"""
ORGANIZATIONS, TRAINED, HELD_OUT = 4, 30, 100
WARDS = ["cardiology", "neurology", "urology", "hematology", "oncology", "radiology", "surgery", "pediatrics"]
SIGNS = ["fever", "cough", "rash", "pain", "palsy", "cramps", "vertigo", "nausea", "fatigue", "tremor", "chills"]


def rows_of(organization: str, first: int, count: int, draws: np.random.Generator) -> list[dict[str, Any]]:
    """Made-up patients: every text is drawn alike, so that those that are held out differ in nothing else."""
    rows = []
    for i in range(first, first + count):
        one, two, three = draws.choice(SIGNS, 3, replace=False)
        code = draws.integers(10**4)
        rows.append(
            {
                "id": f"{organization}-{i}",
                "organization": organization,
                "prompt": f"Case {code:04d} has {one}, {two} and {three}. Ward:",
                "answer": f" {draws.choice(WARDS)} {draws.integers(10**3):03d}",
            }
        )
    return rows


def write_records(folder: Path, seed: int, base: str) -> str:
    """Write the records and the configuration of one seed; the path of the latter."""
    folder.mkdir(parents=True)
    draws = np.random.default_rng(seed)
    names = [f"clinic_{number}" for number in range(ORGANIZATIONS)]
    sources = {
        "train": [row for name in names for row in rows_of(name, 0, TRAINED, draws)],
        "test": [row for name in names for row in rows_of(name, TRAINED, HELD_OUT, draws)],
        "public": rows_of("public", 0, 200, draws),
    }
    for name, rows in sources.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    path = folder / "config.yaml"
    path.write_text(CONFIG.format(key=f"audit-{seed}", base=base), encoding="utf-8")
    return str(path)


class Noiseless(MemberPrivacy):
    """A broken mechanism: it keeps the account as promised and leaves the noise out."""

    def steps(self, *args: Any, **named: Any) -> PrivateSteps | None:
        made = super().steps(*args, **named)
        return dataclasses.replace(made, noise=0.0) if made is not None else None


class AuditPool(Pool):
    """A pool worker whose model stays loaded from run to run."""

    def begin(self, config: Config, run: str, broken: bool) -> None:
        """Forget the organizations of the run before; those of the next one have the broken mechanism, or not."""
        party.MemberPrivacy = Noiseless if broken else MemberPrivacy  # type: ignore[misc]
        self.config, self.run, self.organizations = config, run, {}


RemoteAuditPool: Any = ray.remote(AuditPool)
