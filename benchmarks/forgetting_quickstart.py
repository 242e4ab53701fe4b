"""The forgetting benchmark's part on the quickstart: what a removal and its verification take. See
:mod:`benchmarks.forgetting`."""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.common import quiet
from ledger.removal import ORGANIZATION, SUBJECT
from ledger.verify import verify_run
from trustchain_ray.config_files import load_config
from trustchain_ray.data import load_holdings
from trustchain_ray.forgetting.job import jobs_of
from trustchain_ray.forgetting.plan import Ask
from trustchain_ray.forgetting.reexecute import reexecute
from trustchain_ray.forgetting.unlearn import unlearn
from trustchain_ray.participation import SCHEDULE, recorded_schedule
from trustchain_ray.run_directory import RunDirectory
from trustchain_ray.train import train

ROOT = Path(__file__).parents[1]
REPEATS = 5


def quickstart(done: dict[str, Any], save: Callable[[], None]) -> None:
    """The shipped quickstart: a person is removed, then a hospital; each compared with a fresh run."""
    with tempfile.TemporaryDirectory() as folder:
        plain = [f"run.keystore={folder}/keys", "federation.baselines=[]"]
        source = str(ROOT / "configs" / "quickstart.yaml")
        run = f"{folder}/run"
        trained = train(load_config([source], plain), run, quiet)
        subject = load_holdings(load_config([source], plain), "east").train[0].subject
        schedule = Path(folder) / "schedule.json"
        gone: list[str] = []
        for ask, exclude in (
            (Ask(SUBJECT, (subject,)), subject),
            (Ask(ORGANIZATION, (), "west"), "west/*"),
        ):
            gone.append(exclude)
            began = time.perf_counter()
            result = unlearn(run, [ask], "replay", quiet)
            seconds = time.perf_counter() - began
            names = [name for name in ("east", "north", "south", "west") if f"{name}/*" not in gone]
            rows = [{name: row[name] for name in names} for row in recorded_schedule(Path(run))]
            schedule.write_text(json.dumps({"format": SCHEDULE, "rounds": rows}))
            fresh = train(
                load_config(
                    [source],
                    [*plain, f"data.exclude=[{','.join(gone)}]", "federation.participation=file",
                     f"participation.schedule={schedule}", "participation.settle_every=0"],
                ),
                f"{folder}/fresh-{len(gone)}", quiet,
            )  # fmt: skip
            done[ask.scope] = {
                "equal": result["new_model_digest"] == fresh["model_digest"],
                "steps_share": result["steps_replayed"] / result["steps_total"],
                "withdrawn_s": result["withdrawn_s"],
                "replayed_s": result["replayed_s"],
                "removal_s": seconds,
                "retraining_rounds_s": fresh["seconds"]["rounds"],
                "training_s": trained["seconds"]["total"],
                "verified": verify_run(run).ok,
            }
            print(ask.scope, json.dumps(done[ask.scope]), flush=True)
            if ask.scope == SUBJECT:
                done["verification"] = verification(run, str(result["certificate"]))
                print("verification", json.dumps(done["verification"]), flush=True)
            save()


def verification(run: str, certificate: str) -> dict[str, Any]:
    """Median seconds of the command that checks a certificate, and what re-executing the replay takes for each step."""
    command, seconds = [sys.executable, "-m", "trustchain_ray", "verify", certificate], list[float]()
    for _ in range(REPEATS):
        began = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - began)
    again = reexecute(verify_run(run), run, "all", None, quiet)["reexecution"]
    directory = RunDirectory.open(Path(run))
    try:
        trained = float(jobs_of(directory)[-1].facts["step_s"])
    finally:
        directory.unlock()
    return {
        "certificate_s": statistics.median(seconds),
        "reexecuted_steps": again["steps"],
        "same": again["same"],
        "step_s": trained,
        "reexecuted_step_s": again["seconds_per_step"],
        "step_ratio": again["seconds_per_step"] / trained,
    }
