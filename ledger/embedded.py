"""A public chain in process: py-evm, with its blocks in the run directory.

The state is a journal of blocks (RLP in hex) on a fixed genesis. Opening executes all of them again in a
fresh EVM and compares every hash, so that a changed byte is found. The chain has one account with a key
that everybody knows: it shows that the anchors are consistent, but not, as a chain of strangers would, when
they were made.
"""

import importlib
import time
from pathlib import Path
from typing import Any

from ledger.contracts.compile import load_artifact
from ledger.errors import LedgerError
from ledger.journal import Journal, parse_lines
from ledger.public import FINALIZED, Anchor, Head, Receipt

KIND = "embedded"

CHAIN_ID = 20_412_135
"""Chain id of every embedded chain; not a registered one."""

DEVELOPMENT_KEY = b"trustchain public development key"[:32]
"""Secret of the only account: known to everybody, and worth nothing on any other chain."""

GENESIS_TIMESTAMP = 1_700_000_000
BLOCK_GAS_LIMIT = 30_000_000
GAS_PRICE = 10_000_000_000
CALL_GAS = 200_000
DEPLOY_GAS = 2_000_000


class PyEvmMissing(LedgerError):
    """py-evm is not installed: an embedded chain can be neither run nor checked here."""


class EmbeddedEvm:
    """An EVM chain of one node with the anchor contract (a :class:`~ledger.public.PublicChain`).

    Parameters
    ----------
    directory
        Where ``blocks.log`` lies; made if missing (not by a reader).
    read_only
        Change nothing; a torn last block is then an error instead of being cut off.

    Raises
    ------
    PyEvmMissing
        py-evm is not installed.
    LedgerError
        The journal is in use or damaged, or a block does not follow from those before it.
    """

    def __init__(self, directory: str | Path, *, read_only: bool = False) -> None:
        try:
            self._evm_module = importlib.import_module("ledger.evm")
        except ImportError as error:
            raise PyEvmMissing(
                f"the embedded chain needs py-evm ({error}): pip install 'trustchain-ray[embedded]'"
            ) from None
        self._path = Path(directory) / "blocks.log"
        self._artifact = load_artifact("Anchor")
        self._journal: Journal | None = None
        if read_only:
            self._execute(self._read())
            return
        self._journal = Journal(self._path)
        try:
            self._execute(self._journal.records)
            if not self._blocks:
                self._send(None, self._deployment(), DEPLOY_GAS)
        except BaseException:
            self.close()
            raise

    def anchor(self, root: bytes, size: int, seq: int, prev: bytes) -> Receipt:
        """Anchor a tree head; the current head once more gives its receipt again.

        Parameters
        ----------
        root, prev
            32-byte roots: the new head's, and that of the anchor before it (zero for the first).
        size
            Number of events under ``root``.
        seq
            Number of the anchor, from 1.

        Raises
        ------
        LedgerError
            The contract refuses it (not the next, or not longer), or the block cannot be written.
        """
        if self._anchors and (seq, size, root) == (
            self._anchors[-1].seq,
            self._anchors[-1].size,
            self._anchors[-1].root,
        ):
            return self._anchors[-1].receipt
        data = self._selector("anchor(bytes32,uint64,uint64,bytes32)")
        data += root + size.to_bytes(32, "big") + seq.to_bytes(32, "big") + prev
        self._evm.call(self._evm.contract, data, CALL_GAS)  # a refusal must not cost a block
        return self._send(self._evm.contract, data, CALL_GAS)

    def head(self) -> Head:
        """The newest anchor, by the contract's own storage."""
        output = self._evm.call(self._evm.contract, self._selector("head()"), CALL_GAS)
        return Head(
            seq=int.from_bytes(output[:32], "big"),
            size=int.from_bytes(output[32:64], "big"),
            root=output[64:96],
        )

    def anchors(self) -> list[Anchor]:
        """All anchors by the contract's events, oldest first."""
        return list(self._anchors)

    def update(self) -> list[Anchor]:
        """:meth:`anchors`: nothing changes here by itself."""
        return self.anchors()

    def check(self) -> None:
        """Nothing to ask: opening has executed the whole chain."""

    def describe(self) -> dict[str, Any]:
        """Kind, chain id, genesis hash and contract address."""
        return {
            "chain_id": CHAIN_ID,
            "contract": "0x" + self._evm.contract.hex(),
            "genesis": "0x" + self._evm.genesis_hash.hex(),
            "kind": KIND,
        }

    def close(self) -> None:
        """Close the journal and give up its lock."""
        if self._journal is not None:
            self._journal.close()
            self._journal = None

    def _read(self) -> list[bytes]:
        try:
            data = self._path.read_bytes()
        except OSError as error:
            raise LedgerError(f"{self._path}: cannot be read: {error.strerror}") from None
        blocks, used = parse_lines(data, str(self._path))
        if used != len(data) or not blocks:
            raise LedgerError(f"{self._path}: block {len(blocks) + 1} is torn or damaged")
        return blocks

    def _execute(self, blocks: list[bytes]) -> None:
        """Build the chain anew from ``blocks``."""
        self._evm = self._evm_module.Evm(CHAIN_ID, DEVELOPMENT_KEY, GENESIS_TIMESTAMP, BLOCK_GAS_LIMIT)
        self._blocks: list[bytes] = []
        self._anchors: list[Anchor] = []
        for number, block in enumerate(blocks, 1):
            try:
                mined = self._evm.import_block(bytes.fromhex(block.decode()))
            except (LedgerError, ValueError) as error:
                raise LedgerError(f"{self._path}: block {number} does not follow from the chain: {error}") from None
            if number == 1 and (mined.to is not None or mined.data != self._deployment() or not mined.success):
                raise LedgerError(f"{self._path}: block 1 does not deploy this version's anchor contract")
            self._note(block, mined)

    def _send(self, to: bytes | None, data: bytes, gas: int) -> Receipt:
        assert self._journal is not None, "a chain opened for reading sends nothing"
        before = self._blocks
        mined = self._evm.mine(to, data, gas, GAS_PRICE, int(time.time()))
        block = mined.raw.hex().encode()
        try:
            if not mined.success:
                raise LedgerError(f"{self._path}: transaction {mined.tx_hash.hex()} failed; the block is dropped")
            self._journal.append([block])
        except LedgerError:
            self._execute(before)  # the chain in memory must not run ahead of the file
            raise
        self._note(block, mined)
        return _receipt(mined)

    def _note(self, block: bytes, mined: Any) -> None:
        self._blocks.append(block)
        topic = int(self._artifact["topics"]["Anchored(uint64,bytes32,uint64)"], 16)
        for address, topics, data in mined.logs:
            if address == self._evm.contract and topics[0] == topic:
                size = int.from_bytes(data[32:64], "big")
                prev = self._anchors[-1].root if self._anchors else bytes(32)  # the contract has compared it
                self._anchors.append(Anchor(topics[1], size, data[:32], prev, _receipt(mined)))

    def _deployment(self) -> bytes:
        """Code that makes the contract, with the account as its anchorer."""
        account: bytes = self._evm.account
        return bytes.fromhex(self._artifact["bytecode"][2:]) + account.rjust(32, b"\0")

    def _selector(self, signature: str) -> bytes:
        return bytes.fromhex(self._artifact["selectors"][signature][2:])


def _receipt(mined: Any) -> Receipt:
    return Receipt(
        tx="0x" + mined.tx_hash.hex(),
        block=mined.number,
        block_hash="0x" + mined.block_hash.hex(),
        gas_used=mined.gas_used,
        status=FINALIZED,
    )
