"""The writer of rounds: in order, whole, and loud when it fails."""

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from trustchain_ray.adapter import Tensors, digest, load_tensors
from trustchain_ray.errors import TrustChainError
from trustchain_ray.round_writer import FinishedRound, RoundWriter, adapter_file
from trustchain_ray.run_directory import RunDirectory

AdapterOf = Callable[..., Tensors]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDirectory]:
    made = RunDirectory.create(tmp_path / "run")
    yield made
    made.unlock()


@pytest.fixture
def round_of(adapter_of: AdapterOf) -> Callable[[int], FinishedRound]:
    def make(number: int) -> FinishedRound:
        states = {cohort: adapter_of(number * 10 + i) for i, cohort in enumerate(("east", "north"))}
        digests = {cohort: digest(state) for cohort, state in states.items()}
        return FinishedRound(number, states, digests, [{"event": str(number)}], {"loss": number / 2})

    return make


RoundOf = Callable[[int], FinishedRound]


def put_all(writer: RoundWriter, rounds: list[FinishedRound]) -> None:
    for finished in rounds:
        writer.put(finished)


def test_rounds_are_written_whole_and_in_order(run: RunDirectory, round_of: RoundOf):
    submitted: list[int] = []

    def submit(finished: FinishedRound, data: bytes) -> None:
        assert (run.round_folder(finished.number) / "round.json").read_bytes() == data, "the log comes after the disk"
        submitted.append(finished.number)

    writer = RoundWriter(run, 0, submit)
    for number in range(1, 6):
        writer.put(round_of(number))
    writer.close()
    writer.close()
    assert submitted == run.finished_rounds() == [1, 2, 3, 4, 5]
    for number in submitted:
        content = run.read_json(f"rounds/{number:04d}/round.json")
        assert (content["round"], content["events"]) == (number, [{"event": str(number)}])
        for cohort, expected in content["adapters"].items():
            assert digest(load_tensors(run.path / adapter_file(number, cohort))) == expected
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert rows == [{"round": n, "loss": n / 2} for n in submitted]


@pytest.mark.parametrize("report", ["put", "close"])
def test_a_failure_is_reported_and_nothing_comes_after_it(run: RunDirectory, round_of: RoundOf, report: str):
    (run.path / "rounds" / "0002").write_bytes(b"in the way")
    submitted: list[int] = []
    writer = RoundWriter(run, 0, lambda finished, _: submitted.append(finished.number))
    writer.put(round_of(1))
    writer.put(round_of(2))
    if report == "put":
        with pytest.raises(TrustChainError, match=r"0002.*cannot be written: (Not a directory|File exists)"):
            put_all(writer, [round_of(number) for number in range(3, 20)])
    with pytest.raises(TrustChainError, match=r"0002.*cannot be written"):
        writer.close()
    assert not writer.thread.is_alive()
    assert submitted == run.finished_rounds() == [1]


def test_a_round_whose_last_file_fails_is_not_finished(run: RunDirectory, round_of: RoundOf):
    (run.path / "rounds" / "0001" / "round.json").mkdir(parents=True)
    writer = RoundWriter(run, 0, lambda *_: None)
    writer.put(round_of(1))
    with pytest.raises(TrustChainError, match=r"round\.json cannot be written: Is a directory"):
        writer.close()
    (run.path / "rounds" / "0001" / "round.json").rmdir()
    assert run.finished_rounds() == []
    assert (run.path / adapter_file(1, "north")).is_file()


def test_a_log_that_fails_is_reported(run: RunDirectory, round_of: RoundOf):
    def submit(finished: FinishedRound, data: bytes) -> None:
        raise RuntimeError("the ledger is gone")

    writer = RoundWriter(run, 0, submit)
    writer.put(round_of(1))
    with pytest.raises(RuntimeError, match="the ledger is gone"):
        writer.close()
    assert run.finished_rounds() == [1], "the round itself is safe"


def test_only_the_last_adapters_are_kept(run: RunDirectory, round_of: RoundOf):
    run.write("rounds/0000/frozen.safetensors", b"frozen")
    writer = RoundWriter(run, 2, lambda *_: None)
    for number in range(1, 6):
        writer.put(round_of(number))
    writer.close()
    assert run.finished_rounds() == [1, 2, 3, 4, 5]
    kept = sorted(str(path.relative_to(run.path / "rounds")) for path in run.path.glob("rounds/*/*.safetensors"))
    assert kept == [
        "0000/frozen.safetensors",
        *(f"000{n}/{c}.safetensors" for n in (4, 5) for c in ("east", "north")),
    ]


def test_adapters_that_a_crash_left_behind_go_too(run: RunDirectory, round_of: RoundOf):
    before = RoundWriter(run, 0, lambda *_: None)
    for number in (1, 2, 3):
        before.put(round_of(number))
    before.close()
    after = RoundWriter(run, 1, lambda *_: None)
    after.put(round_of(4))
    after.close()
    assert {path.parent.name for path in run.path.glob("rounds/*/*.safetensors")} == {"0004"}


def test_put_waits_for_a_slow_disk_instead_of_piling_up_rounds(run: RunDirectory, round_of: RoundOf):
    gate = threading.Event()
    writer = RoundWriter(run, 0, lambda *_: (gate.wait(10), None)[1])
    blocked = threading.Thread(target=lambda: [writer.put(round_of(n)) for n in range(1, 7)])
    blocked.start()
    blocked.join(0.3)
    assert blocked.is_alive()
    gate.set()
    blocked.join(10)
    writer.close()
    assert run.finished_rounds() == [1, 2, 3, 4, 5, 6]
