"""Where organizations live: an actor each (dedicated), or many in one pool worker (simulation)."""

import dataclasses
from typing import Any

import ray

from trustchain_ray.compare import join_holdings
from trustchain_ray.config import Config
from trustchain_ray.organization import Organization, RemoteOrganization
from trustchain_ray.worker import Worker


class Pool:
    """A pool worker: one resident model that many organizations use in turn by swapping adapters.

    All of them share its process: pooled mode simulates a federation, it isolates nobody.
    """

    def __init__(self, config: Config, run: str) -> None:
        self.config, self.run = config, run
        self.worker: Worker | None = None
        self.organizations: dict[str, Organization] = {}

    def call(self, name: str, method: str, *args: Any) -> Any:
        """Call a method of one of the organizations; it is made at its first call."""
        if name not in self.organizations:
            self.organizations[name] = Organization(self.config, name, self.run, self._shared)
        return getattr(self.organizations[name], method)(*args)

    def centralised(self, names: list[str], terms: list[Any], steps: int) -> dict[str, Any]:
        """Baseline: one learner on the records of all organizations; metrics on each organization's test records."""
        everything, tests = join_holdings(self.config, names)
        # its own rate: as many records a step as every organization expects
        config = dataclasses.replace(self.config, training=dataclasses.replace(self.config.training, sampling_rate=0.0))
        learner = Organization(config, "centralised", self.run, self._shared, everything)
        return learner.centralised(terms, steps, tests)

    def _shared(self, base: Any) -> Worker:
        if self.worker is None:
            self.worker = Worker(self.config, base)
        return self.worker


RemotePool: Any = ray.remote(Pool)


def start_pool(config: Config, run: str, **options: Any) -> Any:
    """Start one pool worker with the configured threads; `options` are Ray's for the actor."""
    threads = str(config.training.threads)
    environment = {"env_vars": {"OMP_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}}
    return RemotePool.options(runtime_env=environment, **options).remote(config, run)


class Member:
    """The coordinator's handle of an organization, alike in both modes."""

    def __init__(self, name: str, actor: Any, pooled: bool) -> None:
        self.name, self.actor, self.pooled = name, actor, pooled

    def call(self, method: str, *args: Any) -> Any:
        """Start a method of :class:`Organization`; an object reference."""
        if self.pooled:
            return self.actor.call.remote(self.name, method, *args)
        return getattr(self.actor, method).remote(*args)


def start_members(config: Config, run: str, names: list[str]) -> list[Member]:
    """Start all organizations, each in an actor of its own or spread over the pool's workers."""
    resources = config.resources
    retries = {"max_restarts": resources.max_restarts, "max_task_retries": resources.max_restarts}
    if resources.mode == "pooled":
        shared: dict[str, Any] = {
            "num_cpus": resources.cpus_per_worker,
            "num_gpus": resources.gpus_per_worker,
            **retries,
        }
        count = min(resources.workers, len(names))
        pools = [start_pool(config, run, **shared) for _ in range(count)]
        return [Member(name, pools[i % count], True) for i, name in enumerate(names)]
    members = []
    for name in names:
        options: dict[str, Any] = {"num_cpus": 0, **retries}
        if resources.pin_organizations:
            options["resources"] = {f"org_{name}": 0.001}
        members.append(Member(name, RemoteOrganization.options(**options).remote(config, name, run), False))
    return members
