"""The schema: documentation, ranges, choices, and values that make no sense."""

import math
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

import pytest

from trustchain_ray.config import CHOICES, RANGES, Config, SourceConfig, check, describe, get
from trustchain_ray.errors import UsageError


def leaves(cls: type = Config, prefix: str = "") -> dict[str, Any]:
    """Default of every field by dotted path."""
    found: dict[str, Any] = {}
    for item in fields(cls):
        value = getattr(cls(), item.name)
        if is_dataclass(value):
            found |= leaves(type(value), f"{prefix}{item.name}.")
        else:
            found[prefix + item.name] = value
    return found


@pytest.fixture
def good(config_of: Callable[..., Config]) -> Config:
    config = config_of("train.jsonl")
    check(config)
    return config


def put(config: Config, path: str, value: Any) -> None:
    *sections, name = path.split(".")
    target = get(config, ".".join(sections)) if sections else config
    assert hasattr(target, name)
    setattr(target, name, value)


def test_describe_covers_every_field_with_a_text():
    rows = {path: doc for path, _, doc in describe()}
    sources = {f"data.organizations.<name>.{item.name}" for item in fields(SourceConfig)}
    assert set(leaves()) | sources <= set(rows)
    assert all(len(doc) > 10 and doc.endswith(".") for doc in rows.values())


def test_describe_shows_the_real_defaults():
    shown = {path: default for path, default, _ in describe()}
    for path, value in leaves().items():
        assert shown[path] == repr(value)


def test_every_number_has_a_range_and_every_range_a_number():
    numbers = {p for p, v in leaves().items() if isinstance(v, int | float) and not isinstance(v, bool)}
    assert {path for path, _, _ in RANGES} == numbers


def test_every_choice_is_a_field_whose_default_is_allowed():
    assert all(leaves()[path] in allowed for path, allowed in CHOICES.items())


def test_defaults_are_not_shared_between_configurations():
    Config().model.lora.targets.append("k_proj")
    Config().data.organizations["a"] = SourceConfig()
    assert Config().model.lora.targets == ["q_proj", "v_proj"]
    assert Config().data.organizations == {}


@pytest.mark.parametrize(("path", "least", "most"), RANGES, ids=[path for path, _, _ in RANGES])
def test_numbers_out_of_range_are_refused_by_name(good: Config, path: str, least: float, most: float | None):
    outside = [least - 1, least - 1e-9 * max(1, abs(least)), math.nan, math.inf, -math.inf]
    for value in outside + ([most + 1] if most is not None else []):
        put(good, path, value)
        with pytest.raises(UsageError, match=f"{path}="):
            check(good)


@pytest.mark.parametrize("path", list(CHOICES))
def test_other_words_are_refused_with_the_choices(good: Config, path: str):
    put(good, path, "nonsense")
    with pytest.raises(UsageError, match=f"{path}='nonsense': choose one of {CHOICES[path][0]}, "):
        check(good)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.task": "classification"}, "model.labels: a classification needs at least two"),
        ({"model.task": "classification", "model.labels": ["a"]}, "at least two labels"),
        ({"model.labels": ["a", "b", "a"]}, "stands there twice"),
        ({"data.organizations": {}}, "needs one source an organization"),
        ({"data.organizations": {"a": SourceConfig()}}, r"data.organizations.a.train: every"),
        ({"data.split": "column", "data.train": ""}, "data.train: `data.split: column` needs"),
        ({"data.split": "dirichlet", "data.train": ""}, "data.train: `data.split: dirichlet` needs"),
        ({"model.base": "made"}, "data.public: a made model"),
        ({"model.base": "made", "data.public": "p", "model.made.hidden": 33}, "an even multiple"),
        ({"model.base": "made", "data.public": "p", "model.made.hidden": 36}, "an even multiple"),
        ({"federation.cohorts": "groups"}, "needs named groups"),
        ({"federation.cohorts": "groups", "federation.groups": {"a": []}}, "federation.groups.a: an empty"),
        ({"federation.cohorts": "one", "federation.shards_per_organization": 2}, "does not divide records"),
        ({"model.lora.ranks": {"north": 4}}, "mixed ranks need model.lora.form flora or svd, not ffa"),
        (
            {"model.lora.ranks": {"north": 0}, "model.lora.form": "svd"},
            "model.lora.ranks.north=0: must be at",
        ),
        ({"model.lora.targets": []}, "model.lora.targets: name at least one"),
        ({"federation.personalization": "adapter"}, "an own adapter needs own steps"),
        ({"federation.personalization": "head", "federation.personalization_steps": 1}, "only a classific"),
        ({"resources.mode": "pooled", "training.engine": "deepspeed"}, "pooled workers swap adapters"),
        ({"training.engine": "torch", "resources.workers": 2}, "the torch engine is one process"),
        ({"federation.baselines": ["isolated", "central"]}, "federation.baselines: 'central'; choose from"),
        ({"run.name": "../elsewhere"}, "run.name: name '../elsewhere'"),
        ({"run.name": ""}, "run.name: name ''"),
    ],
)
def test_values_that_make_no_sense_together(good: Config, changes: dict[str, Any], message: str):
    for path, value in changes.items():
        put(good, path, value)
    with pytest.raises(UsageError, match=message):
        check(good)


@pytest.mark.parametrize(
    "name", ["", "a/b", "..", ".hidden", "a b", "-x", "ü", "a" * 65, "coordinator", "centralised", "a\n"]
)
def test_names_that_cannot_name_keys_and_files_are_refused(good: Config, name: str):
    good.data.organizations = {"north": good.data.organizations["north"], name: SourceConfig("b.jsonl")}
    with pytest.raises(UsageError, match=r"data\.organizations: organization name"):
        check(good)


def test_a_group_is_a_file_name_too(good: Config):
    good.federation.groups = {"../up": ["north"]}
    with pytest.raises(UsageError, match=r"federation\.groups: group name '\.\./up'"):
        check(good)


def test_one_message_holds_all_that_is_wrong(good: Config):
    good.training.lr, good.federation.rounds, good.data.split = -1.0, 0, "columns"
    with pytest.raises(UsageError, match=r"(?s)data.split.*training.lr=-1.0.*federation.rounds=0"):
        check(good)
