"""The private chain of one machine: the log file, and beside it what only members may see.

It has the interface of :class:`~ledger.private.PrivateChain`, so that what is written for a consortium's Fabric channel
runs on a laptop. It stands for no second party: who owns the files can change them.
"""

import contextlib
import hashlib
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ledger import checkpoint, merkle
from ledger.canonical import canonical_json, parse_canonical, write_atomic
from ledger.errors import LedgerError
from ledger.events import MAX_EVENT_BYTES
from ledger.identity import COORDINATOR
from ledger.log import SqliteLog
from ledger.private import ChainEvent

_SCHEMA = """
CREATE TABLE IF NOT EXISTS runs (name TEXT PRIMARY KEY, terms TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS heads (size INTEGER PRIMARY KEY, root BLOB NOT NULL, note TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS private (
    collection TEXT NOT NULL, key TEXT NOT NULL, hash TEXT NOT NULL, value BLOB, PRIMARY KEY (collection, key)
) STRICT;
"""
_POLL_S = 0.05


class SqliteChain:
    """A :class:`~ledger.private.PrivateChain` in two files.

    Parameters
    ----------
    log
        The log, open for writing; closed together with the chain.
    private
        The file of heads and private values; made with mode 0600 if missing. A purged value is overwritten.

    Raises
    ------
    LedgerError
        The file cannot be used.
    """

    def __init__(self, log: SqliteLog, private: str | Path) -> None:
        self._log = log
        self._path = Path(private)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self._db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA secure_delete=ON")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise LedgerError(f"{self._path}: cannot be used: {error}") from None

    def open_run(self, coordinator: str, k: int, msps: Sequence[str]) -> None:
        """As of every private chain."""
        terms = canonical_json({"coordinator": coordinator, "k": k, "members": sorted(msps)}).decode()
        run = self._log.registry.run
        known = self._db.execute("SELECT terms FROM runs WHERE name=?", (run,)).fetchone()
        if known is not None and known[0] != terms:
            raise LedgerError(f"{self._path}: run {run!r} was opened with other terms")
        self._write("INSERT OR IGNORE INTO runs VALUES (?, ?)", (run, terms))

    def size(self) -> int:
        """Number of leaves."""
        return self._log.size

    def append_batch(self, start: int, leaves: Sequence[bytes]) -> int:
        """As of every private chain; a leaf is the canonical JSON of a signed event's envelope."""
        size = self._log.size
        if not 0 <= start <= size:
            raise LedgerError(f"{self._log.path}: has {size} events; a batch cannot start at {start}")
        known = self._log.read(start, len(leaves))
        for place, (old, new) in enumerate(zip(known, leaves, strict=False), start):
            if old != new:
                raise LedgerError(f"{self._log.path}: event {place} is already another")
        fresh = leaves[len(known) :]
        for leaf in fresh:
            if len(leaf) > 2 * MAX_EVENT_BYTES:
                raise LedgerError(f"{self._log.path}: an event of {len(leaf)} bytes; put digests into it")
        positions = self._log.append_batch([parse_canonical(leaf) for leaf in fresh])
        if positions != list(range(size, size + len(fresh))):
            raise LedgerError(f"{self._log.path}: an event of the batch stands in the log at another place")
        return self._log.size

    def read(self, start: int, count: int) -> list[bytes]:
        """Leaves ``[start, start + count)``, fewer where the log ends."""
        return self._log.read(start, count)

    def prove(self, index: int, size: int) -> list[bytes]:
        """RFC 9162 inclusion proof of leaf ``index`` in the first ``size``."""
        return self._log.inclusion_proof(index, size)

    def put_head(self, note: str, proof: Sequence[bytes]) -> None:
        """As of every private chain; the coordinator's signature and the consistency proof are checked."""
        last = self._last_head()
        if last is not None and last[2] == note:
            return
        registry = self._log.registry
        run, key_id = registry.run or "", registry.organizations.get(COORDINATOR)
        if key_id is None:
            raise LedgerError(f"{self._path}: no coordinator is registered; send its REGISTER event first")
        said = checkpoint.read(note, run, registry.keys[key_id], {})
        if said.size > self._log.size:
            raise LedgerError(f"{self._path}: a head of {said.size} events; the log has {self._log.size}")
        if last is not None:
            if said.size < last[0]:
                raise LedgerError(f"{self._path}: a head of {said.size} events after one of {last[0]}")
            merkle.verify_consistency(last[0], last[1], said.size, said.root, proof)
        self._write("INSERT OR REPLACE INTO heads VALUES (?, ?, ?)", (said.size, said.root, note))

    def head(self) -> str | None:
        """The last signed checkpoint."""
        last = self._last_head()
        return last[2] if last is not None else None

    def put_private(self, collection: str, key: str, value: bytes) -> str:
        """As of every private chain."""
        digest = hashlib.sha256(value).hexdigest()
        self._write("INSERT OR REPLACE INTO private VALUES (?, ?, ?, ?)", (collection, key, digest, value))
        return digest

    def get_private(self, collection: str, key: str) -> bytes:
        """As of every private chain."""
        row = self._private(collection, key)
        if row is None or row[1] is None:
            raise LedgerError(f"{self._path}: {collection}/{key}: {'was purged' if row else 'there is no such value'}")
        return bytes(row[1])

    def purge_private(self, collection: str, key: str) -> None:
        """As of every private chain: the value's bytes are overwritten, its hash stays."""
        if self._private(collection, key) is None:
            raise LedgerError(f"{self._path}: {collection}/{key}: there is no such value")
        self._write("UPDATE private SET value=NULL WHERE collection=? AND key=?", (collection, key))

    def private_hash(self, collection: str, key: str) -> str:
        """As of every private chain."""
        row = self._private(collection, key)
        return str(row[0]) if row else ""

    def subscribe(self, cursor: str | Path, wait_s: float | None = None) -> Iterator[ChainEvent]:
        """As of every private chain; a leaf is a block of its own, and `events` are told one by one."""
        path = Path(cursor)
        place = int(path.read_text()) if path.exists() else 0
        last = time.monotonic()
        while wait_s is None or time.monotonic() - last < wait_s:
            for leaf in self._log.read(place, 1000):
                payload = canonical_json({"count": 1, "run": self._log.registry.run or "", "start": place})
                yield ChainEvent(place, merkle.leaf_hash(leaf).hex(), "events", payload)
                place += 1
                write_atomic(path, str(place).encode())
                last = time.monotonic()
            time.sleep(_POLL_S)

    def describe(self) -> dict[str, Any]:
        """The kind; the files are the run's own."""
        return {"kind": "sqlite"}

    def close(self) -> None:
        """Close both files."""
        self._db.close()
        self._log.close()

    def _last_head(self) -> tuple[int, bytes, str] | None:
        row: tuple[int, bytes, str] | None = self._db.execute(
            "SELECT size, root, note FROM heads ORDER BY size DESC LIMIT 1"
        ).fetchone()
        return row

    def _private(self, collection: str, key: str) -> tuple[str, bytes | None] | None:
        row: tuple[str, bytes | None] | None = self._db.execute(
            "SELECT hash, value FROM private WHERE collection=? AND key=?", (collection, key)
        ).fetchone()
        return row

    def _write(self, statement: str, values: tuple[object, ...]) -> None:
        try:
            with contextlib.closing(self._db.execute(statement, values)):
                pass
        except sqlite3.Error as error:
            raise LedgerError(f"{self._path}: cannot be written: {error}") from None
