"""A member's part in the release and the revocation of a model on the consortium's contract."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ledger import approval_files
from ledger.approval_files import Collected
from ledger.approvals import Proposal
from ledger.approvals import approve as sign
from ledger.decisions import NONE, PROPOSED, RELEASE, RELEASED, REVOKED, UNRELEASED, Decision, Standing, reason_of
from ledger.errors import LedgerError, Unavailable
from ledger.federation import Federation
from ledger.keys_ethereum import Signer
from ledger.rpc_opening import run_hash
from ledger.verify_certificate import RunLog


class ContractBallot:
    """A decision about a model on the consortium's contract; see :class:`ledger.decisions.Ballot`.

    Parameters
    ----------
    federation
        The contract; its account pays for what is sent.
    folder
        Where the members collect their approvals; each decision has a folder of its own in it.
    log
        The run's whole log, verified: a proposal must say the same.
    decision
        The release or the revocation of a model.
    signer
        The member's account; None: only look.
    """

    def __init__(
        self, federation: Federation, folder: Path, log: RunLog, decision: Decision, signer: Signer | None = None
    ) -> None:
        self._federation, self._log, self._decision, self._signer = federation, log, decision, signer
        self._run = str(log.manifest["run"])
        self._kind = "Release" if decision.kind == RELEASE else "Revoke"
        self._folder = folder / f"{self._kind.lower()}-{decision.digest}"

    def standing(self) -> Standing:
        """How far it is, by the contract, and by the approvals in the folder while it is open there."""
        state = self._state()
        if state != NONE:
            return Standing(state)
        found = self._collected()
        votes = sorted(found.approvals) if found else []
        return Standing(PROPOSED if found else NONE, votes, self._federation.threshold())

    def approve(self, said: Callable[[str], None]) -> Standing:
        """Sign once, and send what is complete."""
        assert self._signer is not None, "a ballot without an account is only looked at"
        own = self._signer.address.lower()
        if own not in {one.account.lower() for one in self._federation.members()}:
            raise LedgerError(
                f"account {self._signer.address} is no member of the consortium {self._federation.contract}"
            )
        if self._state() != NONE:
            return self.standing()
        found = self._collected()
        if found is None or own not in found.approvals:
            proposal = self._proposed() if found is None else found.proposal
            approval_files.write(self._folder, proposal, sign(proposal, self._signer))
            said(f"approved by {self._signer.address}")
            found = self._collected()
        if found is not None and len(found.approvals) >= self._federation.threshold():
            self._send(found, said)
        return self.standing()

    def _state(self) -> str:
        release = self._federation.release_of(bytes.fromhex(self._decision.digest))
        if release is None:
            return NONE if self._decision.kind == RELEASE else UNRELEASED
        if release.revoked:
            return REVOKED
        return RELEASED if self._decision.kind == RELEASE else NONE

    def _collected(self) -> Collected | None:
        return approval_files.collect(self._folder, self._federation, self._check, int(time.time()))

    def _send(self, found: Collected, said: Callable[[str], None]) -> None:
        try:
            receipt = self._federation.submit(found.proposal, list(found.approvals.values()))
            said(f"sent in transaction {receipt.tx}")
        except Unavailable:
            raise
        except LedgerError:
            if self._state() == NONE:  # else another member sent it first
                raise

    def _proposed(self) -> Proposal:
        model, event = {"model": "0x" + self._decision.digest}, self._decision.event
        if self._decision.kind != RELEASE:
            reason = "0x" + reason_of(self._log, self._decision)
            return self._federation.propose(self._kind, {**model, "reason": reason})
        head, where = self._federation.head_of(self._run), f"consortium {self._federation.contract}"
        if head is None:
            raise LedgerError(f"{where}: run {self._run!r} has no log there")
        if head.size <= event:
            raise LedgerError(
                f"{where}: has {head.size} events of run {self._run!r}, the model's release is number {event}; "
                "anchor it first: trustchain chain drain RUN"
            )
        fields = {**model, "run": "0x" + run_hash(self._run).hex(), "size": head.size, "root": "0x" + head.root.hex()}
        proposal = self._federation.propose(self._kind, fields)
        self._check(proposal)
        return proposal

    def _check(self, proposal: Proposal) -> None:
        """A proposal is what this member's own copy of the log says."""
        said: dict[str, Any] = {
            name: value.lower() if isinstance(value, str) else value for name, value in proposal.fields.items()
        }
        if proposal.kind != self._kind or said["model"] != "0x" + self._decision.digest:
            raise LedgerError(f"is not the {self._kind} of model {self._decision.digest}")
        if self._decision.kind != RELEASE:
            if said["reason"] != "0x" + reason_of(self._log, self._decision):
                raise LedgerError(f"the reason is not event {self._decision.event} of run {self._run!r}")
            return
        tree = self._log.tree
        assert tree is not None, "a log of which decisions are made is read with its tree"
        if said["run"] != "0x" + run_hash(self._run).hex() or said["size"] <= self._decision.event:
            raise LedgerError(f"is not about a part of run {self._run!r} that holds the model's release")
        if said["size"] > tree.size:
            raise LedgerError(f"is about {said['size']} events, the run here has {tree.size}: an old copy")
        if said["root"] != "0x" + tree.root(said["size"]).hex():
            raise LedgerError(f"its root is not that of the first {said['size']} events here: a split view")
