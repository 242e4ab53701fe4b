"""Client of the Gateway service of a peer (Fabric 2.4 to 3.x): its five methods over gRPC.

Python has no official one. Every call has a deadline. After a time-out the same signed envelope is submitted
again, never a newly endorsed one: the ledger keeps one transaction of each id, so that it cannot happen twice.
"""

import contextlib
import hashlib
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ledger.errors import LedgerError, Unavailable
from ledger.fabric import wire
from ledger.fabric.profile import Peer
from ledger.fabric.signer import Signer
from ledger.fabric.transaction import Proposal, propose, result_of
from ledger.private import ChainEvent, Conflict

try:
    import grpc

    from ledger.fabric.connection import GRACE_S, Connection, responses
    from ledger.fabric.failures import Disagreement, failure
except ImportError as error:  # pragma: no cover - an installation without the extra
    raise LedgerError("Fabric needs grpcio: pip install 'trustchain-ray[fabric]'") from error

LAG_S = 5.0
"""How long peers that disagree are asked again, in seconds: one that lags a block behind catches up."""
PAUSES_S = (0.05, 0.1, 0.2, 0.4, 0.8)
"""Pauses between attempts, in seconds; the last one repeats."""
KEPT = 32
"""Number of submitted envelopes of unknown fate that are kept for another attempt."""

_CONFLICTS = ("MVCC_READ_CONFLICT", "PHANTOM_READ_CONFLICT")


@dataclass(frozen=True)
class _Submitted:
    """A signed envelope that may or may not have reached the ledger."""

    tx: str
    envelope: wire.Message
    result: bytes


