"""The chaincode on a real network, seen through Fabric's own command line. One network serves all tests."""

import hashlib
import json
import secrets
import socket
from dataclasses import dataclass
from pathlib import Path

import pytest
from peer_cli import Refused, query, submit

from ledger import checkpoint
from ledger.canonical import parse_canonical
from ledger.dsse import payload_of
from ledger.errors import LedgerError
from ledger.events import leaf_bytes, make_event
from ledger.fabric.network import Network
from ledger.fabric.network.__main__ import main
from ledger.identity import COORDINATOR, Identity, load_or_create
from ledger.merkle import MerkleLog, leaf_hash

pytestmark = pytest.mark.fabric

MSPS = '["Org1MSP","Org2MSP"]'
DIGEST = "d" * 64


@dataclass
class Run:
    """An open run, its identities and its leaves so far."""

    net: Network
    id: str
    coordinator: Identity
    hospital: Identity
    leaves: list[str]

    def leaf(self, identity: Identity, type: str, **body: object) -> str:
        return leaf_bytes(make_event(identity, self.id, type, body)).decode()

    def register(self, identity: Identity) -> str:
        names = {"organization": identity.name, "key_id": identity.key_id, "public_key": identity.public_hex}
        return self.leaf(identity, "REGISTER", document=DIGEST, **names)

    def append(self, leaves: list[str]) -> None:
        submit(self.net, "org1", "AppendEvents", self.id, str(len(self.leaves)), json.dumps(leaves))
        self.leaves += leaves


def opened(net: Network, keys: Path, k: int = 2) -> Run:
    """A new run; names of organizations are global on the channel, so each has its own."""
    token = secrets.token_hex(4)
    coordinator = load_or_create(COORDINATOR, keys)
    run = Run(net, f"run-{token}", coordinator, load_or_create(f"hospital-{token}", keys), [])
    submit(net, "org1", "OpenRun", run.id, coordinator.public_hex, str(k), MSPS)
    return run


@pytest.fixture
def run(fabric_network: Network, tmp_path: Path) -> Run:
    return opened(fabric_network, tmp_path)


def test_events_that_python_signs_are_appended_read_and_found(run: Run) -> None:
    run.append([run.register(run.coordinator), run.register(run.hospital)])
    run.append([run.leaf(run.hospital, "DECISION", round=i, effort="1/2", note="grün \U0001f331") for i in range(20)])
    tree = MerkleLog()
    for leaf in run.leaves:
        tree.append(leaf_hash(leaf.encode()))
    for organization in ("org1", "org2"):
        assert json.loads(query(run.net, organization, "GetEvents", run.id, "0", "100")) == run.leaves
        assert json.loads(query(run.net, organization, "GetEvents", run.id, "7", "3")) == run.leaves[7:10]
        assert json.loads(query(run.net, organization, "GetRoot", run.id)) == {"root": tree.root().hex(), "size": 22}
    history = json.loads(query(run.net, "org2", "GetHistory", run.id, "6"))
    assert [entry["value"] for entry in history] == [run.leaves[6]]
    body = {"round": 4, "effort": "1/2", "note": "grün \U0001f331"}
    again = make_event(run.hospital, run.id, "DECISION", body, time=1)
    key = parse_canonical(payload_of(again)[0])["key"]
    assert query(run.net, "org2", "FindEvent", run.id, run.hospital.name, key) == "6"
    assert query(run.net, "org2", "FindEvent", run.id, run.hospital.name, "other") == ""
    with pytest.raises(Refused, match=r"has used the key .* already, in event 6"):
        run.append([leaf_bytes(again).decode()])


def test_strangers_events_are_refused(run: Run, tmp_path: Path) -> None:
    run.append([run.register(run.hospital)])
    with pytest.raises(Refused, match="only Org1MSP may do this, not Org2MSP"):
        submit(run.net, "org2", "AppendEvents", run.id, "1", json.dumps([run.register(run.coordinator)]))
    with pytest.raises(Refused, match=r"access denied|creator org unknown"):
        submit(run.net, "outsider", "AppendEvents", run.id, "1", "[]")
    other = load_or_create("nobody", tmp_path)
    with pytest.raises(Refused, match=r"event 1 of run .*: nobody is not registered"):
        run.append([run.leaf(other, "DECISION", round=1, effort="1")])
    thief = Identity(f"thief-{secrets.token_hex(4)}", run.hospital._private)
    with pytest.raises(Refused, match=f"the key is registered by {run.hospital.name}"):
        run.append([run.register(thief)])


