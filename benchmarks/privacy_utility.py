"""Accuracy of the sentiment federation under differential privacy: by budget, by form, and by number of records."""

import os
import statistics
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from benchmarks.common import spread, table
from ledger.verify import verify_run
from trustchain_ray.config_files import load_config
from trustchain_ray.errors import UsageError
from trustchain_ray.privacy.plan import plan
from trustchain_ray.train import train

CONFIGS = [str(Path(__file__).parents[1] / "configs" / f"{name}.yaml") for name in ("sentiment", "sentiment_private")]
CURVE = (500, 1500)  # records of an organization, besides those of the private setting
NONE = "none"


@dataclass(frozen=True)
class Setting:
    """A form of the adapter under a budget; all else is the private setting."""

    form: str
    dp: str
    epsilon: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.form}/{self.dp}/{self.epsilon:g}"

    def overrides(self) -> list[str]:
        budget = [] if self.dp == NONE else [f"privacy.epsilon={self.epsilon}"]
        return [f"model.lora.form={self.form}", f"privacy.dp={self.dp}", *budget]


PRIVATE = [Setting(form, "record", epsilon) for epsilon in (8.0, 3.0) for form in ("ffa", "fedavg")]
SETTINGS = [*(Setting(form, NONE) for form in ("ffa", "fedavg")), *PRIVATE, Setting("fedavg", "paper", 8.0)]


def utility_part(done: dict[str, Any], save: Callable[[], None], seeds: int) -> None:
    """Measure what is missing: all settings with the first key, FFA with every key, the curve, then the others.

    Raises
    ------
    UsageError
        The records or the base are not there.
    """
    for variable in ("TRUSTCHAIN_DATA", "TRUSTCHAIN_MINILM"):
        if variable not in os.environ:
            raise UsageError(f"{variable} is not set: the folder of the records (or of MiniLM) is needed")
    runs = [(f"{setting.name}/0", setting, 0, 0) for setting in SETTINGS]
    runs += [(f"{s.name}/{seed}", s, seed, 0) for seed in range(1, seeds) for s in SETTINGS if s.form == "ffa"]
    for limit in CURVE:
        runs += [(f"{s.name}/0/n={limit}", s, 0, limit) for s in (Setting("ffa", NONE), PRIVATE[0])]
    runs += [(f"{s.name}/{seed}", s, seed, 0) for seed in range(1, seeds) for s in SETTINGS if s.form != "ffa"]
    with ExitStack() as stack:
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        ray.init(
            address="local", num_cpus=8, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1"
        )
        stack.callback(ray.shutdown)
        for name, setting, seed, limit in runs:
            if name not in done:
                done[name] = one_run(setting, seed, limit)
                print(f"{name:<28}accuracy {done[name]['accuracy']:.3f}", flush=True)
                save()


def one_run(setting: Setting, seed: int, limit: int) -> dict[str, Any]:
    """Train and verify one run; `limit` 0 is the number of records of the shipped configuration."""
    with tempfile.TemporaryDirectory() as folder:
        plain = [f"run.key=unseen-{seed}", f"run.keystore={folder}/keys", *setting.overrides()]
        config = load_config(CONFIGS, plain + [f"data.limit={limit}"] * bool(limit))
        planned = {} if setting.dp == NONE else privacy_of(plan(config))
        result = train(config, f"{folder}/run", lambda text: None)
        verified = verify_run(f"{folder}/run").ok
    scores = result["scores"]["federated"]
    return {
        "accuracy": scores["accuracy"],
        "by_organization": {n: row["accuracy"] for n, row in scores["by_organization"].items()},
        "records": config.data.limit,
        "seconds": result["seconds"]["total"],
        "verified": verified,
        **planned,
    }


def privacy_of(found: dict[str, Any]) -> dict[str, Any]:
    """What the plan promises, of the organization that gets the least."""
    rows = found["members"]
    composed = [row["epsilon"] for row in rows if row["epsilon"] is not None]
    return {
        "epsilon": max(composed) if composed else None,
        "delta": max(row["delta"] for row in rows),
        "noise": max(row["noise"] for row in rows),
        "noise_to_signal": max(row["noise_to_signal"] for row in rows),
        "values": found["values"],
    }


def utility_tables(done: dict[str, Any]) -> str:
    """Accuracy by setting over the keys, with what the same run without privacy reaches; then the curve."""
    rows = []
    for setting in SETTINGS:
        runs = {k.rsplit("/", 1)[1]: v for k, v in done.items() if k.startswith(f"{setting.name}/") and "n=" not in k}
        if runs:
            found = spread([run["accuracy"] for run in runs.values()])
            first, plain = next(iter(runs.values())), Setting(setting.form, NONE).name
            lost = [done[f"{plain}/{s}"]["accuracy"] - v["accuracy"] for s, v in runs.items() if f"{plain}/{s}" in done]
            rows.append(
                [
                    {"ffa": "FFA-LoRA", "fedavg": "plain LoRA"}[setting.form] if setting.dp != "paper" else "DP-LoRA",
                    {NONE: "none", "paper": f"{setting.epsilon:g} a step, not composed"}.get(
                        setting.dp, f"{setting.epsilon:g}"
                    ),
                    f"{first['noise_to_signal']:.2f}" if setting.dp != NONE else "",
                    f"{found['mean']:.3f}" + f" ± {found['sd']:.3f}" * (len(runs) > 1),
                    f"{100 * statistics.fmean(lost):.1f}" if lost and setting.dp != NONE else "",
                    len(runs),
                ]
            )
    parts = [table(["form", "epsilon", "noise/signal", "accuracy", "points below no DP", "keys"], rows)]
    curve = []
    for limit in (*CURVE, None):
        end = f"/0/n={limit}" if limit else "/0"
        pair = [done.get(f"{setting.name}{end}") for setting in (Setting("ffa", NONE), PRIVATE[0])]
        if pair[0] and pair[1]:
            plain, private = pair[0]["accuracy"], pair[1]["accuracy"]
            noise = [f"{pair[1][name]:.2f}" for name in ("noise", "noise_to_signal")]
            below = f"{100 * (plain - private):.1f}"
            curve.append([pair[1]["records"], *noise, f"{plain:.3f}", f"{private:.3f}", below])
    if curve:
        header = ["records", "noise", "noise/signal", "no DP", "epsilon 8", "points below"]
        parts.append(table(header, curve))
    return "\n\n".join(parts)
