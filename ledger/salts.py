"""The salts of an organization's records in one run: kept outside the run, destroyed on erasure.

Format
------
One SQLite file for each run and organization, mode 0600, in a folder of mode 0700 that only the organization has.
``salts`` holds a row for each record: its id and its salt (32 bytes). On erasure the salt is overwritten with zeros,
the id gives way to a tombstone, ``HMAC-SHA256(tombstone key, id)``, and both places are cleared on the disk: the pages
by ``secure_delete``, the rollback journal by overwriting it. The tombstone lets the organization, and nobody without
this file, recognise an erased record that its source still delivers, and answer a second request for it. A file system
or disk that keeps old blocks (snapshots, flash) is outside of what a program can clear.
"""

import contextlib
import hashlib
import hmac
import os
import sqlite3
import stat
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from ledger.canonical import fsync_directory
from ledger.commitments import fresh_salt
from ledger.errors import LedgerError
from ledger.identity import check_name

_APPLICATION_ID = 0x7463736C  # "tcsl"
_SCHEMA = """
CREATE TABLE salts (slot INTEGER PRIMARY KEY, record TEXT NOT NULL UNIQUE, salt BLOB NOT NULL);
CREATE TABLE erased (tombstone BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE about (run TEXT NOT NULL, organization TEXT NOT NULL, tombstone_key BLOB NOT NULL);
"""
_BUSY_S = 60.0
_CHUNK = 1 << 16


