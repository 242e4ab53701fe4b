"""Serve a run's log over HTTP, for reading alone, as the C2SP specification of tiled logs has it.

``/checkpoint`` is the newest signed tree head; ``/tile/<level>/<n>`` and ``/tile/entries/<n>`` are its hashes and
events, 256 at a time (c2sp.org/tlog-tiles); ``/bundle`` is the run as one file (:mod:`ledger.bundle`).
"""

import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from ledger import heads, layout
from ledger.bundle import export
from ledger.errors import LedgerError
from ledger.log import SqliteLog

TILE = 256
"""Hashes or events of a full tile."""
MAX_ENTRY_BYTES = 0xFFFF
"""Largest event that an entry bundle can hold: its length has two bytes."""
FRESH_S = 1.0
"""How long, at most, a run at work is shown as it was, in seconds."""

_TILE_PATH = re.compile(
    r"/tile/(?:(?P<level>0|[1-9][0-9]?)|entries)/(?P<n>(?:x[0-9]{3}/){0,4}[0-9]{3})(?:\.p/(?P<width>[1-9][0-9]{0,2}))?"
)
_BINARY, _TEXT = "application/octet-stream", "text/plain; charset=utf-8"


class NotFound(LedgerError):
    """There is nothing under this path."""


class Source:
    """A run's log as it stands, opened again when the run has changed.

    Parameters
    ----------
    run_dir
        The run.

    Raises
    ------
    LedgerError
        There is no readable log.
    """

    def __init__(self, run_dir: str | Path) -> None:
        self.run_dir = Path(run_dir)
        self._lock = threading.Lock()
        self._log = SqliteLog(self.run_dir / layout.LOG, read_only=True)
        self._state = self._files_state()
        self._looked = time.monotonic()

    def close(self) -> None:
        """Give up the log."""
        with self._lock:
            self._log.close()

    def checkpoint(self) -> str:
        """The newest signed tree head. Raises NotFound while there is none."""
        try:
            store = heads.parse_store(layout.read_file(self.run_dir, layout.ANCHORS))
        except LedgerError:
            raise NotFound("no tree head is signed yet") from None
        if not store.entries:
            raise NotFound("no tree head is signed yet")
        return store.entries[-1].checkpoint

    def tile(self, level: int, n: int, width: int) -> bytes:
        """Hashes of a tile, 32 bytes each. Raises NotFound where the log does not reach that far."""
        with self._lock:
            hashes = self._current().hashes(8 * level, n * TILE, width)
        if len(hashes) != width:
            raise NotFound(f"the log has not {width} hashes there")
        return b"".join(hashes)

    def entries(self, n: int, width: int) -> bytes:
        """Events of a tile, each after its length in two bytes. Raises NotFound as :meth:`tile`."""
        with self._lock:
            leaves = self._current().read(n * TILE, width)
        if len(leaves) != width:
            raise NotFound(f"the log has not {width} events there")
        if any(len(leaf) > MAX_ENTRY_BYTES for leaf in leaves):
            raise NotFound(f"an event there has more than {MAX_ENTRY_BYTES} bytes; get the /bundle")
        return b"".join(len(leaf).to_bytes(2, "big") + leaf for leaf in leaves)

    def _current(self) -> SqliteLog:
        if time.monotonic() - self._looked >= FRESH_S:
            state = self._files_state()
            if state != self._state:
                log = SqliteLog(self.run_dir / layout.LOG, read_only=True)
                self._log.close()
                self._log, self._state = log, state
            self._looked = time.monotonic()
        return self._log

    def _files_state(self) -> list[tuple[int, int]]:
        names = (layout.LOG, f"{layout.LOG}-wal")
        files = [path.stat() for path in (self.run_dir / name for name in names) if path.exists()]
        return [(file.st_mtime_ns, file.st_size) for file in files]


