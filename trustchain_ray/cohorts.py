"""Who trains with whom: cohorts, and which of its records an organization brings to each.

`one` is classic FedAvg. `by_shard`: cohort s holds shard s of every organization. `by_organization`: each
organization is a cohort of its own. `by_both`: each shard of each organization. `groups`: named.
"""

from collections.abc import Sequence

from trustchain_ray.config import FederationConfig
from trustchain_ray.data import Record, shard_of
from trustchain_ray.errors import UsageError
from trustchain_ray.keys import derive


def cohorts_of(federation: FederationConfig, organizations: Sequence[str]) -> dict[str, list[str]]:
    """The organizations of every cohort, both sorted by name.

    Raises
    ------
    UsageError
        Groups that name an unknown organization, or leave one out, or name one twice.
    """
    shards = federation.shards_per_organization
    if federation.cohorts == "one":
        return {"all": sorted(organizations)}
    if federation.cohorts == "by_shard":
        return {f"shard_{s}": sorted(organizations) for s in range(shards)}
    if federation.cohorts == "by_organization":
        return {name: [name] for name in sorted(organizations)}
    if federation.cohorts == "by_both":
        return {f"{name}.shard_{s}": [name] for name in sorted(organizations) for s in range(shards)}
    named = [name for group in federation.groups.values() for name in group]
    if sorted(named) != sorted(organizations):
        wrong = sorted(set(named) ^ set(organizations)) or sorted({n for n in named if named.count(n) > 1})
        raise UsageError(
            f"federation.groups: every organization stands in exactly one group; look at {', '.join(wrong)}"
        )
    return {name: sorted(members) for name, members in sorted(federation.groups.items())}


def records_of(
    federation: FederationConfig, key: str, organization: str, cohort: str, records: Sequence[Record]
) -> list[int]:
    """Indices of the records that an organization brings to one of its cohorts.

    All records of a person lie in one shard, HMAC(key, subject) mod shards: removing the person replays one.
    """
    if federation.cohorts not in ("by_shard", "by_both"):
        return list(range(len(records)))
    shard = int(cohort.rsplit("shard_", 1)[1])
    shard_key = derive(key, "shard", organization)
    shards = federation.shards_per_organization
    return [i for i, record in enumerate(records) if shard_of(shard_key, record.subject, shards) == shard]
