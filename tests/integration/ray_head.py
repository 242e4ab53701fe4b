"""A Ray head node for tests: on the loopback, in processes of its own, ended together with all that it started."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import psutil

RAY = [sys.executable, "-m", "ray.scripts.scripts"]


@dataclass(frozen=True)
class Head:
    """Where a head listens: `address` for drivers, `dashboard` for `ray job submit` (None: there is none)."""

    address: str
    dashboard: str | None


@contextlib.contextmanager
def ray_head(environment: Mapping[str, str], cpus: int, *, dashboard: bool) -> Iterator[Head]:
    """A head with so many logical CPUs; its workers get `environment`."""
    gcs, board, client, agent, grpc, metrics = _free_ports(6)  # two heads on one machine must not share any
    process = subprocess.Popen(
        [*RAY, "start", "--head", "--block", f"--num-cpus={cpus}", f"--port={gcs}", "--node-ip-address=127.0.0.1",
         f"--include-dashboard={str(dashboard).lower()}", "--dashboard-host=127.0.0.1", f"--dashboard-port={board}",
         f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}",
         f"--dashboard-agent-grpc-port={grpc}", f"--metrics-export-port={metrics}", "--disable-usage-stats"],
        env={**environment, "RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": "/tmp"},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        _wait_for(board if dashboard else client)
        if dashboard:
            _wait_for(agent)  # it takes the jobs
        yield Head(f"127.0.0.1:{gcs}", f"http://127.0.0.1:{board}" if dashboard else None)
    finally:
        _end(process)


def _free_ports(count: int) -> list[int]:
    """Ports outside the range that Ray gives its workers, and others than those of a test process beside this one."""
    found, port = [], 20000 + os.getpid() * 16 % 12000
    while len(found) < count:
        port += 1
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                found.append(port)
    return found


def _wait_for(port: int) -> None:
    for _ in range(900):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise AssertionError(f"nothing listens on port {port}")


def _end(head: "subprocess.Popen[bytes]") -> None:
    """End the head and only what it started."""
    started = psutil.Process(head.pid).children(recursive=True)
    head.send_signal(signal.SIGTERM)
    try:
        head.wait(timeout=30)
    except subprocess.TimeoutExpired:
        head.kill()
        head.wait()
    for process in started:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
