"""The Merkle tree of a reward settlement, as OpenZeppelin's StandardMerkleTree over ("address", "uint256").

A leaf is hashed twice (``keccak256(keccak256(abi.encode(account, amount)))``), so that it cannot be passed off as an
inner node; a pair is hashed in sorted order, so that a proof needs no directions.
"""

import importlib
from collections.abc import Mapping

from ledger.errors import LedgerError

MAX_AMOUNT = 2**256 - 1


class RewardsTree:
    """Who gets how much.

    Parameters
    ----------
    amounts
        Wei by account (0x and 40 hex digits).

    Attributes
    ----------
    root
        32 bytes.
    total
        Sum of all amounts in wei.

    Raises
    ------
    LedgerError
        No amount at all, an amount out of range, a wrong address, or an account that occurs twice.
    """

    def __init__(self, amounts: Mapping[str, int]) -> None:
        self._keccak = importlib.import_module("eth_utils").keccak
        self._amounts = {_plain(account): amount for account, amount in amounts.items()}
        if not self._amounts or len(self._amounts) != len(amounts):
            raise LedgerError("rewards: name at least one account, and each account once")
        if not all(type(amount) is int and 0 < amount <= MAX_AMOUNT for amount in self._amounts.values()):
            raise LedgerError("rewards: amounts are positive whole numbers of wei")
        self.total = sum(self._amounts.values())
        leaves = sorted(self._leaf(account) for account in self._amounts)
        # A complete binary tree in an array: the children of i are at 2i + 1 and 2i + 2.
        self._nodes = [b""] * (len(leaves) - 1) + leaves[::-1]
        for index in range(len(leaves) - 2, -1, -1):
            self._nodes[index] = self._pair(self._nodes[2 * index + 1], self._nodes[2 * index + 2])
        self.root: bytes = self._nodes[0]

    def amount(self, account: str) -> int:
        """Wei of an account. Raises LedgerError if it gets nothing."""
        plain = _plain(account)
        if plain not in self._amounts:
            raise LedgerError(f"rewards: {account} gets nothing in this settlement")
        return self._amounts[plain]

    def proof(self, account: str) -> list[bytes]:
        """The nodes beside the path from an account's leaf to the root. Raises LedgerError if it gets nothing."""
        self.amount(account)
        index = self._nodes.index(self._leaf(_plain(account)), len(self._amounts) - 1)
        path: list[bytes] = []
        while index:
            path.append(self._nodes[index + 1 if index % 2 else index - 1])
            index = (index - 1) // 2
        return path

    def _leaf(self, account: str) -> bytes:
        encoded = bytes(12) + bytes.fromhex(account) + self._amounts[account].to_bytes(32, "big")
        leaf: bytes = self._keccak(self._keccak(encoded))
        return leaf

    def _pair(self, left: bytes, right: bytes) -> bytes:
        node: bytes = self._keccak(min(left, right) + max(left, right))
        return node


def _plain(account: str) -> str:
    try:
        plain = bytes.fromhex(account.removeprefix("0x"))
    except ValueError:
        plain = b""
    if len(plain) != 20:
        raise LedgerError(f"rewards: {account!r} is no account (0x and 40 hex digits)")
    return plain.hex()
