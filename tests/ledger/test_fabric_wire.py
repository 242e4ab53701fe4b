"""Messages against what a real peer of Fabric 2.5 took and gave: ``fabric_recorded.json``."""

import base64
import json
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("grpc", reason="pip install 'trustchain-ray[fabric]'")
pytest.importorskip("google.protobuf", reason="pip install 'trustchain-ray[fabric]'")

import grpc
from cryptography.hazmat.primitives.asymmetric import ec

from ledger.errors import LedgerError
from ledger.fabric import transaction, wire
from ledger.fabric.failures import failure
from ledger.fabric.profile import Peer
from ledger.fabric.signer import Signer

RECORDED = json.loads((Path(__file__).parent / "fabric_recorded.json").read_text())


def recorded(method: str, part: str) -> bytes:
    return base64.b64decode(RECORDED[method][part])


@pytest.fixture
def proposal(monkeypatch: pytest.MonkeyPatch) -> transaction.Proposal:
    """The recorded proposal, made again from its nonce, time, identity and arguments."""
    request = wire.parse(wire.EndorseRequest, recorded("Endorse", "request"))
    parts = wire.parse(wire.Proposal, request.proposed_transaction.proposal_bytes)
    header = wire.parse(wire.Header, parts.header)
    channel = wire.parse(wire.ChannelHeader, header.channel_header)
    who = wire.parse(wire.SignatureHeader, header.signature_header)
    payload = wire.parse(wire.ChaincodeProposalPayload, parts.payload)
    name, *arguments = wire.parse(wire.ChaincodeInvocationSpec, payload.input).chaincode_spec.input.args
    assert (name, arguments[:2]) == (b"AppendEvents", [RECORDED["run"].encode(), b"0"])
    now = channel.timestamp.seconds * 1_000_000_000 + channel.timestamp.nanos
    monkeypatch.setattr(transaction.os, "urandom", lambda count: who.nonce)
    monkeypatch.setattr(time, "time_ns", lambda: now)
    key = ec.generate_private_key(ec.SECP256R1())
    signer = Signer("Org1MSP", who.creator, "subject", key)
    texts = [argument.decode() for argument in arguments]
    made = transaction.propose(
        signer, "trustchain", "trustchain", name.decode(), texts, tls_cert_hash=channel.tls_cert_hash
    )
    assert made.tx == request.transaction_id
    assert made.signed.proposal_bytes == request.proposed_transaction.proposal_bytes
    return made


def test_a_prepared_transaction_is_read_and_one_changed_is_not_signed(proposal: transaction.Proposal) -> None:
    response = wire.parse(wire.EndorseResponse, recorded("Endorse", "response"))
    payload = response.prepared_transaction.payload
    assert transaction.result_of(proposal, payload) == b'{"size":1}'
    submitted = wire.parse(wire.SubmitRequest, recorded("Submit", "request"))
    assert submitted.prepared_transaction.payload == payload
    changed = payload.replace(b"AppendEvents", b"AppendOthers")
    assert changed != payload
    with pytest.raises(LedgerError, match="another transaction than the one proposed"):
        transaction.result_of(proposal, changed)
    with pytest.raises(LedgerError, match="a malformed Payload came"):
        transaction.result_of(proposal, payload[:-1])


def test_status_and_events_are_read(proposal: transaction.Proposal) -> None:
    signed = wire.parse(wire.SignedCommitStatusRequest, recorded("CommitStatus", "request"))
    assert wire.parse(wire.CommitStatusRequest, signed.request).transaction_id == proposal.tx
    status = wire.parse(wire.CommitStatusResponse, recorded("CommitStatus", "response"))
    assert wire.VALIDATION_CODES[status.result] == "VALID"
    events = wire.parse(wire.ChaincodeEventsResponse, recorded("ChaincodeEvents", "response"))
    assert events.block_number == status.block_number > 0
    (event,) = events.events
    assert (event.tx_id, event.event_name, event.chaincode_id) == (proposal.tx, "events", "trustchain")
    assert json.loads(event.payload) == {"count": 1, "run": RECORDED["run"], "start": 0}
    answer = wire.parse(wire.EvaluateResponse, recorded("Evaluate", "response"))
    assert (answer.result.status, answer.result.payload) == (200, b"0")


class Failed(grpc.RpcError):
    """An error as grpcio raises it."""

    def __init__(self, code: grpc.StatusCode, text: str, details: bytes) -> None:
        self._told = code, text, details

    def code(self) -> grpc.StatusCode:
        return self._told[0]

    def details(self) -> str:
        return self._told[1]

    def trailing_metadata(self) -> Any:
        return (("grpc-status-details-bin", self._told[2]),)


def test_the_chaincodes_refusal_is_taken_out_of_the_status_details() -> None:
    peer = Peer("peer0", "Org1", "Org1MSP", "localhost:7051", None)
    error = Failed(grpc.StatusCode.UNKNOWN, "evaluate call failed", base64.b64decode(RECORDED["refusal"]))
    told = str(failure(error, "GetSize", peer))
    assert told.startswith("run recorded-")
    assert told.endswith("is not open; its coordinator opens it with OpenRun")
