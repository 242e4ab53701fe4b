"""The Fabric client against real peers and a real orderer."""

import itertools
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("grpc", reason="pip install 'trustchain-ray[fabric]'")
pytest.importorskip("google.protobuf", reason="pip install 'trustchain-ray[fabric]'")

from ledger import checkpoint
from ledger import events as ev
from ledger.canonical import sha256_hex
from ledger.errors import LedgerError, Unavailable
from ledger.events import leaf_bytes, make_event
from ledger.fabric import network
from ledger.fabric.chain import FabricChain
from ledger.identity import Identity, load_or_create
from ledger.merkle import MerkleLog, leaf_hash, verify_inclusion
from ledger.private import Conflict

pytestmark = [pytest.mark.fabric, pytest.mark.timeout(240)]

MSPS = ("Org1MSP", "Org2MSP")
DIGEST = "ab" * 32
_runs = itertools.count()


class Run:
    """A run of its own on the shared network, opened by Org1."""

    def __init__(self, net: network.Network, folder: Path) -> None:
        self.net = net
        self.name = f"client-{os.getpid()}-{next(_runs)}"
        self.coordinator = load_or_create("coordinator", folder)
        self.bank = load_or_create(f"bank-{self.name}", folder)
        self.chain = self.client()
        self.chain.open_run(self.coordinator.public_hex, 2, MSPS)

    def client(self, at: str = "org1", of: str = "", **options: Any) -> FabricChain:
        """A client of the peer of organization ``at``, for a user of organization ``of`` (default: the same)."""
        return FabricChain(self.net.profile(at), self.net.msp(of or at, "User1"), self.name, **options)

    def leaf(self, number: int, identity: Identity | None = None, text: str = "") -> bytes:
        if identity is None:
            body = {"manifest": sha256_hex(f"{number}{text}".encode()), "config": sha256_hex(b"")}
            key = f"k{number}"
            return leaf_bytes(make_event(self.coordinator, self.name, ev.RUN_MANIFEST, body, key=key, time=number))
        decision = {"round": number, "effort": "1"}
        return leaf_bytes(make_event(identity, self.name, ev.DECISION, decision, time=number))

    def register(self, identity: Identity) -> bytes:
        body = {
            "organization": identity.name,
            "key_id": identity.key_id,
            "public_key": identity.public_hex,
            "document": sha256_hex(identity.name.encode()),
        }
        return leaf_bytes(make_event(identity, self.name, ev.REGISTER, body, time=0))


@pytest.fixture
def run(fabric_network: network.Network, tmp_path: Path) -> Iterator[Run]:
    made = Run(fabric_network, tmp_path / "keys")
    yield made
    made.chain.close()


def eventually(attempt: Callable[[], object], seconds: float = 60.0) -> object:
    """Result of the first attempt at which the chain answers."""
    end = time.monotonic() + seconds
    while True:
        try:
            return attempt()
        except Unavailable:
            if time.monotonic() > end:
                raise
        time.sleep(0.2)


def test_batches_are_split_held_in_order_and_may_be_sent_again(run: Run) -> None:
    leaves = [run.register(run.bank), *(run.leaf(number, run.bank) for number in range(1100))]
    assert run.chain.append_batch(0, leaves) == 1101
    assert run.chain.append_batch(1000, leaves[1000:]) == 1101
    assert run.chain.size() == 1101
    assert run.chain.read(0, 5000) == leaves
    with pytest.raises(LedgerError, match=r"event 1100 of run .* is already another"):
        run.chain.append_batch(1100, [run.leaf(7)])
    log = MerkleLog()
    for leaf in leaves:
        log.append(leaf_hash(leaf))
    other = run.client("org2")
    verify_inclusion(leaf_hash(leaves[5]), 5, 1101, eventually_prove(other, 5, 1101), log.root())


def eventually_prove(chain: FabricChain, index: int, size: int) -> list[bytes]:
    end = time.monotonic() + 30
    while chain.size() < size and time.monotonic() < end:
        time.sleep(0.05)
    return chain.prove(index, size)


def test_heads_must_extend_the_last_one(run: Run) -> None:
    log = MerkleLog()
    leaves = [run.leaf(number) for number in range(6)]
    for leaf in leaves:
        log.append(leaf_hash(leaf))
    run.chain.append_batch(0, leaves)
    assert run.chain.head() is None
    run.chain.put_head(checkpoint.sign(run.coordinator, run.name, 3, log.root(3)), [])
    note = checkpoint.sign(run.coordinator, run.name, 5, log.root(5))
    run.chain.put_head(note, log.consistency_proof(3, 5))
    with pytest.raises(LedgerError, match="do not extend the last head of 5"):
        run.chain.put_head(checkpoint.sign(run.coordinator, run.name, 6, bytes(32)), log.consistency_proof(5, 6))
    assert run.chain.head() == note


def test_private_data_is_for_members_and_can_be_purged(run: Run) -> None:
    key = run.name
    assert run.chain.put_private("requests", key, b"salt and request") == sha256_hex(b"salt and request")
    run.chain.put_private("shards_Org1MSP", key, b"salt and manifest")
    other = run.client("org2")
    end = time.monotonic() + 30
    while not other.private_hash("shards_Org1MSP", key) and time.monotonic() < end:
        time.sleep(0.05)
    assert eventually(lambda: other.get_private("requests", key)) == b"salt and request"
    assert other.private_hash("shards_Org1MSP", key) == sha256_hex(b"salt and manifest")
    for call in (other.get_private, other.purge_private):
        with pytest.raises(LedgerError, match="only Org1MSP may see or change it, not Org2MSP"):
            call("shards_Org1MSP", key)
    through = run.client(of="org2", organization="Org2", peer="peer0.org1.example.com")
    with pytest.raises(LedgerError, match="only Org1MSP may see or change it, not Org2MSP"):
        through.get_private("shards_Org1MSP", key)
    run.chain.purge_private("requests", key)
    with pytest.raises(LedgerError, match="there is none, or it was purged"):
        run.chain.get_private("requests", key)


