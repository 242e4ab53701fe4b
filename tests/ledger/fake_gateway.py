"""A peer's Gateway service for tests: five gRPC methods over TLS, with the checks of a real peer.

It checks certificates, MSP membership, signatures and low s, transaction ids, envelopes and duplicates, simulates with
:mod:`fake_chaincode`, orders into blocks after a delay, validates versions (MVCC) and endorsements, and replays events.
It can hang, lose answers, lag and die, and come back with its state.
"""

import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NoReturn

import grpc
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from fabric_certificates import ATTRIBUTES, CA_NAME, Pair, authority, issue
from fake_chaincode import Refused, Transaction, World

from ledger.fabric import wire
from ledger.fabric.signer import ORDERS

BLOCK_S = 0.02
"""Delay from an envelope to its block."""
VALID, BAD_SIGNATURE, DUPLICATE, POLICY, CONFLICT = 0, 4, 9, 10, 11


@dataclass
class Block:
    number: int
    transactions: list[tuple[str, int, tuple[str, bytes] | None]]


@dataclass
class Channel:
    """What survives when the peer dies: members, blocks, world state."""

    name: str
    chaincode: str
    members: Mapping[str, Pair]
    world: World = field(default_factory=World)
    blocks: list[Block] = field(default_factory=list)
    codes: dict[str, int] = field(default_factory=dict)
    endorsed: dict[str, tuple[bytes, Transaction, int]] = field(default_factory=dict)
    ordered: list[wire.Message] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)
    full: int = 1
    """Envelopes that a block waits for."""

    def order(self, envelope: wire.Message) -> None:
        """Put an envelope into the next block."""
        with self.changed:
            self.ordered.append(envelope)
            if len(self.ordered) == self.full:
                threading.Timer(BLOCK_S, self._cut).start()

    def _cut(self) -> None:
        with self.changed:
            block = Block(len(self.blocks), [])
            for envelope in self.ordered:
                tx, code, event = self._validate(envelope)
                block.transactions.append((tx, code, event))
                self.codes.setdefault(tx, code)
            self.ordered.clear()
            self.blocks.append(block)
            self.changed.notify_all()

    def _validate(self, envelope: wire.Message) -> tuple[str, int, tuple[str, bytes] | None]:
        payload = wire.parse(wire.Payload, envelope.payload)
        tx = wire.parse(wire.ChannelHeader, payload.header.channel_header).tx_id
        creator = wire.parse(wire.SignatureHeader, payload.header.signature_header).creator
        if not signature_holds(creator, envelope.payload, envelope.signature):
            return tx, BAD_SIGNATURE, None
        if tx in self.codes:
            return tx, DUPLICATE, None
        data, simulated, endorsers = self.endorsed[tx]
        if data != payload.data:
            return tx, POLICY, None
        needed = max([1, *(self.world.policies.get(key, 1) for key in simulated.writes)])
        if endorsers < needed:
            return tx, POLICY, None
        for key, version in simulated.reads.items():
            if self.world.state.get(key, (None, 0))[1] != version:
                return tx, CONFLICT, None
        simulated.commit()
        event = simulated.event
        return tx, VALID, None if event is None else (event[0], json.dumps(event[1]).encode())


