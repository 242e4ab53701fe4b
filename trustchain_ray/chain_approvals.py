"""What `trustchain chain approve` does: a member's part in what the consortium decides, on the chains that it has."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ledger import layout
from ledger.certificate import parse
from ledger.decisions import (
    CERTIFICATE,
    Ballot,
    Decision,
    Standing,
    all_decisions,
    newest_certificate,
    of_certificate,
    of_model,
    reason_of,
)
from ledger.errors import LedgerError
from ledger.keys_ethereum import Signer
from ledger.verify import unpacked
from ledger.verify_certificate import RunLog
from ledger.verify_document import read_run_log
from trustchain_ray.chain_config import has_contract
from trustchain_ray.chains import node_address, private_chain, signer
from trustchain_ray.config import Config
from trustchain_ray.errors import TrustChainError, UsageError

if TYPE_CHECKING:
    from ledger.fabric.chain import FabricChain
    from ledger.federation import Federation

APPROVALS = "approvals"
"""Folder of a run in which the members collect their approvals for the contract."""

PRIVATE, PUBLIC = "private", "public"


@dataclass(frozen=True)
class Question:
    """What a member is asked to approve.

    Attributes
    ----------
    certificate
        File of a certificate of removal; None: the newest of the run, unless a model is asked about.
    kind
        ``model-release`` or ``model-revocation`` of a model; empty: a certificate.
    model
        Digest of that model, or its first digits; empty, for a release: the newest one.
    trust
        Public keys in hex by organization that the member knows from elsewhere.
    min_auditors
        Organizations that must have counter-signed the certificate.
    """

    certificate: Path | None = None
    kind: str = ""
    model: str = ""
    trust: Mapping[str, str] | None = None
    min_auditors: int = 0


def approve(
    config: Config, run: Path, question: Question, folder: Path | None, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Check what is to be approved against the run's log, then do this member's part on each of its chains.

    Parameters
    ----------
    config
        The member's own: `ledger.private` of its Fabric client, `ledger.public` of its account and the contract.
    run
        The run directory, or a bundle of its whole log.
    folder
        Where the members collect approvals for the contract; default: `approvals` in the run directory.
    progress
        Told of everything that was done.

    Returns
    -------
    dict
        `run`, `approvals` (a row for each decision and chain), `done` (what this call did), `missing` (approvals).

    Raises
    ------
    UsageError
        The configuration has no chain on which members approve.
    LedgerError
        The certificate does not verify, somebody is no member, another member's file is wrong, or a chain refuses or
        does not answer.
    """
    log = _read_log(run, question.trust)
    decisions, done, rows = _decisions(run, log, question), list[str](), []
    account = signer(config.ledger.public) if has_contract(config) else None
    if account is None and config.ledger.private.kind == "sqlite":
        raise UsageError("chain approve: set ledger.private.kind=fabric, or ledger.public.kind=rpc with a contract")
    with _ballots(config, run, log, decisions, folder, account) as ballots:
        for chain, decision, ballot in ballots:

            def said(what: str, about: str = f"{chain} chain: {decision}") -> None:
                done.append(f"{about} {what}")
                progress(done[-1])

            rows.append(_row(chain, decision, ballot.approve(said)))
    missing = sum(row["missing"] for row in rows)
    return {"run": log.manifest["run"], "approvals": rows, "done": done, "missing": missing}


def standings(config: Config, run: Path, folder: Path | None) -> list[dict[str, Any]]:
    """How far every certificate, every revocation and the newest model of a run are, on the chains of a configuration.

    Raises
    ------
    LedgerError
        The log does not verify, an approval's file is wrong, or a chain does not answer.
    """
    log = _read_log(run, None)
    with _ballots(config, run, log, all_decisions(log), folder, None) as ballots:
        return [_row(chain, decision, ballot.standing()) for chain, decision, ballot in ballots]


