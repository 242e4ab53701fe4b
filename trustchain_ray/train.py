"""The verb `train`: set up, rounds, comparison, release. Read it as a table of contents."""

import functools
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

from trustchain_ray.chains import preflight
from trustchain_ray.cluster import cluster
from trustchain_ray.compare import (
    collect,
    mean_scores,
    start_centralised,
    start_isolated,
    start_personalised,
)
from trustchain_ray.config import Config
from trustchain_ray.config_files import load_config, to_yaml
from trustchain_ray.data import organization_names
from trustchain_ray.doctor import emulates_bfloat16
from trustchain_ray.errors import TrustChainError
from trustchain_ray.federation import Federation
from trustchain_ray.forgetting.amendments import Amendments
from trustchain_ray.forgetting.while_training import expel_planters, take_requests
from trustchain_ray.publish import publish
from trustchain_ray.run_directory import RunDirectory, new_run
from trustchain_ray.secure_aggregation.settings import check_organizations

Progress = Callable[[str], None]


def train(config: Config, folder: str | None, progress: Progress) -> dict[str, Any]:
    """Run a federation in a new run directory.

    Returns
    -------
    dict
        What the run is: `run`, `model_digest`, `rounds`, `scores`, `log`, `anchor`, and figures.

    Raises
    ------
    TrustChainError
        Anything the person who runs it can act on. Finished rounds are kept; :func:`resume` goes on from them.
    """
    preflight(config)
    path = Path(folder) if folder else new_run(config.run.dir, config.run.name)
    names = organization_names(config)
    check_organizations(config, names)
    if config.run.keystore:  # a resume from another folder finds the same keys
        config.run.keystore = str(Path(config.run.keystore).expanduser().resolve())
    run = RunDirectory.create(path)
    try:
        run.write("config.yaml", to_yaml(config).encode())
        return _train(config, run, names, progress)
    finally:
        run.unlock()


def resume(folder: str, progress: Progress) -> dict[str, Any]:
    """Go on with a run from its last finished round; the result is that of the undisturbed run."""
    run = RunDirectory.open(Path(folder))
    try:
        result = run.path / "result.json"
        if (job := Amendments.read(run).unfinished) is not None:
            raise TrustChainError(f"{folder}: removal {job.number} is not finished: trustchain unlearn {folder}")
        if result.is_file():
            progress(f"{folder} is complete")
            return dict(json.loads(result.read_text(encoding="utf-8")))
        config = load_config([str(run.path / "config.yaml")], [])
        return _train(config, run, organization_names(config), progress)
    finally:
        run.unlock()


def _train(config: Config, run: RunDirectory, names: list[str], progress: Progress) -> dict[str, Any]:
    began = time.perf_counter()
    with cluster(config, len(names)):
        progress(
            f"run {run.path}: {len(names)} organizations, {config.federation.rounds} rounds ({config.resources.mode})"
        )
        if config.model.dtype == "bfloat16" and not config.resources.gpus_per_worker and emulates_bfloat16():
            progress(
                "model.dtype=bfloat16 is emulated by this machine's processor: float32 is several times faster, and "
                "gives another model"
            )
        if config.privacy.canaries:
            progress(
                f"AUDIT RUN: {config.privacy.canaries} canaries at every organization, about half of them trained on; "
                "the model is not for release"
            )
        federation = Federation(config, run, progress)
        try:
            federation.start()
            if federation.finished:
                progress(f"going on after round {federation.finished}")
            ready = time.perf_counter()
            before = federation.ledger_seconds
            _rounds(federation, progress)
            federation.writer.close()
            trained, logging = time.perf_counter(), federation.ledger_seconds - before
            scores = _compare(federation, progress)
            result = _release(federation, scores)
        finally:
            federation.close()
    result["seconds"] = {
        "setup": round(ready - began, 3),
        "rounds": round(trained - ready, 3),
        "ledger": round(logging, 6),  # of the rounds: handing events to the ledger, all that the chains cost them
        "total": round(time.perf_counter() - began, 3),
    }
    run.write("result.json", (json.dumps(result, indent=2) + "\n").encode())
    return result


