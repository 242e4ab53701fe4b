"""Measure the public chain on a real EVM node: ``python -m benchmarks.gas [--out FILE]``.

Starts anvil (``$ANVIL``, or on the PATH), and prints gas and bytes of every operation of both contracts, and the time
from ``anchor()`` until the anchor is in a block. Writes JSON.
"""

import argparse
import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.common import parser, spread, table, write
from ledger.approvals import approve
from ledger.canonical import sha256_hex
from ledger.errors import Unavailable
from ledger.federation import Federation, member
from ledger.jsonrpc import JsonRpc
from ledger.keys_ethereum import LocalKey
from ledger.public import MINED, Receipt
from ledger.rewards_tree import RewardsTree
from ledger.rpc import read_anchors
from ledger.rpc_chain import RpcChain

MAX_GAS, MAX_BYTES, MAX_MS = 45_000, 224, 100.0


@contextlib.contextmanager
def anvil() -> Iterator[str]:
    """Address of a fresh node that mines at once."""
    local = Path(__file__).parents[1] / ".venv" / "npm" / "node_modules" / ".bin" / "anvil"
    path = os.environ.get("ANVIL") or shutil.which("anvil") or str(local)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen([path, "--port", str(port), "--silent"], start_new_session=True)
    try:
        url = f"http://127.0.0.1:{port}"
        end = time.monotonic() + 60
        while True:
            try:
                JsonRpc(url).call("eth_chainId")
                break
            except Unavailable:
                if time.monotonic() > end:
                    raise
                time.sleep(0.02)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def rich(node: JsonRpc) -> LocalKey:
    """A fresh account with ten ether."""
    key = LocalKey(secrets.token_bytes(32))
    node.call("anvil_setBalance", key.address, hex(10**19))
    return key


