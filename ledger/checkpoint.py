"""Signed checkpoints of the log, with cosignatures of witnesses, as the C2SP specifications write them.

A checkpoint is a signed note (c2sp.org/signed-note) whose text is origin, size and root of the log
(c2sp.org/tlog-checkpoint); a witness adds a line with the time and its signature (c2sp.org/tlog-cosignature).
Any tool of that family reads them: the log's key name is its origin, a witness's is its organization.
"""

import base64
import binascii
import hashlib
import re
import time as clock
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import quote

from ledger.canonical import MAX_INT
from ledger.dsse import check_signature
from ledger.errors import LedgerError
from ledger.identity import Identity

ED25519 = 0x01
"""Signature type of a note's Ed25519 signature (signed-note, "Signature types")."""
COSIGNATURE = 0x04
"""Signature type of a timestamped Ed25519 cosignature."""

MAX_NOTE_BYTES = 64 * 1024
"""Largest note that is read."""
MAX_SIGNATURES = 100
"""Most signature lines of a note; the specification asks for at least 16."""

_NUMBER = re.compile(r"0|[1-9][0-9]{0,15}")
_MARK = "\u2014 "  # em dash, space: how a signature line begins


@dataclass(frozen=True)
class Signature:
    """A signature line: key name, 4-byte key id, and what follows it."""

    name: str
    key_id: bytes
    data: bytes

    @property
    def line(self) -> str:
        """The line, with its newline."""
        return f"{_MARK}{self.name} {base64.b64encode(self.key_id + self.data).decode()}\n"


