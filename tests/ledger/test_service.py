import base64
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from fake_run import RUN, FakeRun

from ledger import checkpoint, merkle
from ledger import events as ev
from ledger.canonical import canonical_json, parse_canonical
from ledger.embedded import EmbeddedEvm
from ledger.errors import LedgerError, Unavailable
from ledger.identity import load_or_create
from ledger.log import SqliteLog
from ledger.service import LedgerService
from ledger.verify import verify_run


@pytest.fixture
def run(tmp_path):
    run = FakeRun(tmp_path / "run", tmp_path / "keys")
    run.open(anchored=False)
    yield run
    run.service.close()


def contents(run_dir):
    """(organization, key) of every event in the log, in order."""
    log = SqliteLog(run_dir / "ledger" / "log.sqlite", read_only=True)
    events = [ev.read_event(envelope, log.keys()) for _, envelope in log.events()]
    log.close()
    return [(event.organization, event.key) for event in events]


def slots(envelopes):
    payloads = [parse_canonical(base64.b64decode(envelope["payload"])) for envelope in envelopes]
    return [(payload["organization"], payload["key"]) for payload in payloads]


def test_events_go_through_the_outbox_into_the_log(run):
    envelopes = run.opening() + run.round(1)
    assert run.service.submit(envelopes) == []
    assert run.service.status()["size"] == 0
    assert run.service.status()["pending"] == len(envelopes)
    assert run.service.pump(5) == 5
    assert run.service.pump(1000) == len(envelopes) - 5
    assert run.service.pump() == 0
    status = run.service.status()
    assert (status["size"], status["pending"], status["anchors"]) == (len(envelopes), 0, 0)
    assert contents(run.dir) == slots(envelopes)


def test_invalid_events_are_returned_and_hold_nothing_up(run, tmp_path):
    run.submit(run.opening())
    bank, clinic = run.identities["bank"], run.identities["clinic"]
    stranger = load_or_create("stranger", tmp_path / "elsewhere")
    impostor = load_or_create("bank", tmp_path / "elsewhere")
    body = {"round": 1, "effort": "1"}
    forged = ev.make_event(bank, RUN, ev.DECISION, body)
    forged["payload"] = ev.make_event(clinic, RUN, ev.DECISION, body)["payload"]
    good = [
        ev.make_event(bank, RUN, ev.DECISION, body, key="k"),
        ev.make_event(clinic, RUN, ev.DECISION, body),
    ]
    batch = [
        forged,
        good[0],
        ev.make_event(stranger, RUN, ev.DECISION, body),
        ev.make_event(bank, RUN, ev.DECISION, {**body, "effort": "0"}, key="k"),
        ev.make_event(impostor, RUN, ev.DECISION, body),
        ev.make_event(bank, "another run", ev.DECISION, body),
        {"payload": "?"},
        "nonsense",
        good[1],
    ]
    refused = run.service.submit(batch)
    assert [item.index for item in refused] == [0, 2, 3, 4, 5, 6, 7]
    reasons = [item.reason for item in refused]
    for reason, part in zip(
        reasons,
        (
            "does not hold",
            "not registered",
            "other content",
            "not registered",
            "another run",
            "envelope",
            "envelope",
        ),
        strict=True,
    ):
        assert part in reason
    assert run.service.pump() == 2
    # the key stays taken once the event is in the log
    again = run.service.submit([batch[3], good[0]])
    assert [item.index for item in again] == [0]
    assert run.service.status()["pending"] == 0


def test_two_organizations_cannot_claim_one_key(run):
    run.submit(run.opening())
    bank = run.identities["bank"]
    twin = type(bank)("twin", bank._private)
    refused = run.service.submit([run.register(twin)])
    assert "registered by bank" in refused[0].reason


def test_pending_events_survive_closing(run):
    envelopes = run.opening() + run.round(1)
    run.service.submit(envelopes)
    run.service.pump(3)
    run.service.close()
    assert run.service.status()["pending"] == len(envelopes) - 3
    with pytest.raises(LedgerError, match="closed"):
        run.service.submit([])
    run.open(anchored=False)
    assert run.service.submit(envelopes) == []  # known ones are not kept twice
    run.service.pump()
    assert contents(run.dir) == slots(envelopes)


