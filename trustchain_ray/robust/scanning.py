"""The scan for triggers in a round (`trust.scan`): members scan all updates, and planted triggers are refused.

The coordinator holds no model, so members do it, drawn from the run's key; they see the round's updates. Two scan, and
where they differ a third one decides: a single liar neither accuses nor acquits anybody.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from trustchain_ray.keys import generator
from trustchain_ray.robust.reputation import PLANTS
from trustchain_ray.robust.settings import FEWEST_SCANNED

if TYPE_CHECKING:
    from trustchain_ray.federation import CohortRound, Federation


def refuse_planted(federation: "Federation", number: int, name: str, cohort: "CohortRound") -> None:
    """Take updates that plant a trigger out of a cohort's round; REFUSED events say what was found.

    Fewer than four updates have no median that two of them could not shift: they pass. In the first round the model
    has learnt nothing that a trigger could move.
    """
    accepted = sorted(cohort.accepted)
    if not federation.config.trust.scan or number == 1 or len(accepted) < FEWEST_SCANNED:
        return
    updates = ray.put({n: cohort.accepted[n].update.buffer for n in accepted})
    order = generator(federation.config.run.key, "scanner", number, name).permutation(len(accepted))
    scanners = [accepted[int(i)] for i in order[:3]]
    calls = [_scan(federation, scanner, number, cohort, updates) for scanner in scanners[:2]]
    found = [_answer(federation, number, scanner, call) for scanner, call in zip(scanners, calls, strict=False)]
    if set(found[0]) != set(found[1]):
        found.append(_answer(federation, number, scanners[2], _scan(federation, scanners[2], number, cohort, updates)))
    for accused, why in agreed(found, accepted).items():
        del cohort.accepted[accused]
        reason = f"{PLANTS}{why} (scanned by {', '.join(scanners[: len(found)])})"
        body = {"round": number, "organization": accused, "cohort": name, "reason": reason[:500]}
        cohort.events.append(federation.event("REFUSED", {**body, "update": cohort.digests[accused]}))
        federation.progress(f"  refused an update of {accused}: {reason}")


def agreed(found: Sequence[Mapping[str, str]], names: Sequence[str]) -> dict[str, str]:
    """Which of these organizations two scans accuse, each with what the first of them says."""
    reasons = {name: [one[name] for one in found if name in one] for name in names}
    return {name: said[0] for name, said in reasons.items() if len(said) > 1}


def _scan(federation: "Federation", scanner: str, number: int, cohort: "CohortRound", updates: Any) -> Any:
    return federation.members[scanner].call("scan", federation.terms_ref, number, cohort.task, [updates])


def _answer(federation: "Federation", number: int, scanner: str, call: Any) -> dict[str, str]:
    """What a member's scan finds, by organization; nothing where it does not answer."""
    try:
        found = ray.get(call, timeout=federation.config.federation.deadline_s)
        return {str(name): str(why) for name, why in dict(found).items()}
    except (GetTimeoutError, RayActorError, RayTaskError, TypeError, ValueError) as error:
        federation.progress(f"  round {number}: {scanner} did not scan ({type(error).__name__})")
        return {}
