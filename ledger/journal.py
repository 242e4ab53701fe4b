"""An append-only file of checksummed lines that a crash can tear only at its end."""

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from ledger.canonical import fsync_directory
from ledger.errors import LedgerError


def encode_line(payload: bytes) -> bytes:
    """One record: length, first 16 digits of the SHA-256, payload (which holds no newline), newline."""
    checksum = hashlib.sha256(payload).hexdigest()[:16].encode()
    return b"%d %b %b\n" % (len(payload), checksum, payload)


def _decode_line(line: bytes) -> bytes | None:
    """Payload of a line without its newline, or None if it is not exactly one that was written."""
    payload = line.partition(b" ")[2].partition(b" ")[2]
    return payload if encode_line(payload)[:-1] == line else None


def parse_lines(data: bytes, name: str) -> tuple[list[bytes], int]:
    """Split a journal into its records.

    Returns
    -------
    tuple
        Payloads, and the number of bytes they take: what follows is a torn last record.

    Raises
    ------
    LedgerError
        A damaged record with whole ones behind it: no crash does that.
    """
    lines = data.split(b"\n")[:-1]  # what has no newline behind it is torn
    payloads: list[bytes] = []
    used = 0
    for number, line in enumerate(lines):
        payload = _decode_line(line)
        if payload is None:
            if any(_decode_line(later) is not None for later in lines[number + 1 :]):
                raise LedgerError(f"{name}: record {number + 1} is damaged; restore the file from a copy")
            return payloads, used
        payloads.append(payload)
        used += len(line) + 1
    return payloads, used


class Journal:
    """A journal open for appending, by one process at a time.

    Parameters
    ----------
    path
        The file; made if missing.

    Attributes
    ----------
    records
        Payloads found at opening.
    cut
        Bytes of a torn last record that were cut off at opening.

    Raises
    ------
    LedgerError
        In use by another process, unreadable, or damaged before its end.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise LedgerError(f"{self.path}: cannot be opened: {error.strerror}") from None
        try:
            self._lock()
            fsync_directory(self.path.parent)
            data = self.path.read_bytes()
            self.records, self._end = parse_lines(data, str(self.path))
            self.cut = len(data) - self._end
            if self.cut:
                os.ftruncate(self._fd, self._end)
                os.fsync(self._fd)
        except BaseException:
            os.close(self._fd)
            raise

    def _lock(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise LedgerError(f"{self.path}: in use by another process; wait for it or stop it") from None

    def append(self, payloads: Sequence[bytes], *, sync: bool = True) -> None:
        """Append records; on return they are on the disk (unless ``sync`` is false).

        Raises
        ------
        LedgerError
            The disk is full or fails; none of the records is kept.
        """
        data = b"".join(encode_line(payload) for payload in payloads)
        try:
            written = 0
            while written < len(data):
                written += os.pwrite(self._fd, data[written:], self._end + written)
            if sync:
                os.fsync(self._fd)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._end)
            raise LedgerError(f"{self.path}: cannot be written: {error.strerror}; nothing was added") from None
        self._end += len(data)

    def clear(self) -> None:
        """Forget all records."""
        os.ftruncate(self._fd, 0)
        self._end = 0

    def close(self) -> None:
        """Close the file and give up the lock."""
        os.close(self._fd)
