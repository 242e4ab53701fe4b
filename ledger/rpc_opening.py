"""How a run gets its anchor contract: an own deployment, a log of a consortium, or one that is there already."""

import importlib
from dataclasses import dataclass

from ledger.canonical import sha256_hex
from ledger.contracts.compile import load_artifact
from ledger.errors import LedgerError
from ledger.rpc import contract_start
from ledger.rpc_node import Node, checksum

BLUEPRINT_PREFIX = b"\xfe\x71\x00"
"""Before the creation code of a blueprint (ERC-5202, version 0, no data)."""


@dataclass(frozen=True)
class Call:
    """A transaction that opens a log.

    Attributes
    ----------
    to
        Receiver; None: a deployment.
    data
        Input.
    contract
        Address that the log will have: it is known before the transaction is in a block.
    """

    to: str | None
    data: bytes
    contract: str


@dataclass(frozen=True)
class Opening:
    """Who opens which log where.

    Attributes
    ----------
    account
        The anchorer, who also pays.
    run
        Id of the run.
    contract
        Address of a ``Federation`` or ``Anchor`` contract; None: a contract of the run's own.
    """

    account: str
    run: str
    contract: str | None

    def existing(self, node: Node) -> str | None:
        """Address of the run's log if it is open already, else None.

        Raises
        ------
        LedgerError
            At :attr:`contract` there is neither a consortium nor a log where the account may anchor.
        """
        if self.contract is None:
            return None
        code = node.code(self.contract)
        log = self.contract
        if is_federation(code):
            log = node.read(self.contract, "Federation", "logs", run_hash(self.run))
            if int(log, 16) == 0:
                return None
            code = node.code(log)
        contract_start(code, f"{node.name}: contract {log}", self.account)
        return checksum(log)

    def call(self, node: Node, nonce: int) -> Call:
        """The transaction that opens the log.

        Parameters
        ----------
        nonce
            The transaction's.

        Raises
        ------
        LedgerError
            The consortium does not let the account open a log.
        """
        creation = node.deployment("Anchor", self.account)
        if self.contract is None:
            made = importlib.import_module("web3.utils").get_create_address(self.account, nonce)
            return Call(None, creation, checksum(made))
        run = run_hash(self.run)
        if not node.read(self.contract, "Federation", "coordinators", self.account):
            raise LedgerError(
                f"consortium {self.contract}: {self.account} is no coordinator and run {self.run!r} has no log; have "
                "the members approve one of the two (SetCoordinator, or OpenLog for this run and account)"
            )
        blueprint = node.code(node.read(self.contract, "Federation", "BLUEPRINT"))
        if blueprint != blueprint_code():
            raise LedgerError(f"consortium {self.contract}: makes logs of another version of the anchor contract")
        keccak = importlib.import_module("eth_utils").keccak
        made = keccak(b"\xff" + bytes.fromhex(self.contract[2:]) + run + keccak(creation))[-20:]  # EIP-1014
        data = node.encode(self.contract, "Federation", "open_log", run, self.account)
        return Call(self.contract, data, checksum("0x" + made.hex()))


def run_hash(run: str) -> bytes:
    """What a consortium contract calls a run: SHA-256 of its id."""
    return bytes.fromhex(sha256_hex(run.encode()))


def is_federation(code: bytes) -> bool:
    """Whether deployed code is this version's consortium contract; two immutables lie behind it."""
    return code[:-64] == bytes.fromhex(load_artifact("Federation")["runtime"][2:])


def blueprint_code() -> bytes:
    """Deployed code of the blueprint from which a consortium contract makes logs."""
    return BLUEPRINT_PREFIX + bytes.fromhex(load_artifact("Anchor")["bytecode"][2:])
