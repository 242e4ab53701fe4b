"""Witnesses: a coordinator that shows two histories is refused, and convicted by its own signatures."""

import json
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger import checkpoint
from ledger.errors import LedgerError
from ledger.identity import Identity, load_or_create
from ledger.merkle import MerkleLog, consistency_roots, leaf_hash, verify_consistency
from ledger.witness import NotConsistent, SplitView, Stale, Witness, compare, is_split_view

RUN = "small"


class Coordinator:
    """Signs any history it is asked to."""

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self.key = identity.public_hex

    def note(self, log: MerkleLog, size: int | None = None, run: str = RUN) -> str:
        size = log.size if size is None else size
        return checkpoint.sign(self.identity, run, size, log.root(size))


def history(count: int, *, forked_at: int | None = None) -> MerkleLog:
    """A log of ``count`` leaves; from ``forked_at`` on they are others."""
    log = MerkleLog()
    for number in range(count):
        side = b"b" if forked_at is not None and number >= forked_at else b"a"
        log.append(leaf_hash(side + number.to_bytes(4, "big")))
    return log


def full_proof(log: MerkleLog, size: int) -> list[bytes]:
    """A consistency proof as a coordinator gives it that wants to be believed: with the root of a complete old tree."""
    proof = log.consistency_proof(size)
    return [log.root(size), *proof] if size & (size - 1) == 0 and 0 < size < log.size else proof


@pytest.fixture
def coordinator(tmp_path):
    return Coordinator(load_or_create("coordinator", tmp_path / "keys"))


@pytest.fixture
def bank(tmp_path):
    return Witness(load_or_create("bank", tmp_path / "keys"), tmp_path / "bank")


@pytest.fixture
def clinic(tmp_path):
    return Witness(load_or_create("clinic", tmp_path / "keys"), tmp_path / "clinic")


def test_a_log_that_grows_is_cosigned_every_time(coordinator, bank, clinic):
    log = history(20)
    note, last = "", 0
    for size in (1, 2, 2, 7, 8, 16, 20):
        note = coordinator.note(log, size)
        for witness in (bank, clinic):
            proof = log.consistency_proof(last, size)
            note = checkpoint.add(note, witness.cosign(RUN, coordinator.key, note, proof))
        keys = {w.identity.name: w.identity.public_hex for w in (bank, clinic)}
        assert set(checkpoint.read(note, RUN, coordinator.key, keys).cosigners) == {"bank", "clinic"}
        last = size
    assert bank.latest(RUN).size == 20


def test_what_was_cosigned_survives_a_restart(coordinator, bank, tmp_path):
    log = history(9)
    bank.cosign(RUN, coordinator.key, coordinator.note(log, 6))
    again = Witness(bank.identity, tmp_path / "bank")
    assert (again.latest(RUN).size, again.latest(RUN).root) == (6, log.root(6))
    with pytest.raises(Stale) as stale:
        again.cosign(RUN, coordinator.key, coordinator.note(log, 5))
    assert stale.value.size == 6
    again.cosign(RUN, coordinator.key, coordinator.note(log), log.consistency_proof(6))


@pytest.mark.slow
def test_the_checkpoint_is_on_the_disk_before_the_signature_leaves(coordinator, tmp_path, killed_after):
    """Killed anywhere: either no signature left, or the witness knows what it signed."""
    log, other = history(6), history(6, forked_at=2)
    identity = load_or_create("bank", tmp_path / "keys")
    out = tmp_path / "signature"

    def cosign() -> None:
        out.write_text(Witness(identity, tmp_path / "state").cosign(RUN, coordinator.key, coordinator.note(log)))

    step = 0
    while killed_after(cosign, step):
        step += 1
        witness = Witness(identity, tmp_path / "state")
        if out.exists():
            assert witness.latest(RUN).root == log.root()
    assert step >= 2
    with pytest.raises(SplitView):
        Witness(identity, tmp_path / "state").cosign(RUN, coordinator.key, coordinator.note(other))


