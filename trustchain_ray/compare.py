"""What a federation is compared with: each organization alone, all records in one place, own adapters."""

import dataclasses
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from trustchain_ray import calls
from trustchain_ray.calls import reason_of
from trustchain_ray.data import Holdings, Record, load_holdings
from trustchain_ray.errors import TrustChainError
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


def collect(
    started: Any, within: float | None = None, progress: Callable[[str], None] | None = None
) -> Scores:
    """Wait for a comparison; summaries by organization. Who died meanwhile, fails or is late is left out.

    Parameters
    ----------
    within
        Seconds to wait for all of them together; None: without end.
    progress
        Gets a line about who is left out, and why.

    Raises
    ------
    TrustChainError
        Nobody is left.
    """
    if not isinstance(started, dict):
        sums: Any = ray.get(started[0])
        return {name: Metrics(**row).summary() for name, row in sums.items()}
    sums, missing, end = {}, dict[str, str](), time.monotonic() + (within or 0.0)
    for name, reference in started.items():
        try:
            sums[name] = calls.get(reference, None if within is None else max(0.0, end - time.monotonic()))
        except GetTimeoutError:
            missing[name] = f"no answer within federation.deadline_s={within:g}"
        except (RayActorError, RayTaskError) as error:
            missing[name] = reason_of(error)
    reasons = "; ".join(f"{name}: {reason}" for name, reason in missing.items())
    if missing and not sums:
        raise TrustChainError(f"no organization evaluates: {reasons}")
    if missing and progress is not None:
        progress(f"  left out of the scores: {reasons}")
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
