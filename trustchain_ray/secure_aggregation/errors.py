"""What can go wrong between parties that do not trust each other, with the name of who is to answer for it."""

from collections.abc import Iterable

from trustchain_ray.errors import TrustChainError


class Misbehaved(TrustChainError):
    """A message that the protocol does not allow.

    Attributes
    ----------
    party : who is to answer for it: the signer of a statement that its signature holds for, else who delivered it.
    """

    def __init__(self, party: str, what: str) -> None:
        super().__init__(f"secure aggregation: {party} {what}")
        self.party = party


class TooFew(TrustChainError):
    """Fewer members than the threshold are left: the session gives no sum.

    Attributes
    ----------
    missing : the members that did not answer, in the order of their names.
    """

    def __init__(self, stage: str, answered: int, threshold: int, missing: Iterable[str]) -> None:
        self.missing = tuple(sorted(missing))
        super().__init__(
            f"secure aggregation: only {answered} members answered with their {stage}, {threshold} are needed; "
            f"missing: {', '.join(self.missing)}; repeat the round, or leave them out of its cohort"
        )