@pytest.mark.parametrize(("first", "second"), [(a, b) for b in (4, 8, 11) for a in range(1, b + 1)])
def test_two_histories_one_after_the_other(coordinator, bank, tmp_path, first, second):
    """The same witness: no cosignature, and evidence that convicts the coordinator."""
    honest, forged = history(first), history(second, forked_at=first - 1)
    bank.cosign(RUN, coordinator.key, coordinator.note(honest))
    proof = full_proof(forged, first)
    with pytest.raises(SplitView, match="signed two histories"):
        bank.cosign(RUN, coordinator.key, coordinator.note(forged), proof)
    assert bank.latest(RUN).root == honest.root()
    evidence = json.loads((tmp_path / "bank" / f"split-view-{RUN}.json").read_bytes())
    assert is_split_view(evidence, coordinator.key)


def test_two_histories_to_two_witnesses(coordinator, bank, clinic):
    """Each sees one and cosigns; when they compare, the coordinator's own signatures convict it."""
    honest, forged = history(6), history(9, forked_at=3)
    notes = []
    for witness, log in ((bank, honest), (clinic, forged)):
        note = coordinator.note(log)
        notes.append(checkpoint.add(note, witness.cosign(RUN, coordinator.key, note)))
    for first, second in (notes, notes[::-1]):
        with pytest.raises(SplitView) as split:
            compare(RUN, coordinator.key, first, second, forged.consistency_proof(6))
        assert is_split_view(split.value.evidence, coordinator.key)
        assert json.loads(json.dumps(split.value.evidence)) == split.value.evidence
    # a witness that hears of the other's checkpoint finds it out, too
    with pytest.raises(SplitView):
        bank.cosign(RUN, coordinator.key, notes[1], forged.consistency_proof(6))


def test_witnesses_that_saw_the_same_log_agree(coordinator):
    log = history(13)
    for old in range(14):
        for new in range(old, 14):
            proof = log.consistency_proof(old, new)
            compare(RUN, coordinator.key, coordinator.note(log, old), coordinator.note(log, new), proof)
            compare(RUN, coordinator.key, coordinator.note(log, new), coordinator.note(log, old), proof)


def test_a_bad_proof_accuses_nobody(coordinator, bank, tmp_path):
    """Anybody can send a true checkpoint with a false proof: it is refused, and is no evidence."""
    log = history(11)
    bank.cosign(RUN, coordinator.key, coordinator.note(log, 6))
    good = log.consistency_proof(6)
    note = coordinator.note(log)
    for proof in ([], good[:-1], [*good, bytes(32)], good[::-1], [bytes(32)] * len(good), [b"x", *good[1:]]):
        with pytest.raises(NotConsistent) as refused:
            bank.cosign(RUN, coordinator.key, note, proof)
        assert not isinstance(refused.value, SplitView)
        evidence = {
            "first": coordinator.note(log, 6), "proof": [d.hex() for d in proof], "run": RUN, "second": note,
        }  # fmt: skip
        assert not is_split_view(evidence, coordinator.key)
        assert not is_split_view(evidence | {"first": note, "second": evidence["first"]}, coordinator.key)
    assert list((tmp_path / "bank").glob("split-view*")) == []
    bank.cosign(RUN, coordinator.key, note, good)


@pytest.mark.slow
@given(st.data())
def test_no_proof_convicts_an_honest_log(data):
    """Whatever is put together of true and false hashes."""
    new = data.draw(st.integers(1, 24))
    old = data.draw(st.integers(0, new))
    log = history(new)
    coordinator = Coordinator(Identity("coordinator", _fixed_key()))
    hashes = [log.node(level, i) for level in range(4) for i in range(new >> level)] + [log.root(old), bytes(32)]
    proof = data.draw(st.lists(st.sampled_from(hashes), max_size=7))
    evidence = {
        "first": coordinator.note(log, old), "proof": [d.hex() for d in proof], "run": RUN,
        "second": coordinator.note(log),
    }  # fmt: skip
    assert not is_split_view(evidence, coordinator.key)