class Gateway:
    """Calls one chaincode on one channel through one peer.

    The connection is made at the first call, and again in a process that was forked after it. Safe for threads.

    Parameters
    ----------
    peer
        See :func:`ledger.fabric.profile.load_peer`.
    signer
        The identity that signs.
    channel, chaincode
        Names.
    client_tls
        PEM certificate and key for mutual TLS.
    deadline_s
        Longest duration of one call of a method here, in seconds.
    """

    def __init__(
        self,
        peer: Peer,
        signer: Signer,
        channel: str,
        chaincode: str,
        client_tls: tuple[bytes, bytes] | None = None,
        deadline_s: float = 15.0,
    ) -> None:
        self.peer, self.signer, self.channel, self.chaincode = peer, signer, channel, chaincode
        self.deadline_s = deadline_s
        self._connection = Connection(peer, client_tls)
        self._lock = threading.Lock()
        self._submitted: dict[bytes, _Submitted] = {}

    def evaluate(self, name: str, *arguments: str, organizations: Sequence[str] = ()) -> bytes:
        """Ask one peer for the result of a transaction: of the given organizations, else the gateway's own.

        Raises
        ------
        LedgerError
            The chaincode refused (its message), the identity is not accepted, or the peer is not the right one.
        Unavailable
            No answer in time, or no connection.
        """
        proposal = self._propose(name, arguments, None)
        request = wire.EvaluateRequest(
            transaction_id=proposal.tx,
            channel_id=self.channel,
            proposed_transaction=proposal.signed,
            target_organizations=organizations,
        )
        response = self._call("Evaluate", request, wire.EvaluateResponse, name, self.deadline_s)
        result: bytes = response.result.payload
        return result

    def submit(
        self,
        name: str,
        *arguments: str,
        transient: Mapping[str, bytes] | None = None,
        organizations: Sequence[str] = (),
    ) -> bytes:
        """Have a transaction endorsed, ordered and committed; return its result.

        Where an earlier call with the same content ended without an answer, its envelope is submitted again.

        Parameters
        ----------
        name, arguments
            Transaction of the chaincode.
        transient
            Data for the endorsers that does not go to the ledger.
        organizations
            MSP ids that shall endorse; default: the peer finds out who must.

        Raises
        ------
        LedgerError
            Refused for good; see :meth:`evaluate`. Also a transaction that was found invalid.
        Conflict
            Another transaction changed a key first.
        Unavailable
            It is not known to be committed; call again.
        """
        end = time.monotonic() + self.deadline_s
        content = _digest(name, arguments, transient, organizations)
        with self._lock:
            submitted = self._submitted.get(content)
        if submitted is None:
            proposal = self._propose(name, arguments, transient)
            envelope = self._endorse(proposal, name, organizations, end)
            result = result_of(proposal, envelope.payload)
            envelope.signature = self.signer.sign(envelope.payload)
            submitted = _Submitted(proposal.tx, envelope, result)
            with self._lock:
                if len(self._submitted) >= KEPT:
                    del self._submitted[next(iter(self._submitted))]
                self._submitted[content] = submitted
        try:
            code = self._settle(submitted, name, end)
        except Unavailable:
            raise  # the envelope is kept: it may still be committed
        except LedgerError:
            self._forget(content)
            raise
        self._forget(content)
        where = f"{name}: transaction {submitted.tx[:16]}"
        if code in _CONFLICTS:
            raise Conflict(f"{where}: {code}: another transaction changed the same keys first; read again, then retry")
        if code == "ENDORSEMENT_POLICY_FAILURE":
            raise LedgerError(f"{where}: {code}: too few organizations endorsed it; name more to endorse")
        if code != "VALID":
            raise LedgerError(f"{where}: found invalid: {code}")
        return submitted.result

    def events(self, block: int, after_tx: str, wait_s: float) -> Iterator[ChainEvent]:
        """Events of the chaincode from ``block`` on, after transaction ``after_tx`` if it is not empty.

        The iterator ends after ``wait_s`` seconds. Raises as :meth:`evaluate`.
        """
        request = wire.ChaincodeEventsRequest(
            channel_id=self.channel,
            chaincode_id=self.chaincode,
            identity=self.signer.identity,
            start_position=wire.SeekPosition(specified=wire.SeekSpecified(number=block)),
            after_transaction_id=after_tx,
        ).SerializeToString()
        signed = wire.SignedChaincodeEventsRequest(request=request, signature=self.signer.sign(request))
        stream = self._connection.channel().unary_stream(
            "/gateway.Gateway/ChaincodeEvents",
            request_serializer=wire.SignedChaincodeEventsRequest.SerializeToString,
            response_deserializer=wire.ChaincodeEventsResponse.FromString,
        )(signed, timeout=wait_s)
        try:
            for response in responses(stream):
                for event in response.events:
                    yield ChainEvent(response.block_number, event.tx_id, event.event_name, event.payload)
            if stream.code() not in (grpc.StatusCode.OK, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise failure(stream, "events", self.peer)
        finally:
            stream.cancel()

    def close(self) -> None:
        """Close the connection; a later call opens it again."""
        self._connection.close()

    def _propose(self, name: str, arguments: Sequence[str], transient: Mapping[str, bytes] | None) -> Proposal:
        bound = self._connection.certificate_hash
        return propose(self.signer, self.channel, self.chaincode, name, arguments, transient, bound)

    def _endorse(self, proposal: Proposal, name: str, organizations: Sequence[str], end: float) -> wire.Message:
        """Envelope that the peer prepared, to be signed. Nothing is on the ledger yet: asking again is harmless."""
        request = wire.EndorseRequest(
            transaction_id=proposal.tx,
            channel_id=self.channel,
            proposed_transaction=proposal.signed,
            endorsing_organizations=organizations,
        )
        patience = min(end, time.monotonic() + LAG_S)
        for pause in _pauses():
            try:
                left = max(end - time.monotonic(), 0.001)
                response = self._call("Endorse", request, wire.EndorseResponse, name, left, organizations)
                return response.prepared_transaction
            except Disagreement:
                if time.monotonic() + pause >= patience:
                    raise
            time.sleep(pause)
        raise AssertionError("pauses never end")

    def _settle(self, submitted: _Submitted, name: str, end: float) -> str:
        """Submit one envelope until its validation code is known; return the code's name."""
        request = wire.SubmitRequest(
            transaction_id=submitted.tx, channel_id=self.channel, prepared_transaction=submitted.envelope
        )
        slice_s = max(self.deadline_s / 3, 0.1)
        for pause in _pauses():
            try:
                left = end - time.monotonic()
                self._call("Submit", request, wire.SubmitResponse, name, max(min(left, slice_s), 0.001))
                left = end - time.monotonic()
                return self._commit_status(submitted.tx, name, max(min(left, slice_s), 0.001))
            except Unavailable as error:
                if time.monotonic() + pause >= end:
                    raise Unavailable(
                        f"{error}; transaction {submitted.tx[:16]} may still be committed: call again"
                    ) from None
            time.sleep(pause)
        raise AssertionError("pauses never end")

    def _commit_status(self, tx: str, name: str, timeout_s: float) -> str:
        request = wire.CommitStatusRequest(
            transaction_id=tx, channel_id=self.channel, identity=self.signer.identity
        ).SerializeToString()
        signed = wire.SignedCommitStatusRequest(request=request, signature=self.signer.sign(request))
        code = ""
        for _ in range(2):
            response = self._call("CommitStatus", signed, wire.CommitStatusResponse, name, timeout_s)
            code = wire.VALIDATION_CODES.get(response.result, str(response.result))
            if code != "DUPLICATE_TXID":
                break  # a duplicate is the second copy of the envelope; the ledger tells of the first when asked again
        return code

    def _call(
        self,
        method: str,
        request: wire.Message,
        response: wire.Message,
        what: str,
        timeout_s: float,
        organizations: Sequence[str] = (),
    ) -> wire.Message:
        call = self._connection.channel().unary_unary(
            f"/gateway.Gateway/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=response.FromString,
        )
        pending = call.future(request, timeout=timeout_s)
        try:
            return pending.result(timeout_s + GRACE_S)
        except grpc.FutureTimeoutError:
            pending.cancel()
            raise Unavailable(f"{what}: peer {self.peer.name} ({self.peer.address}) did not answer in time") from None
        except grpc.RpcError as error:
            raise failure(error, what, self.peer, organizations) from None

    def _forget(self, content: bytes) -> None:
        with self._lock, contextlib.suppress(KeyError):
            del self._submitted[content]


def _pauses() -> Iterator[float]:
    yield from PAUSES_S
    while True:
        yield PAUSES_S[-1]


def _digest(
    name: str, arguments: Sequence[str], transient: Mapping[str, bytes] | None, organizations: Sequence[str]
) -> bytes:
    """Tells calls with the same content."""
    digest = hashlib.sha256()
    parts = [name.encode(), *(argument.encode() for argument in arguments), b"\0transient"]
    for key, value in sorted((transient or {}).items()):
        parts += [key.encode(), value]
    parts += [b"\0organizations", *(organization.encode() for organization in organizations)]
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.digest()
