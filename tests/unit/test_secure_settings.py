"""What secure aggregation cannot be combined with: each refusal says why, and what works."""

from collections.abc import Callable
from typing import Any

import pytest

from trustchain_ray.config import Config, check, get
from trustchain_ray.errors import UsageError
from trustchain_ray.forgetting.secure import check_sums
from trustchain_ray.secure_aggregation.settings import check_organizations


@pytest.fixture
def secure(config_of: Callable[..., Config]) -> Config:
    config = config_of("train.jsonl", split="dirichlet", split_into=6)
    config.trust.secure_aggregation = True
    check(config)
    return config


def put(config: Config, **values: Any) -> None:
    for path, value in values.items():
        *sections, name = path.split("__")
        setattr(get(config, ".".join(sections)), name, value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model__lora__form": "svd"}, r"form=svd: .*use model\.lora\.form=ffa or fedavg"),
        ({"model__lora__form": "flora"}, r"form=flora"),
        ({"trust__rule": "median"}, r"trust\.rule=median: .*cohorts=groups, .*trust\.across=median"),
        ({"trust__rule": "norm_bound"}, r"trust\.rule=norm_bound: .*every member checks .*itself"),
        ({"federation__cohorts": "by_organization"}, r"cohorts=by_organization: .*groups of three"),
        ({"federation__cohorts": "by_both"}, r"cohorts=by_both"),
        (
            {"federation__cohorts": "groups", "federation__groups": {"a": ["x", "y"], "b": ["u", "v", "w"]}},
            r"group a has 2 organizations, a secure sum needs 3",
        ),
        ({"federation__keep_updates": "all"}, r"keep_updates=all: .*keep_updates=none"),
        (
            {"participation__payoff": "equal_split", "participation__settle_every": 2},
            r"keep_updates=settled: .*keep_updates=none",
        ),
        (
            {"participation__payoff": "shapley", "participation__settle_every": 2},
            r"payoff=shapley .*participation\.settle_every=0 .*payoff=equal_split federation\.keep_updates=none",
        ),
        ({"participation__settle_every": 2}, r"payoff=leave_one_out"),
        ({"trust__secure_threshold": 2}, r"trust\.secure_threshold=2: a sum of two .*set 3 or more, or 0"),
    ],
)
def test_nonsense_pairs_are_refused(secure: Config, values: dict[str, Any], message: str):
    put(secure, **values)
    with pytest.raises(UsageError, match=message):
        check(secure)


def test_pairs_that_make_sense_pass(secure: Config):
    put(secure, participation__payoff="equal_split", participation__settle_every=2, federation__keep_updates="none")
    put(secure, model__lora__form="fedavg", trust__secure_threshold=5)
    put(secure, federation__cohorts="by_shard", federation__shards_per_organization=4)
    check(secure)
    put(secure, federation__cohorts="groups", federation__groups={"a": list("uvwxy")})
    put(secure, federation__shards_per_organization=1)
    check(secure)


def test_a_threshold_needs_secure_aggregation(config_of: Callable[..., Config]):
    config = config_of("train.jsonl")
    config.trust.secure_threshold = 4
    with pytest.raises(UsageError, match=r"only trust\.secure_aggregation=true has a threshold"):
        check(config)


def test_a_federation_of_two_is_refused_before_it_begins(secure: Config):
    check_organizations(secure, ["a", "b", "c"])
    with pytest.raises(UsageError, match="the federation has 2 organizations, a secure sum needs 3"):
        check_organizations(secure, ["a", "b"])
    secure.trust.secure_threshold = 4
    with pytest.raises(UsageError, match=r"needs 4 \(trust\.secure_threshold=4\)"):
        check_organizations(secure, ["a", "b", "c"])


def test_a_removal_that_leaves_two_in_a_round_is_refused(secure: Config):
    steps = {"s0": [{"a": 2, "b": 2, "c": 2, "d": 2}, {"a": 2, "b": 2, "c": 2}, {}], "s1": [{"a": 2, "b": 2}] * 3}
    check_sums(secure, "replay", {"s0": 1}, steps, set())
    check_sums(secure, "replay", {"s0": 1}, steps, {("d", "s0"), ("a", "s1")})
    check_sums(secure, "replay", {"s0": 3}, steps, {("a", "s0"), ("b", "s0")})
    with pytest.raises(UsageError, match=r"round 2 of cohort 's0' would be trained by b, c alone: .*--method drop"):
        check_sums(secure, "replay", {"s0": 1}, steps, {("a", "s0")})
    check_sums(secure, "drop", {}, steps, {("a", "s0")})
    with pytest.raises(UsageError, match=r"--method ascent merges the single update .*use --method replay"):
        check_sums(secure, "ascent", {}, steps, set())
