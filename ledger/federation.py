"""The consortium contract on an EVM chain: deploy it, submit what the members approved, read it."""

import importlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ledger.approvals import Approval, Proposal, check_approval, new_proposal
from ledger.canonical import sha256_hex
from ledger.errors import LedgerError, Unavailable
from ledger.identity import check_name
from ledger.keys_ethereum import Signer
from ledger.public import MINED, Head, Receipt
from ledger.rewards_tree import RewardsTree
from ledger.rpc_node import Answer, Node, checksum
from ledger.rpc_opening import blueprint_code, is_federation, run_hash
from ledger.rpc_transaction import GWEI, bid, sign_transaction

MAX_MEMBERS = 32
NOBODY = "0x" + "0" * 40

_FUNCTIONS = {
    "AddMember": "add_member",
    "RemoveMember": "remove_member",
    "SetThreshold": "set_threshold",
    "SetCoordinator": "set_coordinator",
    "OpenLog": "open_log_approved",
    "Release": "release",
    "Revoke": "revoke",
    "Settle": "settle",
}


@dataclass(frozen=True)
class Member:
    """A member of a consortium.

    Attributes
    ----------
    account
        The account that approves.
    name
        SHA-256 of the organization's name, 64 hex digits.
    key_id
        Key id of its Ed25519 identity (:func:`ledger.identity.key_id_of`), 64 hex digits.
    """

    account: str
    name: str
    key_id: str


@dataclass(frozen=True)
class ModelRelease:
    """A released model: the run's hash, the part of its log that the release refers to, and whether it was revoked."""

    run: str
    size: int
    root: bytes
    revoked: bool


@dataclass(frozen=True)
class Settlement:
    """A reward settlement: Merkle root, wei not yet claimed, end of claims (seconds since 1970), who paid it in."""

    root: bytes
    remaining: int
    expiry: int
    funder: str


def member(account: str, name: str, key_id: str) -> Member:
    """A member by the organization's plain name. Raises LedgerError if the name is none."""
    return Member(account, sha256_hex(check_name(name).encode()), key_id)


