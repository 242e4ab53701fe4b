"""Events: the signed statements of which the log consists."""

import time as clock
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ledger import dsse
from ledger import event_bodies as bodies
from ledger.canonical import canonical_json, parse_canonical, sha256_hex
from ledger.errors import LedgerError
from ledger.identity import COORDINATOR, Identity, check_name, key_id_of

PAYLOAD_TYPE = "application/vnd.trustchain.event+json"
MAX_EVENT_BYTES = 64 * 1024
"""Largest payload of an event, in bytes."""
MAX_KEY_LENGTH = 256
"""Largest idempotency key, in characters."""

RUN_MANIFEST = "RUN_MANIFEST"
REGISTER = "REGISTER"
SHARD_MANIFEST = "SHARD_MANIFEST"
DECISION = "DECISION"
UPDATE = "UPDATE"
REFUSED = "REFUSED"
MERGE = "MERGE"
EVALUATION = "EVALUATION"
ABSENT = "ABSENT"
CHECKPOINT = "CHECKPOINT"
MODEL_RELEASE = "MODEL_RELEASE"
RUN_COMPLETE = "RUN_COMPLETE"
UNLEARN_REQUEST = "UNLEARN_REQUEST"
UNLEARN_WITHDRAWN = "UNLEARN_WITHDRAWN"
UNLEARN_EXEC = "UNLEARN_EXEC"
UNLEARN_ATTEST = "UNLEARN_ATTEST"
AUDIT = "AUDIT"
PRIVACY_SPEND = "PRIVACY_SPEND"
REWARD_SETTLEMENT = "REWARD_SETTLEMENT"
KEY_ROTATION = "KEY_ROTATION"
KEY_REVOKED = "KEY_REVOKED"
KEY_ADMITTED = "KEY_ADMITTED"
MODEL_REVOKED = "MODEL_REVOKED"

_FIELDS = {"body", "key", "organization", "run", "time", "type"}

REQUIRED: dict[str, dict[str, str]] = {
    RUN_MANIFEST: {"manifest": bodies.DIGEST, "config": bodies.DIGEST},
    REGISTER: {
        "organization": bodies.STR, "key_id": bodies.DIGEST, "public_key": bodies.DIGEST, "document": bodies.DIGEST,
    },
    SHARD_MANIFEST: {
        "cohort": bodies.STR, "split": bodies.STR, "generation": bodies.INT, "records": bodies.INT,
        "root": bodies.DIGEST,
    },
    DECISION: {"round": bodies.INT, "effort": bodies.STR},
    UPDATE: {
        "round": bodies.INT, "cohort": bodies.STR, "base": bodies.DIGEST, "update": bodies.DIGEST,
        "weight": bodies.INT, "steps": bodies.INT,
    },
    REFUSED: {"round": bodies.INT, "organization": bodies.STR, "cohort": bodies.STR, "reason": bodies.STR},
    ABSENT: {"round": bodies.INT, "organization": bodies.STR, "reason": bodies.STR},
    MERGE: {
        "round": bodies.INT, "cohort": bodies.STR, "base": bodies.DIGEST, "inputs": bodies.LIST,
        "adapter": bodies.DIGEST, "file": bodies.STR,
    },
    EVALUATION: {"round": bodies.INT, "scores": bodies.DICT},
    CHECKPOINT: {"round": bodies.INT, "file": bodies.STR, "digest": bodies.DIGEST},
    MODEL_RELEASE: {"model_digest": bodies.DIGEST, "files": bodies.NAMED, "adapters": bodies.NAMED},
    RUN_COMPLETE: {"rounds": bodies.INT, "model_digest": bodies.DIGEST},
    REWARD_SETTLEMENT: {
        "round": bodies.INT, "rule": bodies.STR, "game": bodies.DIGEST, "payments": bodies.DICT,
    },
    UNLEARN_REQUEST: {
        "request": bodies.DIGEST, "organization": bodies.STR, "scope": bodies.STR, "method": bodies.STR,
        "removed": bodies.DIGEST,
    },
    UNLEARN_WITHDRAWN: {
        "removal": bodies.DIGEST, "requests": bodies.DIGESTS, "cohorts": bodies.ROUNDS, "models": bodies.DIGESTS,
    },
    MODEL_REVOKED: {"model_digest": bodies.DIGEST, "request": bodies.DIGEST, "reason": bodies.STR},
    UNLEARN_EXEC: {
        "requests": bodies.DIGESTS, "certificate": bodies.DIGEST, "guarantee": bodies.STR,
        "old_model_digest": bodies.DIGEST, "new_model_digest": bodies.DIGEST, "steps_replayed": bodies.INT,
        "steps_total": bodies.INT,
    },
    UNLEARN_ATTEST: {
        "certificate": bodies.DIGEST, "mode": bodies.STR, "steps": bodies.INT, "result": bodies.STR,
    },
    AUDIT: {"round": bodies.INT, "organization": bodies.STR, "steps": bodies.INT, "result": bodies.STR},
    PRIVACY_SPEND: {},
    KEY_ROTATION: {"key_id": bodies.DIGEST, "public_key": bodies.DIGEST, "possession": bodies.STR},
    KEY_REVOKED: {
        "organization": bodies.STR, "key_id": bodies.DIGEST, "reason": bodies.STR, "approvals": bodies.LIST,
    },
    KEY_ADMITTED: {
        "organization": bodies.STR, "replaces": bodies.DIGEST, "key_id": bodies.DIGEST, "public_key": bodies.DIGEST,
        "possession": bodies.STR, "reason": bodies.STR, "approvals": bodies.LIST,
    },
}  # fmt: skip
"""Fields that the body of each type must have, with their kind; a body may have more.

``UNLEARN_WITHDRAWN`` begins a removal: ``removal`` is its random id, ``requests`` those that it serves, ``cohorts`` the
first round, by cohort, whose adapter must not be used any more. ``AUDIT`` says what re-executing so many ``steps`` of
``organization`` gave: ``same``, or where the first difference is; ``round`` is the last one that was finished then.
"""

