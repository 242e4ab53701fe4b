"""Proposals as a client makes them, and prepared transactions as a peer gives them back."""

import hashlib
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ledger.errors import LedgerError
from ledger.fabric import wire
from ledger.fabric.signer import Signer

NONCE_BYTES = 24


@dataclass(frozen=True)
class Proposal:
    """A signed call of a chaincode's transaction.

    Attributes
    ----------
    tx
        Transaction id: SHA-256 (hex) of nonce and creator.
    signed
        peer.SignedProposal.
    channel_header, signature_header, spec
        The parts that must stand in the transaction that is signed later.
    """

    tx: str
    signed: wire.Message
    channel_header: bytes
    signature_header: bytes
    spec: bytes


def propose(
    signer: Signer,
    channel: str,
    chaincode: str,
    name: str,
    arguments: Sequence[str],
    transient: Mapping[str, bytes] | None = None,
    tls_cert_hash: bytes = b"",
) -> Proposal:
    """Sign a call of transaction ``name``; ``transient`` data reaches the chaincode and never the ledger."""
    nonce = os.urandom(NONCE_BYTES)
    tx = hashlib.sha256(nonce + signer.identity).hexdigest()
    chaincode_id = wire.ChaincodeID(name=chaincode)
    seconds, nanos = divmod(time.time_ns(), 1_000_000_000)
    channel_header = wire.ChannelHeader(
        type=wire.ENDORSER_TRANSACTION,
        timestamp=wire.Timestamp(seconds=seconds, nanos=nanos),
        channel_id=channel,
        tx_id=tx,
        extension=wire.ChaincodeHeaderExtension(chaincode_id=chaincode_id).SerializeToString(),
        tls_cert_hash=tls_cert_hash,
    ).SerializeToString()
    signature_header = wire.SignatureHeader(creator=signer.identity, nonce=nonce).SerializeToString()
    spec = wire.ChaincodeInvocationSpec(
        chaincode_spec=wire.ChaincodeSpec(
            chaincode_id=chaincode_id,
            input=wire.ChaincodeInput(args=[name.encode(), *(argument.encode() for argument in arguments)]),
        )
    ).SerializeToString()
    header = wire.Header(channel_header=channel_header, signature_header=signature_header)
    payload = wire.ChaincodeProposalPayload(input=spec, TransientMap=transient or {})
    proposal = wire.Proposal(header=header.SerializeToString(), payload=payload.SerializeToString())
    raw = proposal.SerializeToString()
    signed = wire.SignedProposal(proposal_bytes=raw, signature=signer.sign(raw))
    return Proposal(tx, signed, channel_header, signature_header, spec)


def result_of(proposal: Proposal, payload: bytes) -> bytes:
    """Result that the endorsers agreed on, after checking that the transaction is the one proposed.

    The peer prepares what the client then signs: one that prepares something else would get a signature for it.

    Parameters
    ----------
    proposal
        What was proposed.
    payload
        Payload of the envelope that the peer prepared (common.Payload).

    Raises
    ------
    LedgerError
        It is not a transaction, or not this one.
    """
    whole = wire.parse(wire.Payload, payload)
    transaction = wire.parse(wire.Transaction, whole.data)
    if len(transaction.actions) != 1:
        raise LedgerError(f"transaction {proposal.tx[:16]}: the peer prepared {len(transaction.actions)} actions")
    action = wire.parse(wire.ChaincodeActionPayload, transaction.actions[0].payload)
    prepared = wire.parse(wire.ChaincodeProposalPayload, action.chaincode_proposal_payload)
    if (
        whole.header.channel_header != proposal.channel_header
        or whole.header.signature_header != proposal.signature_header
        or transaction.actions[0].header != proposal.signature_header
        or prepared.input != proposal.spec
        or prepared.TransientMap
    ):
        raise LedgerError(
            f"transaction {proposal.tx[:16]}: the peer prepared another transaction than the one proposed; not signed"
        )
    response = wire.parse(wire.ProposalResponsePayload, action.action.proposal_response_payload)
    result: bytes = wire.parse(wire.ChaincodeAction, response.extension).response.payload
    return result