def _fixed_key():
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


def test_the_roots_of_a_proof_are_those_of_the_tree():
    for new in range(2, 40):
        log = history(new)
        for old in range(1, new):
            path = full_proof(log, old)
            assert consistency_roots(old, new, path) == (log.root(old), log.root())
            verify_consistency(old, log.root(old), new, log.root(), log.consistency_proof(old))
            for wrong in (path[:-1], [*path, bytes(32)]):
                with pytest.raises(LedgerError, match="do not lead"):
                    consistency_roots(old, new, wrong)


def test_the_first_checkpoint_takes_no_proof(coordinator, bank):
    log = history(4)
    with pytest.raises(NotConsistent, match="takes no proof"):
        bank.cosign(RUN, coordinator.key, coordinator.note(log), [bytes(32)])
    empty = checkpoint.sign(coordinator.identity, RUN, 0, bytes(32))
    with pytest.raises(NotConsistent):
        bank.cosign(RUN, coordinator.key, empty)
    assert bank.latest(RUN) is None
    bank.cosign(RUN, coordinator.key, coordinator.note(MerkleLog()))
    bank.cosign(RUN, coordinator.key, coordinator.note(log))


def test_only_the_coordinator_of_the_run_is_cosigned(coordinator, bank, tmp_path):
    log = history(4)
    note = coordinator.note(log)
    other = Coordinator(load_or_create("coordinator", tmp_path / "other"))
    with pytest.raises(LedgerError, match="not signed by the log's key"):
        bank.cosign(RUN, other.key, note)
    with pytest.raises(LedgerError, match="is of 'trustchain/small'"):
        bank.cosign("other-run", coordinator.key, note)
    bank.cosign(RUN, coordinator.key, note)
    with pytest.raises(LedgerError, match="is known with coordinator key"):
        bank.cosign(RUN, other.key, other.note(log))


def test_runs_do_not_mix(coordinator, bank):
    for run in ("a", "a/b", "../a", "..", "x" * 300, "x" * 301):
        log = history(3, forked_at=len(run) % 3)
        bank.cosign(run, coordinator.key, coordinator.note(log, run=run))
    for run in ("a", "a/b", "../a", "..", "x" * 300, "x" * 301):
        assert bank.latest(run).root == history(3, forked_at=len(run) % 3).root()
    assert {path.parent for path in bank.folder.rglob("*.json")} == {bank.folder}


def test_a_damaged_memory_stops_the_witness(coordinator, bank):
    bank.cosign(RUN, coordinator.key, coordinator.note(history(4)))
    (path,) = bank.folder.glob("seen-*.json")
    data = path.read_bytes()
    for damaged in (b"", data[:-1], data.replace(b"note", b"nite"), data.replace(b"\\n4\\n", b"\\n3\\n")):
        path.write_bytes(damaged)
        with pytest.raises(LedgerError, match="restore it"):
            bank.cosign(RUN, coordinator.key, coordinator.note(history(5)))


def test_requests_that_race_cannot_roll_a_witness_back(coordinator, bank, tmp_path):
    log = history(40)
    bank.cosign(RUN, coordinator.key, coordinator.note(log, 1))

    def ask(size: int) -> None:
        witness = Witness(bank.identity, tmp_path / "bank")  # as another process would
        while (last := witness.latest(RUN).size) < size:
            try:
                proof = log.consistency_proof(last, size)
                witness.cosign(RUN, coordinator.key, coordinator.note(log, size), proof)
            except (Stale, NotConsistent):
                continue

    threads = [threading.Thread(target=ask, args=(size,)) for size in (5, 12, 23, 40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert bank.latest(RUN).size == 40


@pytest.mark.parametrize(
    "evidence",
    [{}, {"first": "", "proof": [], "run": RUN}, {"first": "", "proof": [1], "run": RUN, "second": ""}],
)
def test_malformed_evidence_is_refused(coordinator, evidence):
    with pytest.raises(LedgerError, match="evidence"):
        is_split_view(evidence, coordinator.key)
