"""Signed statements, the messages that carry them, and their bytes.

A statement is canonical JSON with an Ed25519 signature of its sender (DSSE's pre-authentication encoding). It names
the session and, as `after`, the coordinator's last statement: since each of those names its predecessor and the
digests of all members' statements of its stage, they are a hash chain over everything that was said. Large content
travels beside the statement as raw buffers whose SHA-256 the statement holds, so that a statement can be shown to
others without them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any

from ledger import dsse
from ledger.canonical import canonical_json, is_digest, parse_canonical, sha256_hex
from ledger.errors import LedgerError
from ledger.identity import Identity
from trustchain_ray.errors import TrustChainError
from trustchain_ray.secure_aggregation.errors import Misbehaved

PAYLOAD_TYPE = "application/vnd.trustchain.secure-aggregation.v1+json"
_SIGNATURE_BYTES = 64
_MAX_HEADER_BYTES = 1 << 24

Buffer = bytes | memoryview
Buffers = Mapping[str, Buffer]


@dataclass(frozen=True)
class Statement:
    """Canonical JSON and its sender's signature.

    Attributes
    ----------
    payload : canonical JSON.
    signature : Ed25519, 64 bytes.
    """

    payload: bytes
    signature: bytes

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the payload, 64 hex digits."""
        return sha256_hex(self.payload)


@dataclass(frozen=True)
class Content:
    """What a statement says.

    Attributes
    ----------
    kind, session, after, sender : what it is, in which session (digest), after which statement (digest), by whom.
    body : fields of its kind.
    buffers : SHA-256 of each buffer that belongs to it, by name.
    """

    kind: str
    session: str
    after: str
    sender: str
    body: dict[str, Any]
    buffers: dict[str, str]


@dataclass(frozen=True)
class Message:
    """What goes over the wire: a statement, on the coordinator's way also those it is about, and raw buffers.

    Attributes
    ----------
    statement : the sender's.
    members : of the coordinator: the members' statements of a stage, in the order of their names.
    buffers : of a member: those of its statement. Of the coordinator: for the one receiver, by the sender.
    """

    statement: Statement
    members: tuple[Statement, ...] = ()
    buffers: Buffers = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """A length, a header in canonical JSON, then payloads, signatures and buffers as they are."""
        statements = [self.statement, *self.members]
        header = canonical_json(
            {
                "buffers": [[name, memoryview(data).nbytes] for name, data in self.buffers.items()],
                "statements": [len(s.payload) for s in statements],
            }
        )
        parts: list[Buffer] = [len(header).to_bytes(4, "big"), header]
        for statement in statements:
            parts += [statement.payload, statement.signature]
        return b"".join([*parts, *self.buffers.values()])

    @classmethod
    def from_bytes(cls, data: bytes) -> "Message":
        """The message of :meth:`to_bytes`; its buffers are views into `data`.

        Raises
        ------
        TrustChainError
            Anything but such bytes. Signatures are not checked here.
        """
        view = memoryview(data)
        length = int.from_bytes(view[:4], "big")
        if length > min(_MAX_HEADER_BYTES, len(view) - 4):
            raise TrustChainError("secure aggregation: not a message: its header does not fit its length")
        try:
            header = parse_canonical(bytes(view[4 : 4 + length]))
        except LedgerError as error:
            raise TrustChainError(f"secure aggregation: not a message: {error}") from None
        if not _is_header(header):
            raise TrustChainError("secure aggregation: not a message: its header needs lists of statements and buffers")
        sizes = [n for size in header["statements"] for n in (size, _SIGNATURE_BYTES)]
        sizes += [size for _, size in header["buffers"]]
        bounds = list(accumulate(sizes, initial=4 + length))
        if bounds[-1] != len(view):
            raise TrustChainError(f"secure aggregation: a message of {bounds[-1]} bytes came with {len(view)}")
        parts = [view[start:end] for start, end in pairwise(bounds)]
        count = len(header["statements"])
        first, *members = [Statement(bytes(parts[2 * i]), bytes(parts[2 * i + 1])) for i in range(count)]
        names = [name for name, _ in header["buffers"]]
        return cls(first, tuple(members), dict(zip(names, parts[2 * count :], strict=True)))


