"""Ranks, efforts and joint efforts of a surface: what is measured, and what is refused before anything starts."""

from fractions import Fraction

import pytest

from trustchain_ray.config import Config
from trustchain_ray.errors import UsageError
from trustchain_ray.measure.grid import check_measurable, joint_efforts, parse_efforts, parse_ranks

HALF, ONE, OUT = Fraction(1, 2), Fraction(1), Fraction(0)
LEVELS = (OUT, HALF, ONE)


def test_ranks_and_efforts_come_out_rising_with_staying_out_among_them():
    assert parse_ranks("8,2,4") == (2, 4, 8)
    assert parse_efforts("1, 1/2", 10) == LEVELS
    assert parse_efforts("0,0.25,1", 4) == (OUT, Fraction(1, 4), ONE)


@pytest.mark.parametrize("text", ["", "0,4", "4,4", "four", "2.5", "-1"])
def test_ranks_that_cannot_be_are_refused(text: str):
    with pytest.raises(UsageError, match="--ranks"):
        parse_ranks(text)


@pytest.mark.parametrize(
    ("text", "problem"),
    [("0,3/2", "outside"), ("-1/2,1", "outside"), ("a", "0,1/2,1"), ("1/0", "0,1/2,1"), ("0", "above 0"),
     ("1,1", "different"), ("1/8,1", "no step"), ("nan,1", "0,1/2,1")],
)  # fmt: skip
def test_efforts_that_cannot_be_are_refused(text: str, problem: str):
    with pytest.raises(UsageError, match=problem):
        parse_efforts(text, 4)


def test_all_joint_efforts_but_the_empty_one():
    points = joint_efforts(["a", "b", "c"], LEVELS, "all", "key")
    assert len(points) == len(set(points)) == 26
    assert all(any(point) for point in points)


def test_a_number_of_joint_efforts_starts_with_what_contributions_need():
    names = ["a", "b", "c", "d"]
    points = joint_efforts(names, LEVELS, "12", "key")
    assert len(points) == len(set(points)) == 12
    assert (ONE,) * 4 in points
    for i in range(4):
        assert tuple(ONE if i == j else OUT for j in range(4)) in points
        assert tuple(OUT if i == j else ONE for j in range(4)) in points
    assert points == joint_efforts(names, LEVELS, "12", "key")
    assert points != joint_efforts(names, LEVELS, "12", "another key")
    assert joint_efforts(names, LEVELS, "1000", "key") == joint_efforts(names, LEVELS, "all", "key")


@pytest.mark.parametrize("coalitions", ["0", "-3", "some", "2.5"])
def test_a_number_of_joint_efforts_that_is_none_is_refused(coalitions: str):
    with pytest.raises(UsageError, match="--coalitions"):
        joint_efforts(["a", "b"], LEVELS, coalitions, "key")


def test_one_organization_has_no_coalitions():
    with pytest.raises(UsageError, match="at least two"):
        joint_efforts(["only"], LEVELS, "all", "key")


def test_more_joint_efforts_than_can_be_listed_are_refused():
    with pytest.raises(UsageError, match="--coalitions K"):
        joint_efforts([f"o{i}" for i in range(10)], LEVELS, "all", "key")


def test_own_ranks_and_deepspeed_cannot_be_measured():
    config = Config()
    config.model.lora.ranks = {"a": 4}
    with pytest.raises(UsageError, match=r"model\.lora\.ranks"):
        check_measurable(config, "federated")
    config = Config()
    config.training.engine = "deepspeed"
    with pytest.raises(UsageError, match="engine torch"):
        check_measurable(config, "federated")


def test_a_rule_is_measured_in_federations_and_refused_for_merges():
    config = Config()
    config.trust.rule = "norm_bound"
    check_measurable(config, "federated")
    with pytest.raises(UsageError, match=r"trust\.rule=norm_bound with --mode merged.*use --mode federated"):
        check_measurable(config, "merged")
