"""What an error of a gRPC call means: refused for good, or not now."""

import re
from collections.abc import Sequence

import grpc

from ledger.errors import LedgerError, Unavailable
from ledger.fabric import wire
from ledger.fabric.profile import Peer

_REFUSAL = re.compile(r"chaincode response \d+, (.*)", re.DOTALL)
_SHIM = re.compile(r"^(?:transaction returned with failure: )?(?:Error: )?")
_CERTIFICATE = re.compile(r"certificate|handshake failed|hostname|tls", re.IGNORECASE)
_ABSENT = (
    "no peers available",
    "no combination of peers",
    "unavailability of peers",
    "failed to find any endorsing peers",
    "no endorsers found",
    "no orderer nodes",
)
_TRANSIENT = (
    "code = Unavailable",
    "code = DeadlineExceeded",
    "code = Canceled",
    "connection error",
    "context deadline exceeded",
    "could not launch chaincode",
    "chaincode stream terminated",
    "timeout expired while executing",
    "endorsement timeout",
)


class Disagreement(Unavailable):
    """The first peer endorsed, another did not: as a rule one that lags a block behind."""


def failure(error: grpc.RpcError, what: str, peer: Peer, organizations: Sequence[str] = ()) -> LedgerError:
    """The exception for a failed call.

    Parameters
    ----------
    error
        As grpcio raises it.
    what
        The call, for the message.
    peer
        The peer that was called.
    organizations
        MSP ids that were named to endorse; none: the peer found them itself, and asked its own first.

    Returns
    -------
    LedgerError
        :class:`~ledger.errors.Unavailable` where the same call may succeed later.
    """
    code, text = error.code(), error.details() or ""
    details = _details(error)
    refusals = [(msp, _SHIM.sub("", found[1])) for msp, told in details if (found := _REFUSAL.search(told))]
    if refusals:
        by_all = organizations and {msp for msp, _ in refusals}.issuperset(organizations)
        if text.startswith("failed to collect enough") and not by_all:
            return Disagreement(f"{what}: {refusals[0][0]} refuses what others endorse: {refusals[0][1]}")
        return LedgerError(refusals[0][1])
    told = "; ".join(dict.fromkeys(message for _, message in details)) or text
    where = f"{what}: peer {peer.name} ({peer.address})"
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return Unavailable(f"{where} did not answer in time")
    if code is grpc.StatusCode.UNAVAILABLE:
        if not details and _CERTIFICATE.search(told):
            return LedgerError(
                f"{where}: no TLS connection: {told}; tlsCACerts, ssl-target-name-override and the client's TLS "
                "certificate of the connection profile must fit this peer"
            )
        hint = "; the peer has not joined the channel" if "failed to get config for channel" in told else ""
        return Unavailable(f"{where}: not available: {told}{hint}")
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return LedgerError(f"{where}: has no Gateway service; it needs Fabric 2.4 or newer, and peer.gateway.enabled")
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return LedgerError(f"{where}: message too large: {told}")
    if code in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED) or "access denied" in told:
        return LedgerError(f"{where}: access denied: the channel does not accept this identity or signature: {told}")
    if code is grpc.StatusCode.FAILED_PRECONDITION and any(sign in told for sign in _ABSENT):
        return Unavailable(f"{where}: {told}; peers are down, or channel or chaincode have another name")
    if code is grpc.StatusCode.ABORTED and "ProposalResponsePayloads do not match" in told:
        return Disagreement(f"{what}: peers endorsed different results: {told}")
    if any(sign in told for sign in _TRANSIENT):
        return Unavailable(f"{where}: {told}")
    if code in (grpc.StatusCode.CANCELLED, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN):
        return Unavailable(f"{where}: the connection broke: {told}")
    return LedgerError(f"{where}: {code.name}: {told}")


def _details(error: grpc.RpcError) -> list[tuple[str, str]]:
    """MSP id and message of the single peers and orderers, from the status details (gateway.ErrorDetail)."""
    found: list[tuple[str, str]] = []
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            for entry in wire.parse(wire.Status, value).details:
                if entry.type_url.endswith("gateway.ErrorDetail"):
                    detail = wire.parse(wire.ErrorDetail, entry.value)
                    found.append((detail.msp_id, " ".join(detail.message.split())))
    return found
