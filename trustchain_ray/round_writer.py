"""Writing finished rounds in the background, in order, while the next round trains."""

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from trustchain_ray.adapter import Tensors, save_tensors
from trustchain_ray.run_directory import RunDirectory, explain_writes

FROZEN, INITIAL = "rounds/0000/frozen.safetensors", "rounds/0000/initial.safetensors"
"""Where the frozen factors lie, and the state that every cohort begins with."""


@dataclass
class FinishedRound:
    """A round as it is kept: cohort adapters, the signed events, and figures."""

    number: int
    states: dict[str, Tensors]
    adapters: dict[str, str]  # digests by cohort
    events: list[dict[str, Any]]
    metrics: dict[str, Any] = field(default_factory=dict)
    updates: dict[str, Tensors] = field(default_factory=dict)  # by :func:`update_file`


def adapter_file(number: int, cohort: str) -> str:
    """Where a cohort's adapter of a round lies, relative to the run directory."""
    return f"rounds/{number:04d}/{cohort}.safetensors"


def update_file(cohort: str, organization: str) -> str:
    """Where an update lies, relative to its round's folder."""
    return f"{update_folder(cohort)}/{organization}.safetensors"


def update_folder(cohort: str) -> str:
    """Where a cohort's updates lie, relative to their round's folder."""
    return f"updates/{cohort}"


class RoundWriter:
    """A thread that makes rounds durable: adapters first, `round.json` last; then events go to the log."""

    def __init__(self, run: RunDirectory, keep: int, submit: Callable[[FinishedRound, bytes], None]) -> None:
        self.run, self.keep, self.submit = run, keep, submit
        self.failure: BaseException | None = None
        self.jobs: queue.Queue[FinishedRound | None] = queue.Queue(maxsize=2)
        self.thread = threading.Thread(target=self._work, daemon=True)
        self.thread.start()

    def put(self, finished: FinishedRound) -> None:
        """Hand a round over; raises what an earlier write failed with."""
        self.check()
        self.jobs.put(finished)

    def flush(self) -> None:
        """Wait until every round that was handed over is written and sent to the log."""
        self.jobs.join()
        self.check()

    def close(self) -> None:
        """Wait until everything is written."""
        if self.thread.is_alive():
            self.jobs.put(None)
            self.thread.join()
        self.check()

    def check(self) -> None:
        if self.failure is not None:
            raise self.failure

    def _work(self) -> None:
        while (finished := self.jobs.get()) is not None:
            try:
                if self.failure is None:
                    self._write(finished)
            except BaseException as error:  # reported to the coordinator by the next put or close
                self.failure = error
            finally:
                self.jobs.task_done()

    def _write(self, finished: FinishedRound) -> None:
        folder = self.run.round_folder(finished.number)
        files = {self.run.path / adapter_file(finished.number, c): state for c, state in finished.states.items()}
        files |= {folder / name: tensors for name, tensors in finished.updates.items()}
        for path, tensors in files.items():
            with explain_writes(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                save_tensors(path, tensors)
        content = {"round": finished.number, "adapters": finished.adapters, "events": finished.events}
        data = self.run.write_json(f"rounds/{finished.number:04d}/round.json", content)
        self.run.append_metrics({"round": finished.number, **finished.metrics})
        self.submit(finished, data)
        if self.keep:
            self.prune(finished.number - self.keep)

    def prune(self, last: int) -> None:
        """Remove the adapters of rounds up to `last`, also of those that a crash has left behind."""
        for number in range(last, 0, -1):
            files = list(self.run.round_folder(number).glob("**/*.safetensors"))
            if not files:
                return
            for path in files:
                with explain_writes(path):
                    path.unlink()
