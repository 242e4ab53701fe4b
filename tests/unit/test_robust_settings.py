"""What the configuration refuses of rules, and with which way out."""

from typing import Any

import pytest

from trustchain_ray.config import Config, check
from trustchain_ray.errors import UsageError
from trustchain_ray.robust.settings import RULES, check_cohorts, least_members, most_hostile


def config_of(organizations: int = 8, **trust: Any) -> Config:
    config = Config()
    config.model.base, config.data.train, config.data.split = "some/model", "train.jsonl", "dirichlet"
    config.data.split_into, config.federation.quorum = organizations, 1.0
    for name, value in trust.items():
        setattr(config.trust, name, value)
    return config


def refusal(config: Config) -> str:
    with pytest.raises(UsageError) as caught:
        check(config)
    return str(caught.value)


@pytest.mark.parametrize("rule", RULES[1:])
@pytest.mark.parametrize("hostile", [1, 2, 3])
def test_a_rule_with_just_enough_members_passes_and_with_one_less_is_refused(rule: str, hostile: int):
    need = least_members(rule, hostile)
    check(config_of(need, rule=rule, hostile=hostile))
    assert most_hostile(rule, need) == hostile
    assert most_hostile(rule, need - 1) == hostile - 1
    said = refusal(config_of(need - 1, rule=rule, hostile=hostile))
    assert f"trust.rule={rule} with trust.hostile={hostile} needs {need} organizations" in said
    assert "use " in said


def test_krum_offers_the_rule_that_works():
    said = refusal(config_of(6, rule="multi_krum", hostile=2))
    assert "needs 7 organizations in a cohort, and the federation has 6" in said
    assert "use trust.hostile=1, or trust.rule=trimmed_mean, which stands 2" in said


def test_what_says_nothing_or_too_much_is_refused():
    assert "a mean follows a single hostile member" in refusal(config_of(hostile=1))
    assert "trust.mixing=true with trust.rule=mean" in refusal(config_of(mixing=True))
    assert "trust.hostile=0 leaves nobody out" in refusal(config_of(rule="trimmed_mean"))
    assert "trust.hostile=0 leaves nobody out" in refusal(config_of(rule="median", mixing=True))
    assert "choose one of mean, norm_bound" in refusal(config_of(rule="krum"))
    assert "trust.exclude_below=0.6: must be from 0 to 0.5" in refusal(config_of(exclude_below=0.6))
    for rule in ("median", "norm_bound", "geometric_median"):
        check(config_of(rule=rule))


@pytest.mark.parametrize("form", ["flora", "svd"])
def test_forms_whose_factors_are_not_comparable_are_refused(form: str):
    config = config_of(rule="median")
    config.model.lora.form = form
    assert "their distances and medians mean nothing; use model.lora.form=ffa" in refusal(config)


def test_a_quorum_that_lets_too_few_decide_is_refused():
    config = config_of(rule="trimmed_mean", hostile=2)
    config.federation.quorum = 0.5
    assert "federation.quorum=0.5 lets a round go on with 4 of 8" in refusal(config)
    assert "set federation.quorum to 0.63 or more" in refusal(config)
    config.federation.quorum = 0.63
    check(config)


def test_cohorts_of_one_member_are_refused():
    config = config_of(rule="median", hostile=1)
    config.federation.cohorts = "by_organization"
    assert "every cohort has 1: use larger cohorts" in refusal(config)
    config.federation.cohorts, config.federation.groups = "groups", {"a": ["x", "y", "z"], "b": ["u", "v"]}
    assert "group b has 2" in refusal(config)


def test_organizations_that_stand_in_a_column_are_counted_when_the_run_begins():
    config = config_of(rule="trimmed_mean", hostile=1)
    config.data.split = "column"
    check(config)
    check_cohorts(config, {"all": ["a", "b", "c"]})
    with pytest.raises(UsageError, match="needs 3 organizations in a cohort, and cohort all has 2"):
        check_cohorts(config, {"all": ["a", "b"]})


def test_a_scan_needs_classes_single_updates_and_enough_of_them():
    assert "use model.task=classification" in refusal(config_of(scan_every=5))
    config = config_of(scan_every=5)
    config.model.task, config.model.labels = "classification", ["no", "yes"]
    assert "set federation.keep_updates=all" in refusal(config)
    config.federation.keep_updates = "all"
    check(config)
    config.federation.keep_rounds = 2
    assert "federation.keep_rounds=0" in refusal(config)
    config.federation.keep_rounds = 0
    config.data.split_into = 3
    assert "compares 4 updates at least, and the federation has 3 organizations" in refusal(config)
    config.data.split_into, config.training.engine = 8, "deepspeed"
    assert "use training.engine=torch" in refusal(config)
    config.training.engine, config.trust.secure_aggregation = "torch", True
    assert "trust.scan_every=5 with trust.secure_aggregation=true" in refusal(config)
    assert "trust.expel=2: organizations are expelled for triggers that the scan finds" in refusal(config_of(expel=2))


def groups_of(count: int, **trust: Any) -> Config:
    config = config_of(3 * count, **trust)
    config.federation.cohorts = "groups"
    config.federation.groups = {f"g{i}": [f"o{3 * i + j}" for j in range(3)] for i in range(count)}
    return config


@pytest.mark.parametrize("rule", RULES[1:])
def test_a_rule_between_groups_needs_enough_of_them_and_goes_with_secure_sums(rule: str):
    need = least_members(rule, 1)
    config = groups_of(need, across=rule, hostile=1, secure_aggregation=True)
    config.federation.keep_updates = "none"
    config.participation.settle_every = 0
    check(config)
    said = refusal(groups_of(need - 1, across=rule, hostile=1))
    assert f"trust.across={rule} with trust.hostile=1 needs {need} cohorts, and there are {need - 1}" in said
    assert said.endswith("or trust.hostile=0")


@pytest.mark.parametrize("kind", ["one", "by_shard", "by_both"])
def test_no_rule_between_cohorts_that_a_hostile_member_is_in_together(kind: str):
    config = config_of(across="median")
    config.federation.cohorts = kind
    assert f"trust.across=median with federation.cohorts={kind}: " in refusal(config)


def test_cohorts_of_single_organizations_are_counted_once_they_are_known():
    config = config_of(across="trimmed_mean", hostile=1)
    config.federation.cohorts = "by_organization"
    check(config)
    check_cohorts(config, {name: [name] for name in "abc"})
    with pytest.raises(UsageError, match="needs 3 cohorts, and there are 2"):
        check_cohorts(config, {name: [name] for name in "ab"})
    config.trust.hostile = 0
    assert "leaves no cohort out" in refusal(config)
