"""The scan for triggers (`trust.scan_every`): members look for them, and updates of who plants one are refused.

The coordinator holds no model, so members do it, drawn from the run's key; they see what every member has put into the
cohort's state. Two scan, and where they differ a third one decides: a single liar neither accuses nor acquits anybody.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from trustchain_ray.adapter import Layout
from trustchain_ray.keys import generator
from trustchain_ray.robust.contributions import shares_of
from trustchain_ray.robust.reputation import PLANTS
from trustchain_ray.robust.settings import FEWEST_SCANNED
from trustchain_ray.worker import Packed

if TYPE_CHECKING:
    from trustchain_ray.federation import CohortRound, Federation


def refuse_planted(federation: "Federation", number: int, name: str, cohort: "CohortRound") -> None:
    """Take updates of members that plant a trigger out of a cohort's round; REFUSED events say what was found.

    In rounds without a scan the verdict of the last one holds. Fewer than four updates have no median that two of them
    could not shift: they are not scanned.
    """
    every, accepted = federation.config.trust.scan_every, sorted(cohort.accepted)
    if not every or not accepted:
        return
    if number % every and number != federation.config.federation.rounds:
        last = number - number % every
        for accused in [n for n in accepted if last in federation.reputation.planted[n]]:
            why = f"as the scan of round {last} found, it plants a trigger"
            _refuse(federation, number, name, cohort, accused, why)
    elif len(accepted) >= FEWEST_SCANNED:
        for accused, why in _scanned(federation, number, name, cohort).items():
            _refuse(federation, number, name, cohort, accused, f"{PLANTS}{why}")


def agreed(found: list[dict[str, str]], names: list[str]) -> dict[str, str]:
    """Which of these organizations two scans accuse, each with what the first of them says."""
    reasons = {name: [one[name] for one in found if name in one] for name in names}
    return {name: said[0] for name, said in reasons.items() if len(said) > 1}


def _scanned(federation: "Federation", number: int, name: str, cohort: "CohortRound") -> dict[str, str]:
    """Whom the scans of a round accuse, with the reason."""
    accepted = sorted(cohort.accepted)
    state, put = _scene(federation, number, name, cohort)
    order = generator(federation.config.run.key, "scanner", number, name).permutation(len(accepted))
    scanners, found = [accepted[int(i)] for i in order[:3]], list[dict[str, str]]()

    def ask(scanner: str) -> Any:
        purpose = f"{number}/{name}"
        return federation.members[scanner].call("scan", federation.terms_ref, number, purpose, [state], [put])

    calls = [ask(scanner) for scanner in scanners[:2]]
    found = [_answer(federation, number, scanner, call) for scanner, call in zip(scanners, calls, strict=False)]
    if set(found[0]) != set(found[1]):
        found.append(_answer(federation, number, scanners[2], ask(scanners[2])))
    by = f" (scanned by {', '.join(scanners[: len(found)])})"
    return {accused: f"{why}{by}" for accused, why in agreed(found, accepted).items()}


def _scene(federation: "Federation", number: int, name: str, cohort: "CohortRound") -> tuple[Any, Any]:
    """References to the state as this round's updates would make it, and to what each member has put into it."""
    before = federation.states[name]
    federation.writer.flush()
    put = federation.contributions.until(number - 1, name, Layout.of(before))
    merged = federation.merged(before, cohort, cohort.accepted)
    inputs: list[Mapping[str, Any]] = [
        {"organization": n, "weight": u.weight, **merged.share_of(n)} for n, u in sorted(cohort.accepted.items())
    ]
    for n, share in shares_of(inputs).items():
        put[n] = put.get(n, 0) + federation.contributions.part(share, cohort.accepted[n].update.buffer)
    return federation.share(Packed.of(merged.state)), ray.put({n: put[n] for n in sorted(cohort.accepted)})


def _refuse(
    federation: "Federation", number: int, name: str, cohort: "CohortRound", accused: str, reason: str
) -> None:
    del cohort.accepted[accused]
    body = {"round": number, "organization": accused, "cohort": name, "reason": reason[:500]}
    cohort.events.append(federation.event("REFUSED", {**body, "update": cohort.digests[accused]}))
    federation.progress(f"  refused an update of {accused}: {reason}")


def _answer(federation: "Federation", number: int, scanner: str, call: Any) -> dict[str, str]:
    """What a member's scan finds, by organization; nothing where it does not answer."""
    try:
        found = ray.get(call, timeout=federation.config.federation.deadline_s)
        return {str(name): str(why) for name, why in dict(found).items()}
    except (GetTimeoutError, RayActorError, RayTaskError, TypeError, ValueError) as error:
        federation.progress(f"  round {number}: {scanner} did not scan ({type(error).__name__})")
        return {}
