"""A consortium on paper: who is a member, with which key, and how many of them decide who else is.

``consortium.json`` is the canonical JSON of ``{"format", "versions"}``. Each version is a DSSE envelope whose payload
holds ``name``, ``version`` (from 1), ``threshold`` k, ``members`` (public keys in hex by name), ``coordinator`` (its
public key) and ``previous``, the digest of the payload before it. Version 1 counts when all its members signed it, any
other one when k of the members of the version before it did. All versions lie in the file, so that a stranger who knows
the digest of version 1 checks it from there to the one in force; the last version may still wait for signatures.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ledger import dsse
from ledger.canonical import canonical_json, is_digest, parse_canonical, sha256_hex, write_atomic
from ledger.errors import LedgerError
from ledger.identity import COORDINATOR, Identity, check_name, key_id_of
from ledger.shape import DICT, DIGEST, INT, LIST, STR, fields, rows

FORMAT = "trustchain-consortium-1"
PAYLOAD_TYPE = "application/vnd.trustchain.consortium+json"
MAX_BYTES = 1 << 24


@dataclass(frozen=True)
class Version:
    """One version of the document.

    Attributes
    ----------
    name
        Of the consortium.
    version
        Number, from 1.
    threshold
        Members that must sign the next version.
    members
        Public keys in hex by name.
    coordinator
        Public key in hex.
    previous
        Digest of the version before it; empty for the first.
    signatures
        By key id, in base64.
    """

    name: str
    version: int
    threshold: int
    members: Mapping[str, str]
    coordinator: str
    previous: str
    signatures: Mapping[str, str]

    @property
    def payload(self) -> bytes:
        """What is signed, in canonical JSON."""
        names = ("name", "version", "threshold", "coordinator", "previous")
        return canonical_json({**{name: getattr(self, name) for name in names}, "members": dict(self.members)})

    @property
    def digest(self) -> str:
        """SHA-256 of the payload."""
        return sha256_hex(self.payload)

    @property
    def keys(self) -> dict[str, str]:
        """Public keys in hex of the members and the coordinator, by name."""
        return {**self.members, COORDINATOR: self.coordinator}


@dataclass(frozen=True)
class Consortium:
    """All versions, oldest first, checked: each in force but perhaps the last."""

    versions: Sequence[Version]

    @property
    def force(self) -> Version:
        """The version in force. Raises LedgerError while the first one waits for signatures."""
        done = self.versions if self.missing() == 0 else self.versions[:-1]
        if not done:
            first = self.versions[0]
            waiting = sorted(name for name, key in first.members.items() if key_id_of(key) not in first.signatures)
            raise LedgerError(f"consortium {first.name!r}: version 1 counts when {', '.join(waiting)} signed it, too")
        return done[-1]

    @property
    def pending(self) -> Version | None:
        """The version that waits for signatures."""
        return self.versions[-1] if self.missing() else None

    def signers(self, version: Version) -> dict[str, str]:
        """Public keys in hex, by name, of those whose signatures count for a version."""
        return dict(version.members if version.version == 1 else self.versions[version.version - 2].members)

    def signed_by(self, version: Version) -> list[str]:
        """Who signed a version."""
        return sorted(n for n, key in self.signers(version).items() if key_id_of(key) in version.signatures)

    def missing(self) -> int:
        """Signatures that the last version lacks."""
        last = self.versions[-1]
        needed = len(last.members) if last.version == 1 else self.versions[-2].threshold
        return max(0, needed - len(self.signed_by(last)))

    def to_bytes(self) -> bytes:
        """Canonical JSON of the file."""
        return canonical_json({"format": FORMAT, "versions": [_envelope(version) for version in self.versions]})


def found(name: str, threshold: int, members: Mapping[str, str], coordinator: str) -> Consortium:
    """A new consortium, whose first version nobody signed yet.

    Parameters
    ----------
    name
        Of the consortium.
    threshold
        Members that must sign a later version.
    members
        Public keys in hex by name.
    coordinator
        Public key in hex.

    Raises
    ------
    LedgerError
        Names, keys or threshold are none.
    """
    return _checked([Version(name, 1, threshold, dict(members), coordinator, "", {})])


def propose(
    consortium: Consortium, *, threshold: int | None = None, members: Mapping[str, str] | None = None,
    coordinator: str | None = None, instead: bool = False,
) -> Consortium:  # fmt: skip
    """Add a version that waits for the signatures of the members in force.

    Parameters
    ----------
    consortium
        So far.
    threshold, members, coordinator
        What changes.
    instead
        Drop a version that still waits.

    Raises
    ------
    LedgerError
        Nothing changes, another version waits, or names, keys or threshold are none.
    """
    force = consortium.force
    if consortium.pending is not None and not instead:
        raise LedgerError(
            f"consortium {force.name!r}: version {consortium.pending.version} still waits for signatures; "
            "sign it, or propose another one instead of it"
        )
    fresh = Version(
        force.name,
        force.version + 1,
        force.threshold if threshold is None else threshold,
        dict(force.members if members is None else members),
        force.coordinator if coordinator is None else coordinator,
        force.digest,
        {},
    )
    if (fresh.threshold, fresh.keys) == (force.threshold, force.keys):
        raise LedgerError(f"consortium {force.name!r}: the proposal changes nothing of version {force.version}")
    return _checked([*consortium.versions[: force.version], fresh])


def sign(consortium: Consortium, identity: Identity) -> Consortium:
    """Add a member's signature to the version that waits.

    Raises
    ------
    LedgerError
        No version waits, or the signature would not count for it.
    """
    waiting = consortium.pending
    if waiting is None:
        force = consortium.force
        raise LedgerError(f"consortium {force.name!r}: version {force.version} is in force, and none waits")
    signers = consortium.signers(waiting)
    if signers.get(identity.name) != identity.public_hex:
        raise LedgerError(
            f"consortium {waiting.name!r}: key {identity.key_id[:16]} of {identity.name} does not decide on version "
            f"{waiting.version}; the keys of {', '.join(sorted(signers))} do"
        )
    signature = dsse.sign(waiting.payload, PAYLOAD_TYPE, identity)["signatures"][0]
    signed = replace(waiting, signatures={**waiting.signatures, identity.key_id: signature["sig"]})
    return _checked([*consortium.versions[:-1], signed])


def read_consortium(path: str | Path) -> Consortium:
    """Read and check a document: every version from the first one on, with its signatures.

    Raises
    ------
    LedgerError
        It cannot be read, is no such document, or a version before the last one does not count.
    """
    try:
        with Path(path).open("rb") as file:
            return parse(file.read(MAX_BYTES + 1))
    except OSError as error:
        raise LedgerError(f"{path}: cannot be read: {error.strerror}") from None
    except LedgerError as error:
        raise LedgerError(f"{path}: {error}") from None


def parse(data: bytes) -> Consortium:
    """:func:`read_consortium` for the bytes of a file."""
    if len(data) > MAX_BYTES:
        raise LedgerError(f"is larger than {MAX_BYTES} bytes")
    content = fields(parse_canonical(data.strip()), {"format": STR, "versions": LIST}, "consortium")
    if content["format"] != FORMAT:
        raise LedgerError(f"is of format {content['format'][:80]!r}, not {FORMAT!r}")
    return _checked([_version(entry, f"version {number}") for number, entry in enumerate(content["versions"], 1)])


def write(consortium: Consortium, path: str | Path) -> None:
    """Write the document whole. Raises LedgerError."""
    write_atomic(path, consortium.to_bytes() + b"\n")


def is_consortium(content: Any) -> bool:
    """Whether parsed JSON looks like a consortium's document."""
    return isinstance(content, dict) and content.get("format") == FORMAT


