"""The ledger of a running run: outbox, log, anchors and seal behind one object."""

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ledger import heads, layout
from ledger.canonical import fsync_directory, write_atomic
from ledger.dsse import Envelope
from ledger.errors import LedgerError
from ledger.events import CHECKPOINT, Event
from ledger.identity import COORDINATOR, Identity
from ledger.log import SqliteLog
from ledger.outbox import Outbox
from ledger.public import PublicChain
from ledger.seal import make_seal, vouched_files


@dataclass(frozen=True)
class Refused:
    """An envelope that was not accepted: its place in the batch, and why."""

    index: int
    reason: str


class LedgerService:
    """Takes events in, moves them to the log, anchors tree heads, seals the run.

    Killed at any instruction and opened again, it has lost nothing that :meth:`submit` accepted and holds
    nothing twice. Calls must come one at a time; a Ray actor sees to that.

    Parameters
    ----------
    run_dir
        The run directory; ``ledger/`` in it belongs to the service.
    run
        Id of the run; events of other runs are refused.
    identity
        The coordinator's, which signs tree heads and the seal.
    public_chain
        Where tree heads are anchored; closed together with the service. None: nowhere.
    anchor_every
        Anchor by itself after so many rounds (CHECKPOINT events); 0: only when asked, and at the seal.

    Raises
    ------
    LedgerError
        In use by another process; the log, the outbox, the chain or the anchor store is damaged, or they do
        not belong together.
    """

    def __init__(
        self,
        run_dir: str | Path,
        run: str,
        identity: Identity,
        public_chain: PublicChain | None = None,
        anchor_every: int = 1,
    ) -> None:
        if identity.name != COORDINATOR:
            raise LedgerError(f"ledger service: identity is {identity.name!r}; the coordinator's is needed")
        self._dir = Path(run_dir)
        self._run = run
        self._identity = identity
        self._chain = public_chain
        self._anchor_every = anchor_every
        self._anchor_error: str | None = None
        self._final: dict[str, Any] | None = None  # the status at closing
        self._unseal()
        with contextlib.ExitStack() as opened:
            self._log = SqliteLog(self._dir / layout.LOG, run)
            opened.callback(self._log.close)
            for leftover in (self._dir / layout.LEDGER).glob(".*.tmp"):  # of a crash while writing
                leftover.unlink()
            self._outbox = Outbox(self._dir / layout.OUTBOX)
            opened.callback(self._outbox.close)
            self._registry = self._log.registry.copy()
            self._pending: list[Event] = [self._registry.admit(envelope) for envelope in self._outbox.pending()]
            self._waiting = {(event.organization, event.key): event for event in self._pending}
            self._store = self._reconciled()
            opened.pop_all()
        self._rounds = self._rounds_since_anchor()

    def _unseal(self) -> None:
        """Take the seal off before anything changes."""
        seal = self._dir / layout.SEAL
        if seal.exists():
            # Opening by mistake, for another run, must not cost the seal.
            SqliteLog(self._dir / layout.LOG, self._run, read_only=True).close()
            seal.unlink()
            fsync_directory(seal.parent)

    def submit(self, envelopes: Sequence[Envelope]) -> list[Refused]:
        """Accept signed events; on return the accepted ones are on the disk.

        Parameters
        ----------
        envelopes
            Of :func:`ledger.events.make_event`. One that was accepted before is accepted and not kept again.

        Returns
        -------
        list of Refused
            The envelopes that were not accepted, each with the reason. They do not keep the others back.

        Raises
        ------
        LedgerError
            The disk is full: none was accepted. Or the service is closed.
        """
        self._must_be_open()
        registry = self._registry.copy()
        admitted: dict[tuple[str, str], Event] = {}
        fresh: list[Envelope] = []
        refused: list[Refused] = []
        for index, envelope in enumerate(envelopes):
            try:
                event = registry.admit(envelope)
                slot = (event.organization, event.key)
                waiting = admitted.get(slot) or self._waiting.get(slot)
                if waiting is not None and (waiting.type, waiting.body) != (event.type, event.body):
                    raise LedgerError(
                        f"{event.type} of {event.organization}: key {event.key!r} has other content already; "
                        "a new statement needs a new key"
                    )
                if waiting is None and self._log.find(event) is None:
                    admitted[slot] = event
                    fresh.append(envelope)
            except LedgerError as error:
                refused.append(Refused(index, str(error)))
        self._outbox.put(fresh)
        self._registry = registry
        self._waiting.update(admitted)
        self._pending.extend(admitted.values())
        return refused

    def pump(self, max_batch: int = 1000) -> int:
        """Move up to ``max_batch`` events from the outbox to the log, and anchor if it is time.

        Returns
        -------
        int
            Events moved.

        Raises
        ------
        LedgerError
            The log cannot be written: the events stay in the outbox. A failing anchor does not raise: it
            stands in :meth:`status` as ``anchor_error`` and is tried again with the next batch.
        """
        self._must_be_open()
        batch = self._pending[:max_batch]
        if batch:
            self._log.append(batch)
            self._outbox.mark_done(len(batch))
            del self._pending[: len(batch)]
            for event in batch:
                del self._waiting[event.organization, event.key]
                self._rounds += event.type == CHECKPOINT
        if self._chain is not None and 0 < self._anchor_every <= self._rounds:
            try:
                self.anchor()
            except LedgerError as error:
                self._anchor_error = str(error)
        return len(batch)

    def anchor(self) -> dict[str, Any] | None:
        """Anchor the log as it stands, unless the newest anchor covers it.

        Returns
        -------
        dict or None
            The newest anchor, as in :meth:`status`.

        Raises
        ------
        LedgerError
            There is no public chain, or it refuses; calling again is safe.
        """
        self._must_be_open()
        if self._chain is None:
            raise LedgerError("anchor: the run has no public chain; configure one")
        last = self._last_head()
        size = self._log.size
        if size > (last.size if last else 0):
            seq, prev = (last.seq + 1, bytes.fromhex(last.root)) if last else (1, heads.NO_ROOT)
            root = self._log.root()
            head = heads.sign_head(self._identity, self._run, size, root, seq, prev)
            receipt = self._chain.anchor(root, size, seq, prev)
            self._store.entries.append((head, receipt))
            try:
                write_atomic(self._dir / layout.ANCHORS, self._store.to_bytes())
            except LedgerError:
                # The chain has it: it is entered again from there.
                self._store.entries.pop()
                self._store = self._reconciled()
        self._rounds = 0
        self._anchor_error = None
        return self._newest()

    def seal(self, files: Iterable[str] = ()) -> Path:
        """Drain, anchor, close, and sign the digests of the run's files.

        Parameters
        ----------
        files
            Further files to vouch for, relative to the run directory. Those of ``ledger/``, ``identities/``,
            the manifest, the config, and what MERGE, CHECKPOINT and MODEL_RELEASE events name come by
            themselves.

        Returns
        -------
        Path
            ``ledger/seal.json``. The service is closed; opening it again takes the seal off.

        Raises
        ------
        LedgerError
            A file is missing, the chain refuses, or the disk is full: the run is not sealed.
        """
        while self.pump():
            pass
        if self._chain is not None:
            self.anchor()
        names = vouched_files(self._dir, self._log).union(files)
        for name in names:
            layout.inside(self._dir, name)
        facts: dict[str, str | int] = {
            "run": self._run,
            "size": self._log.size,
            "root": self._log.root().hex(),
        }
        self.close()
        (self._dir / layout.OUTBOX).unlink()
        path = self._dir / layout.SEAL
        write_atomic(path, make_seal(self._dir, names, facts, self._identity))
        assert self._final is not None
        self._final["sealed"] = True
        return path

    def status(self) -> dict[str, Any]:
        """Where the ledger stands; also after closing.

        Returns
        -------
        dict
            ``size`` and ``root`` (hex) of the log, ``pending`` events in the outbox, number of ``anchors``,
            the newest ``anchor`` (seq, size, root, tx, block, block_hash, gas_used, status), the ``chain``,
            the last ``anchor_error``, ``sealed``.
        """
        if self._final is not None:
            return dict(self._final)
        return {
            "size": self._log.size,
            "root": self._log.root().hex(),
            "pending": len(self._pending),
            "anchors": len(self._store.entries),
            "anchor": self._newest(),
            "chain": self._store.chain,
            "anchor_error": self._anchor_error,
            "sealed": False,
        }

    def close(self) -> None:
        """Give up files and chain; pending events are there at the next opening."""
        if self._final is None:
            self._final = self.status()
            self._outbox.close()
            if self._chain is not None:
                self._chain.close()
            self._log.close()  # last: its lock guards the others

    def _must_be_open(self) -> None:
        if self._final is not None:
            raise LedgerError(f"{self._dir / layout.LEDGER}: the ledger is closed; open it again to append")

    def _last_head(self) -> heads.TreeHead | None:
        if not self._store.entries:
            return None
        return heads.read_head(self._store.entries[-1][0], self._own_key())

    def _own_key(self) -> dict[str, str]:
        return {self._identity.key_id: self._identity.public_hex}

    def _newest(self) -> dict[str, Any] | None:
        head = self._last_head()
        if head is None:
            return None
        receipt = asdict(self._store.entries[-1][1])
        return {"seq": head.seq, "size": head.size, "root": head.root, **receipt}

    def _reconciled(self) -> heads.AnchorStore:
        """The anchor store, brought up to what the chain has: a crash may have come between the two."""
        path = self._dir / layout.ANCHORS
        if self._chain is None:
            return heads.AnchorStore(self._run, {}, []) if not path.exists() else heads.parse_store(path.read_bytes())
        chain, anchors = self._chain.describe(), self._chain.anchors()
        store = heads.parse_store(path.read_bytes()) if path.exists() else heads.AnchorStore(self._run, chain, [])
        if store.run != self._run or store.chain != chain:
            raise LedgerError(
                f"{path}: belongs to run {store.run!r} on {store.chain}, this is {self._run!r} on {chain}"
            )
        for (envelope, receipt), anchor in zip(store.entries, anchors, strict=False):
            if not heads.matches(heads.read_head(envelope, self._own_key()), receipt, anchor):
                raise LedgerError(f"{path}: anchor {anchor.seq} is not what the chain has")
        if len(store.entries) > len(anchors):
            raise LedgerError(f"{path}: has {len(store.entries)} anchors, the chain only {len(anchors)}")
        for anchor in anchors[len(store.entries) :]:
            if anchor.size > self._log.size or self._log.root(anchor.size) != anchor.root:
                raise LedgerError(f"{path}: anchor {anchor.seq} of the chain is not of this log")
            head = heads.sign_head(self._identity, self._run, anchor.size, anchor.root, anchor.seq, anchor.prev)
            store.entries.append((head, anchor.receipt))
        write_atomic(path, store.to_bytes())
        return store

    def _rounds_since_anchor(self) -> int:
        last = self._last_head()
        start = last.size if last else 0
        return sum(1 for index, _ in self._log.events(CHECKPOINT) if index >= start)
