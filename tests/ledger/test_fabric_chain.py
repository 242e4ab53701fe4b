"""A run's log on Fabric: the client against a gateway that checks as a peer does."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("grpc", reason="pip install 'trustchain-ray[fabric]'")
pytest.importorskip("google.protobuf", reason="pip install 'trustchain-ray[fabric]'")

from fabric_consortium import MSPS, RUN, Consortium

from ledger import checkpoint
from ledger.canonical import canonical_json, sha256_hex
from ledger.errors import LedgerError, Unavailable
from ledger.fabric import chain as fabric_chain
from ledger.identity import Identity, load_or_create
from ledger.merkle import MerkleLog, leaf_hash, verify_inclusion
from ledger.private import PrivateChain

DIGEST = "ab" * 32


@pytest.fixture
def consortium(tmp_path: Path) -> Iterator[Consortium]:
    made = Consortium(tmp_path)
    yield made
    made.close()


def leaves_of(consortium: Consortium, count: int) -> list[bytes]:
    return [consortium.leaf(number) for number in range(count)]


def test_leaves_come_back_in_order_byte_for_byte(consortium: Consortium) -> None:
    chain: PrivateChain = consortium.opened()
    leaves = [*leaves_of(consortium, 5), consortium.register(consortium.bank)]
    assert chain.append_batch(0, leaves) == 6
    assert chain.append_batch(6, [consortium.leaf(0, consortium.bank)]) == 7
    assert chain.size() == 7
    assert chain.read(0, 100)[:6] == leaves
    assert chain.read(2, 3) == leaves[2:5]
    assert chain.read(7, 5) == []


def test_a_batch_may_be_sent_again_but_not_changed(consortium: Consortium) -> None:
    chain = consortium.opened()
    leaves = leaves_of(consortium, 4)
    assert chain.append_batch(0, leaves[:3]) == 3
    assert chain.append_batch(0, leaves[:3]) == 3
    assert chain.append_batch(1, leaves[1:]) == 4
    assert chain.append_batch(2, []) == 4
    with pytest.raises(LedgerError, match="event 2 of run test-run: is already another"):
        chain.append_batch(2, [consortium.leaf(2, text="changed")])
    with pytest.raises(LedgerError, match="event 9 cannot be appended, the log has 4"):
        chain.append_batch(9, [consortium.leaf(9)])
    assert chain.read(0, 10) == leaves


def test_large_batches_are_split_by_number_and_by_bytes(
    consortium: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = consortium.opened()
    leaves = leaves_of(consortium, 10)
    monkeypatch.setattr(fabric_chain, "PAGE", 4)
    monkeypatch.setattr(fabric_chain, "BATCH_EVENTS", 4)
    before = consortium.gateway.calls["Endorse"]
    assert chain.append_batch(0, leaves) == 10
    assert consortium.gateway.calls["Endorse"] - before == 3
    assert chain.read(0, 10) == leaves

    more = [consortium.leaf(number) for number in range(10, 16)]
    monkeypatch.setattr(fabric_chain, "BATCH_BYTES", 2 * len(more[0]) + 10)
    before = consortium.gateway.calls["Endorse"]
    assert chain.append_batch(10, more) == 16
    assert consortium.gateway.calls["Endorse"] - before == 3


def test_only_the_sequencer_appends(consortium: Consortium) -> None:
    consortium.opened()
    other = consortium.chain("Org2MSP")
    with pytest.raises(LedgerError, match="only Org1MSP may do this, not Org2MSP"):
        other.append_batch(0, leaves_of(consortium, 1))
    assert other.size() == 0


def test_an_inclusion_proof_is_computed_from_what_the_chain_holds(consortium: Consortium) -> None:
    chain = consortium.opened()
    leaves = leaves_of(consortium, 11)
    chain.append_batch(0, leaves)
    log = MerkleLog()
    for leaf in leaves:
        log.append(leaf_hash(leaf))
    for size in (5, 11, 8):
        verify_inclusion(leaf_hash(leaves[2]), 2, size, chain.prove(2, size), log.root(size))
    with pytest.raises(LedgerError, match="the log has 11 leaves, not 12"):
        chain.prove(2, 12)


def test_a_head_that_does_not_extend_the_last_one_is_refused(consortium: Consortium) -> None:
    chain = consortium.opened()
    assert chain.head() is None
    log = MerkleLog()
    leaves = leaves_of(consortium, 7)
    for leaf in leaves:
        log.append(leaf_hash(leaf))
    chain.append_batch(0, leaves[:6])

    def note(size: int, root: bytes, identity: Identity = consortium.coordinator) -> str:
        return checkpoint.sign(identity, RUN, size, root)

    chain.put_head(note(3, log.root(3)), [])
    chain.put_head(note(3, log.root(3)), [])
    good = note(5, log.root(5))
    chain.put_head(good, log.consistency_proof(3, 5))
    assert chain.head() == good
    with pytest.raises(LedgerError, match="do not extend the last head of 5"):
        chain.put_head(note(6, bytes(32)), log.consistency_proof(5, 6))
    with pytest.raises(LedgerError, match="a log never shrinks"):
        chain.put_head(note(4, log.root(4)), [])
    with pytest.raises(LedgerError, match="the log here has 6"):
        chain.put_head(note(7, log.root(7)), log.consistency_proof(5, 7))
    with pytest.raises(LedgerError, match="not signed by the log's key"):
        chain.put_head(note(6, log.root(6), consortium.bank), log.consistency_proof(5, 6))
    assert chain.head() == good


def test_private_data_reaches_members_and_leaves_a_hash(consortium: Consortium) -> None:
    chain, other = consortium.opened(), consortium.chain("Org2MSP")
    shown = chain.put_private("requests", "r1", b"salt and request")
    assert shown == sha256_hex(b"salt and request")
    assert other.get_private("requests", "r1") == b"salt and request"
    chain.put_private("shards_Org1MSP", "s1", b"salt and manifest")
    assert other.private_hash("shards_Org1MSP", "s1") == sha256_hex(b"salt and manifest")
    with pytest.raises(LedgerError, match="only Org1MSP may see or change it, not Org2MSP"):
        other.get_private("shards_Org1MSP", "s1")
    with pytest.raises(LedgerError, match="only Org1MSP may see or change it, not Org2MSP"):
        other.put_private("shards_Org1MSP", "s1", b"forged")
    chain.purge_private("requests", "r1")
    with pytest.raises(LedgerError, match="requests/r1: there is none, or it was purged"):
        other.get_private("requests", "r1")
    assert b"salt and" not in b"".join(consortium.gateway.envelopes)


def test_a_value_that_does_not_fit_its_hash_is_refused(consortium: Consortium) -> None:
    chain = consortium.opened()
    chain.put_private("requests", "r1", b"salt and request")
    consortium.gateway.channel.world.private["requests", "r1"] = b"another request"
    with pytest.raises(LedgerError, match="hash is that of another value"):
        chain.get_private("requests", "r1")
    del consortium.gateway.channel.world.private["requests", "r1"]
    with pytest.raises(Unavailable, match="has not reached this peer yet"):
        chain.get_private("requests", "r1")


def test_an_outsider_gets_nothing(consortium: Consortium) -> None:
    consortium.opened().put_private("requests", "r1", b"salt and request")
    foreign = Consortium(consortium.folder / "foreign").gateway
    outsider = consortium.chain("Org3MSP", consortium.user("Org3MSP", ca=foreign.cas["Org1MSP"]))
    forger = consortium.chain("Org1MSP", consortium.user("Org1MSP", ca=foreign.cas["Org1MSP"]))
    for client, reason in ((outsider, "creator org unknown"), (forger, r"creator org \[Org1MSP\]")):
        with pytest.raises(LedgerError, match=f"access denied.*{reason}") as refused:
            client.get_private("requests", "r1")
        assert not isinstance(refused.value, Unavailable)
        with pytest.raises(LedgerError, match="access denied"):
            client.append_batch(0, leaves_of(consortium, 1))
        with pytest.raises(LedgerError, match="access denied"):
            list(client.subscribe(consortium.folder / "cursor", wait_s=5))
    foreign.die()


def test_a_revoked_organization_is_refused(consortium: Consortium) -> None:
    chain = consortium.opened()
    chain.append_batch(0, [consortium.register(consortium.bank), consortium.leaf(1, consortium.bank)])
    with pytest.raises(LedgerError, match="only an administrator of Org1MSP may revoke"):
        chain.revoke_organization("bank", "left", everywhere=True)
    admin = consortium.chain(user=consortium.user(attributes={"trustchain.role": "admin"}))
    admin.revoke_organization("bank", "left", everywhere=True)
    with pytest.raises(LedgerError, match=r"event 2 of run test-run: bank is revoked \(left\)"):
        chain.append_batch(2, [consortium.leaf(2, consortium.bank)])
    assert chain.append_batch(2, [consortium.leaf(3)]) == 3


def test_an_organization_revoked_in_one_run_by_approval(consortium: Consortium) -> None:
    chain, other = consortium.opened(), consortium.chain("Org2MSP")
    chain.append_batch(0, [consortium.register(consortium.bank)])
    with pytest.raises(LedgerError, match="needs a concluded approval organization-revocation"):
        other.revoke_organization("bank", "voted out")
    chain.propose("organization-revocation", consortium.bank.key_id)
    for member in (chain, other):
        member.endorse("organization-revocation", consortium.bank.key_id)
    chain.conclude("organization-revocation", consortium.bank.key_id)
    other.revoke_organization("bank", "voted out")
    with pytest.raises(LedgerError, match="bank is revoked"):
        chain.append_batch(1, [consortium.leaf(1, consortium.bank)])
    assert [entry["revokedIn"] for entry in chain.organizations()] == [{RUN: "voted out"}]


def test_two_organizations_cannot_claim_one_key_or_one_name(consortium: Consortium, tmp_path: Path) -> None:
    chain, other = consortium.opened(), consortium.chain("Org2MSP")
    bank, clinic = consortium.bank, load_or_create("clinic", tmp_path / "keys")
    chain.register_organization("bank", bank.key_id, bank.public_hex, DIGEST)
    chain.register_organization("bank", bank.key_id, bank.public_hex, DIGEST)
    with pytest.raises(LedgerError, match="organization thief: the key is registered by bank"):
        other.register_organization("thief", bank.key_id, bank.public_hex, DIGEST)
    with pytest.raises(LedgerError, match="organization bank: the name is registered by Org1MSP"):
        other.register_organization("bank", clinic.key_id, clinic.public_hex, DIGEST)
    with pytest.raises(LedgerError, match="organization bank: the name is registered with another key"):
        chain.register_organization("bank", clinic.key_id, clinic.public_hex, DIGEST)


def test_an_event_over_the_size_limit_or_with_a_bad_signature_is_refused(consortium: Consortium) -> None:
    chain = consortium.opened()
    with pytest.raises(LedgerError, match="a leaf may have 131072"):
        chain.append_batch(0, [b'{"payload":"' + b"A" * 140_000 + b'"}'])
    changed = consortium.leaf(0).replace(b'"sig":"', b'"sig":"AAAA')
    with pytest.raises(LedgerError, match=r"event 0 of run test-run: .*signature"):
        chain.append_batch(0, [changed])
    with pytest.raises(LedgerError, match="not UTF-8"):
        chain.append_batch(0, [b"\xff"])
    assert chain.size() == 0


def test_a_release_needs_votes_and_endorsements_of_k_organizations(consortium: Consortium) -> None:
    chain, other = consortium.opened(), consortium.chain("Org2MSP")
    with pytest.raises(LedgerError, match="was not proposed"):
        chain.endorse("model-release", DIGEST)
    chain.propose("model-release", DIGEST)
    chain.endorse("model-release", DIGEST)
    with pytest.raises(LedgerError, match=r"has 1 of 2 votes \(Org1MSP\)"):
        chain.conclude("model-release", DIGEST)
    other.endorse("model-release", DIGEST)
    alone = consortium.chain(endorsing_organizations=MSPS[:1])
    with pytest.raises(LedgerError, match="ENDORSEMENT_POLICY_FAILURE"):
        alone.conclude("model-release", DIGEST)
    assert chain.approval("model-release", DIGEST) == {"k": 2, "state": "proposed", "votes": list(MSPS)}
    consortium.chain(endorsing_organizations=MSPS).conclude("model-release", DIGEST)
    assert chain.model_status(DIGEST) == "released"
    with pytest.raises(LedgerError, match="needs a concluded approval model-revocation"):
        chain.revoke_model(DIGEST, "forgotten")
    chain.propose("model-revocation", DIGEST)
    for member in (chain, other):
        member.endorse("model-revocation", DIGEST)
    chain.conclude("model-revocation", DIGEST)
    chain.revoke_model(DIGEST, "forgotten")
    assert other.model_status(DIGEST) == "revoked"


def test_rounds_are_opened_and_closed_once(consortium: Consortium) -> None:
    chain = consortium.opened()
    chain.open_round(1, DIGEST)
    chain.open_round(1, DIGEST)
    with pytest.raises(LedgerError, match="was opened with another base"):
        chain.open_round(1, "cd" * 32)
    chain.close_round(1, "ef" * 32)
    with pytest.raises(LedgerError, match="was closed with another digest"):
        chain.close_round(1, DIGEST)
    assert chain.rounds() == [{"base": DIGEST, "digest": "ef" * 32, "number": 1}]


def test_events_are_replayed_from_the_stored_cursor_after_a_restart(consortium: Consortium, tmp_path: Path) -> None:
    chain, cursor = consortium.opened(), tmp_path / "cursor.json"
    for start in range(3):
        chain.append_batch(start, [consortium.leaf(start)])
    other_run = consortium.chain(run="another")
    other_run.open_run(consortium.coordinator.public_hex, 1, MSPS)
    other_run.append_batch(0, [consortium.leaf(0, run="another")])

    def starts(client: PrivateChain, count: int) -> list[int]:
        found: list[int] = []
        for event in client.subscribe(cursor, wait_s=20):
            found.append(json.loads(event.payload)["start"])
            if len(found) == count:
                break  # as if killed before the next is asked for: the last one was not handled
        return found

    assert starts(chain, 2) == [0, 1]
    consortium.gateway.die()
    with pytest.raises(Unavailable):
        starts(chain, 1)
    consortium.gateway.restart()
    again = consortium.chain()
    again.append_batch(3, [consortium.leaf(3)])
    assert starts(again, 3) == [1, 2, 3]
    again.append_batch(4, [consortium.leaf(4), consortium.leaf(5)])
    assert starts(again, 2) == [3, 4]


def test_a_subscription_ends_when_nothing_comes(consortium: Consortium, tmp_path: Path) -> None:
    assert list(consortium.opened().subscribe(tmp_path / "cursor.json", wait_s=0.2)) == []


@pytest.mark.slow
def test_a_peer_that_hangs_is_told_from_one_without_events(consortium: Consortium, tmp_path: Path) -> None:
    chain = consortium.opened(deadline_s=2.0)
    consortium.gateway.hang |= {"ChaincodeEvents", "Evaluate"}
    with pytest.raises(Unavailable, match="did not answer in time"):
        list(chain.subscribe(tmp_path / "cursor.json", wait_s=0.2))


def test_a_cursor_of_another_run_or_a_damaged_one_is_refused(consortium: Consortium, tmp_path: Path) -> None:
    chain, cursor = consortium.opened(), tmp_path / "cursor.json"
    place = {"block": 3, "chaincode": "trustchain", "channel": "trustchain", "run": "another", "tx": "00"}
    for content, reason in (
        (canonical_json(place), "is the cursor of run another"),
        (canonical_json({**place, "block": "3"}), "a cursor needs"),
        (b"{}", "a cursor needs"),
        (b"\xff{", "not a cursor"),
    ):
        cursor.write_bytes(content)
        with pytest.raises(LedgerError, match=reason):
            next(iter(chain.subscribe(cursor)))


def test_the_description_finds_the_log_and_holds_no_secret(consortium: Consortium) -> None:
    description = consortium.chain().describe()
    assert description == {
        "kind": "fabric",
        "channel": "trustchain",
        "chaincode": "trustchain",
        "run": RUN,
        "msp": "Org1MSP",
        "peer": "peer0",
    }
    canonical_json(description)