def test_anchors_come_by_themselves_every_so_many_rounds(tmp_path):
    run = FakeRun(tmp_path / "run", tmp_path / "keys")
    run.open(anchor_every=2)
    run.submit(run.opening())
    sizes = []
    for round_ in range(1, 6):
        run.submit(run.round(round_))
        sizes.append(run.service.status()["anchors"])
    assert sizes == [0, 1, 1, 2, 2]
    run.service.close()
    run.open(anchor_every=2)  # the rounds since the last anchor are counted again
    run.submit(run.round(6))
    status = run.service.status()
    assert (status["anchors"], status["anchor"]["seq"], status["anchor"]["size"]) == (3, 3, status["size"])
    assert status["anchor"]["root"] == status["root"]
    assert run.service.sign_head().seq == 3  # nothing new: no further head
    run.service.close()
    assert verify_run(run.dir).ok


@pytest.mark.slow
def test_a_chain_that_is_down_holds_nothing_up_and_its_backlog_drains_in_order(tmp_path, monkeypatch):
    run = FakeRun(tmp_path / "run", tmp_path / "keys")
    run.open()
    run.submit(run.opening())
    anchored = []
    anchor = EmbeddedEvm.anchor

    def refuse(*arguments):
        raise Unavailable("the node is down")

    monkeypatch.setattr(EmbeddedEvm, "anchor", refuse)
    for round_ in (1, 2, 3):
        assert run.service.submit(run.round(round_)) == []
        run.service.pump()
    assert not run.service.drain(patience_s=0.0)
    status = run.service.status()
    assert (status["pending"], status["heads"], status["anchors"]) == (0, 3, 0)
    assert status["public"] == {"backlog": 3, "error": "the node is down", "refused": False}
    assert not run.service.public.step()  # it waits before it tries again
    monkeypatch.setattr(EmbeddedEvm, "anchor", lambda *a: anchored.append(a[3]) or anchor(*a))
    assert run.service.drain()
    assert anchored == [1, 2, 3]
    status = run.service.status()
    assert (status["anchors"], status["public"]["error"], status["public"]["finalized"]) == (3, None, 3)
    run.service.close()
    assert verify_run(run.dir).ok


def test_a_run_is_sealed_though_a_chain_refuses_and_is_drained_later(tmp_path, monkeypatch):
    run = FakeRun(tmp_path / "run", tmp_path / "keys")
    run.open()
    with monkeypatch.context() as patch:

        def refuse(*arguments):
            raise LedgerError("the account is empty")

        patch.setattr(EmbeddedEvm, "anchor", refuse)
        run.service.submit(run.opening() + run.round(1) + run.complete(1))
        run.service.seal()
    status = run.service.status()
    assert status["sealed"]
    assert status["public"] == {"backlog": 1, "error": "the account is empty", "refused": True}
    assert verify_run(run.dir).ok
    run.open()
    run.service.seal()
    assert run.service.status()["anchor"]["status"] == "FINALIZED"
    assert verify_run(run.dir).ok


def test_a_receipt_that_was_not_written_down_is_found_on_the_chain(tmp_path, monkeypatch):
    run = FakeRun(tmp_path / "run", tmp_path / "keys")
    run.open()
    run.submit(run.opening() + run.round(1))

    def full(*arguments):
        raise LedgerError("no space left")

    run.service.submit(run.round(2))
    run.service.pump()
    monkeypatch.setattr(run.service, "note_receipts", full)  # the chain has the anchor, the file does not
    assert not run.service.drain(patience_s=0.0)
    run.service.close()
    assert verify_run(run.dir).ok  # the run is not finished
    run.open()
    assert run.service.status()["anchor"]["seq"] == 2
    run.submit(run.round(3))
    run.service.close()
    assert verify_run(run.dir).ok


