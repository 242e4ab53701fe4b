"""Joining a Ray cluster, or starting a local one that is large enough for the simulation."""

import contextlib
import logging
import os
from collections.abc import Iterator

import ray

from trustchain_ray.config import Config
from trustchain_ray.errors import TrustChainError


def is_given(config: Config) -> bool:
    """Whether there is a cluster that a command would join, rather than start one."""
    named = config.resources.address or os.environ.get("RAY_ADDRESS") or os.environ.get("RAY_JOB_ID")
    return bool(named) or ray.is_initialized()


@contextlib.contextmanager
def cluster(config: Config, organizations: int) -> Iterator[None]:
    """A Ray session for one command; a local cluster that was started here is ended afterwards.

    Under `ray job submit`, and where RAY_ADDRESS is set, the job's cluster is joined by a bare `ray.init()`: a
    second runtime environment would be refused.

    Raises
    ------
    TrustChainError
        The joined cluster can never hold the workers that the configuration asks for.
    """
    resources = config.resources
    groups = organizations if resources.mode == "dedicated" else 1
    cpus = groups * resources.workers * resources.cpus_per_worker
    gpus = groups * resources.workers * resources.gpus_per_worker
    own = not ray.is_initialized()
    if own:
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        logging.getLogger("ray").setLevel(logging.ERROR)
        if resources.address:
            ray.init(address=resources.address, log_to_driver=False, logging_level=logging.ERROR)
        elif os.environ.get("RAY_ADDRESS") or os.environ.get("RAY_JOB_ID"):
            ray.init(log_to_driver=False, logging_level=logging.ERROR)
        else:
            count = max(os.cpu_count() or 1, int(-(-cpus // 1)) + 1)
            ray.init(
                address="local",
                _node_ip_address="127.0.0.1",
                num_cpus=count,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    try:
        have = ray.cluster_resources()
        for kind, asked in (("CPU", cpus), ("GPU", gpus)):
            if asked > have.get(kind, 0.0):
                raise TrustChainError(
                    f"the cluster has {have.get(kind, 0.0):g} {kind}s, but {groups} worker group(s) of "
                    f"{resources.workers} x {asked / groups / resources.workers:g} need {asked:g}; "
                    "add nodes, lower resources.*, or use resources.mode=pooled"
                )
        yield
    finally:
        if own:
            ray.shutdown()
