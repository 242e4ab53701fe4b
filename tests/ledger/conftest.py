"""Fixtures shared by the ledger's tests."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_run import FakeRun, whole_run

from ledger.log import SqliteLog


@pytest.fixture(scope="session")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> FakeRun:
    """A finished run; tests copy it before they change anything."""
    base = tmp_path_factory.mktemp("sealed")
    return whole_run(base / "run", base / "keys")


@pytest.fixture
def run_dir(sealed: FakeRun, tmp_path: Path) -> Path:
    """A fresh copy of the finished run."""
    return Path(shutil.copytree(sealed.dir, tmp_path / "run"))


@pytest.fixture
def killed_after() -> Callable[[Callable[[], None], int], bool]:
    """Run something in a forked process that dies just before its n-th write to a disk.

    Returns whether it died: False means that it came to its end first. Writes are fsync, pwrite, replace,
    link, unlink and ftruncate, and a transaction of the log.
    """

    def fork(action: Callable[[], None], step: int) -> bool:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                die_before(step)
                action()
                status = 0
            finally:
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert status in (0, DIED), f"the child failed by itself: {status}"
        return status == DIED

    return fork


DIED = 77


def die_before(step: int) -> None:
    """Let this process die just before its n-th durable write from now on."""
    count = 0

    def wrap(owner: object, name: str) -> None:
        real = getattr(owner, name)

        def call(*args: object, **kwargs: object) -> object:
            nonlocal count
            if count == step:
                if name == "pwrite":  # the worst case: half of the bytes arrive
                    real(args[0], bytes(args[1])[: len(bytes(args[1])) // 2], args[2])
                os._exit(DIED)
            count += 1
            return real(*args, **kwargs)

        setattr(owner, name, call)

    for name in ("fsync", "pwrite", "replace", "link", "unlink", "ftruncate"):
        wrap(os, name)
    wrap(SqliteLog, "append")
