"""The ledger of a running run: outbox, log, tree heads, chains and seal behind one object."""

import contextlib
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ledger import checkpoint, heads, layout
from ledger.canonical import canonical_json, fsync_directory, parse_canonical, write_atomic
from ledger.delivery import PrivateDelivery, PublicDelivery
from ledger.dsse import Envelope
from ledger.errors import LedgerError
from ledger.events import CHECKPOINT, Event
from ledger.heads import AnchorStore, Entry, TreeHead
from ledger.identity import COORDINATOR, Identity
from ledger.log import SqliteLog
from ledger.outbox import Outbox
from ledger.private import PrivateChain
from ledger.public import PublicChain, Receipt
from ledger.seal import make_seal, vouched_files


@dataclass(frozen=True)
class Refused:
    """An envelope that was not accepted: its place in the batch, and why."""

    index: int
    reason: str


class LedgerService:
    """Takes events in, moves them to the log, brings log and heads to the chains, seals the run.

    Killed at any instruction and opened again, it has lost nothing that :meth:`submit` accepted and holds nothing
    twice, on no chain either. Calls may come from several threads: a lock guards the log and the files, and no chain
    is called while it is held, so that a slow chain holds nothing up. The deliveries to the two chains, `private`
    and `public`, are each for one thread at a time.

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
    private_chain
        Where the organizations share the log; closed together with the service. None: the log file alone.
    approvals, members
        On the private chain, so many of these members must endorse a release.
    anchor_every
        Sign a tree head by itself after so many rounds (CHECKPOINT events); 0: only when asked, and at the seal.

    Raises
    ------
    LedgerError
        In use by another process; the log, the outbox or the store of heads is damaged, or they do not belong
        together.
    """

    def __init__(
        self,
        run_dir: str | Path,
        run: str,
        identity: Identity,
        public_chain: PublicChain | None = None,
        anchor_every: int = 1,
        private_chain: PrivateChain | None = None,
        approvals: int = 1,
        members: Sequence[str] = (),
    ) -> None:
        if identity.name != COORDINATOR:
            raise LedgerError(f"ledger service: identity is {identity.name!r}; the coordinator's is needed")
        self.lock = threading.RLock()
        self._dir = Path(run_dir)
        self._run = run
        self._identity = identity
        self._anchor_every = anchor_every
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
            self._pending: list[Event] = [self._log.take(e, self._registry) for e in self._outbox.pending()]
            self._waiting = {(event.organization, event.key): event for event in self._pending}
            self._store = self._load_store()
            self._heads = self._load_heads()
            self._sent = self._load_sent()
            self._rounds = self._rounds_since_head()
            self.private = None if private_chain is None else PrivateDelivery(self, private_chain, approvals, members)
            self.public = None if public_chain is None else PublicDelivery(self, public_chain)
            opened.pop_all()

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
        with self.lock:
            self._must_be_open()
            registry = self._registry.copy()
            admitted: dict[tuple[str, str], Event] = {}
            fresh: list[Envelope] = []
            refused: list[Refused] = []
            for index, envelope in enumerate(envelopes):
                try:
                    event = registry.read(envelope)
                    slot = (event.organization, event.key)
                    waiting = admitted.get(slot) or self._waiting.get(slot)
                    if waiting is not None and (waiting.type, waiting.body) != (event.type, event.body):
                        raise LedgerError(
                            f"{event.type} of {event.organization}: key {event.key!r} has other content already; "
                            "a new statement needs a new key"
                        )
                    if waiting is None and self._log.find(event) is None:
                        registry.enter(event)
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
        """Move up to ``max_batch`` events from the outbox to the log, and sign a tree head if it is time.

        Returns
        -------
        int
            Events moved.

        Raises
        ------
        LedgerError
            The disk refuses: events that are not in the log stay in the outbox.
        """
        with self.lock:
            self._must_be_open()
            batch = self._pending[:max_batch]
            if batch:
                self._log.append(batch)
                self._outbox.mark_done(len(batch))
                del self._pending[: len(batch)]
                for event in batch:
                    del self._waiting[event.organization, event.key]
                    self._rounds += event.type == CHECKPOINT
            if 0 < self._anchor_every <= self._rounds:
                self.sign_head()
            return len(batch)

    def sign_head(self) -> TreeHead | None:
        """Sign a tree head of the log as it stands, unless the newest one covers it; deliveries pick it up.

        Returns
        -------
        TreeHead or None
            The newest head; None for an empty log.
        """
        with self.lock:
            self._must_be_open()
            last = self._heads[-1] if self._heads else None
            size = self._log.size
            if size > (last.size if last else 0):
                root = self._log.root()
                note = checkpoint.sign(self._identity, self._run, size, root)
                prev = last.root if last else heads.NO_ROOT.hex()
                self._store.entries.append(Entry(note))
                try:
                    self._write_store()
                except LedgerError:
                    self._store.entries.pop()
                    raise
                self._heads.append(TreeHead(self._run, size, root.hex(), len(self._heads) + 1, prev))
            self._rounds = 0
            return self._heads[-1] if self._heads else None

    def newest_checkpoint(self) -> str | None:
        """The newest head as a C2SP checkpoint, for witnesses; None before the first."""
        with self.lock:
            return self._store.entries[-1].checkpoint if self._store.entries else None

    def consistency_proof(self, size1: int, size2: int) -> list[bytes]:
        """RFC 9162 proof that the log's first ``size2`` events begin with its first ``size1``."""
        with self.lock:
            return self._log.consistency_proof(size1, size2)

    def witness_proof(self, size1: int, size2: int) -> list[bytes]:
        """:meth:`consistency_proof` as :meth:`ledger.witness.Witness.cosign` likes it best: where the RFC leaves the
        first root out, it stands before the proof, so that a split view leaves evidence."""
        with self.lock:
            proof = self._log.consistency_proof(size1, size2)
            return [self._log.root(size1), *proof] if proof and size1 & (size1 - 1) == 0 else proof

    def cosign(self, seq: int, lines: Sequence[str]) -> list[str]:
        """Keep organizations' cosignatures of head ``seq``.

        Parameters
        ----------
        seq
            Number of the head.
        lines
            Signature lines of :func:`ledger.checkpoint.cosign`.

        Returns
        -------
        list of str
            Why lines were refused: not by an organization of the run, or not of this head.

        Raises
        ------
        LedgerError
            There is no such head, or the disk is full.
        """
        with self.lock:
            self._must_be_open()
            if not 0 < seq <= len(self._store.entries):
                raise LedgerError(f"cosignature: there is no head {seq}")
            entry, head = self._store.entries[seq - 1], self._heads[seq - 1]
            note, cosigners, refused = entry.checkpoint, dict(head.cosigners), []
            for line in lines:
                try:
                    longer = checkpoint.add(note, line)
                    keys = self._witness_keys(head.size)
                    said = checkpoint.read(longer, self._run, self._identity.public_hex, keys)
                    if longer != note and said.cosigners.keys() == cosigners.keys():
                        raise LedgerError("not by an organization of this run, or its second one")
                    note, cosigners = longer, dict(said.cosigners)
                except LedgerError as error:
                    refused.append(f"cosignature of head {seq}: {error}")
            if note != entry.checkpoint:
                self._store.entries[seq - 1] = Entry(note, entry.receipt)
                try:
                    self._write_store()
                except LedgerError:
                    self._store.entries[seq - 1] = entry
                    raise
                self._heads[seq - 1] = replace(head, cosigners=cosigners)
            return refused

    def drain(self, patience_s: float = 30.0) -> bool:
        """Bring everything to the chains; give up after ``patience_s`` seconds without an answer.

        What is left stays where it is and goes on with the next drain.

        Returns
        -------
        bool
            Whether both chains have everything (a public chain need not have finalized it).
        """
        while self.pump():
            pass
        end = time.monotonic() + patience_s
        deliveries = [delivery for delivery in (self.private, self.public) if delivery is not None]
        while True:
            busy = [delivery for delivery in deliveries if delivery.backlog()]
            if not busy:
                return True
            moved = [delivery.step() for delivery in busy]
            if not any(moved):
                if time.monotonic() >= end or all(delivery.refused for delivery in busy):
                    return False
                time.sleep(0.05)
            else:
                end = time.monotonic() + patience_s

    def seal(self, files: Iterable[str] = (), patience_s: float = 30.0) -> Path:
        """Sign the last head, drain, close, and sign the digests of the run's files.

        A chain that does not answer does not keep the run from being sealed: opened again, it is drained later.

        Parameters
        ----------
        files
            Further files to vouch for, relative to the run directory. Those of ``ledger/``, ``identities/``,
            the manifest, the config, and what MERGE, CHECKPOINT and MODEL_RELEASE events name come by
            themselves.
        patience_s
            As in :meth:`drain`.

        Returns
        -------
        Path
            ``ledger/seal.json``. The service is closed; opening it again takes the seal off.

        Raises
        ------
        LedgerError
            A file is missing, or the disk is full: the run is not sealed.
        """
        while self.pump():
            pass
        self.sign_head()
        self.drain(patience_s)
        with self.lock:
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
            ``size`` and ``root`` (hex) of the log, ``pending`` events in the outbox, number of signed ``heads`` and
            of those ``anchors`` that the public chain has, the newest ``anchor`` (seq, size, root, and its receipt),
            the ``chain``, ``cosigners`` of the newest head, ``sealed``; for each chain ``private`` and ``public``
            its backlog and why its last delivery failed, or None.
        """
        with self.lock:
            if self._final is not None:
                return dict(self._final)
            sent = [entry.receipt for entry in self._store.entries if entry.receipt is not None]
            return {
                "size": self._log.size,
                "root": self._log.root().hex(),
                "pending": len(self._pending),
                "heads": len(self._heads),
                "anchors": len(sent),
                "anchor": {**_place(self._heads[len(sent) - 1]), **asdict(sent[-1])} if sent else None,
                "chain": self._store.chain,
                "cosigners": sorted(self._heads[-1].cosigners) if self._heads else [],
                "private": self.private and self.private.status(),
                "public": self.public and self.public.status(),
                "sealed": False,
            }

    def close(self) -> None:
        """Give up files and chains; pending events are there at the next opening."""
        with self.lock:
            if self._final is None:
                self._final = self.status()
                self._outbox.close()
                for delivery in (self.private, self.public):
                    if delivery is not None:
                        delivery.close()
                self._log.close()  # last: its lock guards the others

    # What the deliveries read and write.

    def leaves(self, start: int, count: int) -> list[bytes]:
        """Up to ``count`` leaves of the log from ``start``."""
        with self.lock:
            return self._log.read(start, min(count, self._log.size - start))

    def size(self) -> int:
        """Events in the log."""
        with self.lock:
            return self._log.size

    def signed_heads(self) -> list[tuple[TreeHead, Entry]]:
        """All heads with their entries, oldest first."""
        with self.lock:
            return list(zip(self._heads, self._store.entries, strict=True))

    def chain_description(self) -> dict[str, Any]:
        """The public chain as the store of heads names it; empty before the first receipt."""
        with self.lock:
            return dict(self._store.chain)

    def note_receipts(self, chain: Mapping[str, Any], receipts: Mapping[int, Receipt | None]) -> None:
        """Keep receipts by seq, and which chain they are of."""
        with self.lock:
            before = list(self._store.entries), self._store.chain
            for seq, receipt in receipts.items():
                self._store.entries[seq - 1] = Entry(self._store.entries[seq - 1].checkpoint, receipt)
            self._store.chain = dict(chain)
            try:
                if before != (self._store.entries, self._store.chain):
                    self._write_store()
            except LedgerError:
                self._store.entries, self._store.chain = before
                raise

    def private_sent(self) -> dict[str, Any]:
        """What the private chain is known to have: ``chain`` (its description), ``size``, ``heads``."""
        with self.lock:
            return dict(self._sent)

    def note_private(self, chain: Mapping[str, Any], size: int, heads_sent: int) -> None:
        """Keep how far the private chain has the log and its heads."""
        with self.lock:
            sent = {"chain": dict(chain), "heads": heads_sent, "size": size}
            if sent != self._sent:
                write_atomic(self._dir / layout.PRIVATE, canonical_json(sent))
                self._sent = sent

    @property
    def run(self) -> str:
        """Id of the run."""
        return self._run

    @property
    def log_key(self) -> str:
        """The coordinator's public key in hex, which signs heads."""
        return self._identity.public_hex

    def organizations(self) -> list[str]:
        """Registered organizations, without the coordinator."""
        with self.lock:
            return sorted(name for name in self._registry.organizations if name != COORDINATOR)

    def revoked(self) -> list[str]:
        """Organizations whose key was revoked, without another one that was admitted."""
        with self.lock:
            return self._registry.revoked

    def _unseal(self) -> None:
        """Take the seal off before anything changes."""
        seal = self._dir / layout.SEAL
        if seal.exists():
            # Opening by mistake, for another run, must not cost the seal.
            SqliteLog(self._dir / layout.LOG, self._run, read_only=True).close()
            seal.unlink()
            fsync_directory(seal.parent)

    def _must_be_open(self) -> None:
        if self._final is not None:
            raise LedgerError(f"{self._dir / layout.LEDGER}: the ledger is closed; open it again to append")

    def _write_store(self) -> None:
        write_atomic(self._dir / layout.ANCHORS, self._store.to_bytes())

    def _load_store(self) -> AnchorStore:
        path = self._dir / layout.ANCHORS
        if not path.exists():
            return AnchorStore(self._run)
        store = heads.parse_store(path.read_bytes())
        if store.run != self._run:
            raise LedgerError(f"{path}: belongs to run {store.run!r}, this is {self._run!r}")
        return store

    def _load_heads(self) -> list[TreeHead]:
        path = self._dir / layout.ANCHORS
        try:
            found = heads.read_heads(self._store, self._identity.public_hex, self._witness_keys)
        except LedgerError as error:
            raise LedgerError(f"{path}: {error}") from None
        for head in found:
            if head.size > self._log.size or self._log.root(head.size).hex() != head.root:
                raise LedgerError(f"{path}: tree head {head.seq} is not of this log")
        return found

    def _load_sent(self) -> dict[str, Any]:
        path = self._dir / layout.PRIVATE
        if not path.exists():
            return {"chain": {}, "heads": 0, "size": 0}
        sent = parse_canonical(path.read_bytes())
        kinds = {"chain": dict, "heads": int, "size": int}
        if not isinstance(sent, dict) or {name: type(value) for name, value in sent.items()} != kinds:
            raise LedgerError(f"{path}: needs exactly {', '.join(kinds)}; delete it, the chain says how far it is")
        return dict(sent)

    def _witness_keys(self, size: int) -> dict[str, str]:
        """Public keys in hex of the organizations, as they are in force after the log's first ``size`` events."""
        keys = self._log.registry.keys_at(size)
        return {name: key for name, key in keys.items() if name != COORDINATOR}

    def _rounds_since_head(self) -> int:
        start = self._heads[-1].size if self._heads else 0
        return sum(1 for index, _ in self._log.events(CHECKPOINT) if index >= start)


def _place(head: TreeHead) -> dict[str, Any]:
    return {"seq": head.seq, "size": head.size, "root": head.root}
