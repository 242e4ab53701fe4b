"""JSON-RPC over HTTP with the standard library, and messages that keep a node's address to themselves."""

import base64
import http.client
import json
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from typing import Any

from ledger.canonical import refuse_deep
from ledger.errors import LedgerError, Unavailable

MAX_REPLY_BYTES = 1 << 26
BATCH = 50
BUSY = (408, 425, 429, 500, 502, 503, 504)
"""HTTP statuses of a node that is overloaded: the same request can succeed later."""

_BUSY_CODE = -32005
_BUSY_WORDS = re.compile(
    r"rate.?limit|too many requests|request (count|limit)|try again|timed? ?out|in progress|overloaded", re.IGNORECASE
)


def is_busy(code: object, message: str) -> bool:
    """Whether a JSON-RPC error says that the same request can succeed later (EIP-1474: limit exceeded)."""
    return code == _BUSY_CODE or _BUSY_WORDS.search(message) is not None


class RpcRefused(LedgerError):
    """The node answered with an error.

    Attributes
    ----------
    code
        Of the JSON-RPC error.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def shown(url: str) -> str:
    """Scheme, host and port of a node's address: the rest may hold an API key or a password."""
    try:
        parts = urllib.parse.urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "node address"
    return f"{parts.scheme}://{parts.hostname or ''}{port}"


def check_url(url: str) -> str:
    """Return the address of a node if it is one, else raise LedgerError; it is never shown whole."""
    try:
        parts = urllib.parse.urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise LedgerError("node address: needs the form http://host:port or https://host/path")
    return url


def redact(text: str, url: str) -> str:
    """Take everything secret of a node's address out of a message, and cut it to one line of 300 characters."""
    parts = urllib.parse.urlsplit(url)
    user = parts.netloc.rpartition("@")[0]
    for secret in (url, user, parts.query, *re.split("[/:=&]", f"{user}/{parts.path}/{parts.query}")):
        if len(secret) > 3:
            text = text.replace(secret, "...")
    return " ".join(text.split())[:300]


class JsonRpc:
    """A JSON-RPC client of one node.

    Parameters
    ----------
    url
        ``http://`` or ``https://``; user and password in it become Basic authentication.
    timeout_s
        Longest wait for one answer, in seconds.
    """

    def __init__(self, url: str, timeout_s: float = 10.0) -> None:
        parts = urllib.parse.urlsplit(check_url(url))
        self._url, self._timeout = url, timeout_s
        self._headers = {"Content-Type": "application/json"}
        if parts.username:
            user = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
            self._headers["Authorization"] = "Basic " + base64.b64encode(user.encode()).decode()
        self._target = parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment="").geturl()
        self._opener = urllib.request.build_opener(_NoRedirects)
        self.name = shown(url)

    def call(self, method: str, *params: Any) -> Any:
        """The result of one method.

        Raises
        ------
        Unavailable
            No connection, no answer in time, or the node is overloaded.
        RpcRefused
            The node answers with an error.
        LedgerError
            What answers is no JSON-RPC node.
        """
        return self._result(method, self._post({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}))

    def call_many(self, method: str, params: Sequence[Sequence[Any]]) -> list[Any]:
        """Results of one method for many parameters, in few requests; raises as :meth:`call`."""
        results: list[Any] = []
        for start in range(0, len(params), BATCH):
            some = params[start : start + BATCH]
            batch = [{"jsonrpc": "2.0", "id": n, "method": method, "params": p} for n, p in enumerate(some)]
            reply = self._post(batch)
            if not isinstance(reply, list):  # a node that takes no batches
                results += [self.call(method, *p) for p in some]
                continue
            by_id = {answer.get("id"): answer for answer in reply if isinstance(answer, dict)}
            results += [self._result(method, by_id.get(number)) for number in range(len(some))]
        return results

    def _result(self, method: str, reply: Any) -> Any:
        if not isinstance(reply, dict) or ("result" not in reply and "error" not in reply):
            raise LedgerError(f"{self.name}: {method}: the answer is not JSON-RPC; is this the address of a node?")
        error = reply.get("error")
        if error is None:
            return reply.get("result")
        code = error.get("code") if isinstance(error, dict) else None
        message = error.get("message", "") if isinstance(error, dict) else error
        text = f"{self.name}: {method}: {redact(str(message), self._url)}"
        if is_busy(code, text):
            raise Unavailable(text)
        raise RpcRefused(text, code if isinstance(code, int) else 0)

    def _post(self, request: Any) -> Any:
        message = urllib.request.Request(self._target, json.dumps(request).encode(), self._headers)
        try:
            with self._opener.open(message, timeout=self._timeout) as response:
                data = response.read(MAX_REPLY_BYTES + 1)
        except urllib.error.HTTPError as error:
            if error.code in BUSY:
                raise Unavailable(f"{self.name}: answers HTTP {error.code}; try again later") from None
            raise LedgerError(f"{self.name}: answers HTTP {error.code}; check the address and its key") from None
        except (OSError, http.client.HTTPException) as error:
            # Neither the message nor the cause: they may quote the address.
            raise Unavailable(f"{self.name}: does not answer ({_cause(error)}); is the node running?") from None
        if len(data) > MAX_REPLY_BYTES:
            raise LedgerError(f"{self.name}: an answer of more than {MAX_REPLY_BYTES} bytes is not read")
        try:
            refuse_deep(data)
            return json.loads(data)
        except (ValueError, LedgerError):
            raise LedgerError(f"{self.name}: the answer is not JSON; is this the address of a node?") from None


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirection could send an API key to another host."""

    def redirect_request(self, *arguments: Any, **named: Any) -> None:
        return None


def _cause(error: Exception) -> str:
    reason = getattr(error, "reason", error)
    if isinstance(reason, TimeoutError):
        return "timed out"
    return str(getattr(reason, "strerror", "") or type(reason).__name__)
