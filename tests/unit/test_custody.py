"""What an organization keeps of its records: salts, what is being removed, what was erased."""

import os
import stat
from pathlib import Path

import pytest

from ledger.canonical import sha256_hex
from ledger.commitments import opens
from ledger.identity import load_or_create
from ledger.manifest_proof import EMPTY_ROOT, deletion
from trustchain_ray.custody import Asked, Custody, matching, statement_of_record, tags_of
from trustchain_ray.data import Holdings, Record
from trustchain_ray.errors import TrustChainError
from trustchain_ray.forgetting.holder import Holder, Usage, Wanted
from trustchain_ray.keys import derive
from trustchain_ray.sampling import inclusion_steps

REMOVAL, REQUEST = sha256_hex(b"removal"), sha256_hex(b"request")
KEY = derive("key", "sampling", "bank")


def holdings(count: int = 12) -> Holdings:
    train = [Record(f"r{i}", f"p{i // 2}", f"question {i}", f" answer {i}") for i in range(count)]
    return Holdings("bank", train, [Record("t0", "p0", "a test", " of p0"), Record("r1", "p9", "another", " test")])


@pytest.fixture
def custody(tmp_path: Path) -> Custody:
    return Custody(tmp_path / "custody" / "run", "run", "bank")


def holder(custody: Custody, tmp_path: Path, held: Holdings) -> Holder:
    shards = {"shard_0": range(0, len(held.train), 2), "shard_1": range(1, len(held.train), 2)}
    return Holder(load_or_create("bank", tmp_path / "keys"), "run", custody, held, shards, lambda generation: KEY)


def usage(rate: float = 0.2, steps: tuple[int, ...] = (4, 0, 4), counts_matter: frozenset[str] = frozenset()) -> Usage:
    return Usage({"shard_0": rate, "shard_1": rate}, {"shard_0": steps, "shard_1": steps}, 4, counts_matter)


def test_commitments_open_to_the_record_until_its_salt_is_destroyed(custody: Custody) -> None:
    held = holdings()
    names = custody.commitments("train", held.train)
    salts = custody.salts("train", held.train)
    assert all(opens(n, s, statement_of_record(r)) for n, s, r in zip(names, salts, held.train, strict=True))
    assert len(set(names)) == len(names)
    # a test record with the id of a training record is another record
    assert custody.commitments("test", held.test)[1] not in names
    custody.reserve(REMOVAL, held.train[:2], [])
    assert custody.erase(REMOVAL) == 2
    assert custody.erase(REMOVAL) == 0
    assert custody.erased("train", ["r0", "r1", "r2"]) == {"r0", "r1"}
    assert custody.erased("test", ["r1"]) == set()
    left = Custody(custody.store.path.parent, "run", "bank").held(held)
    assert [r.id for r in left.train] == [f"r{i}" for i in range(2, 12)]
    assert left.test == held.test


def test_what_is_being_removed_is_out_at_once_and_private(custody: Custody) -> None:
    held = holdings()
    custody.commitments("train", held.train)
    custody.reserve(REMOVAL, held.train[3:5], held.test[:1])
    custody.reserve(REMOVAL, held.train[3:5], held.test[:1])
    again = Custody(custody.store.path.parent, "run", "bank")
    assert again.pending == REMOVAL
    assert len(again.kept(again.held(held)).train) == 10
    assert len(again.kept(again.held(held)).test) == 1
    assert again.held(held) == held
    for path in custody.store.path.parent.iterdir():
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600, path
    with pytest.raises(TrustChainError, match="is under way"):
        again.reserve(sha256_hex(b"another"), held.train[:1], [])
    assert not again.release([REMOVAL])
    assert again.release([])
    assert again.kept(again.held(held)) == held


def test_a_damaged_reservation_is_named(custody: Custody) -> None:
    held = holdings()
    custody.reserve(REMOVAL, held.train[:1], [])
    path = next(p for p in custody.store.path.parent.iterdir() if p.name.endswith(".removal.json"))
    path.write_bytes(b"{")
    with pytest.raises(TrustChainError, match="is damaged"):
        Custody(path.parent, "run", "bank").kept(held)


def test_requests_name_records_subjects_organizations_or_contents() -> None:
    train = holdings().train
    assert [r.id for r in matching(Asked("record", ("r3", "r9")), train)] == ["r3", "r9"]
    assert [r.id for r in matching(Asked("subject", ("p1",)), train)] == ["r2", "r3"]
    assert matching(Asked("organization"), train) == train
    key = bytes(32)
    elsewhere = [Record("other", "somebody", "question  4 ", "answer 4")]
    assert matching(Asked("record", (), key, tags_of(key, [train[4]])), elsewhere) == elsewhere
    assert matching(Asked("record", (), bytes(31) + b"1", tags_of(key, [train[4]])), elsewhere) == []


def test_the_first_round_is_that_of_the_first_step_that_read_a_record(custody: Custody, tmp_path: Path) -> None:
    held = holdings()
    asked = holder(custody, tmp_path, held)
    for record in held.train:
        found = asked.look([Wanted(REQUEST, Asked("record", (record.id,)))], usage())
        read = [step for step in inclusion_steps(KEY, record.id, 0.2, 12) if step // 4 != 1]  # no part in round 2
        expected = read[0] // 4 + 1 if read else 0
        assert [part.first for part in found.parts if part.split == "train"] == [expected], record.id
    one = [Wanted(REQUEST, Asked("record", ("r0",)))]
    assert asked.look(one, usage(rate=0.0)).parts[0].first == 0
    assert asked.look(one, usage(rate=0.0, counts_matter=frozenset({"shard_0"}))).parts[0].first == 1
    everybody = [Wanted(REQUEST, Asked("record", tuple(f"r{i}" for i in range(0, 12, 2))))]
    assert asked.look(everybody, usage(rate=0.0)).parts[0].first == 1  # without records a member sends no update


def test_what_is_taken_out_is_proven_and_nothing_else_is_gone(custody: Custody, tmp_path: Path) -> None:
    held = holdings()
    asked = holder(custody, tmp_path, held)
    wanted = [Wanted(REQUEST, Asked("subject", ("p1", "p9")))]
    taken = asked.reserve(REMOVAL, wanted, usage())
    assert (taken.counts, taken.train) == ({"shard_0": 5, "shard_1": 5}, 10)
    shards = sorted((shard.cohort, shard.split) for shard in taken.shards)
    assert shards == [("", "test"), ("shard_0", "train"), ("shard_1", "train")]
    for shard in taken.shards:
        names = {n for row in taken.removed[REQUEST] if row.cohort == shard.cohort for n in row.commitments}
        deletion(shard.proof, names, shard.old_root, shard.new_root)
    kept = custody.kept(held)
    roots = {event["payload"] for event in asked.shard_events(kept, 1)}
    assert len(roots) == 3
    again = asked.reserve(REMOVAL, wanted, usage())
    assert again == taken


def test_an_organization_that_leaves_empties_its_shards(custody: Custody, tmp_path: Path) -> None:
    asked = holder(custody, tmp_path, holdings())
    taken = asked.reserve(REMOVAL, [Wanted(REQUEST, Asked("organization"))], usage())
    assert {shard.new_root for shard in taken.shards} == {EMPTY_ROOT}
    assert {shard.round for shard in taken.shards if shard.split == "train"} == {1}
    assert taken.train == 0