OPTIONAL: dict[str, dict[str, str]] = {
    UPDATE: {"replay": bodies.DIGEST, "trace": bodies.TRACE, "kept": bodies.BOOL},
    MERGE: {
        "replay": bodies.DIGEST, "transcript": bodies.DIGEST, "attempt": bodies.INT, "threshold": bodies.INT,
        "reason": bodies.STR,
    },
    CHECKPOINT: {"replay": bodies.DIGEST},
    EVALUATION: {"replay": bodies.DIGEST, "adapters": bodies.NAMED},
    REWARD_SETTLEMENT: {"replay": bodies.DIGEST, "chance": bodies.STR},
    MODEL_RELEASE: {"replay": bodies.DIGEST},
}
"""Fields that a body may have, with their kind.

``replay``: the removal in which it was made; ``trace``: a digest for each step that was trained; ``kept`` (true): the
removal changes nothing of it, so that it was not trained again, but is stated again. Of a merge by secure aggregation,
``transcript`` is the digest over all that was said in its session, ``attempt`` counts the sessions before it,
``threshold`` is the number of members that had to stay; without a sum, ``reason`` says why. ``chance`` is the
money that the standard error of a settlement's quality is worth.
"""

_INSIDE: dict[str, Callable[[str, Mapping[str, Any]], None]] = {
    AUDIT: bodies.check_audit,
    DECISION: bodies.check_decision,
    UPDATE: bodies.check_update,
    KEY_ROTATION: bodies.check_key_rotation,
    KEY_REVOKED: bodies.check_key_decision,
    KEY_ADMITTED: bodies.check_key_decision,
    MERGE: bodies.check_merge,
    SHARD_MANIFEST: bodies.check_shard_manifest,
    UNLEARN_REQUEST: bodies.check_unlearn_request,
    UNLEARN_WITHDRAWN: bodies.check_unlearn_withdrawn,
    UNLEARN_EXEC: bodies.check_unlearn_exec,
}

TYPES = frozenset(REQUIRED)

COORDINATOR_ONLY = frozenset(
    {
        RUN_MANIFEST, REFUSED, ABSENT, MERGE, EVALUATION, CHECKPOINT, MODEL_RELEASE, RUN_COMPLETE, REWARD_SETTLEMENT,
        UNLEARN_WITHDRAWN, MODEL_REVOKED, UNLEARN_EXEC, KEY_REVOKED, KEY_ADMITTED,
    }
)  # fmt: skip
"""Types that only the coordinator may sign."""

KEY_EVENTS = (REGISTER, KEY_ROTATION, KEY_REVOKED, KEY_ADMITTED)
"""Types that say whose key counts, and from where on (:class:`ledger.registry.Registry`)."""


@dataclass(frozen=True)
class Event:
    """One event, taken out of its envelope.

    Attributes
    ----------
    type, organization, run, body, key
        As signed; ``key`` is the idempotency key, unique within the organization.
    time
        Milliseconds since 1970, by the signer's clock.
    key_id
        The key that signed it.
    leaf
        Canonical bytes of the envelope: the leaf of the log.
    """

    type: str
    organization: str
    run: str
    body: dict[str, Any]
    key: str
    time: int
    key_id: str
    leaf: bytes = field(repr=False)

    @property
    def round(self) -> int | None:
        """Round of the body, where it has one."""
        value = self.body.get("round")
        return value if type(value) is int else None

    @property
    def replay(self) -> str | None:
        """Id of the removal in which it was made, where it is part of one."""
        value = self.body.get("replay")
        return value if isinstance(value, str) else None


def make_event(
    identity: Identity,
    run: str,
    type: str,
    body: dict[str, Any],
    key: str | None = None,
    time: int | None = None,
) -> dsse.Envelope:
    """Sign an event.

    Parameters
    ----------
    identity
        The actor that states it.
    run
        Id of the run.
    type
        One of :data:`TYPES`.
    body
        See :data:`REQUIRED`; floats are written as strings.
    key
        Idempotency key; default ``<type>/<organization>/<first 24 digits of the body's SHA-256>``.
    time
        Milliseconds since 1970; default now.

    Returns
    -------
    dict
        DSSE envelope.

    Raises
    ------
    LedgerError
        Unknown type, missing or wrong field, too large.
    """
    if key is None:
        key = default_key(type, identity.name, body)
    content = {
        "body": body,
        "key": key,
        "organization": identity.name,
        "run": run,
        "time": clock.time_ns() // 1_000_000 if time is None else time,
        "type": type,
    }
    _check_content(content)
    payload = canonical_json(content)
    _check_size(payload)
    return dsse.sign(payload, PAYLOAD_TYPE, identity)


