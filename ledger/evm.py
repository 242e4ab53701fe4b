"""The part of py-evm that the embedded chain needs. Importing this module imports py-evm (about 0.7 s)."""

from dataclasses import dataclass
from typing import Any

import rlp
from eth.chains.base import MiningChain
from eth.constants import POST_MERGE_MIX_HASH, POST_MERGE_NONCE
from eth.db.atomic import AtomicDB
from eth.exceptions import Revert, VMError
from eth.vm.forks.prague import PragueVM
from eth.vm.spoof import SpoofTransaction
from eth_keys.main import KeyAPI
from eth_typing import BlockNumber
from eth_utils.crypto import keccak
from eth_utils.exceptions import ValidationError

from ledger.errors import LedgerError

Log = tuple[bytes, tuple[int, ...], bytes]
"""Address, topics, data."""


@dataclass(frozen=True)
class Mined:
    """A block of one transaction.

    Attributes
    ----------
    raw
        The block in RLP.
    number, block_hash, tx_hash, gas_used
        As the chain tells them.
    to, data
        Receiver (None: a contract was made) and input of the transaction.
    success
        Whether it ran without revert.
    logs
        Its events.
    """

    raw: bytes
    number: int
    block_hash: bytes
    tx_hash: bytes
    gas_used: int
    to: bytes | None
    data: bytes
    success: bool
    logs: tuple[Log, ...]


class Evm:
    """A chain of one account in memory, on a genesis block that its arguments fix.

    Parameters
    ----------
    chain_id
        EIP-155 chain id.
    secret
        32-byte key of the account.
    genesis_timestamp
        Seconds since 1970.
    gas_limit
        Of every block.
    """

    def __init__(self, chain_id: int, secret: bytes, genesis_timestamp: int, gas_limit: int) -> None:
        class _Chain(MiningChain):
            vm_configuration = ((BlockNumber(0), PragueVM),)

            def create_header_from_parent(self, parent_header: Any, **params: Any) -> Any:
                return super().create_header_from_parent(parent_header, **{**params, "gas_limit": gas_limit})

        _Chain.chain_id = chain_id
        self._key = KeyAPI().PrivateKey(secret)
        self.account: bytes = self._key.public_key.to_canonical_address()
        self.contract: bytes = keccak(rlp.encode([self.account, 0]))[12:]
        """Where the account's first transaction puts a contract."""
        genesis: Any = {
            "difficulty": 0,
            "gas_limit": gas_limit,
            "timestamp": genesis_timestamp,
            "nonce": POST_MERGE_NONCE,
            "mix_hash": POST_MERGE_MIX_HASH,
            "coinbase": bytes(20),
            "extra_data": b"",
        }
        state: Any = {self.account: {"balance": 10**30, "nonce": 0, "code": b"", "storage": {}}}
        self._chain: Any = _Chain.from_genesis(AtomicDB(), genesis, state)
        self.genesis_hash: bytes = self._chain.get_canonical_block_hash(BlockNumber(0))

    def mine(self, to: bytes | None, data: bytes, gas: int, gas_price: int, now: int) -> Mined:
        """Send one transaction in a block of its own.

        Parameters
        ----------
        to
            Receiver, or None to make a contract.
        gas, gas_price
            Limit, and price in wei.
        now
            Timestamp in seconds; the block's is at least one above its parent's.
        """
        chain = self._chain
        nonce = chain.get_vm().state.get_nonce(self.account)
        unsigned = chain.create_unsigned_transaction(
            nonce=nonce, gas_price=gas_price, gas=gas, to=to or b"", value=0, data=data
        )
        chain.set_header_timestamp(max(chain.header.timestamp, now))
        result, _, _ = chain.mine_all([unsigned.as_signed_transaction(self._key, chain_id=chain.chain_id)])
        return self._describe(result.imported_block)

    def import_block(self, raw: bytes) -> Mined:
        """Execute a block and compare its hash, state root and receipts with what it says.

        Raises
        ------
        LedgerError
            Not a block, not the next one, or not what execution gives.
        """
        chain = self._chain
        try:
            block = rlp.decode(raw, chain.get_vm().get_block_class())
            if rlp.encode(block) != raw:
                raise LedgerError("not canonical RLP")
            if block.header.parent_hash != chain.get_canonical_head().hash:
                raise LedgerError("its parent is another block")
            if len(block.transactions) != 1:
                raise LedgerError(f"it holds {len(block.transactions)} transactions, not one")
            imported = chain.import_block(block).imported_block
        except (ValidationError, VMError, rlp.exceptions.RLPException, ValueError, TypeError) as error:
            raise LedgerError(str(error)) from None
        return self._describe(imported)

    def call(self, to: bytes, data: bytes, gas: int) -> bytes:
        """Output of a call on the newest state, without a transaction.

        Raises
        ------
        LedgerError
            The contract reverts; with its reason.
        """
        chain = self._chain
        head = chain.get_canonical_head()
        nonce = chain.get_vm().state.get_nonce(self.account)
        unsigned = chain.create_unsigned_transaction(nonce=nonce, gas_price=0, gas=gas, to=to, value=0, data=data)
        try:
            output: bytes = chain.get_transaction_result(SpoofTransaction(unsigned, from_=self.account), head)
        except Revert as error:
            raise LedgerError(f"the contract refused: {_reason(error)}") from None
        except VMError as error:
            raise LedgerError(f"the call failed: {error}") from None
        return output

    def _describe(self, block: Any) -> Mined:
        transaction = block.transactions[0]
        receipt = block.get_receipts(self._chain.chaindb)[0]
        return Mined(
            raw=rlp.encode(block),
            number=block.number,
            block_hash=block.hash,
            tx_hash=transaction.hash,
            gas_used=receipt.gas_used,
            to=transaction.to or None,
            data=transaction.data,
            success=receipt.state_root == b"\x01",
            logs=tuple((log.address, tuple(log.topics), log.data) for log in receipt.logs),
        )


def _reason(error: Revert) -> str:
    """Text of a revert: the ABI encoding of ``Error(string)``."""
    data = bytes(error.args[0]) if error.args else b""
    length = int.from_bytes(data[36:68], "big")
    return data[68 : 68 + length].decode(errors="replace") or "no reason given"