def cost(node: JsonRpc, tx: str) -> dict[str, int]:
    """Gas and bytes of a transaction: its input, its events (data and topics), and its whole signed form."""
    sent, done = node.call("eth_getTransactionByHash", tx), node.call("eth_getTransactionReceipt", tx)
    raw = node.call("eth_getRawTransactionByHash", tx)
    return {
        "gas": int(done["gasUsed"], 16),
        "calldata": len(sent["input"]) // 2 - 1,
        "log_data": sum(len(log["data"]) // 2 - 1 for log in done["logs"]),
        "topics": sum(32 * len(log["topics"]) for log in done["logs"]),
        "raw_transaction": len(raw) // 2 - 1,
    }


def anchors(node: JsonRpc, url: str, count: int) -> tuple[dict[str, dict[str, int]], dict[str, Any]]:
    """Anchors of a run with a contract of its own."""
    times, receipts, prev = [], [], bytes(32)
    with tempfile.TemporaryDirectory(prefix="gas-bench-") as folder:
        chain = RpcChain(folder, url, rich(node), "benchmark", patience_s=10)
        chain.check()
        for seq in range(1, count + 1):
            root = secrets.token_bytes(32)
            start = time.perf_counter()
            receipts.append(chain.anchor(root, 1000 * seq, seq, prev))
            times.append((time.perf_counter() - start) * 1e3)
            assert receipts[-1].status == MINED
            prev = root
        start = time.perf_counter()
        chain.update()
        update_ms = (time.perf_counter() - start) * 1e3
        deployed = node.call("eth_getBlockByNumber", hex(receipts[0].block - 1), True)["transactions"][0]
        assert deployed["to"] is None
        start = time.perf_counter()
        assert len(read_anchors(url, chain.describe())) == count
        read_ms = (time.perf_counter() - start) * 1e3
        chain.close()
    further = max((cost(node, receipt.tx) for receipt in receipts[1:]), key=lambda row: row["gas"])
    operations = {
        "deploy Anchor": cost(node, deployed["hash"]),
        "anchor, first": cost(node, receipts[0].tx),
        "anchor, further": further,
    }
    visible = {
        "anchors": count,
        "first_ms": round(times[0], 1),
        "further_ms": {name: round(value, 1) for name, value in spread(times[1:]).items()},
        "slowest_further_ms": round(max(times[1:]), 1),
        "update_ms": round(update_ms, 1),
        "read_anchors_ms": round(read_ms, 1),
    }
    return operations, visible


def consortium(node: JsonRpc, url: str, members: int, approvals: int) -> dict[str, dict[str, int]]:
    """Every operation of a consortium of ``members`` that needs ``approvals``."""
    keys = [rich(node) for _ in range(members)]
    payer, coordinator, stranger = rich(node), rich(node), rich(node)
    founders = [member(key.address, f"org{n}", sha256_hex(f"key {n}".encode())) for n, key in enumerate(keys)]
    first = int(node.call("eth_blockNumber"), 16)
    federation = Federation.deploy(url, payer, founders, approvals, coordinator.address)
    made = [node.call("eth_getBlockByNumber", hex(first + n), False)["transactions"][0] for n in (1, 2)]
    size = f"{approvals} of {members}"
    operations = {"deploy blueprint": cost(node, made[0]), f"deploy Federation, {members} members": cost(node, made[1])}

    def note(name: str, receipt: Receipt) -> None:
        operations[name] = cost(node, receipt.tx)

    def decide(name: str, kind: str, fields: dict[str, Any]) -> None:
        proposal = federation.propose(kind, fields)
        note(f"{name}, {size}", federation.submit(proposal, [approve(proposal, key) for key in keys[:approvals]]))

    run = "benchmark"
    Federation(url, federation.contract, coordinator).open_log(run, coordinator.address)
    last = node.call("eth_getBlockByNumber", "latest", False)["transactions"][0]
    operations["open log, coordinator"] = cost(node, last)
    decide("open log", "OpenLog", {"run": "0x" + sha256_hex(b"other"), "anchorer": coordinator.address})
    with tempfile.TemporaryDirectory(prefix="gas-bench-") as folder:
        chain = RpcChain(folder, url, coordinator, run, contract=federation.contract, patience_s=10)
        root = secrets.token_bytes(32)
        chain.anchor(root, 1000, 1, bytes(32))
        note("anchor, further, consortium's log", chain.anchor(secrets.token_bytes(32), 2000, 2, root))
        chain.close()
    model = "0x" + secrets.token_hex(32)
    fields = {"model": model, "run": "0x" + sha256_hex(run.encode()), "size": 1000, "root": "0x" + root.hex()}
    decide("release model", "Release", fields)
    decide("revoke model", "Revoke", {"model": model, "reason": "0x" + secrets.token_hex(32)})
    new = {"account": stranger.address, "name": "0x" + "11" * 32, "keyId": "0x" + "22" * 32, "threshold": approvals}
    decide("add member", "AddMember", new)
    decide("remove member", "RemoveMember", {"account": stranger.address, "threshold": approvals})
    decide("set threshold", "SetThreshold", {"threshold": approvals})
    decide("set coordinator", "SetCoordinator", {"account": payer.address, "allowed": True})
    tree = RewardsTree({rich(node).address: 10**15 + n for n in range(members)} | {payer.address: 10**15})
    ident = secrets.token_bytes(32)
    now = int(node.call("eth_getBlockByNumber", "latest", False)["timestamp"], 16)
    settled = {"id": "0x" + ident.hex(), "root": "0x" + tree.root.hex(), "total": tree.total, "expiry": now + 1000}
    decide("settle rewards", "Settle", settled)
    note(f"claim reward, 1 of {members + 1}", federation.claim(ident, tree, payer.address))
    return operations


def main() -> None:
    """Measure, print, write."""
    arguments: argparse.ArgumentParser = parser("gas", __doc__ or "")
    arguments.add_argument("--anchors", type=int, default=100)
    options = arguments.parse_args()
    with anvil() as url:
        node = JsonRpc(url)
        client = node.call("web3_clientVersion")
        operations, visible = anchors(node, url, options.anchors)
        operations |= consortium(node, url, 3, 2)
        operations |= {name: row for name, row in consortium(node, url, 8, 5).items() if "5 of 8" in name}
    further = operations["anchor, further"]
    public = further["calldata"] + further["log_data"]
    limits = {
        "anchor_gas": {"value": further["gas"], "limit": MAX_GAS},
        "anchor_bytes": {"value": public, "limit": MAX_BYTES},
        "visible_ms": {"value": visible["further_ms"]["median"], "limit": MAX_MS},
    }
    columns = ("gas", "calldata", "log_data", "topics", "raw_transaction")
    rows = [[name, *(f"{row[column]:,}" for column in columns)] for name, row in operations.items()]
    print(table(["operation", *(column.replace("_", " ") for column in columns)], rows), "\n")
    figures: list[list[Any]] = [
        ["gas of an anchor", further["gas"], f"<= {MAX_GAS}"],
        ["bytes of an anchor: calldata and log data", public, f"<= {MAX_BYTES}"],
        ["anchor() until in a block, median (ms)", visible["further_ms"]["median"], f"< {MAX_MS:g}"],
        ["the same, slowest (ms)", visible["slowest_further_ms"], ""],
        ["the first, with its contract (ms)", visible["first_ms"], ""],
        [f"update() with {visible['anchors']} anchors (ms)", visible["update_ms"], ""],
        [f"a stranger reads {visible['anchors']} anchors (ms)", visible["read_anchors_ms"], ""],
    ]
    print(table(["figure", "value", "limit"], figures))
    write(options.out, {"node": client, "operations": operations, "visible": visible, "limits": limits})
    for name, row in limits.items():
        if row["value"] > row["limit"]:
            raise SystemExit(f"{name}: {row['value']} is over the limit of {row['limit']}")


if __name__ == "__main__":
    main()
