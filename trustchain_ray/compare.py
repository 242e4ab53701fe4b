"""What a federation is compared with: each organization alone, all records in one place, own adapters."""

import contextlib
import dataclasses
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayActorError

from trustchain_ray import calls
from trustchain_ray.data import Holdings, Record, load_holdings
from trustchain_ray.metrics import Metrics

if TYPE_CHECKING:
    from trustchain_ray.adapter import Tensors
    from trustchain_ray.federation import Federation

Scores = dict[str, dict[str, float]]


def mean_scores(scores: Scores) -> dict[str, float]:
    """Mean over organizations of every metric."""
    metrics = sorted({metric for row in scores.values() for metric in row})
    return {
        m: sum(row[m] for row in scores.values() if m in row) / sum(m in row for row in scores.values())
        for m in metrics
    }


def start_isolated(federation: "Federation", steps: int) -> Any:
    """Each organization trains alone for as many steps, evaluated on its own test records."""
    return _start_all(federation, "isolated", federation.terms_ref, steps)


def start_personalised(federation: "Federation", model: "Tensors") -> Any:
    """Each organization trains its own head or adapter on top of the model."""
    from trustchain_ray.worker import Packed

    settings = federation.config.federation
    packed = [federation.share(Packed.of(model))]
    return _start_all(federation, "personalise", federation.terms_ref, packed, settings.personalization_steps)


def start_centralised(federation: "Federation", steps: int) -> Any:
    """All records in one place, as many steps as all organizations together (this moves records)."""
    from trustchain_ray.pool import start_pool

    config = federation.config
    learner = start_pool(config, federation.id, num_cpus=0, num_gpus=config.resources.gpus_per_worker)
    return [learner.centralised.remote(federation.names, federation.terms_ref, steps * len(federation.names)), learner]


def collect(started: Any) -> Scores:
    """Wait for a comparison; summaries by organization. One that died meanwhile is left out."""
    if not isinstance(started, dict):
        sums: Any = ray.get(started[0])
    else:
        sums = {}
        for name, reference in started.items():
            with contextlib.suppress(RayActorError):
                sums[name] = calls.get(reference)
    return {name: Metrics(**row).summary() for name, row in sums.items()}


def join_holdings(config: Any, names: list[str]) -> tuple[Holdings, dict[str, list[Record]]]:
    """All training records under one name, ids made unique, and the test records by organization."""
    everything, tests = Holdings("centralised"), {}
    for name in names:
        own = load_holdings(config, name)
        tests[name] = own.test
        everything.train += [dataclasses.replace(record, id=f"{name}/{record.id}") for record in own.train]
    return everything, tests


def _start_all(federation: "Federation", method: str, *args: Any) -> dict[str, Any]:
    return {n: federation.members[n].call(method, *args) for n in federation.names if n not in federation.late}
