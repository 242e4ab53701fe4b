"""The ledger actor: takes signed events, never blocks a round, loses nothing when it is killed."""

import threading
from pathlib import Path
from typing import Any

import ray

from ledger.identity import COORDINATOR, load_or_create
from ledger.service import LedgerService
from trustchain_ray.config import Config
from trustchain_ray.keystore import keystore


class Ledger:
    """The :class:`ledger.service.LedgerService` of a run in a process of its own.

    `submit` returns as soon as the events are durable in the outbox; a thread moves them into the log and
    anchors tree heads. Ray restarts the actor when it dies and repeats unfinished calls; all of them are
    idempotent.
    """

    def __init__(self, run_dir: str, run: str, config: Config) -> None:
        self.service = LedgerService(
            run_dir,
            run,
            load_or_create(COORDINATOR, keystore(config)),
            _public_chain(config, Path(run_dir)),
            anchor_every=config.ledger.anchor_every,
        )
        self.lock, self.wake, self.closing = threading.Lock(), threading.Event(), False
        self.failure: str | None = None
        self.mover = threading.Thread(target=self._move, daemon=True)
        self.mover.start()

    def submit(self, envelopes: list[dict[str, Any]]) -> list[str]:
        """Make events durable; the reasons of those that were refused."""
        with self.lock:
            refused = self.service.submit(envelopes)
        self.wake.set()
        return [f"{envelopes[r.index]['payload'][:16]}...: {r.reason}" for r in refused]

    def finish(self, files: list[str]) -> dict[str, Any]:
        """Drain the outbox, anchor the last tree head and seal the run; the log's size, root and anchor."""
        self.closing = True
        self.wake.set()
        self.mover.join()
        if not self.service.status()["sealed"]:
            self.service.seal(files)
        return self.service.status()

    def status(self) -> dict[str, Any]:
        """Where the ledger stands, and why the last batch could not be moved (None: it could)."""
        with self.lock:
            return {**self.service.status(), "failure": self.failure}

    def _move(self) -> None:
        while not self.closing:
            self.wake.wait()
            self.wake.clear()
            with self.lock:
                try:
                    while self.service.pump():
                        pass
                    self.failure = None
                except Exception as error:  # kept in the outbox; tried again with the next event and at the end
                    self.failure = str(error)


def _public_chain(config: Config, run_dir: Path) -> Any:
    if config.ledger.public.kind == "none":
        return None
    from ledger.embedded import EmbeddedEvm

    return EmbeddedEvm(run_dir / "ledger" / "chain")


RemoteLedger: Any = ray.remote(Ledger)
