"""The ledger actor: takes signed events, never blocks a round, loses nothing when it is killed."""

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from ledger.errors import LedgerError
from ledger.heads import TreeHead
from ledger.service import LedgerService
from trustchain_ray import calls
from trustchain_ray.chains import private_chain, public_chain
from trustchain_ray.config import Config
from trustchain_ray.keystore import coordinator_identity

FIRST_CONTACT_S = 5.0
"""A run waits so long for its chains to answer, or to refuse it, before it begins without them."""


class Ledger:
    """The :class:`ledger.service.LedgerService` of a run in a process of its own.

    `submit` returns as soon as the events are durable in the outbox. A thread moves them into the log, one more for
    each chain brings them there, and another has the organizations cosign tree heads; none waits for another.
    Ray restarts the actor when it dies and repeats unfinished calls; all of them are idempotent.

    """

    def __init__(self, run_dir: str, run: str, config: Config) -> None:
        self.config = config
        self.witnesses: list[Any] = []
        self.service = LedgerService(
            run_dir,
            run,
            coordinator_identity(config, Path(run_dir)),
            public_chain(config, run_dir, run),
            config.ledger.anchor_every,
            private_chain(config, run),
            config.ledger.private.approvals,
            config.ledger.private.members,
        )
        self.wake, self.new_head, self.closing = threading.Event(), threading.Event(), threading.Event()
        self.failure: str | None = None
        self.seen: dict[str, int] = {}  # size of the log that each organization cosigned last
        self.unwilling: dict[str, str] = {}
        self.asking = threading.Lock()
        self.deliveries = [d for d in (self.service.private, self.service.public) if d is not None]
        self.threads = [threading.Thread(target=work, daemon=True) for work in (self._move, self._witness)]
        self.threads += [threading.Thread(target=d.work, args=(self.closing,), daemon=True) for d in self.deliveries]
        self.started = False

    def start(self, witnesses: Sequence[Any]) -> list[str]:
        """Make contact with the chains and begin to deliver.

        Parameters
        ----------
        witnesses : handles (:class:`trustchain_ray.pool.Member`) of the organizations that cosign tree heads.

        Returns
        -------
        list
            Which chains do not answer now, and why.

        Raises
        ------
        LedgerError
            A chain answers that it will never take this run: a wrong chain id, an account without money, ...
        """
        self.witnesses = list(witnesses)
        self._begin()
        end = time.monotonic() + FIRST_CONTACT_S
        while any(d.waiting() for d in self.deliveries) and time.monotonic() < end:
            time.sleep(0.02)
        for delivery in self.deliveries:
            if delivery.refused:
                raise LedgerError(str(delivery.error))
        return [delivery.error or "no answer yet" for delivery in self.deliveries if not delivery.known]

    def submit(self, envelopes: list[dict[str, Any]]) -> list[str]:
        """Make events durable; the reasons of those that were refused."""
        self._begin()
        refused = self.service.submit(envelopes)
        self.wake.set()
        return [f"{envelopes[r.index]['payload'][:16]}...: {r.reason}" for r in refused]

    def revoked(self) -> list[str]:
        """Organizations whose key was revoked in this run, and no other one admitted."""
        return self.service.revoked()

    def flush(self) -> dict[str, Any]:
        """Bring everything that was submitted into the log; the status."""
        self._begin()
        while self.service.pump():
            pass
        return self.status()

    def settle(self, witnesses: Sequence[Any]) -> dict[str, Any]:
        """Flush, sign a tree head and have it cosigned; wait a little for the public chain. The status."""
        self.witnesses = list(witnesses)
        self.flush()
        self.service.sign_head()
        for delivery in self.deliveries:
            delivery.wake()
        self._cosign(self.config.ledger.drain_s)
        end = time.monotonic() + self.config.ledger.drain_s
        while time.monotonic() < end and any(d.backlog() and d.error is None for d in self.deliveries):
            time.sleep(0.02)
        return self.status()

    def close(self) -> None:
        """Stop working and let go of the run's files; nothing is sealed. After :meth:`finish`: no-op."""
        if not self.closing.is_set():
            self._stop()
            self.service.close()

    def finish(self, files: list[str], witnesses: Sequence[Any]) -> dict[str, Any]:
        """Drain everything, have the last head cosigned, and seal the run; the ledger's status."""
        self.witnesses = list(witnesses)  # again: an actor that was restarted meanwhile has lost them
        self._begin()
        if not self.service.status()["sealed"]:
            self._stop()
            while self.service.pump():
                pass
            self.service.sign_head()
            self._cosign(self.config.ledger.drain_s)
            self.service.seal(files, self.config.ledger.drain_s)
        return self.status()

    def status(self) -> dict[str, Any]:
        """Where the ledger stands; why the last batch could not be moved, and who did not cosign (None, {}: fine)."""
        return {**self.service.status(), "failure": self.failure, "unwilling": dict(self.unwilling)}

    def _stop(self) -> None:
        self.closing.set()
        for wake in (self.wake.set, self.new_head.set, *(delivery.wake for delivery in self.deliveries)):
            wake()
        for thread in self.threads:
            if thread.is_alive():
                thread.join()

    def _begin(self) -> None:
        if not self.started:
            self.started = True
            for thread in self.threads:
                thread.start()

    def _move(self) -> None:
        while not self.closing.is_set():
            self.wake.wait()
            self.wake.clear()
            try:
                before = self.service.newest_checkpoint()
                while self.service.pump():
                    pass
                self.failure = None
                for delivery in self.deliveries:
                    delivery.wake()
                if self.service.newest_checkpoint() != before:
                    self.new_head.set()
            except LedgerError as error:  # kept in the outbox; tried again with the next event and at the end
                self.failure = str(error)

    def _witness(self) -> None:
        while True:
            self.new_head.wait()
            self.new_head.clear()
            if self.closing.is_set():
                return
            self._cosign(self.config.federation.deadline_s, self.closing)

    def _cosign(self, patience_s: float, stop: threading.Event | None = None) -> None:
        """Ask every organization that has not cosigned the newest head; who does not answer in time is left out."""
        with self.asking:
            self._ask_all(patience_s, stop)

    def _ask_all(self, patience_s: float, stop: threading.Event | None) -> None:
        signed = self.service.signed_heads()
        if not signed:
            return
        head, entry = signed[-1]
        self.unwilling = {}
        waiting = [member for member in self.witnesses if member.name not in head.cosigners]
        for _ in range(2):  # the second time where an organization had seen another size than we thought
            asked = {self._ask(member, head, entry.checkpoint): member for member in waiting}
            done, late = _wait(list(asked), patience_s, stop)
            self.unwilling |= {asked[reference].name: f"no answer within {patience_s:g} s" for reference in late}
            lines, waiting = [], []
            for reference in done:
                member = asked[reference]
                try:
                    answer = calls.get(reference)
                except RayError as error:
                    self.unwilling[member.name] = str(error).strip().splitlines()[-1]
                    continue
                if "line" in answer:
                    lines.append(answer["line"])
                    self.seen[member.name] = head.size
                elif "size" in answer and answer["size"] != self.seen.get(member.name, 0):
                    self.seen[member.name] = answer["size"]
                    waiting.append(member)
                else:
                    self.unwilling[member.name] = answer["refused"]
            try:
                self.failure = "; ".join(self.service.cosign(head.seq, lines)) or None
            except LedgerError as error:  # without cosignatures the run is worth less, but not wrong
                self.failure = str(error)

    def _ask(self, member: Any, head: TreeHead, note: str) -> Any:
        old = min(self.seen.get(member.name, 0), head.size)
        proof = self.service.witness_proof(old, head.size) if old else []
        return member.call("witness", self.service.log_key, note, old, proof)


def _wait(references: list[Any], patience_s: float, stop: threading.Event | None) -> tuple[list[Any], list[Any]]:
    """Answers and those that are still out, after `patience_s` seconds or when `stop` is set."""
    end = time.monotonic() + patience_s
    done: list[Any] = []
    late = references
    while late and time.monotonic() < end and not (stop is not None and stop.is_set()):
        done, late = calls.wait(references, min(0.2, patience_s))
    return done, late


RemoteLedger: Any = ray.remote(Ledger)
