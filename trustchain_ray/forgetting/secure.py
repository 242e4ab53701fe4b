"""What secure aggregation leaves of a removal: every replayed round needs a sum of three members and more."""

from collections.abc import Collection, Mapping, Sequence

from ledger.removal import EXACT_METHODS
from trustchain_ray.config import Config
from trustchain_ray.errors import UsageError
from trustchain_ray.secure_aggregation.settings import fewest


def check_sums(
    config: Config,
    method: str,
    replayed: Mapping[str, int],
    steps: Mapping[str, Sequence[Mapping[str, int]]],
    gone: Collection[tuple[str, str]],
) -> None:
    """Refuse a removal that would need somebody's single update.

    Parameters
    ----------
    replayed
        First replayed round, by cohort.
    steps
        Recorded steps by organization, for every cohort and round (from 1).
    gone
        Organizations and cohorts in which they have no records after the removal.

    Raises
    ------
    UsageError
        With what to do instead.
    """
    if method not in EXACT_METHODS:
        raise UsageError(
            f"--method {method} merges the single update of who removes, and trust.secure_aggregation=true hides it; "
            "use --method replay"
        )
    need = fewest(config.trust)
    for cohort, first in sorted(replayed.items()):
        for number, row in enumerate(steps[cohort][first - 1 :], first):
            left = sorted(name for name in row if (name, cohort) not in gone)
            if 0 < len(left) < need:
                who = ", ".join(left)
                raise UsageError(
                    f"round {number} of cohort {cohort!r} would be trained by {who} alone: a secure sum needs {need} "
                    "members. Use --method drop, which leaves the cohort out of the model, or train a new run "
                    "without what is to be removed (data.exclude)"
                )
