"""The merge of a round under secure aggregation: sessions with the cohort's members, and the next adapter."""

from typing import TYPE_CHECKING, Any

from trustchain_ray.adapter import Layout, Tensors
from trustchain_ray.errors import TrustChainError
from trustchain_ray.secure_aggregation.attempts import Attempts, SecureSum

if TYPE_CHECKING:
    from trustchain_ray.federation import CohortRound, Federation


def merge_securely(
    federation: "Federation", number: int, cohort: str, round_: "CohortRound", server_step: float
) -> Tensors:
    """A cohort's state with the sum of its accepted updates merged in; who is not in the sum is accepted no more.

    The round keeps what came of the sessions, and events that name who was refused or absent. Without a sum the state
    stays as it is.
    """
    state = federation.states[cohort]
    weights = {name: update.weight for name, update in round_.accepted.items() if name not in federation.late}
    said = SecureSum()
    if weights:
        said = _attempts(federation).sum(cohort, number, Layout.of(state).size, weights)
    round_.secure = said
    summed = said.result.weights if said.result is not None else {}
    round_.accepted = {name: update for name, update in round_.accepted.items() if name in summed}
    for name, (what, why) in sorted(said.refused.items()):
        body = {"round": number, "organization": name, "cohort": cohort, "update": what, "reason": why[:500]}
        round_.events.append(federation.event("REFUSED", body))
        federation.progress(f"  refused of {name} in {cohort}: {why}")
    for name, why in sorted(said.absent.items()):
        body = {"round": number, "organization": name, "reason": f"cohort {cohort}: {why}"[:500]}
        round_.events.append(federation.event("ABSENT", body))
        federation.progress(f"  {name} is not in the sum of {cohort}: {why}")
    federation.late |= said.late
    if said.result is None:
        if weights:
            federation.progress(f"  round {number} of {cohort} has no merge: {said.reason}")
        return state
    merged: Tensors = federation.form.merge_sum(state, said.result.sums, said.result.total, server_step)
    return merged


def sum_again(
    federation: "Federation", number: int, cohort: str, state: Tensors, weights: dict[str, int]
) -> Tensors:
    """A merge from a new secure sum of updates that were trained again.

    Raises
    ------
    TrustChainError
        Somebody is not in the sum.
    """
    said = _attempts(federation).sum(cohort, number, Layout.of(state).size, weights)
    if said.result is None or said.result.weights != weights:
        why = "; ".join([*said.absent.values(), *(why for _, why in said.refused.values())]) or said.reason
        raise TrustChainError(f"round {number} of {cohort} cannot be summed again: {why}")
    merged: Tensors = federation.form.merge_sum(
        state, said.result.sums, said.result.total, federation.config.federation.server_step
    )
    return merged


def statement(said: SecureSum) -> dict[str, Any]:
    """What the MERGE event says of the sum, besides its inputs."""
    if said.result is None:
        return {"reason": said.reason[:500]} if said.reason else {}
    return {"transcript": said.result.transcript, "attempt": said.attempt, "threshold": said.threshold}


def figures(rounds: dict[str, "CohortRound"]) -> dict[str, Any]:
    """What the secure sums of a round cost, for the metrics; empty without them."""
    sums = [round_.secure for round_ in rounds.values() if round_.secure is not None]
    if not sums:
        return {}
    return {
        "bytes": sum(said.sent for said in sums),
        "secure_aggregation_seconds": sum(said.seconds for said in sums),
        "secure_aggregation_attempts": sum(said.attempt + 1 for said in sums if said.threshold),
    }


def check_coalition(coalition: frozenset[str], rounds: dict[str, "CohortRound"]) -> None:
    """Refuse to merge some of the updates of a secure sum. Raises TrustChainError."""
    for round_ in rounds.values():
        if coalition and not coalition >= round_.accepted.keys():
            raise TrustChainError(
                "secure aggregation: the merge of some members alone cannot be measured, since they have no sum of "
                "their own; set participation.settle_every=0 or participation.payoff=equal_split"
            )


def _attempts(federation: "Federation") -> Attempts:
    def call(name: str, method: str, cohort: str, data: bytes) -> Any:
        return federation.members[name].call(method, cohort, data)

    config = federation.config
    return Attempts(
        federation.id,
        federation.identity,
        federation.public_keys(),
        call,
        config.federation.deadline_s,
        config.trust.secure_threshold,
    )
