"""Pool workers that stay from run to run, so that many short runs cost their training and not the start of Python."""

from typing import Any

import ray

from trustchain_ray import pool
from trustchain_ray.config import Config


class Pool(pool.Pool):
    """A pool worker that forgets everything when a run begins: organizations, records and the base model."""

    def begin(self, config: Config, run: str) -> None:
        """Be new."""
        self.__init__(config, run)  # type: ignore[misc]


RemotePool: Any = ray.remote(Pool)


class WarmPools:
    """Takes the place of :func:`trustchain_ray.pool.start_pool`; after :meth:`rewind` all are handed out again."""

    def __init__(self) -> None:
        self.pools: list[Any] = []
        self.used = 0
        pool.start_pool = self.start

    def rewind(self) -> None:
        """The run before has ended: its pool workers are free."""
        self.used = 0

    def start(self, config: Config, run: str, **options: Any) -> Any:
        """A pool worker, a new one where all are in use."""
        if self.used == len(self.pools):
            environment = {"OMP_NUM_THREADS": str(config.training.threads), "TOKENIZERS_PARALLELISM": "false"}
            self.pools.append(RemotePool.options(runtime_env={"env_vars": environment}, num_cpus=0).remote(config, run))
        one = self.pools[self.used]
        self.used += 1
        one.begin.remote(config, run)  # calls of one caller are done in their order
        return one