def test_only_an_administrator_revokes_and_a_revoked_organization_is_silenced(run: Run) -> None:
    run.append([run.register(run.hospital)])
    with pytest.raises(Refused, match="only an administrator of Org1MSP"):
        submit(run.net, "org1/User1", "RevokeOrganization", run.hospital.name, "left", "")
    submit(run.net, "org1/Admin", "RevokeOrganization", run.hospital.name, "left", "")
    with pytest.raises(Refused, match=r"is revoked \(left\)"):
        run.append([run.leaf(run.hospital, "DECISION", round=1, effort="1")])


def test_a_signed_head_is_taken_and_one_that_does_not_extend_it_is_refused(run: Run) -> None:
    run.append([run.register(run.hospital), run.register(run.coordinator)])
    tree = MerkleLog()
    heads, proofs = [], []
    for leaf in run.leaves:
        tree.append(leaf_hash(leaf.encode()))
        heads.append(checkpoint.sign(run.coordinator, run.id, tree.size, tree.root()))
        proofs.append(json.dumps([part.hex() for part in tree.consistency_proof(1)]))
    submit(run.net, "org1", "PutHead", run.id, heads[0], "[]")
    with pytest.raises(Refused, match="do not extend the last head of 1"):
        submit(run.net, "org1", "PutHead", run.id, heads[1], "[]")
    submit(run.net, "org2", "PutHead", run.id, heads[1], proofs[1])
    assert query(run.net, "org1", "GetHead", run.id) == heads[1].rstrip("\n")
    split = checkpoint.sign(run.coordinator, run.id, 2, bytes(32))
    with pytest.raises(Refused, match="do not extend the last head of 2"):
        submit(run.net, "org1", "PutHead", run.id, split, "[]")


def test_rounds_open_and_close(run: Run) -> None:
    submit(run.net, "org1", "OpenRound", run.id, "1", DIGEST)
    submit(run.net, "org1", "CloseRound", run.id, "1", "e" * 64)
    rounds = json.loads(query(run.net, "org2", "GetRounds", run.id))
    assert rounds == [{"base": DIGEST, "digest": "e" * 64, "number": 1}]
    with pytest.raises(Refused, match="was closed with another base"):
        submit(run.net, "org1", "OpenRound", run.id, "1", "f" * 64)


def test_a_release_that_too_few_organizations_endorse_is_invalid(run: Run) -> None:
    args = ("model-release", run.id, DIGEST)
    submit(run.net, "org1", "Propose", *args)
    submit(run.net, "org1", "Endorse", *args)
    with pytest.raises(Refused, match=r"has 1 of 2 votes \(Org1MSP\)"):
        submit(run.net, "org1", "Conclude", *args)
    submit(run.net, "org2", "Endorse", *args)
    with pytest.raises(Refused, match="ENDORSEMENT_POLICY_FAILURE"):
        submit(run.net, "org1", "Conclude", *args, endorsers=("peer1",))
    assert query(run.net, "org2", "GetModelStatus", run.id, DIGEST) == "unknown"
    submit(run.net, "org1", "Conclude", *args)
    assert query(run.net, "org2", "GetModelStatus", run.id, DIGEST) == "released"


def test_the_policy_of_the_approval_decides_not_that_of_the_chaincode(fabric_network: Network, tmp_path: Path) -> None:
    # One of two endorses: refused for every other key (the chaincode asks for both), enough for this one.
    run = opened(fabric_network, tmp_path, k=1)
    args = ("unlearning-certificate", run.id, DIGEST)
    with pytest.raises(Refused, match="ENDORSEMENT_POLICY_FAILURE"):
        submit(run.net, "org1", "Propose", *args, endorsers=("peer1",))
    submit(run.net, "org1", "Propose", *args)
    submit(run.net, "org1", "Endorse", *args)
    submit(run.net, "org2", "Conclude", *args, endorsers=("peer2",))
    expected = {"k": 1, "state": "concluded", "votes": ["Org1MSP"]}
    assert json.loads(query(run.net, "org1", "GetApproval", *args, at="peer2")) == expected


