"""What the members of a consortium decide, as EIP-712 typed data that each of them signs off the chain."""

import importlib
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ledger.errors import LedgerError
from ledger.keys_ethereum import CURVE_ORDER, Signer

DOMAIN_NAME, DOMAIN_VERSION = "TrustChain Federation", "1"

_END = (("nonce", "uint256"), ("deadline", "uint256"))
KINDS: dict[str, tuple[tuple[str, str], ...]] = {
    "AddMember": (
        ("account", "address"), ("name", "bytes32"), ("keyId", "bytes32"), ("threshold", "uint256"), *_END,
    ),
    "RemoveMember": (("account", "address"), ("threshold", "uint256"), *_END),
    "SetThreshold": (("threshold", "uint256"), *_END),
    "SetCoordinator": (("account", "address"), ("allowed", "bool"), *_END),
    "OpenLog": (("run", "bytes32"), ("anchorer", "address"), *_END),
    "Release": (("model", "bytes32"), ("run", "bytes32"), ("size", "uint64"), ("root", "bytes32"), *_END),
    "Revoke": (("model", "bytes32"), ("reason", "bytes32"), *_END),
    "Settle": (("id", "bytes32"), ("root", "bytes32"), ("total", "uint256"), ("expiry", "uint256"), *_END),
}  # fmt: skip
"""Fields of each kind of proposal, in the order of the contract."""

_DOMAIN = (("name", "string"), ("version", "string"), ("chainId", "uint256"), ("verifyingContract", "address"))


@dataclass(frozen=True)
class Proposal:
    """Something for the members to approve.

    Attributes
    ----------
    kind
        One of :data:`KINDS`.
    fields
        Values by name, with ``nonce`` and ``deadline`` (seconds since 1970); addresses and 32-byte values as 0x hex.
    chain_id, contract
        The consortium for which alone an approval counts.
    """

    kind: str
    fields: dict[str, Any]
    chain_id: int
    contract: str

    def __post_init__(self) -> None:
        names = [name for name, _ in KINDS.get(self.kind, ())]
        if not names or sorted(self.fields) != sorted(names):
            wanted = ", ".join(names) or f"a kind of {', '.join(KINDS)}"
            raise LedgerError(f"proposal {self.kind!r}: needs exactly {wanted}")
        for name, kind in KINDS[self.kind]:
            if not _fits(self.fields[name], kind):
                raise LedgerError(f"proposal {self.kind}: {name} is no {kind} (0x hex, or a number from 0 on)")

    def values(self) -> list[Any]:
        """The fields in the order of the contract."""
        return [self.fields[name] for name, _ in KINDS[self.kind]]

    def typed_data(self) -> dict[str, Any]:
        """As ``eth_signTypedData_v4`` of a wallet takes it; numbers as text, which JavaScript does not round."""
        message = {name: str(value) if type(value) is int else value for name, value in self.fields.items()}
        domain = (DOMAIN_NAME, DOMAIN_VERSION, self.chain_id, self.contract)
        return {
            "types": {
                "EIP712Domain": [{"name": name, "type": kind} for name, kind in _DOMAIN],
                self.kind: [{"name": name, "type": kind} for name, kind in KINDS[self.kind]],
            },
            "primaryType": self.kind,
            "domain": {name: value for (name, _), value in zip(_DOMAIN, domain, strict=True)},
            "message": message,
        }

    def digest(self) -> bytes:
        """The 32 bytes that are signed."""
        messages = importlib.import_module("eth_account.messages")
        signable = messages.encode_typed_data(full_message=self.typed_data())
        digest: bytes = importlib.import_module("eth_utils").keccak(
            b"\x19" + signable.version + signable.header + signable.body
        )
        return digest


@dataclass(frozen=True)
class Approval:
    """A member's signature of a proposal: 65 bytes r, s, v of an account; whatever a contract takes of a contract."""

    member: str
    signature: bytes


def new_proposal(
    kind: str, chain_id: int, contract: str, fields: Mapping[str, Any], valid_s: int = 7 * 24 * 3600
) -> Proposal:
    """A proposal with a fresh nonce.

    Parameters
    ----------
    kind, chain_id, contract, fields
        As of :class:`Proposal`, without ``nonce`` and ``deadline``.
    valid_s
        Seconds from now in which approvals can be used.

    Raises
    ------
    LedgerError
        A field is missing, too much, or of the wrong type.
    """
    end = {"nonce": secrets.randbits(128), "deadline": int(time.time()) + valid_s}
    return Proposal(kind, {**fields, **end}, chain_id, contract)


def read_proposal(typed_data: object) -> Proposal:
    """The proposal behind typed data that somebody sent, so that a member sees what it would sign.

    Raises
    ------
    LedgerError
        It is not exactly what :meth:`Proposal.typed_data` gives: other types, another domain, a field too much.
    """
    try:
        content: Any = typed_data
        kind, domain = content["primaryType"], content["domain"]
        message = dict(content["message"])
        for name, type_ in KINDS[kind]:
            if type_.startswith("uint"):
                message[name] = int(message[name])
        proposal = Proposal(kind, message, domain["chainId"], domain["verifyingContract"])
    except (KeyError, TypeError, ValueError):
        raise LedgerError("typed data: is no proposal for a consortium") from None
    if proposal.typed_data() != typed_data:
        raise LedgerError("typed data: types or domain are not those of a consortium's proposal; do not sign it")
    return proposal


def approve(proposal: Proposal, signer: Signer) -> Approval:
    """Sign a proposal as the member that the signer stands for."""
    raw = signer.sign(proposal.digest(), proposal.typed_data())
    return Approval(signer.address, raw[:64] + bytes([raw[64] + 27]))


def check_approval(proposal: Proposal, approval: Approval) -> None:
    """Check the signature of an approval by an account, before it is sent; the contract does the same.

    Raises
    ------
    LedgerError
        Not 65 bytes, a high s (EIP-2), or somebody else's signature.
    """
    raw = approval.signature
    where = f"approval of {proposal.kind} by {approval.member}"
    if len(raw) != 65 or raw[64] not in (27, 28):
        raise LedgerError(f"{where}: the signature is not 65 bytes r, s, v with v 27 or 28")
    if int.from_bytes(raw[32:64], "big") > CURVE_ORDER // 2:
        raise LedgerError(f"{where}: s lies in the upper half, which anybody can make of a signature; sign again")
    eth_keys = importlib.import_module("eth_keys")
    try:
        signature = eth_keys.keys.Signature(raw[:64] + bytes([raw[64] - 27]))
        account = signature.recover_public_key_from_msg_hash(proposal.digest()).to_checksum_address()
    except (eth_keys.exceptions.BadSignature, eth_keys.exceptions.ValidationError):
        account = "nobody"
    if account.lower() != approval.member.lower():
        raise LedgerError(f"{where}: the signature is of {account}; was it made for this proposal, chain and contract?")


def _fits(value: object, kind: str) -> bool:
    if kind == "bool":
        return isinstance(value, bool)
    if kind.startswith("uint"):
        return type(value) is int and 0 <= value < 2 ** int(kind[4:])
    length = 20 if kind == "address" else 32
    if not isinstance(value, str) or not value.startswith("0x") or len(value) != 2 + 2 * length:
        return False
    return all(digit in "0123456789abcdefABCDEF" for digit in value[2:])