class SaltStore:
    """Salts by record id. Every change is durable before the call returns, and whole or not there.

    Parameters
    ----------
    path
        The file; made if missing, with its folder.
    run, organization
        Whose salts these are; another's file is refused.

    Raises
    ------
    LedgerError
        A link, a file that others can read, another run's or organization's, or not such a file.
    """

    def __init__(self, path: str | Path, run: str, organization: str) -> None:
        self.path = Path(path)
        self._run, self._organization = run, check_name(organization)
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _own_file(self.path)
            # Calls come one at a time, but an actor may make them from different threads.
            self._db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=_BUSY_S)
        except (OSError, sqlite3.Error) as error:
            raise LedgerError(f"{self.path}: the salts cannot be opened: {error}") from None
        try:
            self._open()
            self._clear_journal()  # of an erasure that was cut short
        except BaseException as error:
            self._db.close()
            if isinstance(error, sqlite3.Error):
                raise LedgerError(f"{self.path}: is not a readable store of salts: {error}") from None
            raise

    def _open(self) -> None:
        db = self._db
        # The journal keeps its blocks, so that they can be overwritten; a deleted one would leave salts behind.
        for pragma in ("secure_delete=ON", "journal_mode=PERSIST", "synchronous=EXTRA", "temp_store=MEMORY"):
            db.execute(f"PRAGMA {pragma}")
        with self._transaction():
            if db.execute("PRAGMA application_id").fetchone()[0] != _APPLICATION_ID:
                if db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                    raise LedgerError(f"{self.path}: is another kind of SQLite database")
                for statement in _SCHEMA.strip().split("\n"):
                    db.execute(statement)
                db.execute("INSERT INTO about VALUES (?, ?, ?)", (self._run, self._organization, fresh_salt()))
                db.execute(f"PRAGMA application_id={_APPLICATION_ID}")
        run, organization, self._tombstone_key = db.execute("SELECT * FROM about").fetchone()
        if (run, organization) != (self._run, self._organization):
            raise LedgerError(
                f"{self.path}: holds the salts of {organization} in run {run!r}, "
                f"not of {self._organization} in run {self._run!r}"
            )

    def salts(self, records: Iterable[str]) -> dict[str, bytes]:
        """Salts of records, made where there is none yet.

        Parameters
        ----------
        records
            Ids.

        Returns
        -------
        dict
            32 bytes by id.

        Raises
        ------
        LedgerError
            One of them was erased: leave it out (:meth:`erased`).
        """
        wanted = list(dict.fromkeys(records))
        with self._transaction():
            if gone := self._among_erased(wanted):
                raise LedgerError(
                    f"{self.path}: {len(gone)} of these records were erased from run {self._run!r}, "
                    f"the first is {min(gone)!r}: leave them out"
                )
            self._db.executemany(
                "INSERT INTO salts (record, salt) VALUES (?, ?) ON CONFLICT (record) DO NOTHING",
                ((record, fresh_salt()) for record in wanted),
            )
            return self._known(wanted)

    def known(self, records: Iterable[str]) -> dict[str, bytes]:
        """Salts of those records that have one; none is made."""
        with self._transaction():
            return self._known(list(records))

    def erased(self, records: Iterable[str]) -> set[str]:
        """Those of the records that were erased."""
        with self._transaction():
            return self._among_erased(list(records))

    def destroy(self, records: Iterable[str]) -> int:
        """Destroy the salts of records, for good; those that are destroyed already stay so.

        A call that was cut short leaves all salts or none, and is repeated.

        Parameters
        ----------
        records
            Ids.

        Returns
        -------
        int
            How many salts this call destroyed.

        Raises
        ------
        LedgerError
            An id that never had a salt; nothing is destroyed then.
        """
        wanted = list(dict.fromkeys(records))
        with self._transaction():
            present, gone = self._known(wanted), self._among_erased(wanted)
            if unknown := [record for record in wanted if record not in present and record not in gone]:
                raise LedgerError(
                    f"{self.path}: {len(unknown)} of these records never had a salt here, the first is "
                    f"{min(unknown)!r}: look for a misspelt id"
                )
            self._db.executemany(
                "INSERT OR IGNORE INTO erased VALUES (?)", ((self._tombstone(record),) for record in present)
            )
            # First over the salt in place, at the same length; then the row goes, and its page is cleared.
            for statement in ("UPDATE salts SET salt = zeroblob(32) WHERE record = ?",
                              "DELETE FROM salts WHERE record = ?"):  # fmt: skip
                self._db.executemany(statement, ((record,) for record in present))
        self._clear_journal()
        return len(present)

    def __len__(self) -> int:
        """Number of records that have a salt."""
        return int(self._db.execute("SELECT count(*) FROM salts").fetchone()[0])

    def close(self) -> None:
        """Close the file; it can be opened again."""
        self._db.close()

    def _known(self, records: Collection[str]) -> dict[str, bytes]:
        query = "SELECT salt FROM salts WHERE record = ?"
        found = ((record, self._db.execute(query, (record,)).fetchone()) for record in records)
        return {record: row[0] for record, row in found if row is not None}

    def _among_erased(self, records: Collection[str]) -> set[str]:
        if not self._db.execute("SELECT EXISTS (SELECT 1 FROM erased)").fetchone()[0]:
            return set()
        query = "SELECT 1 FROM erased WHERE tombstone = ?"
        return {r for r in records if self._db.execute(query, (self._tombstone(r),)).fetchone() is not None}

    def _tombstone(self, record: str) -> bytes:
        return hmac.new(self._tombstone_key, record.encode(), hashlib.sha256).digest()

    @contextlib.contextmanager
    def _transaction(self, kind: str = "IMMEDIATE") -> Iterator[None]:
        """All or nothing. Raises LedgerError where SQLite does."""
        try:
            self._db.execute(f"BEGIN {kind}")
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            raise LedgerError(f"{self.path}: the salts cannot be read or changed: {error}") from None

    def _clear_journal(self) -> None:
        """Overwrite the rollback journal, which holds pages as they were before, and with them salts."""
        with self._transaction("EXCLUSIVE"):  # nobody else's journal is in use while this one is held
            try:
                descriptor = os.open(self.path.with_name(f"{self.path.name}-journal"), os.O_WRONLY | os.O_NOFOLLOW)
            except FileNotFoundError:
                return
            try:
                size = os.fstat(descriptor).st_size
                for start in range(0, size, _CHUNK):
                    os.pwrite(descriptor, bytes(min(_CHUNK, size - start)), start)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def _own_file(path: Path) -> None:
    """Make the file if there is none, and refuse one that others can read. Raises LedgerError, OSError."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError:
        if path.is_symlink():
            raise LedgerError(f"{path}: is a symbolic link; put the file itself there") from None
        raise
    try:
        mode = os.fstat(descriptor).st_mode
    finally:
        os.close(descriptor)
    if not stat.S_ISREG(mode):
        raise LedgerError(f"{path}: is not a regular file")
    if mode & 0o077:
        raise LedgerError(
            f"{path}: others can read these salts (mode {stat.S_IMODE(mode):04o}); run: chmod 600 {path}"
        )
    fsync_directory(path.parent)
