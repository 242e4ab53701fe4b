"""The worker group of one organization: its placement group, its ranks, and rebuilding them when one dies."""

import contextlib
import socket
from typing import Any

import ray
from ray.exceptions import RayActorError, WorkerCrashedError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from trustchain_ray import calls
from trustchain_ray.config import Config
from trustchain_ray.errors import TrustChainError
from trustchain_ray.worker import Worker

RemoteWorker: Any = ray.remote(Worker)


class LocalGroup:
    """A single worker in this process: the same calls, no Ray between."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker

    def call(self, method: str, *args: Any) -> Any:
        return getattr(self.worker, method)(*map(calls.value, args))


class WorkerGroup:
    """Ranks that live for the whole run. A call goes to every rank and returns rank 0's answer.

    A rank that dies takes its group with it: the group is rebuilt, what was set up before is set up again,
    and the call is repeated.
    """

    def __init__(self, config: Config, base: Any, name: str) -> None:
        self.config, self.base, self.name = config, base, name
        self.setup: dict[tuple[Any, ...], tuple[str, tuple[Any, ...]]] = {}
        self.restarts = 0
        self.group: Any = None
        self.ranks: list[Any] = []
        self._build()

    def call(self, method: str, *args: Any) -> Any:
        """Call a method of :class:`Worker` on all ranks; object references are passed on, not copied."""
        while True:
            try:
                return self._call(method, args)
            except (RayActorError, WorkerCrashedError) as error:
                self.restarts += 1
                if self.restarts > self.config.resources.max_restarts:
                    raise TrustChainError(
                        f"organization {self.name}: its workers died {self.restarts} times "
                        f"(resources.max_restarts={self.config.resources.max_restarts}): {_reason(error)}"
                    ) from None
                self.close()
                self._build()
                for again, arguments in self.setup.values():
                    self._call(again, arguments)

    def remember(self, method: str, *args: Any) -> Any:
        """A call that sets a worker up, repeated whenever the group is rebuilt."""
        result = self.call(method, *args)
        self.setup[(method, *[a for a in args if isinstance(a, str)])] = (method, args)
        return result

    def close(self) -> None:
        """End the ranks and give their resources back."""
        for rank in self.ranks:
            with contextlib.suppress(Exception):
                ray.kill(rank)
        if self.group is not None:
            remove_placement_group(self.group)
        self.ranks, self.group = [], None

    def _call(self, method: str, args: tuple[Any, ...]) -> Any:
        return ray.get([getattr(rank, method).remote(*args) for rank in self.ranks])[0]

    def _build(self) -> None:
        resources = self.config.resources
        # Inside a placement group, a trial of a sweep, the ranks take its bundles: it was asked for all at once.
        if (trial := ray.util.get_current_placement_group()) is not None:
            strategies = [PlacementGroupSchedulingStrategy(trial)] * resources.workers
        else:
            strategies = self._reserve()
        rendezvous = _rendezvous.options(scheduling_strategy=strategies[0], num_cpus=0)
        address, port = ray.get(rendezvous.remote())
        if trial is not None:
            address = "127.0.0.1"  # of the single rank, wherever it goes
        self.ranks = []
        for rank in range(resources.workers):
            environment = {
                "RANK": str(rank),
                "WORLD_SIZE": str(resources.workers),
                "LOCAL_RANK": "0",
                "LOCAL_WORLD_SIZE": "1",
                "MASTER_ADDR": address,
                "MASTER_PORT": str(port),
                "OMP_NUM_THREADS": str(self.config.training.threads),
                "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
                "TOKENIZERS_PARALLELISM": "false",
            }
            self.ranks.append(
                RemoteWorker.options(
                    num_cpus=resources.cpus_per_worker,
                    num_gpus=resources.gpus_per_worker,
                    scheduling_strategy=strategies[rank],
                    runtime_env={"env_vars": environment},
                ).remote(self.config, self.base, rank, resources.workers)
            )
        ray.get([rank.__ray_ready__.remote() for rank in self.ranks])

    def _reserve(self) -> list[PlacementGroupSchedulingStrategy]:
        """A placement group of this organization's own; where each rank goes."""
        resources, name = self.config.resources, f"trustchain-{self.name}"
        with contextlib.suppress(ValueError):  # left by this organization's actor before it was restarted
            remove_placement_group(ray.util.get_placement_group(name))
        bundle = {"CPU": resources.cpus_per_worker}
        if resources.gpus_per_worker:
            bundle["GPU"] = resources.gpus_per_worker
        if resources.pin_organizations:
            bundle[f"org_{self.name.rsplit('/', 1)[-1]}"] = 0.001
        self.group = placement_group([bundle] * resources.workers, strategy="PACK", name=name)
        ready, _ = ray.wait([self.group.ready()], timeout=self.config.federation.deadline_s)
        if not ready:
            raise TrustChainError(
                f"organization {self.name}: the cluster has no room for {resources.workers} worker(s) of {bundle}; "
                f"free now: {ray.available_resources()}"
            )
        nodes = ray.util.placement_group_table(self.group)["bundles_to_node_id"]
        bundles = sorted(range(resources.workers), key=lambda i: (nodes[i], i))  # ranks of one node are neighbours
        return [PlacementGroupSchedulingStrategy(self.group, placement_group_bundle_index=b) for b in bundles]


@ray.remote
def _rendezvous() -> tuple[str, int]:
    """Address and a free port on the node of rank 0; two groups on one node get different ports."""
    address = ray.util.get_node_ip_address()
    with socket.socket() as probe:
        probe.bind((address, 0))
        return address, int(probe.getsockname()[1])


def _reason(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
