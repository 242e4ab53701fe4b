"""Approvals for a consortium's contract, as files that the members hand to each other.

Each member writes one file of its own, which holds the whole proposal with its signature: no file has two writers, so
that the folder may be a shared disk, a synchronised folder, or what came by mail.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ledger import layout
from ledger.approvals import Approval, Proposal, read_proposal
from ledger.canonical import canonical_json, parse_canonical, write_atomic
from ledger.errors import LedgerError, Unavailable
from ledger.federation import Federation
from ledger.shape import DICT, STR, fields

FORMAT = "trustchain-approval-1"
MAX_BYTES = 1 << 16


@dataclass(frozen=True)
class Collected:
    """A proposal, and the approvals of it that hold, by member in lower-case hex."""

    proposal: Proposal
    approvals: Mapping[str, Approval]


def write(folder: Path, proposal: Proposal, approval: Approval) -> Path:
    """Write a member's approval in place of an older one of its own; the file. Raises LedgerError."""
    content = {
        "format": FORMAT,
        "member": approval.member.lower(),
        "proposal": proposal.typed_data(),
        "signature": "0x" + approval.signature.hex(),
    }
    path = folder / f"{approval.member.lower()}.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(path, canonical_json(content))
    except OSError as error:
        raise LedgerError(f"{path}: cannot be written: {error.strerror}") from None
    return path


def collect(
    folder: Path, federation: Federation, check: Callable[[Proposal], None], now: int
) -> Collected | None:
    """The proposal in a folder with the most approvals; members who look at the same files choose the same one.

    Parameters
    ----------
    check
        Raises LedgerError where a proposal is not what this member would approve.
    now
        Seconds since 1970: what is expired does not count.

    Raises
    ------
    LedgerError
        Naming the file that holds no approval, one of a stranger, or one whose signature does not hold.
    Unavailable
        The node does not answer.
    """
    members = {one.account.lower() for one in federation.members()}
    found: dict[bytes, tuple[Proposal, dict[str, Approval]]] = {}
    for path in sorted(folder.glob("*.json")):
        try:
            proposal, approval = _read(path)
            if proposal.fields["deadline"] <= now:
                continue
            federation.check_target(proposal)
            check(proposal)
            if approval.member not in members:
                raise LedgerError(f"{approval.member} is no member of the consortium {federation.contract}")
            federation.check_signature(proposal, approval)
        except Unavailable:
            raise
        except LedgerError as error:
            raise LedgerError(f"{path}: {error}; have its member approve again, or take the file away") from None
        found.setdefault(proposal.digest(), (proposal, {}))[1][approval.member] = approval
    if not found:
        return None
    best = min(found, key=lambda digest: (-len(found[digest][1]), digest))
    return Collected(*found[best])


def _read(path: Path) -> tuple[Proposal, Approval]:
    try:
        with layout.inside(path.parent, path.name).open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise LedgerError(f"cannot be read: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise LedgerError(f"is larger than {MAX_BYTES} bytes")
    kinds = {"format": STR, "member": STR, "proposal": DICT, "signature": STR}
    content: dict[str, Any] = fields(parse_canonical(data), kinds, "approval")
    if content["format"] != FORMAT:
        raise LedgerError(f"is of format {content['format'][:80]!r}, not {FORMAT!r}")
    try:
        signature = bytes.fromhex(content["signature"].removeprefix("0x"))
    except ValueError:
        raise LedgerError("the signature is not hex") from None
    return read_proposal(content["proposal"]), Approval(content["member"].lower(), signature)
