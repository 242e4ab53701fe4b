"""The private log: an append-only RFC 9162 Merkle log of events in one SQLite file."""

import contextlib
import fcntl
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ledger import merkle
from ledger.canonical import parse_canonical
from ledger.dsse import Envelope
from ledger.errors import LedgerError
from ledger.events import KEY_EVENTS, Event, read_event
from ledger.registry import Registry

SCHEMA = """
CREATE TABLE leaves (
    idx INTEGER PRIMARY KEY,
    organization TEXT NOT NULL,
    key TEXT NOT NULL,
    type TEXT NOT NULL,
    round INTEGER,
    leaf BLOB NOT NULL,
    UNIQUE (organization, key)
) STRICT;
CREATE TABLE nodes (
    level INTEGER NOT NULL,
    idx INTEGER NOT NULL,
    hash BLOB NOT NULL,
    PRIMARY KEY (level, idx)
) STRICT, WITHOUT ROWID;
CREATE TRIGGER leaves_keep BEFORE DELETE ON leaves BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;
CREATE TRIGGER leaves_fixed BEFORE UPDATE ON leaves BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;
CREATE TRIGGER nodes_keep BEFORE DELETE ON nodes BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;
CREATE TRIGGER nodes_fixed BEFORE UPDATE ON nodes BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;
"""

APPLICATION_ID = 0x7472636C
"""SQLite's application id of our files ("trcl")."""

_SIDE_FILES = ("-wal", "-journal")


