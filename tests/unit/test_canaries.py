"""Canaries of an audit run: who gets which, and that nothing else moves."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from trustchain_ray.canaries import canaries_of
from trustchain_ray.cohorts import records_of
from trustchain_ray.config import Config, SourceConfig
from trustchain_ray.data import load_holdings
from trustchain_ray.errors import TrustChainError

ConfigOf = Callable[..., Config]
WriteJsonl = Callable[[str, list[dict[str, Any]]], str]


@pytest.fixture
def config(config_of: ConfigOf, write_jsonl: WriteJsonl) -> Config:
    rows = [{"id": f"r{i}", "text": f"text {i}", "label": "yes"} for i in range(40)]
    return config_of(write_jsonl("train.jsonl", rows), labels=("no", "yes"))


def with_canaries(config: Config, count: int) -> Config:
    config.privacy.canaries = count
    return config


def test_about_half_of_them_are_trained_on_and_no_record_moves(config: Config) -> None:
    before = load_holdings(config, "north")
    after = load_holdings(with_canaries(config, 400), "north")
    made = {canary.id for canary in canaries_of(config, "north") if canary.included}
    assert 150 < len(made) < 250
    assert {record.id for record in after.train} == made | {record.id for record in before.train}
    assert [record for record in after.train if record.id not in made] == before.train
    assert after.test == before.test
    assert [record.id for record in after.train] == sorted(record.id for record in after.train)


def test_they_come_from_the_key_and_differ_between_organizations(config: Config) -> None:
    canaries = canaries_of(with_canaries(config, 50), "north")
    assert canaries == canaries_of(config, "north")
    assert canaries[:20] == canaries_of(with_canaries(config, 20), "north")
    texts = {canary.text for canary in canaries_of(with_canaries(config, 50), "north")}
    assert len(texts) == 50
    assert texts.isdisjoint(canary.text for canary in canaries_of(config, "south"))
    config.run.key = "another"
    assert texts.isdisjoint(canary.text for canary in canaries_of(config, "north"))


def test_inclusion_is_a_coin_of_its_own(config: Config) -> None:
    included = [canary.included for canary in canaries_of(with_canaries(config, 4000), "north")]
    assert sum(included) == pytest.approx(2000, abs=130)  # four standard deviations
    assert sum(a == b for a, b in pairwise(included)) == pytest.approx(2000, abs=130)


def test_a_limit_counts_records_alone_and_canaries_can_be_left_out(config: Config) -> None:
    config.data.limit = 5
    holdings = load_holdings(with_canaries(config, 30), "north")
    made = [record.id for record in holdings.train if record.id.startswith("canary-north-")]
    assert len(holdings.train) == 5 + len(made)
    config.data.exclude = [made[0]]
    assert made[0] not in {record.id for record in load_holdings(config, "north").train}


def test_labels_are_random_among_those_of_the_organization(config: Config) -> None:
    config.model.labels = ["no", "yes", "perhaps"]
    assert {canary.label for canary in canaries_of(with_canaries(config, 50), "north")} == {0, 1, 2}
    source = config.data.train
    config.data.split = "sources"
    config.data.organizations = {"north": SourceConfig(train=source, labels=["yes", "perhaps"])}
    canaries = [r for r in load_holdings(config, "north").train if r.id.startswith("canary-")]
    assert {record.label for record in canaries} == {1, 2}
    assert {record.choices for record in canaries} == {(1, 2)}


def test_they_lie_in_shards_like_any_record(config: Config) -> None:
    config.federation.cohorts, config.federation.shards_per_organization = "by_shard", 2
    train = load_holdings(with_canaries(config, 60), "north").train
    shards = [records_of(config.federation, config.run.key, "north", f"shard_{s}", train) for s in range(2)]
    assert sorted(shards[0] + shards[1]) == list(range(len(train)))
    assert all(any(train[i].id.startswith("canary-") for i in shard) for shard in shards)


def test_an_id_that_is_taken_is_refused(config: Config, config_of: ConfigOf, write_jsonl: WriteJsonl) -> None:
    name = next(canary.id for canary in canaries_of(with_canaries(config, 9), "north") if canary.included)
    rows = [{"id": f"r{i}", "text": "t", "label": "yes"} for i in range(4)] + [{"id": name, "text": "t", "label": "no"}]
    taken = config_of(write_jsonl("taken.jsonl", rows), labels=("no", "yes"))
    with pytest.raises(TrustChainError, match=f"'{name}' is that of a canary"):
        load_holdings(with_canaries(taken, 9), "north")
