"""Read anchors from any EVM node, with the standard library alone: what a stranger's verifier needs.

JSON-RPC over HTTP as in the Ethereum execution API. Selectors and event topics come from the contract's artifact, so
that no Keccak is needed.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ledger.contracts.compile import load_artifact
from ledger.errors import LedgerError, Unavailable
from ledger.jsonrpc import JsonRpc, RpcRefused
from ledger.public import FINALIZED, MINED, Anchor, Receipt

KIND = "rpc"

CONFIRMATIONS = 12
"""Blocks after which an anchor counts as final on a node without the ``finalized`` tag."""

T = TypeVar("T")

ANCHORED = "Anchored(uint64,bytes32,uint64)"

_HEX = re.compile(r"0x[0-9a-fA-F]*")
_ADDRESS = re.compile(r"0x[0-9a-fA-F]{40}")
_TOO_OFTEN = re.compile(r"HTTP 429|rate|requests?\b|try again", re.IGNORECASE)
_TOO_MUCH = re.compile(r"limit|range|too (many|large|big)|exceed|more than|timeout|timed out", re.IGNORECASE)


def read_anchors(
    rpc_url: str, description: Mapping[str, Any], *, confirmations: int = CONFIRMATIONS, timeout_s: float = 10.0
) -> list[Anchor]:
    """All anchors of a log, from a node that the reader chooses.

    Parameters
    ----------
    rpc_url
        The reader's own node, or one that the reader trusts.
    description
        What the run says of its chain (:meth:`ledger.public.PublicChain.describe`): ``chain_id``, ``genesis`` and
        ``contract`` are compared with the node's.
    confirmations
        Blocks that make an anchor final on a node without the ``finalized`` tag.
    timeout_s
        Longest wait for one answer, in seconds.

    Returns
    -------
    list of Anchor
        Oldest first, each MINED or FINALIZED.

    Raises
    ------
    Unavailable
        The node does not answer.
    LedgerError
        Another chain, another contract, or events that do not follow from each other.
    """
    node = JsonRpc(rpc_url, timeout_s)
    contract = description.get("contract")
    if description.get("kind") != KIND or not isinstance(contract, str) or not _ADDRESS.fullmatch(contract):
        raise LedgerError("chain description: needs kind 'rpc' and the contract's address")
    _check_chain(node, description)
    latest = _number(node, node.call("eth_blockNumber"))
    code = _bytes(node, node.call("eth_getCode", contract, hex(latest)))
    start = contract_start(code, f"{node.name}: contract {contract}")
    final = _final_block(node, latest, confirmations)
    logs = in_ranges(start, latest, lambda first, last: _logs(node, contract, first, last))
    anchors = _anchors(node, logs, final)
    head = _bytes(node, node.call("eth_call", {"to": contract, "data": _selector("head()")}, hex(latest)))
    newest = (anchors[-1].seq, anchors[-1].size, anchors[-1].root) if anchors else (0, 0, bytes(32))
    if (int.from_bytes(head[:32], "big"), int.from_bytes(head[32:64], "big"), head[64:96]) != newest:
        raise LedgerError(f"{node.name}: the head of contract {contract} is not its last event; ask another node")
    return anchors


def contract_start(code: bytes, where: str, anchorer: str | None = None) -> int:
    """Compare deployed code with the anchor contract of this version.

    Parameters
    ----------
    code
        As ``eth_getCode`` gives it: the runtime code, then the anchorer and the first block, 32 bytes each.
    where
        For messages.
    anchorer
        The account that must be allowed to anchor; None: any.

    Returns
    -------
    int
        Block in which the contract was made: its events begin there.

    Raises
    ------
    LedgerError
        No code, other code, or another anchorer.
    """
    runtime = bytes.fromhex(load_artifact("Anchor")["runtime"][2:])
    if not code:
        raise LedgerError(f"{where}: there is no contract at this address; check address and chain")
    if len(code) != len(runtime) + 64 or code[:-64] != runtime:
        raise LedgerError(f"{where}: is another contract, not this version's anchor contract; check the address")
    allowed = "0x" + code[-52:-32].hex()
    if anchorer is not None and allowed != anchorer.lower():
        raise LedgerError(f"{where}: only {allowed} may anchor there, not {anchorer}; use its key or another contract")
    return int.from_bytes(code[-32:], "big")


def _check_chain(node: JsonRpc, description: Mapping[str, Any]) -> None:
    chain_id = _number(node, node.call("eth_chainId"))
    if chain_id != description.get("chain_id"):
        raise LedgerError(f"{node.name}: has chain id {chain_id}, the run is on {description.get('chain_id')}")
    block = node.call("eth_getBlockByNumber", "0x0", False)
    genesis = block.get("hash") if isinstance(block, dict) else None
    if genesis != description.get("genesis"):
        raise LedgerError(f"{node.name}: its genesis block is {genesis}, the run's {description.get('genesis')}")


def _final_block(node: JsonRpc, latest: int, confirmations: int) -> int:
    """Newest block that is final; -1: none."""
    try:
        block = node.call("eth_getBlockByNumber", "finalized", False)
    except RpcRefused:
        block = None
    if isinstance(block, dict):
        return _number(node, block.get("number"))
    return latest - confirmations + 1


def in_ranges(start: int, last: int, query: Callable[[int, int], list[T]]) -> list[T]:
    """Results of ``query(first, last)`` over blocks, in smaller ranges where a node limits ranges or results.

    Raises
    ------
    LedgerError
        What ``query`` raises, unless smaller ranges help.
    """
    found: list[T] = []
    step = last - start + 1
    while start <= last:
        end = min(start + step - 1, last)
        try:
            found += query(start, end)
        except LedgerError as error:
            if end == start or _TOO_OFTEN.search(str(error)) or not _TOO_MUCH.search(str(error)):
                raise  # to one that is asked too often, smaller ranges would be more requests
            step = max((end - start + 1) // 4, 1)
            continue
        start, step = end + 1, step * 2
    return found


def _logs(node: JsonRpc, contract: str, start: int, last: int) -> list[dict[str, Any]]:
    topic = load_artifact("Anchor")["topics"][ANCHORED]
    query = {"address": contract, "topics": [topic], "fromBlock": hex(start), "toBlock": hex(last)}
    logs = node.call("eth_getLogs", query)
    if not isinstance(logs, list) or not all(isinstance(log, dict) for log in logs):
        raise LedgerError(f"{node.name}: eth_getLogs: the answer is not a list of events")
    return logs


def _anchors(node: JsonRpc, logs: list[dict[str, Any]], final: int) -> list[Anchor]:
    receipts = node.call_many("eth_getTransactionReceipt", [[log.get("transactionHash")] for log in logs])
    anchors: list[Anchor] = []
    root = bytes(32)
    for log, receipt in zip(logs, receipts, strict=True):
        topics, data = log.get("topics"), _bytes(node, log.get("data"))
        if not isinstance(topics, list) or len(topics) != 2 or len(data) != 64:
            raise LedgerError(f"{node.name}: event {len(anchors) + 1} is not one of the anchor contract")
        if not isinstance(receipt, dict) or receipt.get("blockHash") != log.get("blockHash"):
            raise Unavailable(f"{node.name}: the chain was reorganised while it was read; read it again")
        seq, size = _number(node, topics[1]), int.from_bytes(data[32:], "big")
        if seq != len(anchors) + 1 or (anchors and size <= anchors[-1].size):
            raise LedgerError(f"{node.name}: event {len(anchors) + 1} is anchor {seq} of size {size}: one is missing")
        block = _number(node, log.get("blockNumber"))
        anchored = Receipt(
            tx=_text(node, log.get("transactionHash")),
            block=block,
            block_hash=_text(node, log.get("blockHash")),
            gas_used=_number(node, receipt.get("gasUsed")),
            status=FINALIZED if block <= final else MINED,
        )
        anchors.append(Anchor(seq, size, data[:32], root, anchored))
        root = data[:32]
    return anchors


def _selector(signature: str) -> str:
    selector: str = load_artifact("Anchor")["selectors"][signature]
    return selector


def _text(node: JsonRpc, value: object) -> str:
    if not isinstance(value, str) or _HEX.fullmatch(value) is None:
        raise LedgerError(f"{node.name}: answers {str(value)[:80]!r} where hex digits are due")
    return value


def _number(node: JsonRpc, value: object) -> int:
    text = _text(node, value)
    if not 2 < len(text) <= 66:
        raise LedgerError(f"{node.name}: answers {text[:80]!r} where a number is due")
    return int(text, 16)


def _bytes(node: JsonRpc, value: object) -> bytes:
    text = _text(node, value)
    if len(text) % 2:
        raise LedgerError(f"{node.name}: answers {text[:80]!r} where bytes are due")
    return bytes.fromhex(text[2:])