def _rounds(federation: Federation, progress: Progress) -> None:
    """All rounds that are not finished. Behind each organization's training waits the evaluation of the model
    that the round began with, so that workers evaluate while the coordinator merges, writes and logs."""
    settings = federation.config.federation
    evaluations: list[tuple[int, dict[str, Any]]] = []
    expel_planters(federation, progress)  # a process that was killed after a round had no time for it
    for number in range(federation.finished + 1, settings.rounds + 1):
        due = number > 1 and (number - 1) % settings.evaluate_every == 0
        model = federation.model() if due else None
        behind = None if model is None else functools.partial(federation.evaluate, model)
        metrics, evaluation = federation.train_round(number, behind)
        if evaluation is not None:
            evaluations.append((number - 1, evaluation))
        seconds, present = metrics["seconds"], metrics["organizations"]
        loss = f"loss {metrics['loss']:.4f}" if federation.config.privacy.dp == "none" else "loss private"
        progress(f"round {number}/{settings.rounds}  {loss}  {present} organizations  {seconds:.1f} s")
        while len(evaluations) > 1:
            _report(federation, *evaluations.pop(0), progress)
        if expel_planters(federation, progress) + take_requests(federation, progress):
            evaluations.clear()  # of models that may be withdrawn now
        if federation.budget_is_spent:
            progress(f"the privacy budget is spent: training stops after round {number - 1}; the model is that of then")
            break
    for number, references in evaluations:
        _report(federation, number, references, progress)


def _report(federation: Federation, number: int, refs: dict[str, Any], progress: Progress) -> None:
    """Scores of an evaluated round: shown, logged, kept."""
    scores = federation.scores(refs)
    mean = mean_scores(scores)
    progress("  round {}: {}".format(number, "  ".join(f"{k} {v:.4f}" for k, v in mean.items())))
    federation.run.append_metrics({"round": number, "scores": mean, "by_organization": scores})
    federation.log_event("EVALUATION", {"round": number, "scores": {k: f"{v:.6f}" for k, v in mean.items()}})


def _compare(federation: Federation, progress: Progress) -> dict[str, Any]:
    """The final model beside what else was asked for: isolated, centralised, personalised."""
    settings, model = federation.config.federation, federation.model()
    steps = settings.rounds * settings.local_steps + (
        settings.personalization_steps if settings.personalization != "none" else 0
    )
    started = {"federated": federation.evaluate(model)}
    if settings.personalization != "none":
        started["personalised"] = start_personalised(federation, model)
    for name, start in (("isolated", start_isolated), ("centralised", start_centralised)):
        if name in settings.baselines:
            progress(f"baseline {name}: {steps} steps an organization")
            started[name] = start(federation, steps)
    rows = {}
    for name, references in started.items():
        rows[name] = federation.scores(references) if name == "federated" else collect(references, None, progress)
        _report_row(federation, name, rows[name], progress)
    return {name: {**mean_scores(row), "by_organization": row} for name, row in rows.items()}


def _report_row(federation: Federation, name: str, row: dict[str, dict[str, float]], progress: Progress) -> None:
    mean = mean_scores(row)
    progress(f"{name}: " + "  ".join(f"{k} {v:.4f}" for k, v in mean.items()))
    federation.run.append_metrics({"final": name, "scores": mean, "by_organization": row})


def _release(federation: Federation, scores: dict[str, Any]) -> dict[str, Any]:
    """Publish the model, complete the log, anchor and seal it."""
    config, run = federation.config, federation.run
    state = federation.model()
    tensors, scale = federation.form.published(state, federation.fresh, config.model.lora.alpha)
    release = publish(config, run, tensors, scale, config.model.lora.form)
    rounds, mean = federation.finished, {n: row.get("accuracy", 0.0) for n, row in scores.items()}
    federation.log_event("EVALUATION", {"round": rounds, "scores": {n: f"{v:.6f}" for n, v in mean.items()}})
    federation.log_event("MODEL_RELEASE", {**release, "adapters": federation.adapters()})
    federation.log_event("RUN_COMPLETE", {"rounds": rounds, "model_digest": release["model_digest"]})
    memory = federation.memory()
    status = ray.get(federation.ledger.finish.remote([], federation.witnesses))
    if status["pending"]:
        raise TrustChainError(f"the log could not be completed: {status}; go on with --resume {run.path}")
    return {
        "run": os.fspath(run.path),
        "id": federation.id,
        "model_digest": release["model_digest"],
        "rounds": rounds,
        "scores": scores,
        "log": {"size": status["size"], "root": status["root"]},
        "anchor": status["anchor"],
        "witnesses": status["cosigners"],
        "unwilling": status["unwilling"],
        "chains": {name: status[name] for name in ("private", "public") if status[name]},
        "adapters": federation.adapters(),
        "memory": memory,
    }