def _envelope(version: Version) -> dict[str, Any]:
    # The payload goes in through DSSE's own fields, so that any in-toto tool reads the signatures.
    return {
        "payload": dsse.encode_base64(version.payload),
        "payloadType": PAYLOAD_TYPE,
        "signatures": [{"keyid": key_id, "sig": sig} for key_id, sig in sorted(version.signatures.items())],
    }


def _version(entry: Any, where: str) -> Version:
    envelope = fields(entry, {"payload": STR, "payloadType": STR, "signatures": LIST}, where)
    if envelope["payloadType"] != PAYLOAD_TYPE:
        raise LedgerError(f"{where}: payload type is not {PAYLOAD_TYPE!r}")
    signatures = rows(envelope["signatures"], {"keyid": DIGEST, "sig": STR}, f"{where}: signatures")
    ids = [line["keyid"] for line in signatures]
    if ids != sorted(set(ids)):
        raise LedgerError(f"{where}: signatures are not in order of key ids, or one occurs twice")
    kinds = {"name": STR, "version": INT, "threshold": INT, "members": DICT, "coordinator": DIGEST, "previous": STR}
    said = fields(parse_canonical(dsse.decode_base64(envelope["payload"], "payload")), kinds, where)
    return Version(**said, signatures={line["keyid"]: line["sig"] for line in signatures})


def _checked(versions: Sequence[Version]) -> Consortium:
    """The consortium, if every version is well formed, follows the one before it, and only the last one waits."""
    if not versions:
        raise LedgerError("holds no version")
    consortium = Consortium(versions)
    for place, version in enumerate(versions):
        where = f"consortium {version.name!r}: version {place + 1}"
        before = versions[place - 1] if place else None
        if version.version != place + 1 or version.previous != (before.digest if before else ""):
            raise LedgerError(f"{where} does not follow the one before it")
        if before is not None and version.name != before.name:
            raise LedgerError(f"{where} is of another consortium than {before.name!r}")
        _check_members(version, where)
        by_id = {key_id_of(key): (name, key) for name, key in consortium.signers(version).items()}
        for key_id, signature in version.signatures.items():
            if key_id not in by_id:
                raise LedgerError(f"{where}: is signed by key {key_id[:16]}, which does not decide on it")
            name, key = by_id[key_id]
            try:
                message = dsse.pae(PAYLOAD_TYPE, version.payload)
                dsse.check_signature(key, dsse.decode_base64(signature, "sig"), message)
            except LedgerError:
                raise LedgerError(f"{where}: the signature of {name} does not hold") from None
        if place + 1 < len(versions) and Consortium(versions[: place + 1]).missing():
            raise LedgerError(f"{where} was never signed by enough members, and another one follows it")
    return consortium


def _check_members(version: Version, where: str) -> None:
    check_name(version.name)
    for name, key in version.members.items():
        if check_name(name) == COORDINATOR or not is_digest(key):
            raise LedgerError(f"{where}: {name} is no organization with a public key (64 hex digits)")
    if not is_digest(version.coordinator):
        raise LedgerError(f"{where}: the coordinator has no public key (64 hex digits)")
    if len(set(version.keys.values())) != len(version.keys):
        raise LedgerError(f"{where}: two names have the same key")
    if not 1 <= version.threshold <= len(version.members):
        raise LedgerError(
            f"{where}: {version.threshold} of {len(version.members)} members cannot decide; the threshold is from 1 to "
            f"the number of members"
        )