def test_stores_that_do_not_belong_together_are_refused(tmp_path):
    run = FakeRun(tmp_path / "run", tmp_path / "keys")
    run.open()
    run.submit(run.opening() + run.round(1))
    run.service.close()
    chain = EmbeddedEvm(run.dir / "ledger" / "chain")
    head = chain.head()
    chain.anchor(bytes(32), head.size + 1, head.seq + 1, head.root)
    chain.close()
    with pytest.raises(LedgerError, match="has 2 anchors, this run signed 1 heads"):
        run.open()
    run.service.close()
    shutil.rmtree(run.dir / "ledger" / "chain")
    with pytest.raises(LedgerError, match="anchor 1 was final and is gone"):
        run.open()
    run.service.close()
    other = FakeRun(tmp_path / "other", tmp_path / "keys")
    other.open()
    other.submit(other.opening() + other.round(1))
    other.service.close()
    shutil.copytree(other.dir / "ledger" / "chain", run.dir / "ledger" / "chain", dirs_exist_ok=True)
    with pytest.raises(LedgerError, match="anchor 1 is not this run's"):
        run.open()
    run.service.close()
    shutil.copy(other.dir / "ledger" / "anchors.json", run.dir / "ledger" / "anchors.json")
    with pytest.raises(LedgerError, match="tree head 1 is not of this log"):
        run.open()


def test_heads_are_cosigned_by_registered_organizations_only(run, tmp_path):
    run.submit(run.opening())
    assert run.service.newest_checkpoint() is None
    head = run.service.sign_head()
    note = run.service.newest_checkpoint()
    bank = checkpoint.cosign(run.identities["bank"], note)
    stranger = checkpoint.cosign(load_or_create("stranger", tmp_path / "elsewhere"), note)
    impostor = checkpoint.cosign(load_or_create("clinic", tmp_path / "elsewhere"), note)
    refused = run.service.cosign(head.seq, [stranger, impostor, bank, "nonsense"])
    assert len(refused) == 3
    assert run.service.status()["cosigners"] == ["bank"]
    assert run.service.cosign(head.seq, [bank]) == []
    with pytest.raises(LedgerError, match="no head 2"):
        run.service.cosign(2, [bank])
    run.service.close()
    run.open(anchored=False)
    assert run.service.status()["cosigners"] == ["bank"]
    assert run.service.signed_heads()[0][0].cosigners.keys() == {"bank"}


def test_the_seal_closes_and_opening_takes_it_off(sealed, tmp_path):
    run_dir = Path(shutil.copytree(sealed.dir, tmp_path / "run"))
    assert sealed.service.status()["sealed"]
    with pytest.raises(LedgerError, match="closed"):
        sealed.service.pump()
    assert not (run_dir / "ledger" / "outbox.log").exists()
    with pytest.raises(LedgerError, match="belongs to run"):
        LedgerService(run_dir, "another run", sealed.coordinator)
    assert verify_run(run_dir).ok
    chain = EmbeddedEvm(run_dir / "ledger" / "chain")
    service = LedgerService(run_dir, RUN, sealed.coordinator, chain)
    assert not (run_dir / "ledger" / "seal.json").exists()
    service.close()
    report = verify_run(run_dir)
    assert report.failure is not None
    assert report.failure.file == "ledger/seal.json"
    service = LedgerService(run_dir, RUN, sealed.coordinator, EmbeddedEvm(run_dir / "ledger" / "chain"))
    (run_dir / "notes.txt").write_text("vouched for, too")
    with pytest.raises(LedgerError, match=r"nothing\.txt: is missing"):
        service.seal(["nothing.txt"])
    service.seal(["notes.txt"])
    assert verify_run(run_dir).ok
    (run_dir / "notes.txt").write_text("vouched for, toO")
    report = verify_run(run_dir)
    assert report.failure is not None
    assert report.failure.file == "notes.txt"