def test_an_outsider_is_refused(run: Run) -> None:
    outsider = run.client(of="outsider")
    for call in (outsider.size, outsider.head, lambda: outsider.append_batch(0, [run.leaf(0)])):
        with pytest.raises(LedgerError, match="access denied"):
            call()
    with pytest.raises(LedgerError, match="access denied"):
        next(iter(outsider.subscribe(run.net.profile("org1").parent / "cursor", wait_s=5)))


def test_a_peer_with_the_wrong_certificate_is_not_spoken_to(run: Run, tmp_path: Path) -> None:
    profile = json.loads(run.net.profile("org1").read_text())
    mine, theirs = (profile["peers"][profile["organizations"][name]["peers"][0]] for name in ("Org1", "Org2"))
    mine["tlsCACerts"] = theirs["tlsCACerts"]
    path = tmp_path / "wrong.json"
    path.write_text(json.dumps(profile))
    chain = FabricChain(path, run.net.msp("org1", "User1"), run.name)
    with pytest.raises(LedgerError, match="no TLS connection") as refused:
        chain.size()
    assert not isinstance(refused.value, Unavailable)


def test_of_racing_creates_one_wins(run: Run) -> None:
    clients = [run.client() for _ in range(8)]
    outcomes: list[object] = []

    def create(chain: FabricChain, base: str) -> None:
        try:
            outcomes.append(chain.open_round(1, base))
        except LedgerError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=create, args=(chain, f"{i:064x}")) for i, chain in enumerate(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count(None) == 1, outcomes
    for lost in outcomes:
        # One that was endorsed after the winner's block was refused by the chaincode instead.
        assert lost is None or isinstance(lost, Conflict) or "was opened with another base" in str(lost)
    assert len(run.chain.rounds()) == 1


def test_an_envelope_submitted_twice_is_one_transaction(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = run.chain._gateway
    sent = []
    forget = gateway._forget
    monkeypatch.setattr(gateway, "_forget", lambda content: (sent.append(gateway._submitted[content]), forget(content)))
    run.chain.open_round(1, DIGEST)
    assert gateway._settle(sent[0], "again", time.monotonic() + 60) == "VALID"
    run.chain.open_round(2, DIGEST)  # by now the second copy has been marked as a duplicate in a block
    assert gateway._commit_status(sent[0].tx, "again", 30) == "VALID"
    assert [entry["number"] for entry in run.chain.rounds()] == [1, 2]


def test_a_release_needs_the_endorsement_of_k_organizations(run: Run) -> None:
    other = run.client("org2")
    run.chain.propose("model-release", DIGEST)
    run.chain.endorse("model-release", DIGEST)
    with pytest.raises(LedgerError, match="has 1 of 2 votes"):
        run.chain.conclude("model-release", DIGEST)
    other.endorse("model-release", DIGEST)
    with pytest.raises(LedgerError, match="ENDORSEMENT_POLICY_FAILURE"):
        run.client(endorsing_organizations=MSPS[:1]).conclude("model-release", DIGEST)
    run.chain.conclude("model-release", DIGEST)
    assert run.chain.model_status(DIGEST) == "released"


def test_events_are_replayed_from_the_cursor(run: Run, tmp_path: Path) -> None:
    for start in range(3):
        run.chain.append_batch(start, [run.leaf(start)])
    cursor = tmp_path / "cursor.json"
    found = []
    for event in run.chain.subscribe(cursor, wait_s=30):
        found.append(json.loads(event.payload)["start"])
        if len(found) == 2:
            break
    assert found == [0, 1]
    again = run.client().subscribe(cursor, wait_s=30)
    assert [json.loads(next(again).payload)["start"] for _ in range(2)] == [1, 2]


def test_a_client_survives_the_death_of_its_peer(run: Run) -> None:
    run.chain.append_batch(0, [run.leaf(0)])
    run.net.kill("peer1")
    try:
        with pytest.raises(Unavailable):
            run.chain.append_batch(1, [run.leaf(1)])
    finally:
        run.net.start("peer1")
    assert eventually(lambda: run.chain.append_batch(1, [run.leaf(1)])) == 2
    assert run.chain.read(0, 2) == [run.leaf(0), run.leaf(1)]


def test_an_orderer_that_is_down_stops_writing_not_reading(run: Run) -> None:
    chain = run.client(deadline_s=4.0)
    chain.append_batch(0, [run.leaf(0)])
    run.net.kill("orderer")
    try:
        with pytest.raises(Unavailable, match="call again"):
            chain.append_batch(1, [run.leaf(1)])
        assert chain.size() == 1
    finally:
        run.net.start("orderer")
    assert eventually(lambda: chain.append_batch(1, [run.leaf(1)])) == 2
    assert chain.append_batch(0, [run.leaf(0), run.leaf(1)]) == 2


def test_a_peer_that_hangs_costs_a_deadline(run: Run) -> None:
    chain = run.client(deadline_s=3.0)
    chain.open_round(1, DIGEST)
    pid = run.net._processes["peer1"].pid
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(Unavailable):
            chain.size()
        with pytest.raises(Unavailable):
            chain.open_round(2, DIGEST)
    finally:
        os.kill(pid, signal.SIGCONT)
    eventually(lambda: chain.open_round(2, DIGEST))
    assert [entry["number"] for entry in chain.rounds()] == [1, 2]
