"""What secure aggregation cannot be combined with, and what works instead (section `trust`)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING

from trustchain_ray.errors import UsageError
from trustchain_ray.robust.settings import BY_CONTRIBUTION, MEAN, SHARED, known_cohorts
from trustchain_ray.secure_aggregation.session import FEWEST

if TYPE_CHECKING:
    from trustchain_ray.config import Config, TrustConfig

ON = "trust.secure_aggregation=true"
LINEAR = ("ffa", "fedavg")
"""Forms whose merge is a function of the sum of the updates."""


def fewest(trust: TrustConfig) -> int:
    """Members below which a cohort has no secure sum."""
    return max(FEWEST, trust.secure_threshold)


def problems(c: Config) -> Iterator[str]:
    """Yield pairs of settings that make no sense together, each with the reason and an alternative."""
    trust, federation = c.trust, c.federation
    if not trust.secure_aggregation:
        if trust.secure_threshold:
            yield f"trust.secure_threshold={trust.secure_threshold}: only {ON} has a threshold"
        return
    if 0 < trust.secure_threshold < FEWEST:
        yield f"trust.secure_threshold={trust.secure_threshold}: {_PAIR}; set {FEWEST} or more, or 0"
    if c.model.lora.form not in LINEAR:
        yield (
            f"{ON} with model.lora.form={c.model.lora.form}: it factors products of single updates, and only their sum "
            "is known; use model.lora.form=ffa or fedavg"
        )
    if trust.rule != MEAN:
        yield (
            f"{ON} with trust.rule={trust.rule}: the rule has to see single updates, which nobody sees; use "
            f"trust.rule=mean with federation.cohorts=groups, each of three and more, and trust.across={trust.rule}, "
            "which merges the groups' sums; every member checks trust.max_update_norm itself"
        )
    if federation.cohorts in ("by_organization", "by_both"):
        yield (
            f"{ON} with federation.cohorts={federation.cohorts}: a cohort of one organization publishes its update as "
            "its adapter; use one, by_shard, or groups of three and more"
        )
    else:
        yield from _small(c, known_cohorts(c))
    if c.participation.settle_every and c.participation.payoff in BY_CONTRIBUTION:
        yield (
            f"{ON} with participation.payoff={c.participation.payoff} and participation.settle_every="
            f"{c.participation.settle_every}: paying by contribution needs merges of some members, which show single "
            "updates; set participation.settle_every=0 (nothing is paid), or participation.payoff=equal_split "
            "federation.keep_updates=none (a learned policy is of the payoff that it was learned for)"
        )
    elif federation.keep_updates == "all" or (federation.keep_updates == "settled" and c.participation.settle_every):
        yield (
            f"{ON} with federation.keep_updates={federation.keep_updates}: the coordinator has no updates to keep; set "
            "federation.keep_updates=none"
        )


def check_organizations(c: Config, names: Collection[str]) -> None:
    """Refuse a federation whose cohorts are too small for secure sums, once it is known who takes part.

    Raises
    ------
    UsageError
        With what to do.
    """
    if c.trust.secure_aggregation and c.federation.cohorts in SHARED:
        for problem in _small(c, {"the federation": len(names)}):
            raise UsageError(problem)


def _small(c: Config, cohorts: Mapping[str, int]) -> Iterator[str]:
    need = fewest(c.trust)
    for name, members in cohorts.items():
        if 0 < members < need:
            why = _PAIR if need == FEWEST else f"trust.secure_threshold={need}"
            yield (
                f"{ON}: {name} has {members} organizations, a secure sum needs {need} ({why}); put more "
                "organizations into a cohort, or set trust.secure_aggregation=false"
            )


_PAIR = "a sum of two shows each the other's update"

