"""What the members of a consortium decide about a run: a certificate of removal, a model's release, its revocation.

A decision names a digest, and the event of the run's log that gives the reason for it. Each member reads both from its
own copy of the log, so that nobody approves what somebody else only says.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from ledger import certificate as ct
from ledger import events as ev
from ledger.errors import LedgerError
from ledger.verify_certificate import RunLog, verify_certificate

CERTIFICATE, RELEASE, REVOCATION = "unlearning-certificate", "model-release", "model-revocation"
"""Kinds of decisions, as the chaincode calls them."""

NONE, PROPOSED, CONCLUDED = "none", "proposed", "concluded"
RELEASED, REVOKED, UNRELEASED = "released", "revoked", "not released"

_EVENTS = {
    CERTIFICATE: (ev.UNLEARN_EXEC, "certificate"),
    RELEASE: (ev.MODEL_RELEASE, "model_digest"),
    REVOCATION: (ev.MODEL_REVOKED, "model_digest"),
}


@dataclass(frozen=True)
class Decision:
    """Something to decide.

    Attributes
    ----------
    kind
        :data:`CERTIFICATE`, :data:`RELEASE` or :data:`REVOCATION`.
    digest
        Of the certificate's statement, or of the model.
    event
        Position in the log of the UNLEARN_EXEC, MODEL_RELEASE or MODEL_REVOKED event that names it.
    """

    kind: str
    digest: str
    event: int

    def __str__(self) -> str:
        return f"{self.kind} {self.digest[:16]}"


@dataclass(frozen=True)
class Standing:
    """How far a decision is on one chain.

    Attributes
    ----------
    state
        :data:`NONE` (nobody proposed it), :data:`PROPOSED`, :data:`CONCLUDED`, :data:`RELEASED` or :data:`REVOKED`;
        :data:`UNRELEASED`: a revocation of what that chain never released.
    votes
        Who approved: MSP ids, or accounts.
    needed
        How many must; 0 where the chain does not tell before the first proposal.
    """

    state: str = NONE
    votes: list[str] = field(default_factory=list)
    needed: int = 0

    @property
    def missing(self) -> int:
        """Approvals that are still needed, as far as the chain tells how many there must be."""
        return max(0, self.needed - len(self.votes)) if self.state in (NONE, PROPOSED) else 0


class Ballot(Protocol):
    """One decision on one chain, by one member.

    Both methods raise LedgerError where the chain refuses, or what others left there is wrong, and Unavailable where
    the chain does not answer.
    """

    def standing(self) -> Standing:
        """How far it is; changes nothing."""
        ...

    def approve(self, said: Callable[[str], None]) -> Standing:
        """Do this member's part, and tell ``said`` of each thing that was done; again, it changes nothing."""
        ...


def all_decisions(log: RunLog) -> list[Decision]:
    """Every certificate and every revocation that the log names, and the newest model; in order of their events."""
    named = [(kind, digest, at) for kind in (CERTIFICATE, REVOCATION) for digest, at in _first(log, kind).items()]
    revoked = _first(log, REVOCATION)
    named += [(RELEASE, model, at) for model, at in _newest(log).items() if model not in revoked]
    return sorted((Decision(*row) for row in named), key=lambda one: one.event)


def of_certificate(
    log: RunLog, data: bytes, name: str, trust: Mapping[str, str] | None = None, min_auditors: int = 0
) -> list[Decision]:
    """The decisions that a certificate asks for: the certificate, and the revocation of each model that it withdraws.

    Parameters
    ----------
    log
        The run's whole log, verified.
    data, name
        The certificate, and its name for messages.
    trust, min_auditors
        As of :func:`ledger.verify_certificate.verify_certificate`.

    Raises
    ------
    LedgerError
        The certificate does not verify against the log.
    """
    report = verify_certificate(data, name=name, log=log, trust=trust, min_auditors=min_auditors)
    if report.failure is not None:
        raise LedgerError(f"{name}: does not verify ({report.failure.name}): {report.failure.detail}; not approved")
    certificate = ct.parse(data)
    executed, revoked = _first(log, CERTIFICATE), _first(log, REVOCATION)
    asked = [(CERTIFICATE, certificate.digest, executed[certificate.digest])]
    asked += [(REVOCATION, model, revoked[model]) for model in certificate.removal.withdrawn]
    return [Decision(*row) for row in asked]


def of_model(log: RunLog, kind: str, digest: str = "") -> Decision:
    """The release or the revocation of a model.

    Parameters
    ----------
    log
        The run's whole log, verified.
    kind
        :data:`RELEASE` or :data:`REVOCATION`.
    digest
        The model's, or its first digits; empty, for a release: the newest model.

    Raises
    ------
    LedgerError
        The log does not say so of one model, or says that the model to be released is revoked.
    """
    found, run, type_ = _first(log, kind), log.manifest.get("run"), _EVENTS[kind][0]
    if digest:
        chosen = [model for model in found if model.startswith(digest)]
    else:
        chosen = list(_newest(log)) if kind == RELEASE else []
    if len(chosen) != 1:
        asked = f"model {digest!r}" if digest else "no model is named"
        raise LedgerError(f"run {run}: {asked}: {len(chosen)} of the log's {type_} events fit; name one with --model")
    if kind == RELEASE and chosen[0] in _first(log, REVOCATION):
        raise LedgerError(f"model {chosen[0]}: the log revokes it; a model that is withdrawn is not released")
    return Decision(kind, chosen[0], found[chosen[0]])


def newest_certificate(log: RunLog) -> str:
    """Digest of the certificate of the last removal. Raises LedgerError where nothing was removed."""
    executed = list(_first(log, CERTIFICATE))
    if not executed:
        raise LedgerError(f"run {log.manifest.get('run')}: the log has no removal that was executed")
    return executed[-1]


def reason_of(log: RunLog, decision: Decision) -> str:
    """The event that gives the reason, as chains name it: its RFC 9162 leaf hash, 64 hex digits."""
    assert log.tree is not None, "a log of which decisions are made is read with its tree"
    return log.tree.node(0, decision.event).hex()


def _first(log: RunLog, kind: str) -> dict[str, int]:
    """Position of the first event by the digest that it names, in order."""
    type_, name = _EVENTS[kind]
    found: dict[str, int] = {}
    for at, event in enumerate(log.events):
        if event.type == type_:
            found.setdefault(event.body[name], at)
    return found


def _newest(log: RunLog) -> dict[str, int]:
    """Position of its first event by the digest of the last model; empty where none was released."""
    digests = [event.body["model_digest"] for event in log.events if event.type == ev.MODEL_RELEASE]
    return {model: _first(log, RELEASE)[model] for model in digests[-1:]}
