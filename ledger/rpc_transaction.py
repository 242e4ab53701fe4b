"""Sign transactions: EIP-1559, and EIP-155 for chains that have no base fee."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ledger.errors import LedgerError, Unavailable
from ledger.keys_ethereum import Signer
from ledger.rpc_node import Node

GWEI = 10**9


@dataclass(frozen=True)
class Bid:
    """What a unit of gas is worth to us, in wei.

    Attributes
    ----------
    max_fee
        At most so much in all; on a chain without base fee, the gas price.
    tip
        At most so much of it for the block's maker.
    legacy
        Whether the chain has no base fee.
    """

    max_fee: int
    tip: int
    legacy: bool = False


def bid(node: Node, cap: int, before: Bid | None = None) -> Bid:
    """The bid for a new transaction, or for one that replaces another of the same nonce.

    Twice the base fee leaves room for six full blocks (each raises it by at most 1/8). A replacement offers at least
    1/8 more of both, which every client's pool takes.

    Parameters
    ----------
    node
        Says what is usual now.
    cap
        Never more than so many wei.
    before
        The bid to be outdone.

    Raises
    ------
    Unavailable
        The base fee, or a replacement, costs more than ``cap``.
    """
    tip, base_fee = node.fees()
    if base_fee is None:
        price = min(tip, cap) if before is None else max(tip, _more(before.max_fee))
        made = Bid(price, price, legacy=True)
    elif before is None:
        made = Bid(max(base_fee, min(2 * base_fee + tip, cap)), min(tip, cap))
    else:
        tip = max(tip, _more(before.tip))
        made = Bid(max(base_fee, min(2 * base_fee + tip, cap), _more(before.max_fee), tip), tip)
    if made.max_fee > cap:
        raise Unavailable(
            f"{node.name}: to be taken, a transaction must bid {made.max_fee / GWEI:g} gwei, more than the cap of "
            f"{cap / GWEI:g} gwei; wait for lower fees, or raise the cap"
        )
    return made


def _more(wei: int) -> int:
    return max(-(-wei * 9 // 8), wei + 1)


def sign_transaction(
    signer: Signer, chain_id: int, nonce: int, to: str | None, data: bytes, gas: int, fees: Bid, value: int = 0
) -> tuple[bytes, str]:
    """Sign a transaction.

    Parameters
    ----------
    to
        Receiver; None: make a contract of ``data``.
    gas
        Limit.
    value
        Wei that go with it.

    Returns
    -------
    tuple
        The transaction as it is sent (EIP-2718), and its hash with 0x.

    Raises
    ------
    LedgerError
        The signer refuses.
    """
    rlp, keccak = importlib.import_module("rlp"), importlib.import_module("eth_utils").keccak
    receiver = bytes.fromhex(to[2:]) if to else b""
    message: dict[str, Any] = {
        "chainId": chain_id,
        "nonce": nonce,
        "to": to or "",
        "value": value,
        "gas": gas,
        "data": "0x" + data.hex(),
    }
    if fees.legacy:
        message |= {"type": 0, "gasPrice": fees.max_fee}
        fields = [nonce, fees.max_fee, gas, receiver, value, data]
        digest = keccak(rlp.encode([*fields, chain_id, 0, 0]))
        r, s, recovery = _signature(signer, digest, message)
        raw = rlp.encode([*fields, chain_id * 2 + 35 + recovery, r, s])
    else:
        message |= {"type": 2, "maxFeePerGas": fees.max_fee, "maxPriorityFeePerGas": fees.tip}
        fields = [chain_id, nonce, fees.tip, fees.max_fee, gas, receiver, value, data, []]
        digest = keccak(b"\x02" + rlp.encode(fields))
        r, s, recovery = _signature(signer, digest, message)
        raw = b"\x02" + rlp.encode([*fields, recovery, r, s])
    return raw, "0x" + keccak(raw).hex()


def _signature(signer: Signer, digest: bytes, message: Mapping[str, Any]) -> tuple[int, int, int]:
    signature = signer.sign(digest, message)
    if len(signature) != 65 or signature[64] > 1:
        raise LedgerError(f"the signer of {signer.address} gave no signature of 65 bytes")
    return int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:64], "big"), signature[64]
