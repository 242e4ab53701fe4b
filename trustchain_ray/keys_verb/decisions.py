"""What `trustchain keys revoke`, `readmit`, `approve` and `enact` do: a run's members decide on a lost key."""

import argparse
from pathlib import Path
from typing import Any

from ledger import key_decisions, layout
from ledger.canonical import canonical_json, write_atomic
from ledger.errors import LedgerError
from ledger.identity import load
from ledger.key_decisions import KeyDecision, read_decision, write_decision
from ledger.key_events import check_approvals, needed_approvals
from ledger.log import SqliteLog
from ledger.registry import Registry
from trustchain_ray.errors import TrustChainError, UsageError
from trustchain_ray.keys_verb.command import folder_of


def revoke(arguments: argparse.Namespace) -> dict[str, Any]:
    """Write a proposal to revoke an organization's key. Raises LedgerError where it has none in force."""
    registry = _registry(Path(arguments.run))
    decision = key_decisions.propose_revocation(registry, arguments.name, arguments.reason)
    return _proposed(decision, registry, arguments.output)


def readmit(arguments: argparse.Namespace) -> dict[str, Any]:
    """Write a proposal to admit one's own new key. Raises LedgerError where the old one was not revoked."""
    registry = _registry(Path(arguments.run))
    decision = key_decisions.propose_admission(
        registry, load(arguments.name, folder_of(arguments)), arguments.reason
    )
    return _proposed(decision, registry, arguments.output)


def approve(arguments: argparse.Namespace) -> dict[str, Any]:
    """Add an approval to a proposal, and say what was approved. Raises LedgerError."""
    decision = read_decision(arguments.file)
    write_decision(
        key_decisions.approve(decision, load(arguments.signer, folder_of(arguments))), arguments.file
    )
    said = decision.decision
    what = f"admits key {said['new_key_id'][:16]} of" if said["new_key_id"] else f"revokes key {said['key_id'][:16]} of"
    print(f"{arguments.signer} {what} {said['organization']} in run {said['run']}: {said['reason']}")
    return {}


def enact(arguments: argparse.Namespace) -> dict[str, Any]:
    """Log what enough organizations approved; a run that was sealed is sealed again.

    Raises
    ------
    LedgerError
        The approvals do not suffice.
    TrustChainError
        The run's private chain keeps the keys that it knows, or the ledger refuses.
    """
    from trustchain_ray.chain_actions import at_rest

    path, decision = Path(arguments.run), read_decision(arguments.file)
    registry, said = _registry(path), decision.decision
    if said["run"] != registry.run:
        raise UsageError(f"{arguments.file}: is about run {said['run']!r}, {path} is {registry.run!r}")
    approved = check_approvals(said, decision.approvals, registry.others(said["organization"]))
    with at_rest(path) as (ledger, config, coordinator):
        if decision.admission is not None and config.ledger.private.kind == "fabric":
            raise TrustChainError(
                f"the chaincode of the private chain knows {said['organization']} by one key; a new one needs a new "
                "channel"
            )
        if refused := ledger.submit(decision.events(coordinator)):
            raise TrustChainError(f"the ledger refuses: {'; '.join(entry.reason for entry in refused)}")
        if decision.admission is not None:
            document = canonical_json(decision.admission["document"])
            write_atomic(path / layout.IDENTITIES / f"{said['organization']}.json", document)
    print(f"logged, approved by {', '.join(approved)}")
    return {"approved": approved}


def _proposed(decision: KeyDecision, registry: Registry, output: str) -> dict[str, Any]:
    others = sorted(registry.others(decision.decision["organization"]))
    if not others:
        raise LedgerError(f"run {registry.run!r}: no other organization is there to decide")
    write_decision(decision, output)
    print(f"{output}: {needed_approvals(len(others))} of {', '.join(others)} must approve it")
    print(f"next    trustchain keys approve {output} --as NAME")
    return {}


def _registry(path: Path) -> Registry:
    if not (path / layout.LOG).is_file():
        raise UsageError(f"{path}: there is no run here ({layout.LOG} is missing)")
    log = SqliteLog(path / layout.LOG, read_only=True)
    try:
        return log.registry
    finally:
        log.close()