def test_members_read_private_data_and_outsiders_do_not(fabric_network: Network) -> None:
    net, key = fabric_network, secrets.token_hex(4)
    value = json.dumps({"salt": secrets.token_hex(16), "subject": "patient 7"})
    digest = hashlib.sha256(value.encode()).hexdigest()
    submit(net, "org1", "PutPrivate", "shards_Org1MSP", key, endorsers=("peer1",), transient=value)
    assert query(net, "org1", "GetPrivate", "shards_Org1MSP", key) == value
    for peer in ("peer1", "peer2"):
        with pytest.raises(Refused, match=f"shards_Org1MSP/{key}: only Org1MSP may see or change it, not Org2MSP"):
            query(net, "org2", "GetPrivate", "shards_Org1MSP", key, at=peer)
    with pytest.raises(Refused):
        query(net, "outsider", "GetPrivate", "shards_Org1MSP", key, at="peer1")
    assert query(net, "org2", "GetPrivateHash", "shards_Org1MSP", key) == digest
    stored = [path.read_bytes() for path in (net.folder / "data" / "peer2").rglob("*") if path.is_file()]
    assert not any(value.encode() in content for content in stored)


def test_a_purge_removes_the_value_from_every_peer(fabric_network: Network) -> None:
    net, key = fabric_network, secrets.token_hex(4)
    submit(net, "org1", "PutPrivate", "requests", key, transient="a request with its salt")
    assert query(net, "org2", "GetPrivate", "requests", key) == "a request with its salt"
    submit(net, "org2", "PurgePrivate", "requests", key)
    for organization in ("org1", "org2"):
        assert query(net, organization, "GetPrivate", "requests", key) == ""
        assert query(net, organization, "GetPrivateHash", "requests", key) == ""


def test_a_killed_network_goes_on_with_its_data(
    tmp_path: Path, fabric_bin: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FABRIC_BIN", fabric_bin)
    folder = tmp_path / "network"
    at = ["--dir", str(folder)]
    try:
        assert main(["up", *at, "--mutual-tls", "--coordinator-role", "--batch-timeout", "50ms"]) == 0
        net = Network.open(folder)
        with pytest.raises(Refused, match=r"lacks the attribute trustchain\.role=coordinator"):
            submit(net, "org1/User1", "OpenRun", "kept", DIGEST, "1", MSPS)
        submit(net, "org1/Coordinator", "OpenRun", "kept", DIGEST, "1", MSPS)
        assert main(["up", *at]) == 1
        assert "holds a network already" in capsys.readouterr().err
        for node in ("peer1", "orderer", "chaincode2"):
            net.kill(node)
            assert not net.alive(node)
        assert main(["status", *at]) == 3
        assert "peer1" in capsys.readouterr().out
        assert main(["up", *at, "--restart"]) == 0
        assert main(["status", *at]) == 0
        assert json.loads(query(net, "org2", "GetRun", "kept"))["sequencer"] == "Org1MSP"
        assert main(["down", *at]) == 0
        assert main(["status", *at]) == 3
    finally:
        if (folder / "network.json").exists():
            Network.open(folder).stop()


def test_a_node_that_cannot_run_ends_the_start_with_its_last_words(tmp_path: Path, fabric_bin: str) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("peer", "cryptogen", "configtxgen", "osnadmin"):
        (programs / name).symlink_to(Path(fabric_bin) / name)
    (programs / "orderer").write_text("#!/bin/sh\nsleep 1\necho the disk is on strike\nexit 1\n")
    (programs / "orderer").chmod(0o755)
    with pytest.raises(LedgerError, match="orderer ended: the disk is on strike"):
        Network.create(tmp_path / "network", programs)
    for address in Network.open(tmp_path / "network").layout.addresses.values():
        host, _, port = address.partition(":")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, int(port)), timeout=5)
