"""A session: what is summed, who takes part, and how many must stay to the end."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

from ledger import dsse
from ledger.canonical import MAX_INT, canonical_json, is_digest, parse_canonical, sha256_hex
from ledger.errors import LedgerError
from ledger.identity import COORDINATOR, Identity, check_name
from trustchain_ray.errors import TrustChainError
from trustchain_ray.secure_aggregation.errors import Misbehaved
from trustchain_ray.secure_aggregation.messages import PAYLOAD_TYPE, Statement

FEWEST = 3
"""Members of a session: the sum of two shows each of them the other's update."""


def default_threshold(members: int) -> int:
    """The smallest threshold above two thirds of the members (1611.04482, section 6.2)."""
    return 2 * members // 3 + 1


@dataclass(frozen=True)
class Session:
    """One secure sum.

    Attributes
    ----------
    run, cohort, round : of the merge.
    attempt : counts the sessions of the same merge, from 0.
    size : number of values of an update.
    threshold : members without whom there is no sum; more than two thirds, against a coordinator that shows
        different members different things.
    members : Ed25519 public keys (hex) of the organizations, by name.
    coordinator : the coordinator's public key (hex).
    """

    run: str
    cohort: str
    round: int
    attempt: int
    size: int
    threshold: int
    members: Mapping[str, str]
    coordinator: str

    def __post_init__(self) -> None:
        for name in self.members:
            try:
                check_name(name)
            except LedgerError as error:
                raise TrustChainError(f"secure aggregation: {error}") from None
        count, keys = len(self.members), [*self.members.values(), self.coordinator]
        if COORDINATOR in self.members or not all(is_digest(key) for key in keys) or len(set(keys)) <= count:
            raise TrustChainError(
                "secure aggregation: every party needs a public key of its own (64 hex digits), and the coordinator is "
                "no member"
            )
        if count < FEWEST:
            raise TrustChainError(
                f"secure aggregation: {count} members are too few: a sum of two shows each the other's update; "
                f"take {FEWEST} or more, or set trust.secure_aggregation=false"
            )
        if not 2 * count < 3 * self.threshold <= 3 * count:
            raise TrustChainError(
                f"secure aggregation: a threshold of {self.threshold} of {count} members is not safe against the "
                f"coordinator; set {default_threshold(count)} to {count}"
            )
        if self.round < 0 or self.attempt < 0 or not 1 <= self.size <= MAX_INT:
            raise TrustChainError(
                f"secure aggregation: round {self.round}, attempt {self.attempt}, size {self.size}: rounds and "
                "attempts count from 0, and there is at least one value"
            )

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The members in the order of their names."""
        return tuple(sorted(self.members))

    @cached_property
    def points(self) -> dict[str, int]:
        """Where the polynomials of the secret sharing are evaluated for each member, from 1."""
        return {name: i + 1 for i, name in enumerate(self.names)}

    @property
    def keys(self) -> dict[str, str]:
        """Public keys of all parties, by name."""
        return {**self.members, COORDINATOR: self.coordinator}

    @cached_property
    def _payload(self) -> bytes:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return canonical_json({**values, "members": dict(self.members), "kind": "session"})

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the announcement, 64 hex digits: what all parties sign with everything they say."""
        return sha256_hex(self._payload)

    def announce(self, identity: Identity) -> Statement:
        """The session as the coordinator signs it."""
        return Statement(self._payload, identity.sign(dsse.pae(PAYLOAD_TYPE, self._payload)))

    @classmethod
    def read(cls, statement: Statement, registered: Mapping[str, str]) -> "Session":
        """The session of an announcement, if all its parties are the registered ones.

        Parameters
        ----------
        registered : public keys (hex) by name, as the log has them, with the coordinator's.

        Raises
        ------
        Misbehaved
            Not signed by the coordinator, malformed, or with another key for a party than the registered one: a
            coordinator that makes up members would know all terms of the sum but one.
        TrustChainError
            A session that nobody should take part in.
        """
        try:
            message = dsse.pae(PAYLOAD_TYPE, statement.payload)
            dsse.check_signature(registered[COORDINATOR], statement.signature, message)
            parsed = parse_canonical(statement.payload)
        except LedgerError as error:
            raise Misbehaved(COORDINATOR, f"announced a session that does not hold: {error}") from None
        if not _is_session(parsed):
            raise Misbehaved(COORDINATOR, "announced a malformed session")
        session = cls(**{name: value for name, value in parsed.items() if name != "kind"})
        for name, key in session.keys.items():
            if registered.get(name) != key:
                raise Misbehaved(COORDINATOR, f"announced a session with a key for {name} that is not registered")
        return session


def _is_session(parsed: Any) -> bool:
    kinds = {
        "run": str, "cohort": str, "round": int, "attempt": int, "size": int, "threshold": int, "members": dict,
        "coordinator": str, "kind": str,
    }  # fmt: skip
    if not isinstance(parsed, dict) or parsed.keys() != kinds.keys() or parsed["kind"] != "session":
        return False
    return all(type(parsed[name]) is kind for name, kind in kinds.items())
