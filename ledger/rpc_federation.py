"""What the consortium's contract says of models, read with the standard library alone, as a stranger does."""

from collections.abc import Iterable, Mapping
from typing import Any

from ledger.canonical import sha256_hex
from ledger.contracts.compile import load_artifact
from ledger.errors import LedgerError
from ledger.jsonrpc import JsonRpc
from ledger.rpc import contract_start

LOG_OPENED = "LogOpened(bytes32,address,address)"
WORD = 32


def read_releases(
    rpc_url: str, description: Mapping[str, Any], run: str, models: Iterable[str], *, timeout_s: float = 10.0
) -> dict[str, str] | None:
    """Whether models are released or revoked in the contract that opened a run's log.

    The contract is not taken from the run's own claim: it is the one that made the log, which its code and its
    register of logs show.

    Parameters
    ----------
    rpc_url
        The reader's own node.
    description
        What the run says of its chain; compared with the node's by :func:`ledger.rpc.read_anchors`, which goes before.
    run
        Id of the run.
    models
        Digests, 64 hex digits.

    Returns
    -------
    dict or None
        ``released``, ``revoked`` or ``not released`` by digest; None: the log belongs to no consortium.

    Raises
    ------
    Unavailable
        The node does not answer.
    LedgerError
        The answers make no sense.
    """
    node, log = JsonRpc(rpc_url, timeout_s), str(description.get("contract"))
    run_word = sha256_hex(run.encode())
    contract = _maker(node, log, run_word)
    if contract is None:
        return None
    found = {}
    for model in models:
        words = _read(node, contract, "releases(bytes32)", model, 4)  # run, size, root, revoked
        if not int(words[0], 16):
            found[model] = "not released"
        elif words[0] != run_word:
            raise LedgerError(f"{node.name}: contract {contract} has model {model[:16]} as one of another run")
        else:
            found[model] = "revoked" if int(words[3], 16) else "released"
    return found


def _maker(node: JsonRpc, log: str, run_word: str) -> str | None:
    """Address of the consortium's contract that made a log."""
    block = hex(contract_start(bytes.fromhex(_hex(node, node.call("eth_getCode", log, "latest"))), f"contract {log}"))
    topics = [load_artifact("Federation")["topics"][LOG_OPENED], "0x" + run_word]
    opened = node.call("eth_getLogs", {"topics": topics, "fromBlock": block, "toBlock": block})
    if not isinstance(opened, list) or not all(isinstance(event, dict) for event in opened):
        raise LedgerError(f"{node.name}: eth_getLogs: the answer is not a list of events")
    runtime = load_artifact("Federation")["runtime"][2:]
    for event in opened:  # anybody can emit such an event: code and register tell the contract
        maker = "0x" + _hex(node, event.get("address"))
        if _hex(node, node.call("eth_getCode", maker, "latest"))[: -4 * WORD] != runtime:
            continue
        if _read(node, maker, "logs(bytes32)", run_word, 1)[0][-40:] == log[2:].lower():
            return maker
    return None


def _read(node: JsonRpc, contract: str, function: str, argument: str, count: int) -> list[str]:
    """Words, in hex, that a view function gives for one 32-byte argument."""
    data = load_artifact("Federation")["selectors"][function] + argument
    answer = _hex(node, node.call("eth_call", {"to": contract, "data": data}, "latest"))
    if len(answer) != 2 * WORD * count:
        raise LedgerError(f"{node.name}: {function} answers {len(answer) // 2} bytes, not {WORD * count}")
    return [answer[2 * WORD * i : 2 * WORD * (i + 1)] for i in range(count)]


def _hex(node: JsonRpc, value: object) -> str:
    """The hex digits of an answer, in lower case."""
    digits = value[2:].lower() if isinstance(value, str) and value.startswith("0x") else "?"
    if len(digits) % 2 or set(digits) - set("0123456789abcdef"):
        raise LedgerError(f"{node.name}: answers {str(value)[:80]!r} where hex digits are due")
    return digits
