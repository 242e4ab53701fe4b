"""Verification against what the members decided: certificates that they approved, models that they revoked."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from ledger import layout
from ledger.audit import Audit, Fault, Skip
from ledger.decisions import CERTIFICATE, CONCLUDED, RELEASE, REVOCATION, REVOKED, UNRELEASED, Decision, all_decisions
from ledger.rpc import KIND
from ledger.rpc_federation import read_releases
from ledger.verify_certificate import RunLog


@runtime_checkable
class Approving(Protocol):
    """A private chain on which members approve."""

    def find_approval(self, kind: str, digest: str) -> dict[str, Any] | None:
        """``state`` and ``votes`` of an approval; None: nobody proposed it."""
        ...

    def model_status(self, digest: str) -> str:
        """``released``, ``revoked`` or ``unknown``."""
        ...


def check_approvals(audit: Audit) -> str:
    """What the chains that were asked say of each removal, and that none revoked the model that the run releases."""
    if not audit.whole_log:
        raise Skip(f"{layout.LOG} is not here, which says what there is to approve")
    found = all_decisions(RunLog(audit.events, audit.manifest, audit.merkle))
    said = [*_ask_private(audit, found), *_ask_contract(audit, found)]
    if not said:
        raise Skip("no chain on which members approve was asked; name one with --fabric-profile or --rpc-url")
    return "; ".join(said)


def _ask_private(audit: Audit, decisions: list[Decision]) -> list[str]:
    if audit.options.fabric is None:
        return []
    chain = audit.options.fabric(audit.run)
    try:
        if not isinstance(chain, Approving):
            return []
        models = {one.digest: chain.model_status(one.digest) for one in decisions if one.kind != CERTIFICATE}
        wanted, concluded = [one.digest for one in decisions if one.kind == CERTIFICATE], 0
        for digest in wanted:
            state = chain.find_approval(CERTIFICATE, digest) or {"votes": []}
            if state.get("state") == CONCLUDED:
                concluded += 1
                continue
            voters = ", ".join(state["votes"]) or "nobody"
            audit.notes.append(f"that k members approve certificate {digest[:16]}: on the private chain {voters} did")
    finally:
        chain.close()
    certificates = f"the private chain has {concluded} of {len(wanted)} certificates approved"
    return [f"{certificates}, {_revoked(audit, decisions, models, 'the private chain')}"]


def _ask_contract(audit: Audit, decisions: list[Decision]) -> list[str]:
    if audit.options.rpc_url is None or audit.store is None or audit.store.chain.get("kind") != KIND:
        return []
    digests = [one.digest for one in decisions if one.kind != CERTIFICATE]
    models = read_releases(audit.options.rpc_url, audit.store.chain, audit.run, digests)
    if models is None:
        return []  # a log of the run's own, without members
    return [f"the consortium's contract has {_revoked(audit, decisions, models, 'the contract')}"]


def _revoked(audit: Audit, decisions: list[Decision], models: Mapping[str, str], where: str) -> str:
    """How many of the withdrawn models are revoked; what the run releases must not be."""
    for one in decisions:
        if one.kind == RELEASE and models[one.digest] == REVOKED:
            raise Fault(layout.LOG, f"releases model {one.digest[:16]}, which {where} has as revoked")
    withdrawn = [one.digest for one in decisions if one.kind == REVOCATION]
    for digest in withdrawn:
        if models[digest] not in (REVOKED, UNRELEASED):
            audit.notes.append(f"that model {digest[:16]} is revoked: {where} has it as {models[digest]}")
    count = sum(models[digest] == REVOKED for digest in withdrawn)
    never = sum(models[digest] == UNRELEASED for digest in withdrawn)
    return f"{count} of {len(withdrawn)} withdrawn models revoked" + (f" and {never} never released" if never else "")
