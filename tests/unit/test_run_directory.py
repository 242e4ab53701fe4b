"""The run directory: one process at a time, and whole files or none."""

import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ledger.errors import LedgerError
from trustchain_ray.errors import TrustChainError, UsageError
from trustchain_ray.run_directory import RunDirectory, explain_writes, new_run

HOLD = """
import sys, time
from pathlib import Path
from trustchain_ray.run_directory import RunDirectory
run = RunDirectory.open(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDirectory]:
    made = RunDirectory.create(tmp_path / "runs" / "a")
    made.write("config.yaml", b"{}")
    yield made
    made.unlock()


def test_a_second_process_is_told_who_holds_it_and_gets_it_when_that_one_dies(run: RunDirectory):
    run.unlock()
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(run.path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(TrustChainError, match=rf"{run.path} is in use by process {holder.pid};"):
            RunDirectory.open(run.path)
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        RunDirectory.open(run.path).unlock()
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()


def test_the_same_process_cannot_take_it_twice(run: RunDirectory):
    with pytest.raises(TrustChainError, match=f"in use by process {os.getpid()}"):
        RunDirectory.open(run.path)
    run.unlock()
    run.unlock()
    RunDirectory.open(run.path).unlock()


def test_a_new_run_needs_an_empty_folder(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    RunDirectory.create(tmp_path / "empty").unlock()
    (tmp_path / "file").touch()
    for taken in ("empty", "file"):
        with pytest.raises(UsageError, match=f"{taken} exists already; go on with it by --resume"):
            RunDirectory.create(tmp_path / taken)
    with pytest.raises(TrustChainError, match="cannot be written: Not a directory"):
        RunDirectory.create(tmp_path / "file" / "below")


def test_a_folder_without_a_configuration_is_no_run(tmp_path: Path):
    with pytest.raises(UsageError, match=r"is not a run directory: it has no config\.yaml"):
        RunDirectory.open(tmp_path)


def test_new_runs_never_share_a_folder(tmp_path: Path):
    names = []
    for _ in range(3):
        path = new_run(str(tmp_path), "a")
        path.mkdir()
        names.append(path.name)
    assert names == ["a", "a-2", "a-3"]


def test_finished_rounds_are_those_with_a_round_file(run: RunDirectory):
    for name in ("0001", "0003", "0010", "12345", "0002.old", "0004-copy", "note"):
        run.write(f"rounds/{name}/round.json", b"{}")
    run.write("rounds/0011/all.safetensors", b"half")
    run.write("rounds/0000/frozen.safetensors", b"x")
    assert run.finished_rounds() == [1, 3, 10, 12345]
    assert run.round_folder(3) == run.path / "rounds" / "0003"


def test_json_comes_back_and_damage_is_named(run: RunDirectory):
    data = run.write_json("a/b.json", {"x": [1, "ü"], "a": None})
    assert run.read_json("a/b.json") == {"a": None, "x": [1, "ü"]}
    (run.path / "a" / "b.json").write_bytes(data[:-1])
    with pytest.raises(TrustChainError, match=r"b\.json is missing or damaged"):
        run.read_json("a/b.json")
    with pytest.raises(TrustChainError, match=r"nowhere\.json is missing or damaged"):
        run.read_json("nowhere.json")


def test_other_errors_pass_through():
    with pytest.raises(LedgerError, match="floats are refused"), explain_writes(Path("x")):
        raise LedgerError("floats are refused")


def test_a_write_that_fails_leaves_the_old_file_and_no_other(run: RunDirectory):
    """The operating system itself refuses the bytes: no file may grow beyond 64 KiB."""
    run.write("a.json", b"old")
    before = sorted(path.name for path in run.path.iterdir())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, hard))
    try:
        with pytest.raises(TrustChainError, match=r"a\.json cannot be written: File too large"):
            run.write("a.json", b"x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert (run.path / "a.json").read_bytes() == b"old"
    assert sorted(path.name for path in run.path.iterdir()) == before


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount, umount = shutil.which("mount"), shutil.which("umount")
    command = [mount or "mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if not mount or not umount or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a small file system cannot be mounted here")
    yield disk
    subprocess.run([umount, "-l", str(disk)], check=True)


def test_a_full_disk_is_called_that(small_disk: Path):
    run = RunDirectory.create(small_disk / "run")
    run.write("rounds/0001/round.json", b"{}")
    with pytest.raises(
        TrustChainError, match=r"the disk is full: .*all\.bin was not written\. Finished rounds are safe"
    ):
        run.write("rounds/0002/all.bin", b"x" * 1_000_000)
    assert run.finished_rounds() == [1]
    assert list(run.round_folder(2).iterdir()) == []
    (run.path / "filler").write_bytes(b"x" * (os.statvfs(run.path).f_bavail * os.statvfs(run.path).f_frsize))
    with pytest.raises(TrustChainError, match="the disk is full"):
        run.append_metrics({"note": "y" * 200_000})
    run.unlock()


def test_no_space_left_has_the_same_message():
    """/dev/full answers every write with ENOSPC, where no disk can be mounted."""
    path = Path("/dev/full")
    if not path.exists():
        pytest.skip("no /dev/full here")
    with (
        pytest.raises(TrustChainError, match="the disk is full: /dev/full was not written"),
        explain_writes(path),
    ):
        path.write_bytes(b"x")
