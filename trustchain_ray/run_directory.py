"""The run directory: who may write it, what lies where, and writing whole files only."""

import errno
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ledger.canonical import canonical_json, parse_canonical, write_atomic
from ledger.errors import LedgerError
from trustchain_ray.errors import TrustChainError, UsageError


def new_run(folder: str, name: str) -> Path:
    """The first free run directory `<folder>/<name>`, `<name>-2`, ...: runs never share one."""
    number = 1
    while True:
        path = Path(folder) / (name if number == 1 else f"{name}-{number}")
        if not path.exists():
            return path
        number += 1


class InUse(TrustChainError):
    """Another process works on the run: `owner`."""

    def __init__(self, path: Path, owner: str) -> None:
        super().__init__(f"{path} is in use by {owner}; wait for it, or stop it first")
        self.owner = owner


class RunDirectory:
    """Paths and durable writes of one run. Made with :func:`create` or :func:`open`."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self._lock: int | None = None

    @classmethod
    def create(cls, path: Path) -> "RunDirectory":
        """A new, empty run directory, locked for this process.

        Raises
        ------
        UsageError
            It exists and holds something.
        """
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UsageError(f"{path} exists already; go on with it by --resume {path}, or choose another --run")
        with explain_writes(path):
            (path / "rounds").mkdir(parents=True)
        run = cls(path)
        run.lock()
        return run

    @classmethod
    def open(cls, path: Path) -> "RunDirectory":
        """An existing run directory, locked for this process."""
        if not (path / "config.yaml").is_file():
            raise UsageError(f"{path} is not a run directory: it has no config.yaml")
        run = cls(path)
        run.lock()
        return run

    def lock(self) -> None:
        """Take the run for this process; the operating system gives it back when the process ends."""
        with explain_writes(self.path / ".lock"):
            handle = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = os.pread(handle, 20, 0).decode(errors="replace").strip()
            os.close(handle)
            raise InUse(self.path, f"process {owner or '?'}") from None
        with explain_writes(self.path / ".lock"):
            os.ftruncate(handle, 0)
            os.pwrite(handle, str(os.getpid()).encode(), 0)
        self._lock = handle

    def unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def round_folder(self, number: int) -> Path:
        return self.path / "rounds" / f"{number:04d}"

    def finished_rounds(self) -> list[int]:
        """Numbers of the rounds that were written whole, sorted."""
        folders = (p.parent.name for p in self.path.glob("rounds/[0-9][0-9][0-9][0-9]*/round.json"))
        return sorted(int(name) for name in folders if name.isdecimal())

    def write(self, name: str, data: bytes) -> None:
        """Write one file whole or not at all."""
        path = self.path / name
        with explain_writes(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, data)

    def write_json(self, name: str, value: Any) -> bytes:
        """Write canonical JSON (integers and strings only); returns its bytes."""
        data = canonical_json(value)
        self.write(name, data)
        return data

    def read_json(self, name: str) -> Any:
        """Read canonical JSON.

        Raises
        ------
        TrustChainError
            The file is missing or damaged.
        """
        try:
            return parse_canonical((self.path / name).read_bytes())
        except Exception as error:
            raise TrustChainError(f"{self.path / name} is missing or damaged: {error}") from None

    def append_metrics(self, row: dict[str, Any]) -> None:
        """One line of `metrics.jsonl`. Losing it to a crash loses no result."""
        with explain_writes(self.path), (self.path / "metrics.jsonl").open("a", encoding="utf-8") as out:
            out.write(json.dumps(row) + "\n")


@contextmanager
def explain_writes(path: Path) -> Iterator[None]:
    """Turn an operating-system error of a write into one clear message."""
    try:
        yield
    except (OSError, LedgerError) as error:
        cause = error if isinstance(error, OSError) else error.__context__  # of `write_atomic`
        if not isinstance(cause, OSError):
            raise
        if cause.errno in (errno.ENOSPC, errno.EDQUOT):
            raise TrustChainError(
                f"the disk is full: {path} was not written. Finished rounds are safe; free some space, "
                "then go on with --resume"
            ) from None
        raise TrustChainError(f"{path} cannot be written: {cause.strerror or cause}") from None