class FakeGateway:
    """A peer of the first member of ``msps``.

    Attributes
    ----------
    cas
        Certificate authority of every member, by MSP id.
    tls_ca
        Authority of the peers' TLS certificates.
    port
        Where it listens; the same after :meth:`restart`.
    calls
        Number of calls of each method.
    hang
        Methods that never answer.
    lose
        Methods that do their work and then lose the answer, and how often.
    lag
        How many endorsements the second organization refuses because it lags behind.
    down
        Members whose peers are down.
    envelopes
        Every envelope that was submitted.
    swap
        Prepare a transaction other than the one proposed.
    """

    def __init__(self, *msps: str, mutual: bool = False, host: str = CA_NAME) -> None:
        self.cas = {msp: authority(f"ca.{msp}") for msp in msps}
        self.tls_ca = authority("tlsca")
        self.pair = issue(self.tls_ca, "peer0", unit=None, host=host)
        self.msp = msps[0]
        self.channel = Channel("trustchain", "trustchain", self.cas)
        self.mutual = mutual
        self.port = 0
        self.calls: Counter[str] = Counter()
        self.hang: set[str] = set()
        self.lose: Counter[str] = Counter()
        self.lag = 0
        self.down: set[str] = set()
        self.envelopes: list[bytes] = []
        self.swap = False
        self.server: grpc.Server | None = None
        self.restart()

    def restart(self) -> None:
        """Listen, on the port of before if there was one."""
        pool = ThreadPoolExecutor(16)
        options = [("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 100 << 20)]
        self.server = grpc.server(pool, options=[*options, ("grpc.max_send_message_length", 100 << 20)])
        unary = (
            ("Evaluate", self._evaluate, wire.EvaluateRequest),
            ("Endorse", self._endorse, wire.EndorseRequest),
            ("Submit", self._submit, wire.SubmitRequest),
            ("CommitStatus", self._commit_status, wire.SignedCommitStatusRequest),
        )
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(
                self._faulty(name, method), request.FromString, lambda reply: reply.SerializeToString()
            )
            for name, method, request in unary
        }
        handlers["ChaincodeEvents"] = grpc.unary_stream_rpc_method_handler(
            self._events, wire.SignedChaincodeEventsRequest.FromString, lambda reply: reply.SerializeToString()
        )
        self.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("gateway.Gateway", handlers),))
        credentials = grpc.ssl_server_credentials(
            [(self.pair.key_pem, self.pair.pem)], self.tls_ca.pem if self.mutual else None, self.mutual
        )
        self.port = self.server.add_secure_port(f"127.0.0.1:{self.port}", credentials)
        self.server.start()

    def die(self) -> None:
        """Break all connections and stop listening; blocks and state stay."""
        if self.server is not None:
            self.server.stop(0).wait()
            self.server = None

    # The five methods

    def _faulty(self, name: str, method: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        def call(request: Any, context: Any) -> Any:
            self.calls[name] += 1
            if name in self.hang:
                _wait_until_given_up(context)
            answer = method(request, context)
            if self.lose[name] > 0:
                self.lose[name] -= 1
                _wait_until_given_up(context)
            return answer

        return call

    def _evaluate(self, request: Any, context: Any) -> Any:
        _, result = self._simulate(request.proposed_transaction, context, grpc.StatusCode.FAILED_PRECONDITION)
        if isinstance(result, Refused):
            detail = f"chaincode response 500, {result}"
            fail(context, grpc.StatusCode.UNKNOWN, "evaluate call to endorser returned error: " + detail,
                 (self.msp, detail))  # fmt: skip
        return wire.EvaluateResponse(result=wire.Response(status=200, payload=result.encode()))

    def _endorse(self, request: Any, context: Any) -> Any:
        simulated, result = self._simulate(request.proposed_transaction, context, grpc.StatusCode.ABORTED)
        if isinstance(result, Refused):
            fail(context, grpc.StatusCode.ABORTED, "failed to endorse transaction, see attached details for more info",
                 (self.msp, f"chaincode response 500, {result}"))  # fmt: skip
        wanted = list(request.endorsing_organizations) or list(self.cas)
        missing = [msp for msp in wanted if msp in self.down or msp not in self.cas]
        if missing and not request.endorsing_organizations:
            fail(context, grpc.StatusCode.FAILED_PRECONDITION, "no combination of peers can be derived")
        if missing:
            fail(context, grpc.StatusCode.UNAVAILABLE, f"failed to find any endorsing peers for org(s): {missing[0]}")
        if self.lag > 0:
            self.lag -= 1
            other = list(self.cas)[1]
            fail(context, grpc.StatusCode.ABORTED, "failed to collect enough transaction endorsements, see attached "
                 "details for more info", (other, "chaincode response 500, event 1 cannot be appended"))  # fmt: skip
        return self._prepare(request, simulated, result, len(wanted))

    def _prepare(self, request: Any, simulated: Transaction, result: str, endorsers: int) -> Any:
        proposal = wire.parse(wire.Proposal, request.proposed_transaction.proposal_bytes)
        header = wire.parse(wire.Header, proposal.header)
        whole = wire.parse(wire.ChaincodeProposalPayload, proposal.payload)
        called = whole.input if not self.swap else whole.input.replace(b"OpenRound", b"ShutRound")
        public = wire.ChaincodeProposalPayload(input=called).SerializeToString()
        proposal_hash = hashlib.sha256(header.channel_header + header.signature_header + public).digest()
        action = wire.ChaincodeAction(response=wire.Response(status=200, payload=result.encode()))
        response = wire.ProposalResponsePayload(proposal_hash=proposal_hash, extension=action.SerializeToString())
        endorsed = wire.ChaincodeEndorsedAction(proposal_response_payload=response.SerializeToString())
        payload = wire.ChaincodeActionPayload(chaincode_proposal_payload=public, action=endorsed)
        transaction = wire.Transaction()
        transaction.actions.add(header=header.signature_header, payload=payload.SerializeToString())
        data = transaction.SerializeToString()
        self.channel.endorsed[request.transaction_id] = (data, simulated, endorsers)
        prepared = wire.Payload(header=header, data=data).SerializeToString()
        return wire.EndorseResponse(prepared_transaction=wire.Envelope(payload=prepared))

    def _submit(self, request: Any, context: Any) -> Any:
        envelope = request.prepared_transaction
        if not envelope.signature:
            fail(context, grpc.StatusCode.INVALID_ARGUMENT, "prepared transaction must be signed")
        self.envelopes.append(envelope.SerializeToString())
        self.channel.order(envelope)
        return wire.SubmitResponse()

    def _commit_status(self, request: Any, context: Any) -> Any:
        wanted = wire.parse(wire.CommitStatusRequest, request.request)
        self._check_request(wanted.identity, request, context)
        with self.channel.changed:
            while wanted.transaction_id not in self.channel.codes and context.is_active():
                self.channel.changed.wait(0.05)
            return wire.CommitStatusResponse(result=self.channel.codes.get(wanted.transaction_id, 254))

    def _events(self, request: Any, context: Any) -> Iterator[Any]:
        self.calls["ChaincodeEvents"] += 1
        if "ChaincodeEvents" in self.hang:
            _wait_until_given_up(context)
        wanted = wire.parse(wire.ChaincodeEventsRequest, request.request)
        self._check_request(wanted.identity, request, context)
        number, passed = wanted.start_position.specified.number, not wanted.after_transaction_id
        while context.is_active():
            with self.channel.changed:
                while number >= len(self.channel.blocks) and context.is_active():
                    self.channel.changed.wait(0.05)
                blocks = self.channel.blocks[number:]
            number += len(blocks)
            for block in blocks:
                reply = wire.ChaincodeEventsResponse(block_number=block.number)
                for tx, code, event in block.transactions:
                    if passed and code == VALID and event is not None:
                        reply.events.add(chaincode_id="trustchain", tx_id=tx, event_name=event[0], payload=event[1])
                    passed = passed or tx == wanted.after_transaction_id
                if reply.events:
                    yield reply

    # Checks

    def _simulate(self, signed: Any, context: Any, denied: grpc.StatusCode) -> tuple[Transaction, Any]:
        """Check a proposal as an endorser does, and run its transaction; a refusal is the result."""
        proposal = wire.parse(wire.Proposal, signed.proposal_bytes)
        header = wire.parse(wire.Header, proposal.header)
        channel = wire.parse(wire.ChannelHeader, header.channel_header)
        who = wire.parse(wire.SignatureHeader, header.signature_header)
        whole = wire.parse(wire.ChaincodeProposalPayload, proposal.payload)
        spec = wire.parse(wire.ChaincodeInvocationSpec, whole.input).chaincode_spec
        extension = wire.parse(wire.ChaincodeHeaderExtension, channel.extension)
        if (channel.channel_id, spec.chaincode_id.name) != (self.channel.name, self.channel.chaincode):
            name = spec.chaincode_id.name
            absent = f"no peers available to evaluate chaincode {name} in channel {channel.channel_id}"
            fail(context, grpc.StatusCode.FAILED_PRECONDITION, absent)
        certificate, problem = self._creator(who.creator)
        if channel.type != wire.ENDORSER_TRANSACTION or channel.epoch or not channel.HasField("timestamp"):
            problem = problem or "invalid header"
        if not problem and hashlib.sha256(who.nonce + who.creator).hexdigest() != channel.tx_id:
            problem = f"incorrectly computed txid '{channel.tx_id}'"
        if not problem and extension.chaincode_id.name != spec.chaincode_id.name:
            problem = "chaincode id differs"
        if not problem and not signature_holds(who.creator, signed.proposal_bytes, signed.signature):
            problem = "access denied: channel [trustchain] creator org"
        if not problem and channel.tx_id in self.channel.codes:
            problem = f"duplicate transaction found [{channel.tx_id}]"
        if problem or certificate is None:
            fail(context, denied, "failed to endorse transaction, see attached details for more info",
                 (self.msp, f"error validating proposal: {problem}"))  # fmt: skip
        name, *arguments = (argument.decode() for argument in spec.input.args)
        msp = wire.parse(wire.SerializedIdentity, who.creator).mspid
        with self.channel.changed:
            simulated = Transaction(
                self.channel.world, msp, _is_admin(certificate), dict(whole.TransientMap), list(self.cas)
            )
            try:
                return simulated, simulated.call(name, arguments)
            except Refused as refusal:
                return simulated, refusal

    def _creator(self, creator: bytes) -> tuple[x509.Certificate | None, str]:
        identity = wire.parse(wire.SerializedIdentity, creator)
        ca = self.cas.get(identity.mspid)
        if ca is None:
            return None, "access denied: channel [trustchain] creator org unknown, creator is malformed"
        certificate = x509.load_pem_x509_certificate(identity.id_bytes)
        try:
            certificate.verify_directly_issued_by(ca.certificate)
        except (InvalidSignature, ValueError, TypeError):
            return None, f"access denied: channel [trustchain] creator org [{identity.mspid}]"
        return certificate, ""

    def _check_request(self, identity: bytes, request: Any, context: Any) -> None:
        _, problem = self._creator(identity)
        if problem or not signature_holds(identity, request.request, request.signature):
            fail(context, grpc.StatusCode.PERMISSION_DENIED, "failed evaluating policy on signed data")


def signature_holds(creator: bytes, message: bytes, signature: bytes) -> bool:
    """Whether it is the creator's signature, with a low s."""
    pem = wire.parse(wire.SerializedIdentity, creator).id_bytes
    key = x509.load_pem_x509_certificate(pem).public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    try:
        key.verify(signature, message, ec.ECDSA(hashes.SHA256()))
        return decode_dss_signature(signature)[1] <= ORDERS[key.curve.name] // 2
    except (InvalidSignature, ValueError):
        return False


def fail(context: Any, code: grpc.StatusCode, message: str, *details: tuple[str, str]) -> NoReturn:
    """End a call as the peer does, with gateway.ErrorDetail for every endorser."""
    status = wire.Status(code=code.value[0], message=message)
    for msp, text in details:
        detail = wire.ErrorDetail(address="peer0:7051", msp_id=msp, message=text)
        status.details.add(type_url="type.googleapis.com/gateway.ErrorDetail", value=detail.SerializeToString())
    context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
    context.abort(code, message)
    raise AssertionError("abort raises")


def _wait_until_given_up(context: Any) -> None:
    while context.is_active():
        time.sleep(0.02)


def _is_admin(certificate: x509.Certificate) -> bool:
    units = certificate.subject.get_attributes_for_oid(x509.NameOID.ORGANIZATIONAL_UNIT_NAME)
    if any(unit.value == "admin" for unit in units):
        return True
    for extension in certificate.extensions:
        if extension.oid == ATTRIBUTES and isinstance(extension.value, x509.UnrecognizedExtension):
            return json.loads(extension.value.value)["attrs"].get("trustchain.role") == "admin"
    return False
