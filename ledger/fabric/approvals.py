"""A member's part in what k of n organizations decide on the private chain."""

from collections.abc import Callable
from dataclasses import replace

from ledger.decisions import CONCLUDED, NONE, PROPOSED, REVOCATION, REVOKED, Decision, Standing
from ledger.errors import LedgerError, Unavailable
from ledger.fabric.chain import FabricChain
from ledger.private import Conflict

ATTEMPTS = 12
"""Transactions tried for one decision: four are needed, the rest is for members who act at the same moment."""


class FabricBallot:
    """A decision on the private chain; see :class:`ledger.decisions.Ballot`.

    Parameters
    ----------
    chain
        The member's client. It names no endorsers: the approval's own policy says whose peers must endorse.
    decision
        What is decided.
    reason
        Of a revocation, one line; the same for every member.
    """

    def __init__(self, chain: FabricChain, decision: Decision, reason: str) -> None:
        self._chain, self._decision, self._reason = chain, decision, reason

    def standing(self) -> Standing:
        """How far it is."""
        chain, kind, digest = self._chain, self._decision.kind, self._decision.digest
        found = chain.find_approval(kind, digest)
        if found is None:
            return Standing()
        state, votes, needed = found.get("state"), found.get("votes"), found.get("k")
        if state not in (PROPOSED, CONCLUDED) or not isinstance(votes, list) or type(needed) is not int:
            raise LedgerError(f"{self._decision}: the chaincode answers {str(found)[:80]}; is it of another version?")
        now = Standing(state, [str(msp) for msp in votes], needed)
        done = state == CONCLUDED and kind == REVOCATION and chain.model_status(digest) == REVOKED
        return replace(now, state=REVOKED) if done else now

    def approve(self, said: Callable[[str], None]) -> Standing:
        """Propose where nobody did, vote once; with enough votes conclude, and revoke the model."""
        chain, kind, digest = self._chain, self._decision.kind, self._decision.digest
        own = chain.describe()["msp"]
        for _ in range(ATTEMPTS):
            now = self.standing()
            try:
                if now.state == NONE:
                    chain.propose(kind, digest)
                    said("proposed")
                elif own not in now.votes:
                    chain.endorse(kind, digest)
                    said(f"approved by {own}")
                elif now.state == PROPOSED and not now.missing:
                    chain.conclude(kind, digest)
                    said("concluded")
                elif now.state == CONCLUDED and kind == REVOCATION:
                    chain.revoke_model(digest, self._reason)
                    said("revoked")
                else:
                    return now
            except Conflict:
                continue  # another member came first: look again
        raise Unavailable(f"{self._decision}: other members change it all the time; call again")
