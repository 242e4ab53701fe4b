"""The write-ahead outbox: what was accepted but has not yet reached the log."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ledger.canonical import canonical_json, parse_canonical
from ledger.dsse import Envelope
from ledger.errors import LedgerError
from ledger.journal import Journal


class Outbox:
    """A queue of envelopes that survives a kill at any instruction.

    A batch is one record of a :class:`~ledger.journal.Journal`: it is there whole or not at all. That
    envelopes are done is written without waiting for the disk; after a crash some may come twice, and the
    log's idempotency keys make nothing of it.

    Parameters
    ----------
    path
        The file; made if missing.

    Raises
    ------
    LedgerError
        In use by another process, or damaged before its end.
    """

    def __init__(self, path: str | Path) -> None:
        self._journal = Journal(path)
        self._pending: list[Envelope] = []
        for record in self._journal.records:
            entry: dict[str, Any] = parse_canonical(record)
            self._pending.extend(entry.get("put", ()))
            del self._pending[: entry.get("done", 0)]
        self._journal.records = []
        if not self._pending:
            self._journal.clear()

    def put(self, envelopes: Sequence[Envelope]) -> None:
        """Add a batch; on return it is on the disk. Raises LedgerError if it cannot be."""
        if envelopes:
            self._journal.append([canonical_json({"put": list(envelopes)})])
            self._pending.extend(envelopes)

    def pending(self) -> list[Envelope]:
        """Envelopes not yet done, in order."""
        return list(self._pending)

    def mark_done(self, count: int) -> None:
        """Forget the first ``count`` pending envelopes; the file is emptied when none is left."""
        if not 0 <= count <= len(self._pending):
            raise LedgerError(f"{self._journal.path}: {count} done of {len(self._pending)} pending")
        if count == len(self._pending):
            self._journal.clear()
        elif count:
            self._journal.append([canonical_json({"done": count})], sync=False)
        del self._pending[:count]

    def close(self) -> None:
        """Close the file; pending envelopes are there at the next opening."""
        self._journal.close()