def _is_header(header: object) -> bool:
    """Whether a parsed header states sizes of at least one statement, and names and sizes of buffers."""
    if not isinstance(header, dict) or header.keys() != {"buffers", "statements"}:
        return False
    statements, buffers = header["statements"], header["buffers"]
    if not isinstance(statements, list) or not isinstance(buffers, list) or not statements:
        return False
    pairs = [b for b in buffers if isinstance(b, list) and len(b) == 2 and isinstance(b[0], str)]
    sizes = [*statements, *(size for _, size in pairs)]
    return (
        len(pairs) == len(buffers) == len({name for name, _ in pairs})
        and all(type(size) is int and size >= 0 for size in sizes)
    )


def state(
    identity: Identity, kind: str, session: str, after: str, body: Mapping[str, object], buffers: Buffers
) -> Statement:
    """Sign a statement.

    Parameters
    ----------
    session, after : digests of the session and of the coordinator's last statement.
    buffers : what belongs to it; their digests are signed.
    """
    payload = canonical_json(
        {
            "after": after,
            "body": dict(body),
            "buffers": {name: sha256_hex(data) for name, data in buffers.items()},
            "kind": kind,
            "sender": identity.name,
            "session": session,
        }
    )
    return Statement(payload, identity.sign(dsse.pae(PAYLOAD_TYPE, payload)))


def read(statement: Statement, deliverer: str, keys: Mapping[str, str], session: str, kind: str) -> Content:
    """Check who signed a statement, for which session, and of which kind.

    Parameters
    ----------
    deliverer : who is to answer for a statement that nobody signed.
    keys : public keys (hex) of those who may have made it, by name.
    session : digest of the session.

    Raises
    ------
    Misbehaved
        Malformed, an unknown sender, a signature that does not hold, another session or kind.
    """
    try:
        parsed = parse_canonical(statement.payload)
    except LedgerError as error:
        raise Misbehaved(deliverer, f"sent a malformed statement: {error}") from None
    if not _is_content(parsed):
        raise Misbehaved(deliverer, "sent a malformed statement: it needs after, body, buffers, kind, sender, session")
    content = Content(**parsed)
    if content.sender not in keys:
        raise Misbehaved(deliverer, f"sent a statement of {content.sender[:64]!r}, who has no say here")
    try:
        dsse.check_signature(keys[content.sender], statement.signature, dsse.pae(PAYLOAD_TYPE, statement.payload))
    except LedgerError:
        raise Misbehaved(
            deliverer, f"sent a statement in the name of {content.sender} whose signature does not hold"
        ) from None
    if content.session != session:
        raise Misbehaved(deliverer, f"sent a statement of {content.sender} that was signed for another round")
    if content.kind != kind:
        raise Misbehaved(
            deliverer, f"sent {content.kind[:64]!r} of {content.sender} when {kind!r} was due: too late, or a replay"
        )
    return content


def check_buffers(content: Content, buffers: Buffers) -> None:
    """Refuse buffers that are not exactly those that the sender signed. Raises Misbehaved."""
    if buffers.keys() != content.buffers.keys():
        raise Misbehaved(content.sender, f"sent other buffers with its {content.kind} than it signed")
    for name, data in buffers.items():
        if sha256_hex(data) != content.buffers[name]:
            raise Misbehaved(content.sender, f"sent other {name!r} with its {content.kind} than it signed")


def _is_content(parsed: object) -> bool:
    if not isinstance(parsed, dict) or parsed.keys() != {"after", "body", "buffers", "kind", "sender", "session"}:
        return False
    return (
        all(isinstance(parsed[name], str) for name in ("after", "kind", "sender", "session"))
        and isinstance(parsed["body"], dict)
        and isinstance(parsed["buffers"], dict)
        and all(is_digest(value) for value in parsed["buffers"].values())
    )
