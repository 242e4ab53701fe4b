"""The witness protocol over HTTP (c2sp.org/tlog-witness): a server for an organization, and what a log asks it."""

import base64
import binascii
import http.client
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus

from ledger import checkpoint
from ledger.checkpoint import MAX_NOTE_BYTES
from ledger.errors import LedgerError, Unavailable
from ledger.serve import Handler, Server
from ledger.witness import NotConsistent, SplitView, Stale, Witness

PATH = "/add-checkpoint"
MAX_PROOF = 63
"""Most lines of a proof."""
MAX_BODY_BYTES = MAX_NOTE_BYTES + 64 * (MAX_PROOF + 1)
SIZE_TYPE = "text/x.tlog.size"

_OLD = re.compile(r"old (0|[1-9][0-9]{0,15})")


class Malformed(LedgerError):
    """A request that is not in the form of the protocol."""


def serve_witness(
    witness: Witness, logs: Mapping[str, str], host: str = "127.0.0.1", port: int = 0
) -> Server:
    """Make a server that cosigns checkpoints of some logs.

    Parameters
    ----------
    witness
        The organization's.
    logs
        Public keys in hex of the coordinators, by run.
    host, port
        Where to listen; by default only on this machine, at a free port.

    Returns
    -------
    Server
        Not yet started. It answers ``POST /add-checkpoint`` with 200 and a cosignature; 400 malformed, 403 no valid
        signature of the log, 404 an unknown log, 409 not from the size that the witness has (which is the answer), or
        another root of the same size, 422 a proof that does not hold.

    Raises
    ------
    LedgerError
        The port is taken.
    """
    runs = {checkpoint.origin_of(run): run for run in logs}

    class WitnessHandler(Handler):
        def do_POST(self) -> None:
            length = self.headers.get("Content-Length", "")
            fits = re.fullmatch("[0-9]{1,9}", length) is not None and int(length) <= MAX_BODY_BYTES
            if self.path != PATH or not fits:
                self.close_connection = True  # the body is not read
                wrong_path = self.path != PATH
                self.refuse(HTTPStatus.NOT_FOUND if wrong_path else HTTPStatus.BAD_REQUEST, f"POST to {PATH}")
                return
            try:
                self._cosign(self.rfile.read(int(length)))
            except Malformed as error:
                self.refuse(HTTPStatus.BAD_REQUEST, str(error))
            except Stale as error:
                self.answer(HTTPStatus.CONFLICT, f"{error.size}\n".encode(), SIZE_TYPE)
            except NotConsistent as error:
                self.refuse(HTTPStatus.UNPROCESSABLE_ENTITY, str(error))
            except LedgerError as error:
                self.refuse(HTTPStatus.INTERNAL_SERVER_ERROR, "the witness cannot cosign now")
                self.log_error("%s", error)

        def _cosign(self, body: bytes) -> None:
            old, proof, note = parse_request(body)
            said = checkpoint.parse(note)
            if said.origin not in runs:
                self.refuse(HTTPStatus.NOT_FOUND, "this witness does not know the log")
                return
            run = runs[said.origin]
            if old > said.size:
                raise Malformed("the old size is above the checkpoint's")
            try:
                checkpoint.read(note, run, logs[run], {})
            except LedgerError as error:
                self.refuse(HTTPStatus.FORBIDDEN, str(error))
                return
            try:
                line = witness.cosign(run, logs[run], note, proof, old)
            except SplitView:
                if old != said.size:
                    raise
                raise Stale("another root of the same size", said.size) from None
            self.answer(HTTPStatus.OK, line.encode())

    return Server(host, port, WitnessHandler)


def parse_request(body: bytes) -> tuple[int, list[bytes], str]:
    """Old size, proof and note of a request. Raises Malformed."""
    try:
        head, separator, note = body.decode().partition("\n\n")
        lines = head.split("\n")
        match = _OLD.fullmatch(lines[0])
        if not separator or match is None or len(lines) > MAX_PROOF + 1:
            raise Malformed(f"needs 'old <size>', up to {MAX_PROOF} hashes, an empty line, and a checkpoint")
        proof = [base64.b64decode(line.encode(), validate=True) for line in lines[1:]]
        if any(len(digest) != 32 for digest in proof):
            raise Malformed("a hash of the proof has not 32 bytes")
        checkpoint.parse(note)
    except (UnicodeDecodeError, binascii.Error):
        raise Malformed("is not UTF-8, or a hash is not base64") from None
    except LedgerError as error:
        raise Malformed(str(error)) from None
    return int(match[1]), proof, note


def make_request(old: int, proof: Sequence[bytes], note: str) -> bytes:
    """Body of a request."""
    return "\n".join([f"old {old}", *(base64.b64encode(digest).decode() for digest in proof), "", note]).encode()


def ask(
    url: str, note: str, prove: Callable[[int, int], Sequence[bytes]], old: int = 0, timeout_s: float = 10.0
) -> str:
    """Ask a witness to cosign a checkpoint.

    Parameters
    ----------
    url
        Of the witness, without the path.
    note
        The checkpoint.
    prove
        Makes a consistency proof from one size to another, as :meth:`ledger.log.SqliteLog.consistency_proof`.
    old
        Size that the witness is thought to have; it says so if it has another.
    timeout_s
        Longest wait for an answer, in seconds.

    Returns
    -------
    str
        Signature lines, for :func:`ledger.checkpoint.add`; not checked.

    Raises
    ------
    Unavailable
        It does not answer.
    Stale
        It has a longer log, or another one of the same size.
    LedgerError
        It refuses.
    """
    size = checkpoint.parse(note).size
    for attempt in range(3):
        proof = prove(old, size) if 0 < old < size else ()
        status, body = _post(url.rstrip("/") + PATH, make_request(old, proof, note), timeout_s)
        if status == HTTPStatus.OK:
            return body
        known = body.strip()
        if status != HTTPStatus.CONFLICT or re.fullmatch("[0-9]{1,16}", known) is None:
            raise LedgerError(f"witness {url}: refuses ({status}): {body.strip()[:200]}")
        if int(known) > size or int(known) == old or attempt == 2:
            raise Stale(f"witness {url}: has the log up to {known} events, not {size}, or another of them", int(known))
        old = int(known)
    raise AssertionError("the last attempt returns or raises")


def _post(url: str, body: bytes, timeout_s: float) -> tuple[int, str]:
    request = urllib.request.Request(url, body, {"Content-Type": "text/plain; charset=utf-8"}, method="POST")
    try:
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as response:
                return response.status, response.read(MAX_NOTE_BYTES).decode(errors="replace")
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read(MAX_NOTE_BYTES).decode(errors="replace")
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise Unavailable(f"witness {url}: does not answer: {error}") from None