class Federation:
    """A consortium contract. Building the object connects to nothing.

    Parameters
    ----------
    rpc_url
        An EVM node.
    contract
        Address of the contract.
    signer
        The account that pays for what is sent; None: only read. It needs no rights: approvals carry them.
    chain_id
        EIP-155 chain id that the node must have; None: whichever it has.
    max_fee_wei
        Never bid more for a unit of gas.
    patience_s
        How long to wait for a block, in seconds.

    Raises
    ------
    LedgerError
        web3 is missing, or an address is none.
    """

    def __init__(
        self,
        rpc_url: str,
        contract: str,
        signer: Signer | None = None,
        *,
        chain_id: int | None = None,
        max_fee_wei: int = 500 * GWEI,
        patience_s: float = 60.0,
        timeout_s: float = 10.0,
    ) -> None:
        self._node = Node(rpc_url, timeout_s)
        self._wanted_chain = chain_id
        self._signer, self._max_fee, self._patience_s = signer, max_fee_wei, patience_s
        self.contract = checksum(contract)

    @classmethod
    def deploy(
        cls,
        rpc_url: str,
        signer: Signer,
        members: Sequence[Member],
        threshold: int,
        coordinator: str = NOBODY,
        **options: Any,
    ) -> "Federation":
        """Make a consortium, in two transactions: the blueprint of its logs, and the contract.

        Parameters
        ----------
        members
            The founders, at most 32; each account, name and key once.
        threshold
            How many members must approve, from 1 to their number.
        coordinator
            An account that may open logs by itself.
        options
            As of the class.

        Raises
        ------
        Unavailable
            The node does not answer, or no block takes a transaction in time.
        LedgerError
            The contract refuses the members or the threshold, or the account cannot pay.
        """
        self = cls(rpc_url, NOBODY, signer, **options)
        if not 0 < len(members) <= MAX_MEMBERS:
            raise LedgerError(f"consortium: needs 1 to {MAX_MEMBERS} members, not {len(members)}")
        # The creation code of a blueprint puts its argument into the chain as it is (ERC-5202).
        code = blueprint_code()
        prefix = b"\x61" + len(code).to_bytes(2, "big") + bytes.fromhex("3d81600a3d39f3")
        blueprint = self._made(*self._transact(None, prefix + code))
        arguments = (
            [m.account for m in members],
            [bytes.fromhex(m.name) for m in members],
            [bytes.fromhex(m.key_id) for m in members],
            threshold,
            coordinator,
            blueprint,
        )
        self.contract = self._made(*self._transact(None, self._node.deployment("Federation", *arguments)))
        return self

    def check(self) -> None:
        """Compare the deployed code with this version's. Raises LedgerError, or Unavailable."""
        if not is_federation(self._node.code(self.contract)):
            raise LedgerError(f"{self._node.name}: contract {self.contract} is no consortium of this version")

    def propose(self, kind: str, fields: Mapping[str, Any], valid_s: int = 7 * 24 * 3600) -> Proposal:
        """A proposal for this contract, as :func:`ledger.approvals.new_proposal` makes it."""
        return new_proposal(kind, self._chain_id(), self.contract, fields, valid_s)

    def submit(self, proposal: Proposal, approvals: Sequence[Approval]) -> Receipt:
        """Send what enough members approved; a settlement's total goes with it.

        Raises
        ------
        Unavailable
            The node does not answer, or no block takes it in time.
        LedgerError
            Of another contract or chain; an approval that does not hold, is of a stranger, occurs twice or is expired;
            too few of them; done before; or what is approved is refused.
        """
        self.check_target(proposal)
        for approval in approvals:
            self.check_signature(proposal, approval)
        rows = sorted(((a.member, a.signature) for a in approvals), key=lambda row: int(row[0], 16))
        value = proposal.fields["total"] if proposal.kind == "Settle" else 0
        return self._call(_FUNCTIONS[proposal.kind], *proposal.values(), rows, value=value)[1]

    def check_target(self, proposal: Proposal) -> None:
        """Raise LedgerError unless a proposal is for this contract on this chain."""
        if (proposal.contract.lower(), proposal.chain_id) != (self.contract.lower(), self._chain_id()):
            raise LedgerError(f"proposal {proposal.kind}: is for {proposal.contract} on chain {proposal.chain_id}")

    def check_signature(self, proposal: Proposal, approval: Approval) -> None:
        """Check who signed, as :func:`~ledger.approvals.check_approval`; whether it is a member is not looked at."""
        if not self._node.code(approval.member):  # a contract's signature only the contract can check
            check_approval(proposal, approval)

    def open_log(self, run: str, anchorer: str) -> str:
        """Open the log of a run, as a coordinator; its address. Raises as :meth:`submit`."""
        self._call("open_log", run_hash(run), anchorer)
        log = self.log_of(run)
        assert log is not None, "the transaction was a success"
        return log

    def claim(self, settlement: bytes, tree: RewardsTree, account: str) -> Receipt:
        """Have an account paid its reward; anybody may. Raises as :meth:`submit`."""
        return self._call("claim", settlement, account, tree.amount(account), tree.proof(account))[1]

    def sweep(self, settlement: bytes) -> Receipt:
        """After the expiry, have what was not claimed paid back. Raises as :meth:`submit`."""
        return self._call("sweep", settlement)[1]

    def members(self) -> list[Member]:
        """All members."""
        accounts = self._read("member_accounts")
        rows = [(account, *self._read("members", account)) for account in accounts]
        return [Member(account, name.hex(), key_id.hex()) for account, name, key_id in rows]

    def threshold(self) -> int:
        """How many members must approve."""
        return int(self._read("threshold"))

    def is_coordinator(self, account: str) -> bool:
        """Whether an account may open logs by itself."""
        return bool(self._read("coordinators", account))

    def log_of(self, run: str) -> str | None:
        """Address of the log of a run; None: it has none."""
        log = str(self._read("logs", run_hash(run)))
        return log if int(log, 16) else None

    def head_of(self, run: str) -> Head | None:
        """The newest anchor in the log of a run; None: it has no log here."""
        log = self.log_of(run)
        return None if log is None else Head(*self._node.read(log, "Anchor", "head"))

    def release_of(self, model: bytes) -> ModelRelease | None:
        """The release of a model by its 32-byte digest; None: it was not released."""
        run, size, root, revoked = self._read("releases", model)
        return ModelRelease(run.hex(), size, root, revoked) if any(run) else None

    def settlement_of(self, settlement: bytes) -> Settlement | None:
        """A settlement by its 32-byte id; None: there is none."""
        root, remaining, expiry, funder = self._read("settlements", settlement)
        return Settlement(root, remaining, expiry, funder) if any(root) else None

    def is_claimed(self, settlement: bytes, account: str) -> bool:
        """Whether an account was paid."""
        return bool(self._read("claimed", settlement, account))

    def _read(self, function: str, *arguments: Any) -> Any:
        return self._node.read(self.contract, "Federation", function, *arguments)

    def _call(self, function: str, *arguments: Any, value: int = 0) -> tuple[int, Receipt]:
        self.check()
        data = self._node.encode(self.contract, "Federation", function, *arguments)
        return self._transact(self.contract, data, value)

    def _transact(self, to: str | None, data: bytes, value: int = 0) -> tuple[int, Receipt]:
        """Send a transaction and wait for its block: its nonce and receipt."""
        if self._signer is None:
            raise LedgerError(f"consortium {self.contract}: an account is needed to send; give its key")
        node, account = self._node, self._signer.address
        chain_id = self._chain_id()
        gas = node.estimate(account, to, data, value) * 5 // 4  # a refusal shows here, and costs nothing
        nonce = node.nonce(account, "pending")
        fees = bid(node, self._max_fee)
        raw, tx = sign_transaction(self._signer, chain_id, nonce, to, data, gas, fees, value)
        answer = node.send(raw)
        if answer is Answer.POOR:
            raise LedgerError(f"account {account} cannot pay {value + gas * fees.max_fee} wei at most; send it more")
        if answer is not Answer.TAKEN:
            raise Unavailable(f"{node.name}: does not take the transaction ({answer.value}); try again")
        end = time.monotonic() + self._patience_s
        while (mined := node.receipt(tx)) is None:
            if time.monotonic() > end:
                raise Unavailable(f"{node.name}: {tx} is in no block after {self._patience_s:g} s; look again later")
            time.sleep(0.02)
        if not mined.success:
            raise LedgerError(f"{node.name}: {tx} was reverted; another one came before it, look at the contract")
        return nonce, Receipt(tx, mined.block, mined.block_hash, mined.gas_used, MINED)

    def _chain_id(self) -> int:
        found = self._node.chain_id()
        if self._wanted_chain not in (None, found):
            raise LedgerError(f"{self._node.name}: has chain id {found}, not {self._wanted_chain}; check its address")
        return found

    def _made(self, nonce: int, _: Receipt) -> str:
        assert self._signer is not None
        made = importlib.import_module("web3.utils").get_create_address(self._signer.address, nonce)
        return checksum(made)
