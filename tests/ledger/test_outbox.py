import os
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.errors import LedgerError
from ledger.journal import Journal, encode_line, parse_lines
from ledger.outbox import Outbox

payloads = st.lists(st.binary(max_size=30).filter(lambda data: b"\n" not in data), max_size=6)


def envelopes(first, count):
    return [{"number": n, "text": "ü\n" * (n % 3)} for n in range(first, first + count)]


def test_what_was_put_is_there_again(tmp_path):
    path = tmp_path / "outbox.log"
    outbox = Outbox(path)
    outbox.put(envelopes(0, 3))
    outbox.put([])
    outbox.put(envelopes(3, 2))
    outbox.mark_done(2)
    outbox.close()
    outbox = Outbox(path)
    assert outbox.pending() == envelopes(2, 3)
    outbox.mark_done(3)
    assert outbox.pending() == []
    assert path.stat().st_size == 0
    outbox.put(envelopes(7, 1))
    outbox.close()
    assert Outbox(path).pending() == envelopes(7, 1)


def test_more_than_pending_cannot_be_done(tmp_path):
    outbox = Outbox(tmp_path / "outbox.log")
    outbox.put(envelopes(0, 1))
    for count in (2, -1):
        with pytest.raises(LedgerError, match="1 pending"):
            outbox.mark_done(count)


def test_one_process_at_a_time(tmp_path):
    outbox = Outbox(tmp_path / "outbox.log")
    with pytest.raises(LedgerError, match="in use"):
        Outbox(tmp_path / "outbox.log")
    outbox.close()
    Outbox(tmp_path / "outbox.log").close()


@pytest.mark.slow
def test_a_batch_is_there_whole_or_not_at_all(tmp_path):
    path = tmp_path / "outbox.log"
    outbox = Outbox(path)
    outbox.put(envelopes(0, 2))
    whole = path.stat().st_size
    outbox.put(envelopes(2, 3))
    outbox.close()
    data = path.read_bytes()
    for end in range(whole, len(data)):
        path.write_bytes(data[:end])
        outbox = Outbox(path)
        assert outbox.pending() == envelopes(0, 2)
        assert path.stat().st_size == whole
        outbox.put(envelopes(9, 1))  # the cut tail does not spoil what comes after
        outbox.close()
        outbox = Outbox(path)
        assert outbox.pending() == envelopes(0, 2) + envelopes(9, 1)
        outbox.close()


def test_damage_before_the_end_is_not_taken_for_a_torn_tail(tmp_path):
    path = tmp_path / "outbox.log"
    outbox = Outbox(path)
    outbox.put(envelopes(0, 2))
    outbox.put(envelopes(2, 2))
    outbox.close()
    data = bytearray(path.read_bytes())
    data[30] ^= 1
    path.write_bytes(data)
    with pytest.raises(LedgerError, match=r"outbox.log: record 1 is damaged"):
        Outbox(path)


def test_a_full_disk_keeps_nothing_of_the_batch(tmp_path, monkeypatch):
    path = tmp_path / "outbox.log"
    outbox = Outbox(path)
    outbox.put(envelopes(0, 1))
    real = os.pwrite
    room = 10

    def nearly_full(descriptor, data, offset):
        nonlocal room
        if room <= 0:
            raise OSError(28, "No space left on device")
        written = real(descriptor, bytes(data)[:room], offset)
        room -= written
        return written

    monkeypatch.setattr(os, "pwrite", nearly_full)
    with pytest.raises(LedgerError, match="No space left on device; nothing was added"):
        outbox.put(envelopes(1, 5))
    monkeypatch.undo()
    assert outbox.pending() == envelopes(0, 1)
    outbox.put(envelopes(8, 1))
    outbox.close()
    assert Outbox(path).pending() == envelopes(0, 1) + envelopes(8, 1)


@given(payloads, st.binary(max_size=40))
def test_journal_lines_come_back_and_garbage_behind_them_is_cut(records, garbage):
    data = b"".join(encode_line(record) for record in records)
    assert parse_lines(data, "j") == (records, len(data))
    found, used = parse_lines(data + b"garbage" + garbage, "j")
    assert (found, used) == (records, len(data))


def test_journal_cuts_and_tells(tmp_path):
    path = tmp_path / "journal"
    journal = Journal(path)
    journal.append([b"one", b"two"])
    journal.close()
    path.write_bytes(path.read_bytes() + b"7 0123")
    journal = Journal(path)
    assert journal.records == [b"one", b"two"]
    assert journal.cut == 6
    journal.close()


@pytest.mark.slow
def test_killed_at_every_write(tmp_path, killed_after):
    acked = tmp_path / "acked"

    def work():
        outbox = Outbox(tmp_path / "box" / "outbox.log")
        outbox.put(envelopes(0, 3))
        acked.write_text("3")
        outbox.mark_done(1)
        outbox.put(envelopes(3, 2))
        acked.write_text("5")
        outbox.mark_done(4)
        acked.write_text("done")

    step, died = 0, True
    while died:
        (tmp_path / "box" / "outbox.log").unlink(missing_ok=True)
        acked.write_text("0")
        died = killed_after(work, step)
        outbox = Outbox(tmp_path / "box" / "outbox.log")
        numbers = [envelope["number"] for envelope in outbox.pending()]
        outbox.close()
        said = acked.read_text()
        assert numbers == list(range(numbers[0], numbers[-1] + 1)) if numbers else said in ("0", "5", "done")
        if said == "3":
            assert numbers[-1] in (2, 4)
        if said == "5":
            assert not numbers or numbers[-1] == 4
        step += 1
    assert step > 8


WRITER = """
import sys
from ledger.outbox import Outbox
outbox = Outbox(sys.argv[1])
number = int(sys.argv[2])
while True:
    outbox.put([{"number": number}, {"number": number + 1, "pad": "x" * 5000}])
    print(number + 1, flush=True)
    number += 2
"""


@pytest.mark.slow
def test_killed_at_random_times(tmp_path):
    path = tmp_path / "outbox.log"
    expected = -1
    for attempt in range(6):
        command = [sys.executable, "-c", WRITER, str(path), str(expected + 1)]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        last = int(child.stdout.readline())
        time.sleep(0.01 + 0.013 * attempt)
        child.kill()
        for line in child.stdout:
            if line.endswith("\n"):
                last = int(line)
        child.wait()
        outbox = Outbox(path)
        numbers = [envelope["number"] for envelope in outbox.pending()]
        outbox.close()
        assert numbers == list(range(len(numbers)))
        assert numbers[-1] >= last  # nothing that was acknowledged is lost
        expected = numbers[-1]