@dataclass(frozen=True)
class Note:
    """A checkpoint taken apart; no signature is checked yet.

    Attributes
    ----------
    body
        The signed text, with its last newline.
    origin
        Which log.
    size, root
        Number of leaves, and their RFC 9162 root (32 bytes).
    signatures
        In order; of keys known and unknown.
    """

    body: str
    origin: str
    size: int
    root: bytes
    signatures: tuple[Signature, ...]


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint says, after its signatures were checked.

    Attributes
    ----------
    run
        Id of the run.
    size, root
        Number of events, and their RFC 9162 root (32 bytes).
    cosigners
        Organizations that cosigned it, with the time that each gives (seconds since 1970).
    """

    run: str
    size: int
    root: bytes
    cosigners: dict[str, int] = field(default_factory=dict)


def origin_of(run: str) -> str:
    """Origin line and key name of a run's log.

    ``trustchain/`` and the run, where characters that a key name must not have are percent-encoded. It can be
    taken for no other message that these keys sign: those begin with ``DSSEv1`` or ``cosignature/v1``.
    """
    try:
        return f"trustchain/{quote(run, safe='')}"
    except UnicodeEncodeError:
        raise LedgerError(f"checkpoint: run {run!r} is not valid Unicode") from None


def key_id_of(name: str, public_hex: str, kind: int) -> bytes:
    """Key id of a note: the first 4 bytes of SHA-256(name, newline, signature type, public key)."""
    return hashlib.sha256(b"%b\n%c%b" % (name.encode(), kind, bytes.fromhex(public_hex))).digest()[:4]


def verifier_key(name: str, public_hex: str, kind: int = ED25519) -> str:
    """Public key as other tools take it: ``<name>+<key id>+<base64 of type and key>`` (signed-note, vkey)."""
    material = base64.b64encode(bytes([kind]) + bytes.fromhex(public_hex)).decode()
    return f"{name}+{key_id_of(name, public_hex, kind).hex()}+{material}"


def sign(identity: Identity, run: str, size: int, root: bytes) -> str:
    """Sign a checkpoint as the log.

    Parameters
    ----------
    identity
        The coordinator's. It signs under the log's origin, whatever its own name.
    run
        Id of the run.
    size, root
        Number of events, and their RFC 9162 root (32 bytes).

    Returns
    -------
    str
        The note: text, empty line, one signature line.
    """
    name = origin_of(run)
    body = f"{name}\n{size}\n{base64.b64encode(root).decode()}\n"
    key_id = key_id_of(name, identity.public_hex, ED25519)
    return f"{body}\n{Signature(name, key_id, identity.sign(body.encode())).line}"


def cosign(identity: Identity, note: str, time: int | None = None) -> str:
    """Cosign a checkpoint, **without** checking it: that is the work of :class:`~ledger.witness.Witness`.

    Parameters
    ----------
    identity
        The witness; it signs under its own name.
    note
        The checkpoint.
    time
        Seconds since 1970; default now.

    Returns
    -------
    str
        One signature line, for :func:`add`.

    Raises
    ------
    LedgerError
        The note is malformed.
    """
    seconds = int(clock.time()) if time is None else time
    message = _cosigned(parse(note).body, seconds)
    key_id = key_id_of(identity.name, identity.public_hex, COSIGNATURE)
    return Signature(identity.name, key_id, seconds.to_bytes(8, "big") + identity.sign(message)).line


def add(note: str, line: str) -> str:
    """Add a signature line to a note; a key that has a line there already keeps that one.

    Raises
    ------
    LedgerError
        Note or line is malformed, or the note has too many signatures. Signatures are not checked.
    """
    present = parse(note).signatures
    fresh = _read_line(line.removesuffix("\n"))
    if any((fresh.name, fresh.key_id) == (old.name, old.key_id) for old in present):
        return note
    if len(present) == MAX_SIGNATURES:
        raise LedgerError(f"checkpoint: has {MAX_SIGNATURES} signatures, no more are taken")
    return note + fresh.line


def parse(note: str) -> Note:
    """Take a checkpoint apart, strictly, **without** checking signatures.

    Raises
    ------
    LedgerError
        Not a signed note, or its text is not exactly origin, size and root.
    """
    try:
        if len(note.encode()) > MAX_NOTE_BYTES:
            raise LedgerError(f"checkpoint: is longer than {MAX_NOTE_BYTES} bytes")
    except UnicodeEncodeError:
        raise LedgerError("checkpoint: is not valid Unicode") from None
    if any(char < " " and char != "\n" for char in note):
        raise LedgerError("checkpoint: holds a control character")
    text, separator, rest = note.rpartition("\n\n")
    if not separator or not rest.endswith("\n"):
        raise LedgerError("checkpoint: needs a text, an empty line, and signature lines that end in a newline")
    lines = text.split("\n")
    if len(lines) != 3:
        raise LedgerError("checkpoint: the text needs exactly three lines: origin, size, root")
    origin, size, root = lines
    if not _is_key_name(origin):
        raise LedgerError(f"checkpoint: {origin!r} is not an origin")
    if _NUMBER.fullmatch(size) is None or int(size) > MAX_INT:
        raise LedgerError(f"checkpoint: {size[:20]!r} is not a size")
    digest = _decode(root, "root")
    if len(digest) != 32:
        raise LedgerError(f"checkpoint: the root has {len(digest)} bytes, not 32")
    signatures = rest.removesuffix("\n").split("\n")
    if len(signatures) > MAX_SIGNATURES:
        raise LedgerError(f"checkpoint: has more than {MAX_SIGNATURES} signatures")
    return Note(f"{text}\n", origin, int(size), digest, tuple(_read_line(line) for line in signatures))


def read(note: str, run: str, log_key: str, witness_keys: Mapping[str, str]) -> Checkpoint:
    """Check a checkpoint and its cosignatures.

    Parameters
    ----------
    note
        As :func:`sign` and :func:`add` make it.
    run
        The run that it must be of.
    log_key
        The coordinator's public key, in hex.
    witness_keys
        Public keys of possible cosigners, in hex by name. Lines of other keys are ignored, as the
        specification asks.

    Raises
    ------
    LedgerError
        Malformed, of another log, not signed by the log, or a line of a known key does not hold.
    """
    parsed = parse(note)
    origin = origin_of(run)
    if parsed.origin != origin:
        raise LedgerError(f"checkpoint: is of {parsed.origin!r}, not of {origin!r}")
    log_id = key_id_of(origin, log_key, ED25519)
    own = [line for line in parsed.signatures if (line.name, line.key_id) == (origin, log_id)]
    if not own:
        raise LedgerError(f"checkpoint of {parsed.size} events: is not signed by the log's key")
    for line in own:
        _check(log_key, line, line.data, parsed.body.encode())
    return Checkpoint(run, parsed.size, parsed.root, _cosigners(parsed, witness_keys))


def _cosigners(parsed: Note, keys: Mapping[str, str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for line in parsed.signatures:
        key = keys.get(line.name)
        if key is None or line.key_id != key_id_of(line.name, key, COSIGNATURE):
            continue
        time = int.from_bytes(line.data[:8], "big")
        _check(key, line, line.data[8:], _cosigned(parsed.body, time))
        found[line.name] = max(time, found.get(line.name, 0))
    return found


def _cosigned(body: str, time: int) -> bytes:
    """The message that a witness signs (tlog-cosignature, "Ed25519 signed message")."""
    if not 0 <= time < 2**63:
        raise LedgerError(f"cosignature: {time} is not a time in seconds since 1970")
    return f"cosignature/v1\ntime {time}\n{body}".encode()


def _check(key: str, line: Signature, signature: bytes, message: bytes) -> None:
    try:
        if len(signature) != 64:
            raise LedgerError("wrong length")
        check_signature(key, signature, message)
    except LedgerError:
        raise LedgerError(f"checkpoint: the signature of {line.name} does not hold") from None


def _read_line(line: str) -> Signature:
    name, space, data = line.removeprefix(_MARK).partition(" ")
    if not line.startswith(_MARK) or not space or not _is_key_name(name):
        raise LedgerError(f"checkpoint: {line[:80]!r} is not a signature line")
    raw = _decode(data, "signature")
    if len(raw) <= 4:
        raise LedgerError(f"checkpoint: the signature of {name} is too short")
    return Signature(name, raw[:4], raw[4:])


def _is_key_name(name: str) -> bool:
    return bool(name) and "+" not in name and not any(char.isspace() for char in name)


def _decode(text: str, what: str) -> bytes:
    try:
        data = base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, ValueError):
        raise LedgerError(f"checkpoint: the {what} is not base64") from None
    if base64.b64encode(data).decode() != text:
        raise LedgerError(f"checkpoint: the {what} is not canonical base64")
    return data