def test_one_service_at_a_time(run):
    with pytest.raises(LedgerError, match=f"in use by process {os.getpid()}"):
        LedgerService(run.dir, RUN, run.coordinator)
    with pytest.raises(LedgerError, match="coordinator's is needed"):
        LedgerService(run.dir, RUN, run.identities["bank"])


def small_run(run_dir, keys_dir, acked):
    """A run of one round with two anchors, as it goes and as it goes on after a crash."""
    run = FakeRun(run_dir, keys_dir)
    run.open()
    for envelopes in (run.opening(), run.round(1), run.complete(1)):
        assert run.service.submit(envelopes) == []
        with acked.open("ab") as file:
            file.write(b"".join(canonical_json(list(slot)) + b"\n" for slot in slots(envelopes)))
        run.service.pump(4)
        run.service.drain()
    run.service.seal()


@pytest.mark.slow
@pytest.mark.parametrize("stride", [3, pytest.param(1, marks=pytest.mark.long)])
def test_killed_before_every_single_write(tmp_path, killed_after, stride):
    pytest.importorskip("ledger.evm")  # imported once here, not in every child
    run_dir, keys_dir, acked = tmp_path / "run", tmp_path / "keys", tmp_path / "acked"
    for name in ("coordinator", "bank", "clinic"):
        load_or_create(name, keys_dir)
    small_run(tmp_path / "undisturbed", keys_dir, tmp_path / "all")
    everything = contents(tmp_path / "undisturbed")

    step, died = 0, True
    while died:
        shutil.rmtree(run_dir, ignore_errors=True)
        acked.write_bytes(b"")
        died = killed_after(lambda: small_run(run_dir, keys_dir, acked), step)
        if (run_dir / "ledger").exists():
            # opened alone, the service brings what it had accepted into the log
            service = LedgerService(run_dir, RUN, load_or_create("coordinator", keys_dir), anchor_every=0)
            while service.pump():
                pass
            service.close()
            said = [tuple(parse_canonical(line)) for line in acked.read_bytes().splitlines()]
            assert contents(run_dir)[: len(said)] == said, f"lost after {step} writes"
        small_run(run_dir, keys_dir, acked)
        assert contents(run_dir) == everything, f"after {step} writes"
        report = verify_run(run_dir)
        assert report.ok, f"after {step} writes: {report.failure}"
        step += stride
    assert step > 25


LOOP = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from fake_run import FakeRun
run = FakeRun(Path(sys.argv[2]), Path(sys.argv[3]))
run.open()
run.service.submit(run.opening())
print("open", flush=True)
for number in range(int(sys.argv[4]), 10_000):
    run.service.submit([run.event("bank", "DECISION", {"round": number, "effort": "1"})])
    print(number, flush=True)
    run.service.pump(3)
    if number % 5 == 0:
        run.service.sign_head()
        run.service.drain()
"""


@pytest.mark.slow
def test_killed_at_random_times(tmp_path):
    run_dir, keys_dir = tmp_path / "run", tmp_path / "keys"
    last = -1
    for attempt in range(3):
        here = str(Path(__file__).parent)
        command = [sys.executable, "-c", LOOP, here, str(run_dir), str(keys_dir), str(last + 1)]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        assert child.stdout.readline() == "open\n"
        time.sleep(0.05 + 0.17 * attempt)
        child.kill()
        last = max([last, *(int(line) for line in child.stdout if line.endswith("\n"))])
        child.wait()
    run = FakeRun(run_dir, keys_dir)
    service = run.open()
    while service.pump():
        pass
    service.close()
    found = Counter(contents(run_dir))
    assert set(found.values()) == {1}
    log = SqliteLog(run_dir / "ledger" / "log.sqlite", read_only=True)
    rounds = [ev.read_event(e, log.keys()).round for _, e in log.events(ev.DECISION)]
    assert rounds == list(range(len(rounds)))
    assert len(rounds) > last
    tree = merkle.MerkleLog()
    for index in range(log.size):
        tree.append(merkle.leaf_hash(log.leaf(index)))
    assert tree.root() == log.root()
    log.close()
    assert verify_run(run_dir).ok
