"""Processes that outlive the program that started them: started once, found again by pid and start time, ended."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ledger.errors import LedgerError


@dataclass(frozen=True)
class Process:
    """A process of the network.

    Attributes
    ----------
    pid
        Its number, which is its group's as well.
    started
        When it started, as the system says it: another process with the same number has another time.
    """

    pid: int
    started: str

    def alive(self) -> bool:
        """Whether it still runs."""
        with contextlib.suppress(ChildProcessError):  # not our child: somebody else collects it
            os.waitpid(self.pid, os.WNOHANG)
        return _start_time(self.pid) == self.started

    def end(self, signal_number: int, patience: float = 10.0) -> None:
        """Send a signal to its group and wait until it is gone; after ``patience`` seconds it is killed."""
        deadline = time.monotonic() + patience
        while self.alive():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal_number)
            if time.monotonic() > deadline:
                signal_number = signal.SIGKILL
            time.sleep(0.05)


def start(command: Sequence[str], environment: Mapping[str, str], directory: Path, log: Path) -> Process:
    """Start a process in its own session; what it prints is appended to ``log``.

    Raises
    ------
    LedgerError
        The program does not exist, or ended at once.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        try:
            child = subprocess.Popen(
                command, env={**os.environ, **environment}, cwd=directory, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            )  # fmt: skip
        except OSError as error:
            raise LedgerError(f"{command[0]}: cannot be started: {error.strerror}") from None
    started = _start_time(child.pid)
    if started is None:
        raise LedgerError(f"{command[0]}: ended at once; see {log}: {last_line(log)}")
    child.returncode = 0  # it is meant to outlive this object, which would warn otherwise
    return Process(child.pid, started)


def last_line(log: Path) -> str:
    """Last line of a log that says something, for messages."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][-500:] if lines else "it printed nothing"


def _start_time(pid: int) -> str | None:
    """Start time of a process that runs; None if there is none, or only its remains."""
    if Path("/proc/self/stat").exists():
        try:
            # Ticks since the machine started: unlike a date, they do not move when the clock is set.
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return None if fields[0] in "ZX" else fields[19]
    shown = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    state, _, started = shown.stdout.strip().partition(" ")
    return None if not state or state.startswith("Z") else " ".join(started.split())