class Server(ThreadingHTTPServer):
    """An HTTP server that runs in threads of its own until it is closed.

    Attributes
    ----------
    url
        Where it listens.
    """

    daemon_threads = True

    def __init__(
        self, host: str, port: int, handler: type[BaseHTTPRequestHandler], on_close: Callable[[], None] | None = None
    ) -> None:
        self._on_close = on_close
        try:
            super().__init__((host, port), handler)
        except (OSError, OverflowError) as error:
            raise LedgerError(f"{host}:{port}: cannot listen there: {error}") from None
        self.url = f"http://{host}:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no error."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    def server_close(self) -> None:
        """Give up the port, and what is served."""
        super().server_close()
        if self._on_close is not None:
            self._on_close()

    def start(self) -> "Server":
        """Serve in the background."""
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def stop(self) -> None:
        """End what :meth:`start` began."""
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    """Answers of a few bytes; what is refused gets its reason as text."""

    protocol_version = "HTTP/1.1"
    timeout = 30.0  # for a client that sends nothing

    def version_string(self) -> str:
        """The ``Server`` header, without versions."""
        return "trustchain"

    def answer(self, status: int, body: bytes, kind: str = _TEXT, *, cache: str = "no-store") -> None:
        """Send a whole answer."""
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", cache)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: HTTPStatus, reason: str) -> None:
        """Send a reason."""
        self.answer(status, f"{reason}\n".encode())

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged: they would tell who asked for what."""


def serve_run(run_dir: str | Path, host: str = "127.0.0.1", port: int = 0) -> Server:
    """Make a server of a run's log, which may be at work.

    Parameters
    ----------
    run_dir
        The run.
    host, port
        Where to listen; by default only on this machine, at a free port.

    Returns
    -------
    Server
        Not yet started.

    Raises
    ------
    LedgerError
        There is no readable log, or the port is taken.
    """
    source = Source(run_dir)

    class LogHandler(Handler):
        def do_GET(self) -> None:
            try:
                self._get()
            except NotFound as error:
                self.refuse(HTTPStatus.NOT_FOUND, str(error))
            except LedgerError as error:
                self.refuse(HTTPStatus.SERVICE_UNAVAILABLE, str(error).replace(str(source.run_dir), "the run"))

        do_HEAD = do_GET

        def _get(self) -> None:
            address = urlsplit(self.path)
            if address.path == "/checkpoint":
                self.answer(HTTPStatus.OK, source.checkpoint().encode())
            elif address.path == "/bundle":
                self._bundle(parse_qs(address.query))
            else:
                kind, level, n, width = _parse_tile(address.path)
                data = source.entries(n, width) if kind == "entries" else source.tile(level, n, width)
                self.answer(HTTPStatus.OK, data, _BINARY, cache="public, max-age=31536000, immutable")

        def _bundle(self, query: dict[str, list[str]]) -> None:
            numbers = query.get("event", [])
            if not all(re.fullmatch(r"[0-9]{1,15}", number) for number in numbers):
                raise NotFound("event needs to be a number")
            events = [int(number) for number in numbers] if numbers else None
            with tempfile.TemporaryDirectory(prefix="trustchain-serve-") as folder:
                path = Path(folder) / "bundle.tar"
                export(source.run_dir, path, events, query.get("type", []))
                size = path.stat().st_size
                self.send_response(HTTPStatus.OK)
                self.send_header("Content-Type", "application/x-tar")
                self.send_header("Content-Length", str(size))
                self.end_headers()
                with path.open("rb") as file:
                    while self.command != "HEAD" and (chunk := file.read(1 << 20)):
                        self.wfile.write(chunk)

    return Server(host, port, LogHandler, source.close)


def _parse_tile(path: str) -> tuple[str, int, int, int]:
    """``hashes`` or ``entries``, level, number and width of a tile. Raises NotFound."""
    match = _TILE_PATH.fullmatch(path)
    if match is None:
        raise NotFound("there is nothing here; see /checkpoint, /tile/ and /bundle")
    n = int(match["n"].replace("x", "").replace("/", ""))
    width = int(match["width"] or TILE)
    level = int(match["level"] or 0)
    # One spelling of each number, so that caches hold one copy.
    if tile_number(n) != match["n"] or level > 63 or (match["width"] and width >= TILE):
        raise NotFound("there is no such tile")
    return ("entries" if match["level"] is None else "hashes"), level, n, width


def tile_number(n: int) -> str:
    """Number of a tile as its path has it: ``1234067`` is ``x001/x234/067``."""
    path = f"{n % 1000:03}"
    while n >= 1000:
        n //= 1000
        path = f"x{n % 1000:03}/{path}"
    return path