def default_key(type: str, organization: str, body: dict[str, Any]) -> str:
    """The idempotency key of an event that is given none: two statements have one key where they say the same."""
    return f"{type}/{organization}/{sha256_hex(canonical_json(body))[:24]}"


def leaf_bytes(envelope: dsse.Envelope) -> bytes:
    """Leaf of the log: canonical JSON of the envelope."""
    return canonical_json(envelope)


def read_event(envelope: dsse.Envelope, keys: Mapping[str, str]) -> Event:
    """Check an envelope's signature and content, and take the event out.

    A REGISTER event is signed with the key that it declares; whether that key is welcome is for
    :class:`~ledger.registry.Registry` to say.

    Parameters
    ----------
    envelope
        DSSE envelope.
    keys
        Public keys in hex by key id; not used for REGISTER.

    Raises
    ------
    LedgerError
        Malformed, oversized, unknown key, bad signature, unknown type, missing or wrong field.
    """
    return _read_parts(*dsse.payload_of(envelope), leaf_bytes(envelope), keys)


def read_leaf(leaf: bytes, keys: Mapping[str, str]) -> Event:
    """:func:`read_event` for a leaf of the log, which the caller has: the event's own ``leaf`` is left empty.

    Raises
    ------
    LedgerError
        As :func:`read_event`, or it is not in canonical form.
    """
    return _read_parts(*dsse.parts_of(leaf), b"", keys)


def _read_parts(
    payload: bytes, payload_type: str, key_id: str, signature: bytes, leaf: bytes, keys: Mapping[str, str]
) -> Event:
    if payload_type != PAYLOAD_TYPE:
        raise LedgerError(f"event: payload type is {payload_type!r}, not {PAYLOAD_TYPE!r}")
    _check_size(payload)
    content = parse_canonical(payload)
    _check_content(content)
    body = content["body"]
    if content["type"] == REGISTER:
        _check_register(content["organization"], body, key_id)
        public_hex = body["public_key"]
    elif key_id in keys:
        public_hex = keys[key_id]
    else:
        raise LedgerError(
            f"{content['type']} of {content['organization']}: key {key_id[:16]!r} is not registered; "
            "send REGISTER first"
        )
    try:
        dsse.check_signature(public_hex, signature, dsse.pae(payload_type, payload))
    except LedgerError as error:
        raise LedgerError(f"{content['type']} of {content['organization']}: {error}") from None
    return Event(
        type=content["type"],
        organization=content["organization"],
        run=content["run"],
        body=body,
        key=content["key"],
        time=content["time"],
        key_id=key_id,
        leaf=leaf,
    )


def _check_size(payload: bytes) -> None:
    if len(payload) > MAX_EVENT_BYTES:
        raise LedgerError(f"event: {len(payload)} bytes; an event may have {MAX_EVENT_BYTES}, put digests into it")


def _check_content(content: Any) -> None:
    if not isinstance(content, dict) or content.keys() != _FIELDS:
        raise LedgerError("event: needs exactly body, key, organization, run, time and type")
    kind = content["type"]
    if not isinstance(kind, str) or kind not in TYPES:
        raise LedgerError(f"event: unknown type {kind!r}; known: {', '.join(sorted(TYPES))}")
    organization = check_name(content["organization"])
    where = f"{kind} of {organization}"
    if not isinstance(content["run"], str) or not content["run"]:
        raise LedgerError(f"{where}: run is not a name")
    if type(content["time"]) is not int or content["time"] < 0:
        raise LedgerError(f"{where}: time is not in milliseconds since 1970")
    key = content["key"]
    if not isinstance(key, str) or not 0 < len(key) <= MAX_KEY_LENGTH:
        raise LedgerError(f"{where}: the idempotency key needs 1 to {MAX_KEY_LENGTH} characters")
    if kind in COORDINATOR_ONLY and organization != COORDINATOR:
        raise LedgerError(f"{where}: only the coordinator may sign this type")
    body = content["body"]
    if not isinstance(body, dict):
        raise LedgerError(f"{where}: body is not a table")
    try:
        bodies.check_fields(body, REQUIRED[kind], OPTIONAL.get(kind, {}))
        if kind in _INSIDE:
            _INSIDE[kind](organization, body)
    except LedgerError as error:
        raise LedgerError(f"{where}: {error}") from None


def _check_register(organization: str, body: dict[str, Any], key_id: str) -> None:
    if body["organization"] != organization:
        raise LedgerError(f"REGISTER of {organization}: registers {body['organization']!r}; each registers itself")
    if body["key_id"] != key_id or key_id_of(body["public_key"]) != key_id:
        raise LedgerError(f"REGISTER of {organization}: key_id, public_key and the signing key do not belong together")
