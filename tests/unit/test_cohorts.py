"""Cohorts: every record in exactly one member."""

from collections import Counter
from pathlib import PurePosixPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trustchain_ray.cohorts import cohorts_of, records_of
from trustchain_ray.config import FederationConfig
from trustchain_ray.data import Record
from trustchain_ray.errors import UsageError

NAMES = ["north", "east", "south"]
GROUPS = {"sea": ["south", "north"], "land": ["east"]}


def federation(cohorts: str, shards: int = 1, groups: dict[str, list[str]] | None = None) -> FederationConfig:
    return FederationConfig(cohorts=cohorts, shards_per_organization=shards, groups=groups or {})


def records(count: int) -> list[Record]:
    return [Record(f"r{i}", f"p{i % 7}", "", "text") for i in range(count)]


def test_the_cohorts_by_name():
    assert cohorts_of(federation("one"), NAMES) == {"all": ["east", "north", "south"]}
    assert cohorts_of(federation("by_organization"), NAMES) == {n: [n] for n in sorted(NAMES)}
    assert cohorts_of(federation("by_shard", 2), NAMES) == {
        "shard_0": ["east", "north", "south"],
        "shard_1": ["east", "north", "south"],
    }
    assert cohorts_of(federation("by_both", 2), ["b", "a"]) == {
        "a.shard_0": ["a"],
        "a.shard_1": ["a"],
        "b.shard_0": ["b"],
        "b.shard_1": ["b"],
    }
    found = cohorts_of(federation("groups", groups=GROUPS), NAMES)
    assert list(found.items()) == [("land", ["east"]), ("sea", ["north", "south"])]


@settings(deadline=None)
@given(
    st.sampled_from(["one", "by_shard", "by_organization", "by_both", "groups"]),
    st.integers(1, 12),
    st.integers(0, 60),
)
def test_every_record_is_in_exactly_one_member(cohorts: str, shards: int, count: int):
    settings = federation(cohorts, shards if cohorts.startswith("by_") else 1, GROUPS)
    held = records(count)
    for name in NAMES:
        mine = [c for c, members in cohorts_of(settings, NAMES).items() if name in members]
        indices = Counter(i for c in mine for i in records_of(settings, "key", name, c, held))
        if cohorts == "by_organization" and shards > 1:
            continue  # refused by the configuration
        assert indices == Counter(range(count))


def test_a_records_shard_depends_on_nothing_but_its_id_and_the_organizations_key():
    settings = federation("by_shard", 3)
    held = records(50)

    def members(run_key: str, name: str, among: list[Record]) -> dict[str, int]:
        return {among[i].id: s for s in range(3) for i in records_of(settings, run_key, name, f"shard_{s}", among)}

    whole = members("key", "north", held)
    assert members("key", "north", held[::-2]) == {r.id: whole[r.id] for r in held[::-2]}
    assert members("key", "south", held) != whole != members("other", "north", held)
    both = federation("by_both", 3)
    again = {held[i].id: s for s in range(3) for i in records_of(both, "key", "north", f"north.shard_{s}", held)}
    assert again == whole


def test_an_organization_may_be_called_like_a_shard():
    settings = federation("by_both", 2)
    names = ["a", "a.shard_0", "shard_1"]
    found = cohorts_of(settings, names)
    assert len(found) == 6
    for name in names:
        mine = [c for c, members in found.items() if members == [name]]
        assert sorted(i for c in mine for i in records_of(settings, "k", name, c, records(20))) == list(range(20))


@pytest.mark.parametrize(
    ("groups", "who"),
    [
        ({"a": ["north", "south"]}, "east"),
        ({"a": ["north", "south", "east", "west"]}, "west"),
        ({"a": ["north", "south"], "b": ["east", "north"]}, "north"),
        ({"a": ["north", "south", "east", "east"]}, "east"),
    ],
)
def test_groups_must_hold_everybody_once(groups: dict[str, list[str]], who: str):
    with pytest.raises(UsageError, match=rf"exactly one group; look at {who}$"):
        cohorts_of(federation("groups", groups=groups), NAMES)


def test_cohort_names_stay_inside_the_round_folder():
    for cohorts in ("one", "by_shard", "by_organization", "by_both"):
        for name in cohorts_of(federation(cohorts, 2), ["a..b", "a.b-c_d"]):
            assert PurePosixPath(f"rounds/0001/{name}.safetensors").parent.name == "0001"
