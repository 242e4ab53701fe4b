"""Where measuring computes: actors that hold the base model and everybody's records, and a queue of jobs over them.

Every job is a function of its arguments, so a job whose actor died is simply done again. No job starts another one:
all resources are asked for at once, in one placement group.
"""

import dataclasses
import gc
import resource
import sys
from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from trustchain_ray.config import Config
from trustchain_ray.data import Record, load_holdings
from trustchain_ray.errors import TrustChainError
from trustchain_ray.measure.simulation import Simulation, at_rank, repeat_key
from trustchain_ray.measure.validation import data_digest, validation_blocks
from trustchain_ray.worker import Packed, Worker, environment

WAIT_S = 120.0
Result = dict[str, Any]


class Trainer:
    """One process with one resident model, rebuilt when the rank changes."""

    def __init__(self, config: Config, names: list[str], source: str) -> None:
        self.config, self.names, self.source = config, names, source
        self.records: dict[str, list[Record]] = {}
        self.blocks: list[list[Record]] = []
        self.base: Any = None
        self.worker: Worker | None = None
        self.current = 0  # rank of the worker

    def call(self, base: Any, method: str, *arguments: Any) -> Result:
        """Call a method with base and records in place. A reference to the base in the constructor would not survive a
        restart, and an error there would hide what is wrong with a record."""
        self.base = base
        if not self.blocks:
            self.records = {name: load_holdings(self.config, name).train for name in self.names}
            self.blocks = validation_blocks(self.config, self.source, self.names)
        return dict(getattr(self, method)(*arguments))

    def describe(self) -> Result:
        """Digests of base and data, hardware class, and how many records there are."""
        worker = self._worker_at(self.config.model.lora.rank, self.config.federation.cohorts)
        validation = ((f"validation/{i}", block) for i, block in enumerate(self.blocks))
        return {
            "base": worker.base,
            "training_records": data_digest(self.config.run.key, self.records.items()),
            "validation_records": data_digest(self.config.run.key, validation),
            "environment": environment(self.config),
            "records": {name: len(records) for name, records in self.records.items()},
            "validated_on": sum(map(len, self.blocks)),
        }

    def alone(self, cohorts: str, rank: int, repeat: int, name: str, effort: Fraction) -> Result:
        """Train the cohorts of one organization; their states come back."""
        trained = self._simulation(cohorts, rank, repeat).federate({name: effort})
        states = {cohort: Packed.of(state) for cohort, state in trained.states.items()}
        return {"states": states, "held": trained.held, **self._costs(trained.costs)}

    def merged(self, cohorts: str, rank: int, repeat: int, alone: Mapping[Any, Result], joint: Any) -> Result:
        """Value the merge of cohorts that were trained alone; `alone` has them by (organization, effort)."""
        simulation = self._simulation(cohorts, rank, repeat)
        members = [alone[name, effort] for name, effort in zip(self.names, joint, strict=True) if effort]
        states = {c: packed.tensors() for member in members for c, packed in member["states"].items()}
        held = {c: count for member in members for c, count in member["held"].items()}
        return {"blocks": simulation.evaluate(simulation.model(states, held), len(self.blocks))}

    def federated(self, cohorts: str, rank: int, repeat: int, joint: Any) -> Result:
        """Train the federation of a joint effort and value its model."""
        simulation = self._simulation(cohorts, rank, repeat)
        trained = simulation.federate(dict(zip(self.names, joint, strict=True)))
        blocks = simulation.evaluate(simulation.model(trained.states, trained.held), len(self.blocks))
        return {"blocks": blocks, "adapters": trained.digests(), **self._costs(trained.costs)}

    def untrained(self, cohorts: str, rank: int) -> Result:
        """Value the model that nobody trained."""
        simulation = self._simulation(cohorts, rank, 0)
        return {"blocks": simulation.evaluate(simulation.initial, len(self.blocks))}

    def _simulation(self, cohorts: str, rank: int, repeat: int) -> Simulation:
        worker = self._worker_at(rank, cohorts)
        key = repeat_key(self.config.run.key, repeat)
        return Simulation(worker, at_rank(self.config, rank, cohorts), key, self.records)

    def _worker_at(self, rank: int, cohorts: str) -> Worker:
        if self.worker is None or self.current != rank:
            self.worker = None
            gc.collect()  # two models at once would double the peak that is recorded
            self.worker = Worker(at_rank(self.config, rank, cohorts), self.base)
            for name, records in self.records.items():
                self.worker.set_rows(name, "train", records)
            for number, block in enumerate(self.blocks):
                self.worker.set_rows("validation", str(number), block)
            self.current = rank
        return self.worker

    def _costs(self, costs: Any) -> Result:
        """Costs, and the peak memory of this process so far in bytes (on a GPU also the peak there)."""
        assert self.worker is not None
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        memory = {"peak_memory": peak, "peak_gpu_memory": self.worker.memory().get("cuda_peak", 0)}
        return {**dataclasses.asdict(costs), **memory}


