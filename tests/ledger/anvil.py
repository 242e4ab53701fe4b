"""A real EVM node for tests: anvil, in a process of its own on a free port of the loopback."""

import contextlib
import http.server
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ledger.keys_ethereum import LocalKey

# Accounts that every anvil and hardhat node has by default: known to everybody, worth nothing elsewhere.
SECRETS = (
    "ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80",
    "59c6995e998f97a5a0044966f0945389dc9e86dae88c7a8412f4603b6b78690d",
    "5de4111afa1a4b94908f83103eb1f1706367c2e68ca870fc3fb9a804cdab365a",
    "7c852118294e51e653712a81e05800f419141751be58f605c371e15141b007a6",
    "47e179ec197488593b187f80a00eb0da91f1b9d0b13f8733639f19c30a34926a",
)
CHAIN_ID = 31_337


def account(number: int = 0) -> LocalKey:
    """A funded account of every node."""
    return LocalKey(bytes.fromhex(SECRETS[number]))


def binary() -> str | None:
    """Path of anvil: $ANVIL, PATH, or the virtual environment's npm folder; None if there is none."""
    root = Path(__file__).parents[2]
    local = root / ".venv" / "npm" / "node_modules" / ".bin" / "anvil"
    found = os.environ.get("ANVIL") or shutil.which("anvil") or (str(local) if local.exists() else None)
    if found and Path(found).resolve().suffix == ".mjs":
        # npm's starter: the node itself lies beside it, and can be waited for
        own = sorted(Path(found).resolve().parents[1].glob("anvil-*/bin/anvil"))
        return str(own[0]) if own else found
    return found


class Anvil:
    """A node; :meth:`start` and :meth:`kill` as often as a test likes, always on the same port."""

    def __init__(self, *arguments: str) -> None:
        path = binary()
        if path is None:
            pytest.skip("anvil is not installed: npm install --prefix .venv/npm @foundry-rs/anvil, or set ANVIL")
        self._command = [path, *arguments]
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *more: str) -> "Anvil":
        """Start the node and wait until it answers."""
        command = [*self._command, *more, "--port", str(self._port), "--silent"]
        # A session of its own: where a starter is a parent of the node, both must go.
        self._process = subprocess.Popen(command, start_new_session=True, stdin=subprocess.DEVNULL)
        end = time.monotonic() + 60
        while time.monotonic() < end:
            assert self._process.poll() is None, "anvil ended by itself"
            with contextlib.suppress(OSError):
                self.rpc("eth_chainId")
                return self
            time.sleep(0.02)
        raise AssertionError("anvil does not answer")

    def rpc(self, method: str, *params: Any) -> Any:
        """Result of a JSON-RPC method."""
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()
        request = urllib.request.Request(self.url, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as response:
            reply = json.loads(response.read())
        assert "error" not in reply, reply
        return reply["result"]

    def mine(self, blocks: int = 1) -> None:
        """Make blocks."""
        self.rpc("anvil_mine", hex(blocks))

    def stop(self) -> None:
        """End the node as an operator does: what it is told to keep is kept."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End the node at once."""
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
            try:
                self._process.wait(20)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)
                self._process = None


def funded(node: Anvil, wei: int = 10**18) -> LocalKey:
    """A fresh account with money on a node."""
    key = LocalKey(secrets.token_bytes(32))
    node.rpc("anvil_setBalance", key.address, hex(wei))
    return key


Hook = Callable[[dict[str, Any], Callable[[], dict[str, Any]]], "dict[str, Any] | int | bytes"]


class Between:
    """A real HTTP server in front of a node, which answers some requests by itself.

    Parameters
    ----------
    node
        Where the rest goes.
    hook
        Called with each request and a function that forwards it; gives the reply, raw bytes, or an HTTP status.
    batches
        Whether it takes several requests in one.
    """

    def __init__(self, node: Anvil, hook: Hook, *, batches: bool = True) -> None:
        self.authorization: list[str | None] = []
        between = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # head and body in one packet

            def do_POST(self) -> None:
                between.authorization.append(self.headers.get("Authorization"))
                body = self.rfile.read(int(self.headers["Content-Length"]))
                requests = json.loads(body)
                if isinstance(requests, list):
                    answers: Any = [between._answer(request) for request in requests]
                    if not batches:
                        answers = refusal({"id": None}, "batches are not taken", -32600)
                else:
                    answers = between._answer(requests)
                if isinstance(answers, int):
                    self.send_response(answers)
                    self.send_header("Location", "http://elsewhere.invalid/")
                    answers = b""
                else:
                    self.send_response(200)
                data = answers if isinstance(answers, bytes) else json.dumps(answers).encode()
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._node, self._hook = node, hook
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.host = f"127.0.0.1:{self._server.server_port}"
        self.url = f"http://{self.host}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def _answer(self, request: dict[str, Any]) -> "dict[str, Any] | int | bytes":
        def forward() -> dict[str, Any]:
            message = urllib.request.Request(
                self._node.url, json.dumps(request).encode(), {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(message, timeout=30) as response:
                reply: dict[str, Any] = json.loads(response.read())
            return reply

        return self._hook(request, forward)

    def close(self) -> None:
        """Stop the server."""
        self._server.shutdown()
        self._server.server_close()


def refusal(request: dict[str, Any], message: str, code: int = -32000) -> dict[str, Any]:
    """A JSON-RPC error."""
    return {"jsonrpc": "2.0", "id": request["id"], "error": {"code": code, "message": message}}
