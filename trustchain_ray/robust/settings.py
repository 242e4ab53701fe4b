"""Rules of the configuration's section `trust`: which there are, how many members they need, what they refuse."""

import math
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING

from trustchain_ray.errors import UsageError

if TYPE_CHECKING:
    from trustchain_ray.config import Config

MEAN, NORM_BOUND, TRIMMED_MEAN, MEDIAN = "mean", "norm_bound", "trimmed_mean", "median"
MULTI_KRUM, GEOMETRIC_MEDIAN = "multi_krum", "geometric_median"
RULES = (MEAN, NORM_BOUND, TRIMMED_MEAN, MEDIAN, MULTI_KRUM, GEOMETRIC_MEDIAN)
BY_CONTRIBUTION = ("leave_one_out", "shapley")
"""Payoff rules that measure what each member brought: only they say something of its reputation."""
COUNTING = (TRIMMED_MEAN, MULTI_KRUM)
"""Rules that leave out as many as `trust.hostile` says: with 0 they are the plain mean."""

FEWEST_SCANNED = 4
"""Updates that a scan for triggers compares at least."""

DISJOINT = ("groups", "by_organization")
"""Values of `federation.cohorts` where an organization is in one cohort alone: a hostile one spoils no other."""

EVERY = "every cohort"

SHARED = ("one", "by_shard")
"""Values of `federation.cohorts` where every organization is in every cohort, so that the quorum holds for each."""


def least_members(rule: str, hostile: int) -> int:
    """Updates that a rule needs to stand `hostile` hostile ones: 2f + 3 for Krum (1703.02757), 2f + 1 else."""
    return 2 * hostile + (3 if rule == MULTI_KRUM else 1)