RemoteTrainer: Any = ray.remote(Trainer)


@dataclasses.dataclass(frozen=True)
class Job:
    """A call of :class:`Trainer` and what is done with its result, here in the driver."""

    what: str
    method: str
    arguments: tuple[Any, ...]
    done: Callable[[Result], None]


class Trainers:
    """A fixed number of trainers that share a queue of jobs. Use it as a context."""

    def __init__(self, config: Config, base: Any, names: list[str], source: str, count: int) -> None:
        self.config, self.base, self.names, self.source, self.count = config, base, names, source, count

    def __enter__(self) -> "Trainers":
        resources = self.config.resources
        bundle = {"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker}
        bundle = {kind: amount for kind, amount in bundle.items() if amount} or {"CPU": 0.001}
        self.group = placement_group([bundle] * self.count, strategy="PACK")
        ready, _ = ray.wait([self.group.ready()], timeout=WAIT_S)
        if not ready:
            remove_placement_group(self.group)
            raise TrustChainError(
                f"the cluster has no room for {self.count} trainer(s) of {bundle} within {WAIT_S:g} s; free now: "
                f"{ray.available_resources()}; lower --workers or end other jobs"
            )
        self.actors = [self._make(i) for i in range(self.count)]
        return self

    def __exit__(self, *_: object) -> None:
        for actor in self.actors:
            ray.kill(actor)
        remove_placement_group(self.group)

    def describe(self) -> Result:
        """What the first trainer says of itself."""
        return dict(_get(self.actors[0].call.remote(self.base, "describe"), "setting up"))

    def work(self, jobs: Iterable[Job]) -> None:
        """Do all jobs, in their order as far as trainers are free; results are handed over as they come.

        Raises
        ------
        TrustChainError
            The first job that failed, by name. What was finished before has been handed over.
        """
        queue, running, free = iter(jobs), dict[Any, tuple[Job, Any]](), list(self.actors)
        while True:
            while free and (job := next(queue, None)) is not None:
                actor = free.pop()
                running[actor.call.remote(self.base, job.method, *job.arguments)] = (job, actor)
            if not running:
                return
            done, _ = ray.wait(list(running))
            job, actor = running.pop(done[0])
            job.done(_get(done[0], job.what))
            free.append(actor)

    def _make(self, bundle: int) -> Any:
        resources, threads = self.config.resources, str(self.config.training.threads)
        variables = {"OMP_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}
        return RemoteTrainer.options(
            num_cpus=resources.cpus_per_worker,
            num_gpus=resources.gpus_per_worker,
            max_restarts=resources.max_restarts,
            max_task_retries=resources.max_restarts,
            runtime_env={"env_vars": variables},
            scheduling_strategy=PlacementGroupSchedulingStrategy(self.group, placement_group_bundle_index=bundle),
        ).remote(self.config, self.names, self.source)


def _get(reference: Any, what: str) -> Any:
    """A result, or its failure as one message."""
    try:
        return ray.get(reference)
    except RayTaskError as error:
        cause = error.cause if isinstance(error.cause, Exception) else error
        if isinstance(cause, TrustChainError):
            raise type(cause)(f"{what}: {cause}") from None
        raise TrustChainError(f"{what}: {str(cause).strip().splitlines()[-1]}") from None
    except RayActorError as error:
        raise TrustChainError(f"{what}: its process died: {str(error).strip().splitlines()[0]}") from None