def lines_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Rows of :func:`approve` and :func:`standings` for people."""
    lines = []
    for row in rows:
        votes = f"{len(row['votes'])} of {row['needed']}" if row["needed"] else ""
        names = f": {', '.join(row['votes'])}" if row["votes"] else ""
        head = f"{row['chain']:<8} {row['kind']:<22}  {row['digest'][:16]}  {row['state']:<12}"
        lines.append(f"{head}  {votes}{names}".rstrip())
    return lines


def _row(chain: str, decision: Decision, now: Standing) -> dict[str, Any]:
    return {
        "chain": chain,
        "kind": decision.kind,
        "digest": decision.digest,
        "state": now.state,
        "votes": now.votes,
        "needed": now.needed,
        "missing": now.missing,
    }


def _read_log(run: Path, trust: Mapping[str, str] | None) -> RunLog:
    log = read_run_log(run, trust)
    if not isinstance(log.manifest.get("run"), str):
        raise TrustChainError(f"{run}: {layout.MANIFEST} is not here; nothing can be approved without it")
    return log


def _decisions(run: Path, log: RunLog, question: Question) -> list[Decision]:
    if question.kind:
        return [of_model(log, question.kind, question.model)]
    name, data = _certificate(run, log, question.certificate)
    return of_certificate(log, data, name, question.trust, question.min_auditors)


def _certificate(run: Path, log: RunLog, named: Path | None) -> tuple[str, bytes]:
    """Name and content of the certificate that is meant."""
    if named is not None:
        try:
            return str(named), named.read_bytes()
        except OSError as error:
            raise UsageError(f"{named}: cannot be read: {error.strerror}") from None
    wanted = newest_certificate(log)
    with contextlib.ExitStack() as resources:
        folder = resources.enter_context(unpacked(run)) if run.is_file() else run
        for name in layout.certificate_files(folder):
            data = layout.read_file(folder, name)
            with contextlib.suppress(LedgerError):  # a damaged one is not the one that is looked for
                if parse(data).digest == wanted:
                    return name, data
    raise TrustChainError(f"{run}: the certificate {wanted[:16]} of the last removal is not here; name its file")


@contextlib.contextmanager
def _ballots(
    config: Config,
    run: Path,
    log: RunLog,
    decisions: Sequence[Decision],
    folder: Path | None,
    account: Signer | None,
) -> Iterator[list[tuple[str, Decision, Ballot]]]:
    """Each decision on each chain of a configuration that takes it: the contract knows models only."""
    found: list[tuple[str, Decision, Ballot]] = []
    with contextlib.ExitStack() as resources:
        if config.ledger.private.kind == "fabric":
            from ledger.fabric.approvals import FabricBallot

            private = resources.enter_context(contextlib.closing(_private(config, log.manifest["run"])))
            for one in decisions:
                found.append((PRIVATE, one, FabricBallot(private, one, f"MODEL_REVOKED {reason_of(log, one)}")))
        if has_contract(config):
            from ledger.contract_approvals import ContractBallot

            public, own = _contract(config, account), folder or _own_folder(run)
            for one in decisions:
                if one.kind != CERTIFICATE:
                    found.append((PUBLIC, one, ContractBallot(public, own, log, one, account)))
        yield found


def _private(config: Config, run: str) -> "FabricChain":
    from ledger.fabric.chain import FabricChain

    # The endorsers of the log are named to be fast; an approval needs those that its own policy demands.
    ledger = replace(config.ledger, private=replace(config.ledger.private, endorsers=[]))
    chain = private_chain(replace(config, ledger=ledger), run)
    assert isinstance(chain, FabricChain)
    return chain


def _contract(config: Config, account: Signer | None) -> "Federation":
    from ledger.federation import Federation

    settings = config.ledger.public
    made = Federation(
        node_address(settings.rpc_url),
        settings.contract,
        account,
        chain_id=settings.chain_id or None,
        max_fee_wei=int(settings.max_fee_gwei * 10**9),
    )
    made.check()
    return made


def _own_folder(run: Path) -> Path:
    if run.is_file():
        raise UsageError("chain approve: a bundle has no folder of approvals; name the members' with --approvals DIR")
    return run / APPROVALS