def most_hostile(rule: str, members: int) -> int:
    """The most hostile updates among `members` that a rule stands."""
    return max(0, (members - (3 if rule == MULTI_KRUM else 1)) // 2)


def known_cohorts(config: "Config") -> dict[str, int]:
    """Number of organizations by cohort, as far as a configuration says it before records are read."""
    federation, data = config.federation, config.data
    if federation.cohorts == "groups":
        return {f"group {name}": len(members) for name, members in federation.groups.items()}
    if federation.cohorts not in SHARED:
        return {EVERY: 1}
    many = {"sources": len(data.organizations), "dirichlet": data.split_into, "subject": data.split_into}
    return {"the federation": many[data.split]} if data.split in many else {}


def problems(config: "Config", cohorts: Mapping[str, int]) -> Iterator[str]:
    """Yield why `trust.rule` cannot do what is asked of it, each time with what can.

    Parameters
    ----------
    cohorts
        Number of organizations by cohort.
    """
    if config.trust.scan_every:
        yield from _scan_problems(config, cohorts)
    elif config.trust.expel:
        yield (
            f"trust.expel={config.trust.expel}: organizations are expelled for triggers that the scan finds; set "
            "trust.scan_every=5"
        )
    rule, hostile, mixing = config.trust.rule, config.trust.hostile, config.trust.mixing
    form, quorum, across = config.model.lora.form, config.federation.quorum, config.trust.across
    for key, value in (("rule", rule), ("across", across)):
        if value != MEAN and form not in ("ffa", "fedavg"):
            yield (
                f"trust.{key}={value} with model.lora.form={form}: its members train factors B and A of their own, of "
                "which many pairs make the same change, so their distances and medians mean nothing; use "
                "model.lora.form=ffa"
            )
    if across != MEAN:
        yield from _across_problems(config, None if EVERY in cohorts else len(cohorts))
    if rule == MEAN:
        if mixing or (hostile and across == MEAN):
            key = "trust.mixing=true" if mixing else f"trust.hostile={hostile}"
            yield f"{key} with trust.rule=mean: a mean follows a single hostile member; use trust.rule=trimmed_mean"
        return
    if not hostile and (rule in COUNTING or mixing):
        what = f"trust.rule={rule}" if rule in COUNTING else "trust.mixing=true"
        yield f"{what} with trust.hostile=0 leaves nobody out; say how many hostile members it is to stand"
    need = max(2, least_members(rule, hostile))
    for cohort, members in cohorts.items():
        if members < need:
            yield (
                f"trust.rule={rule} with trust.hostile={hostile} needs {need} organizations in a cohort, and "
                f"{cohort} has {members}: {_alternative(rule, members)}"
            )
        elif config.federation.cohorts in SHARED and (least := max(1, math.ceil(quorum * members))) < need:
            yield (
                f"federation.quorum={quorum:g} lets a round go on with {least} of {members} organizations, and "
                f"trust.rule={rule} needs {need} to stand trust.hostile={hostile}: set federation.quorum to "
                f"{math.ceil(100 * need / members) / 100:g} or more"
            )


def _across_problems(config: "Config", cohorts: int | None) -> Iterator[str]:
    """Why `trust.across` cannot do what is asked of it; `cohorts` is their number, if it is known yet."""
    across, hostile, kind = config.trust.across, config.trust.hostile, config.federation.cohorts
    if kind not in DISJOINT:
        yield (
            f"trust.across={across} with federation.cohorts={kind}: a hostile organization is in several cohorts or in "
            "the only one, and no rule between them leaves it out; use federation.cohorts=groups or by_organization, "
            "or trust.rule"
        )
        return
    if across in COUNTING and not hostile:
        yield f"trust.across={across} with trust.hostile=0 leaves no cohort out; say how many it is to stand"
    need = max(2, least_members(across, hostile))
    if cohorts is not None and cohorts < need:
        yield (
            f"trust.across={across} with trust.hostile={hostile} needs {need} cohorts, and there are {cohorts}: use "
            f"more and smaller groups, or trust.hostile={most_hostile(across, cohorts)}"
        )


def _scan_problems(config: "Config", cohorts: Mapping[str, int]) -> Iterator[str]:
    scan = f"trust.scan_every={config.trust.scan_every}"
    kept = config.federation
    if kept.keep_rounds or (kept.keep_updates != "all" and not config.trust.secure_aggregation):
        yield (
            f"{scan} with federation.keep_updates={kept.keep_updates} and federation.keep_rounds={kept.keep_rounds}: a "
            "scan looks at what every member has ever put in; set federation.keep_updates=all, federation.keep_rounds=0"
        )
    if config.model.task != "classification":
        yield (
            f"{scan} with model.task={config.model.task}: a trigger is what moves any text into one class; "
            "use model.task=classification, or trust.scan_every=0"
        )
    if config.model.lora.form not in ("ffa", "fedavg"):
        yield (
            f"{scan} with model.lora.form={config.model.lora.form}: a single update is no change of the "
            "cohort's adapter; use model.lora.form=ffa"
        )
    if config.training.engine == "deepspeed" or (config.training.engine == "auto" and config.resources.gpus_per_worker):
        yield f"{scan} with the deepspeed engine: the scan needs the whole model; use training.engine=torch"
    if config.trust.secure_aggregation:
        yield f"{scan} with trust.secure_aggregation=true: nobody sees single updates; leave one of them out"
    for cohort, members in cohorts.items():
        if members < FEWEST_SCANNED:
            yield (
                f"{scan} compares {FEWEST_SCANNED} updates at least, and {cohort} has {members} "
                "organizations: use federation.cohorts=one or by_shard, or trust.scan_every=0"
            )


def check_cohorts(config: "Config", cohorts: Mapping[str, Collection[str]]) -> None:
    """Refuse to begin a run whose cohorts are too small for its rule. Raises UsageError with what would do."""
    if wrong := list(problems(config, {f"cohort {name}": len(members) for name, members in cohorts.items()})):
        raise UsageError("; ".join(wrong))


def _alternative(rule: str, members: int) -> str:
    ways = []
    if most := most_hostile(rule, members):
        ways.append(f"trust.hostile={most}")
    if rule == MULTI_KRUM and (others := most_hostile(TRIMMED_MEAN, members)) > most:
        ways.append(f"trust.rule=trimmed_mean, which stands {others}")
    ways.append("larger cohorts (federation.cohorts=one or by_shard)")
    return "use " + ", or ".join(ways)