class SqliteLog:
    """A log open in this process: one writer, or any number of readers.

    The same shape stands for every private chain: append a batch, read, prove.

    Parameters
    ----------
    path
        The database file; made if missing (not by a reader).
    run
        Id of the run; by default that of the first event.
    read_only
        Open without changing any file. While a writer is at work, a reader sees a copy made at opening.

    Attributes
    ----------
    registry
        Keys learnt from the log's own REGISTER and KEY_* events.

    Raises
    ------
    LedgerError
        In use by another process (named by its pid), missing, or not such a log.
    """

    def __init__(self, path: str | Path, run: str | None = None, *, read_only: bool = False) -> None:
        self.path = Path(path)
        self._resources = contextlib.ExitStack()
        self.read_only = read_only
        try:
            if read_only:
                self._db = self._open_reader()
            else:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._resources.enter_context(_locked(self.path))
                self._db = self._open_writer()
            self._size = self._count()
            self.registry = Registry(run)
            self._learn()
        except (sqlite3.Error, OSError) as error:
            self._resources.close()
            raise LedgerError(f"{self.path}: not a readable log: {error}") from None
        except BaseException:
            self._resources.close()
            raise

    def _open_writer(self) -> sqlite3.Connection:
        db = self._connect(str(self.path), uri=False)
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        if db.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
            if db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                raise LedgerError(f"{self.path}: is another kind of SQLite database")
            db.executescript(f"BEGIN; {SCHEMA} PRAGMA application_id={APPLICATION_ID}; COMMIT;")
        return db

    def _open_reader(self) -> sqlite3.Connection:
        if not self.path.is_file():
            raise LedgerError(f"{self.path}: is missing")
        path = self.path
        if any(_beside(path, suffix).exists() for suffix in _SIDE_FILES):
            # Reading a database in WAL mode writes beside it; a copy keeps the run as it is.
            folder = Path(self._resources.enter_context(tempfile.TemporaryDirectory(prefix="trustchain-log-")))
            path = _stable_copy(path, folder)
            uri = f"file:{quote(str(path))}?mode=rw"
        else:
            uri = f"file:{quote(str(path.absolute()))}?mode=ro&immutable=1"
        db = self._connect(uri, uri=True)
        if db.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
            raise LedgerError(f"{self.path}: is not a log")
        return db

    def _connect(self, target: str, *, uri: bool) -> sqlite3.Connection:
        # Calls come one at a time, but an actor may make them from different threads.
        db = sqlite3.connect(target, uri=uri, isolation_level=None, check_same_thread=False)
        self._resources.callback(db.close)
        return db

    def _count(self) -> int:
        count, last = self._db.execute("SELECT count(*), max(idx) FROM leaves").fetchone()
        if count and last != count - 1:
            raise LedgerError(f"{self.path}: leaf numbers have gaps")
        return int(count)

    def _learn(self) -> None:
        try:
            for position, envelope in self.events(*KEY_EVENTS):
                self.registry.admit(envelope, position)
        except LedgerError as error:
            raise LedgerError(f"{self.path}: {error}") from None

    @property
    def size(self) -> int:
        """Number of events."""
        return self._size

    def append_batch(self, envelopes: Sequence[Envelope]) -> list[int]:
        """Check and append events in one transaction.

        Parameters
        ----------
        envelopes
            Signed by keys that REGISTER events of this log, or earlier ones of the batch, declare.

        Returns
        -------
        list of int
            Position of each in the log; an event that is there already (same organization, key, type and
            body) keeps its position.

        Raises
        ------
        LedgerError
            An event is refused, a key is used again for another body, or the disk is full: nothing is
            appended.
        """
        registry = self.registry.copy()
        return self.append([self.take(envelope, registry) for envelope in envelopes])

    def take(self, envelope: Envelope, registry: Registry) -> Event:
        """Read an event, and enter it in ``registry`` unless it is in the log: then it may be of a key that was retired
        since. Raises LedgerError as :meth:`~ledger.registry.Registry.admit` and :meth:`find`."""
        event = registry.read(envelope)
        if self.find(event) is None:
            registry.enter(event)
        return event

    def append(self, events: Sequence[Event]) -> list[int]:
        """As :meth:`append_batch`, for events that :meth:`take` read."""
        if self.read_only:
            raise LedgerError(f"{self.path}: is open for reading only")
        registry = self.registry.copy()
        size = self._size
        made: dict[tuple[int, int], bytes] = {}
        positions: list[int] = []

        def node(level: int, index: int) -> bytes:
            return made.get((level, index)) or self._node(level, index)

        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                for event in events:
                    position = self.find(event)
                    if position is None:
                        registry.enter(event, size)
                        position, size = size, size + 1
                        self._db.execute(
                            "INSERT INTO leaves VALUES (?, ?, ?, ?, ?, ?)",
                            (position, event.organization, event.key, event.type, event.round, event.leaf),
                        )
                        for level, index, digest in merkle.new_nodes(node, position, merkle.leaf_hash(event.leaf)):
                            made[level, index] = digest
                    positions.append(position)
                self._db.executemany(
                    "INSERT INTO nodes VALUES (?, ?, ?)",
                    [(level, idx, h) for (level, idx), h in made.items()],
                )
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise LedgerError(f"{self.path}: cannot be written: {error}; the batch is not in the log") from None
        self.registry, self._size = registry, size
        return positions

    def find(self, event: Event) -> int | None:
        """Position of an event with the same organization, key, type and body.

        Raises
        ------
        LedgerError
            The key is in use for another type or body.
        """
        row = self._one("SELECT idx, leaf FROM leaves WHERE organization=? AND key=?", (event.organization, event.key))
        if row is None:
            return None
        if row[1] != event.leaf:
            known = read_event(parse_canonical(row[1]), self.registry.keys)
            if (known.type, known.body) != (event.type, event.body):
                raise LedgerError(
                    f"{event.type} of {event.organization}: key {event.key!r} is in the log (event {row[0]}) "
                    "with another content; a new statement needs a new key"
                )
        return int(row[0])

    def root(self, size: int | None = None) -> bytes:
        """Root of the first ``size`` events (default: all), 32 bytes. Raises LedgerError beyond the log."""
        return merkle.root_of(self._node, self._within(size))

    def inclusion_proof(self, index: int, size: int | None = None) -> list[bytes]:
        """Proof for :func:`~ledger.merkle.verify_inclusion`. Raises LedgerError if there is no such event."""
        return merkle.inclusion_path(self._node, index, self._within(size))

    def consistency_proof(self, size1: int, size2: int | None = None) -> list[bytes]:
        """Proof for :func:`~ledger.merkle.verify_consistency`. Raises LedgerError beyond the log."""
        return merkle.consistency_path(self._node, size1, self._within(size2))

    def leaf(self, index: int) -> bytes:
        """Bytes of one leaf: the canonical JSON of its envelope."""
        row = self._one("SELECT leaf FROM leaves WHERE idx=?", (index,))
        if row is None:
            raise LedgerError(f"{self.path}: there is no event {index} in a log of {self._size}")
        return bytes(row[0])

    def read(self, start: int, count: int) -> list[bytes]:
        """Leaves of up to ``count`` events from position ``start`` on, in order."""
        rows = self._rows("SELECT leaf FROM leaves WHERE idx>=? ORDER BY idx LIMIT ?", (start, max(0, count)))
        return [bytes(row[0]) for row in rows]

    def events(self, *types: str) -> Iterator[tuple[int, Envelope]]:
        """Position and envelope of every event, or of those of some types, in order."""
        among = f" WHERE type IN ({', '.join('?' * len(types))})" if types else ""
        for index, leaf in self._rows(f"SELECT idx, leaf FROM leaves{among} ORDER BY idx", types):
            yield index, parse_canonical(leaf)

    def keys(self) -> dict[str, str]:
        """Registered public keys in hex, by key id: those in force, and those that were."""
        return dict(self.registry.keys)

    def rows(self) -> Iterator[tuple[int, str, str, str, int | None, bytes]]:
        """Raw rows, for the verifier: position, organization, key, type, round, leaf."""
        yield from self._rows("SELECT idx, organization, key, type, round, leaf FROM leaves ORDER BY idx")

    def hashes(self, level: int, start: int, count: int) -> list[bytes]:
        """Hashes of up to ``count`` complete subtrees of ``2**level`` leaves from position ``start`` on, in order."""
        rows = self._rows(
            "SELECT hash FROM nodes WHERE level=? AND idx>=? ORDER BY idx LIMIT ?", (level, start, max(0, count))
        )
        return [bytes(row[0]) for row in rows]

    def nodes(self) -> Iterator[tuple[int, int, bytes]]:
        """Stored hashes, for the verifier: level, position, hash."""
        yield from self._rows("SELECT level, idx, hash FROM nodes ORDER BY level, idx")

    def copy_to(self, path: str | Path) -> None:
        """Write the log, as it is open here, to a new file. Raises LedgerError if that cannot be done."""
        try:
            self._db.execute("VACUUM INTO ?", (str(path),))
        except sqlite3.Error as error:
            raise LedgerError(f"{path}: the log cannot be copied there: {error}") from None

    def close(self) -> None:
        """Close; a writer leaves exactly one file."""
        if not self.read_only:
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._db.execute("PRAGMA journal_mode=DELETE")
        self._resources.close()

    def _rows(self, query: str, arguments: tuple[object, ...] = ()) -> Iterator[tuple[Any, ...]]:
        try:
            yield from self._db.execute(query, arguments)
        except sqlite3.Error as error:
            raise LedgerError(f"{self.path}: cannot be read: {error}") from None

    def _one(self, query: str, arguments: tuple[object, ...]) -> tuple[Any, ...] | None:
        return next(self._rows(query, arguments), None)

    def _within(self, size: int | None) -> int:
        size = self._size if size is None else size
        if not 0 <= size <= self._size:
            raise LedgerError(f"{self.path}: the log has {self._size} events, not {size}")
        return size

    def _node(self, level: int, index: int) -> bytes:
        row = self._one("SELECT hash FROM nodes WHERE level=? AND idx=?", (level, index))
        if row is None:
            raise LedgerError(f"{self.path}: the hash at level {level}, {index} is missing")
        return bytes(row[0])


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _stable_copy(path: Path, folder: Path) -> Path:
    """Copy a database and its side files; again if a writer changed them meanwhile."""

    def state() -> list[tuple[int, int] | None]:
        files = [path, *(_beside(path, suffix) for suffix in _SIDE_FILES)]
        return [(f.stat().st_mtime_ns, f.stat().st_size) if f.exists() else None for f in files]

    for _ in range(5):
        before = state()
        shutil.copyfile(path, folder / path.name)
        for suffix in _SIDE_FILES:
            copy = _beside(folder / path.name, suffix)
            copy.unlink(missing_ok=True)
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(_beside(path, suffix), copy)
        if state() == before:
            return folder / path.name
    raise LedgerError(f"{path}: keeps changing while it is read; try again when the run is at rest")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold ``<path>.lock``, which names the process; the file is gone afterwards."""
    lock = _beside(path, ".lock")
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = os.read(descriptor, 32).decode(errors="replace").strip()
            os.close(descriptor)
            raise LedgerError(
                f"{path}: in use by process {owner or '(unknown)'}; wait for it or stop it, then try again"
            ) from None
        # The file that was locked may have been removed by its last owner in between.
        with contextlib.suppress(FileNotFoundError):
            if os.stat(lock).st_ino == os.fstat(descriptor).st_ino:
                break
        os.close(descriptor)
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(descriptor)
