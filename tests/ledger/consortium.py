"""A consortium of three on a real node, of whom two must agree."""

from typing import Any

from anvil import Anvil, account, funded

from ledger.approvals import approve
from ledger.canonical import sha256_hex
from ledger.federation import Federation, Member, member
from ledger.keys_ethereum import LocalKey
from ledger.public import Receipt

PATIENT = 20.0  # seconds; reached only by a test that fails
NAMES = ("bank", "clinic", "lab")
KEYS = [account(n) for n in range(3)]
COORDINATOR = account(4)


def founders() -> list[Member]:
    """The three."""
    return [member(key.address, name, sha256_hex(name.encode())) for key, name in zip(KEYS, NAMES, strict=True)]


def deploy(node: Anvil) -> str:
    """Address of a new consortium."""
    return Federation.deploy(node.url, funded(node), founders(), 2, COORDINATOR.address, patience_s=PATIENT).contract


def submit(
    consortium: Federation, kind: str, fields: dict[str, Any], signers: list[LocalKey] = KEYS[:2], **options: Any
) -> Receipt:
    """Propose, have some members approve, send."""
    proposal = consortium.propose(kind, fields, **options)
    return consortium.submit(proposal, [approve(proposal, signer) for signer in signers])


def hexed(data: bytes) -> str:
    """0x hex."""
    return "0x" + data.hex()
