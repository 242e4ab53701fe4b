"""Who holds which records: checks of rows, splits, limits, and what removing a record moves."""

import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trustchain_ray.config import Config, SourceConfig
from trustchain_ray.data import Record, load_holdings, load_public, organization_names, shard_of
from trustchain_ray.errors import TrustChainError, UsageError

ConfigOf = Callable[..., Config]
WriteJsonl = Callable[[str, list[dict[str, Any]]], str]


def rows_of(count: int, **more: Any) -> list[dict[str, Any]]:
    return [{"id": f"r{i}", "text": f"text {i}", **more} for i in range(count)]


def ids(records: list[Record]) -> list[str]:
    return [record.id for record in records]


def test_rows_become_records(config_of: ConfigOf, write_jsonl: WriteJsonl):
    source = write_jsonl(
        "a.jsonl",
        [
            {"id": 7, "who": "ann", "prompt": "Q", "answer": "A", "label": "x"},
            {"id": "b", "text": "plain", "label": 1},
            {"text": "no id", "label": "x"},
        ],
    )
    config = config_of(source, labels=("x", "1"), test_share=0.0)
    config.data.columns.subject = "who"
    assert load_holdings(config, "north").train == [
        Record("7", "ann", "Q", "A", 0),
        Record("b", "b", "", "plain", 1),
        Record("row-00000003", "row-00000003", "", "no id", 0),
    ]


BAD = {
    "not valid JSON": '{"id": "bad", ',
    "not a JSON object": '["bad"]',
    "no text": '{"id": "bad", "label": "x"}',
    "text, prompt and answer must be strings": '{"id": "bad", "text": ["a"], "label": "x"}',
    "label outside the set": '{"id": "bad", "text": "t", "label": "z"}',
    "the id stands there twice": '{"id": "r1", "text": "t", "label": "x"}',
    "not valid Unicode": '{"id": "bad", "text": "\\ud800", "label": "x"}',
}


def bad_file(folder: Path, lines: list[str]) -> str:
    good = [f'{{"id": "r{i}", "text": "text {i}", "label": "x", "organization": "north"}}' for i in range(3)]
    path = folder / "bad.jsonl"
    path.write_text("\n".join([*good, *lines]) + "\n")
    return str(path)


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_row_stops_naming_file_line_and_what(config_of: ConfigOf, tmp_path: Path, kind: str):
    source = bad_file(tmp_path, [BAD[kind]])
    with pytest.raises(TrustChainError, match=rf"bad\.jsonl:4: {kind}.*data\.bad_rows=skip"):
        load_holdings(config_of(source, labels=("x", "y"), test_share=0.0), "north")


def test_bad_rows_are_skipped_and_counted_by_kind_alone(config_of: ConfigOf, tmp_path: Path):
    source = bad_file(tmp_path, [*BAD.values(), BAD["no text"], '{"id": "r2", "text": "t", "label": "x"}'])
    config = config_of(source, labels=("x", "y"), test_share=0.0, bad_rows="skip")
    holdings = load_holdings(config, "north")
    assert ids(holdings.train) == ["r0", "r1", "r2"]
    expected = Counter(dict.fromkeys(BAD, 1)) + Counter(["no text", "the id stands there twice"])
    expected["not valid Unicode"] = 1
    assert {kind.split(" (")[0]: n for kind, n in holdings.skipped.items()} == expected


def test_csv_problems_reach_the_person(config_of: ConfigOf, tmp_path: Path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"id,text\n1,a\n2,b,c\n3,\xff\n")
    with pytest.raises(TrustChainError, match=r"a\.csv:3: wrong number of columns: the header has 2"):
        load_holdings(config_of(str(path)), "north")
    config = config_of(str(path), bad_rows="skip", test_share=0.0)
    holdings = load_holdings(config, "north")
    assert ids(holdings.train) == ["1"]
    assert holdings.skipped == {"wrong number of columns": 1, "not valid UTF-8": 1}


@pytest.mark.parametrize("line", [BAD["not valid JSON"], '{"id": "x", "text": "nobody"}'])
def test_rows_of_nobody_are_not_overlooked_in_a_shared_file(config_of: ConfigOf, tmp_path: Path, line: str):
    source = bad_file(tmp_path, [line])
    config = config_of(split="column", test_share=0.0)
    config.data.train = source
    assert organization_names(config) == ["north"]
    with pytest.raises(TrustChainError, match=r"bad\.jsonl:4: (not valid JSON|no organization)"):
        load_holdings(config, "north")
    config.data.bad_rows = "skip"
    holdings = load_holdings(config, "north")
    assert (len(holdings.train), holdings.skipped.total()) == (3, 1)


def test_the_same_id_may_stand_at_two_organizations(config_of: ConfigOf, write_jsonl: WriteJsonl):
    rows = [row | {"organization": name} for name in ("a", "b") for row in rows_of(3)]
    config = config_of(split="column", test_share=0.0, train=write_jsonl("a.jsonl", rows))
    assert organization_names(config) == ["a", "b"]
    assert ids(load_holdings(config, "a").train) == ids(load_holdings(config, "b").train) == ["r0", "r1", "r2"]


def test_an_empty_organization_is_named(config_of: ConfigOf, write_jsonl: WriteJsonl):
    config = config_of(write_jsonl("empty.jsonl", []))
    with pytest.raises(TrustChainError, match=r"organization 'north' has no training records in .*empty"):
        load_holdings(config, "north")
    with pytest.raises(UsageError, match="there is no organization 'south'"):
        load_holdings(config, "south")


def test_a_missing_file_is_named(config_of: ConfigOf, tmp_path: Path):
    with pytest.raises(TrustChainError, match=r"there is no data file .*nowhere\.jsonl"):
        load_holdings(config_of(str(tmp_path / "nowhere.jsonl")), "north")


@pytest.mark.parametrize("name", ["a/b", "../a", "a b", ".a", "coordinator", "centralised"])
def test_names_in_a_column_must_be_file_names(config_of: ConfigOf, write_jsonl: WriteJsonl, name: str):
    rows = [*rows_of(1, organization="north"), *rows_of(1, organization=name)]
    config = config_of(split="column", train=write_jsonl("a.jsonl", rows))
    with pytest.raises(TrustChainError, match=r"a\.jsonl:2: column 'organization': organization name"):
        organization_names(config)


def test_a_column_without_names(config_of: ConfigOf, write_jsonl: WriteJsonl):
    config = config_of(split="column", train=write_jsonl("a.jsonl", rows_of(2)))
    with pytest.raises(TrustChainError, match="no row has an organization in column 'organization'"):
        organization_names(config)


def test_ranks_of_an_unknown_organization(config_of: ConfigOf):
    config = config_of("a.jsonl")
    config.model.lora.ranks = {"north": 2, "nrth": 4}
    with pytest.raises(UsageError, match="there is no organization nrth; there are north"):
        organization_names(config)


def test_public_records_need_no_organization(config_of: ConfigOf, write_jsonl: WriteJsonl):
    source = write_jsonl("public.jsonl", rows_of(3, organization=""))
    assert ids(load_public(config_of(split="column"), source)) == ["r0", "r1", "r2"]


# ---- held-out records and limits


def test_held_out_records_are_a_keyed_share(config_of: ConfigOf, write_jsonl: WriteJsonl):
    config = config_of(write_jsonl("a.jsonl", rows_of(1000)), test_share=0.2)
    holdings = load_holdings(config, "north")
    train, test = set(ids(holdings.train)), set(ids(holdings.test))
    assert not train & test
    assert len(train | test) == 1000
    assert abs(len(test) - 200) < 4 * (1000 * 0.2 * 0.8) ** 0.5
    assert load_holdings(config, "north") == holdings
    config.run.key = "another"
    assert ids(load_holdings(config, "north").test) != sorted(test)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20, deadline=None)
@given(st.integers(2, 40), st.data())
def test_removing_a_record_moves_no_other_between_train_and_test(
    config_of: ConfigOf, write_jsonl: WriteJsonl, count: int, data: st.DataObject
):
    config = config_of(write_jsonl("a.jsonl", rows_of(count)), test_share=0.3)
    before = load_holdings(config, "north")
    if min(len(before.test), len(before.train)) < 3:
        return  # so few records that one is held out or kept in any case
    gone = data.draw(st.sampled_from(ids(before.train) + ids(before.test)))
    write_jsonl("a.jsonl", [row for row in rows_of(count) if row["id"] != gone])
    after = load_holdings(config, "north")
    assert ids(after.train) == [i for i in ids(before.train) if i != gone]
    assert ids(after.test) == [i for i in ids(before.test) if i != gone]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_records_still_train(config_of: ConfigOf, write_jsonl: WriteJsonl, count: int):
    for share in (0.01, 0.9):
        holdings = load_holdings(config_of(write_jsonl("a.jsonl", rows_of(count)), test_share=share), "north")
        assert holdings.train
        assert bool(holdings.test) == (count > 1)


def test_limits_keep_the_same_records_when_others_go(config_of: ConfigOf, write_jsonl: WriteJsonl):
    source, test = write_jsonl("a.jsonl", rows_of(100)), write_jsonl("t.jsonl", rows_of(50))
    config = config_of(source, test, limit=20, test_limit=5)
    before = load_holdings(config, "north")
    assert (len(before.train), len(before.test)) == (20, 5)
    unused = next(row["id"] for row in rows_of(100) if row["id"] not in ids(before.train))
    write_jsonl("a.jsonl", [row for row in reversed(rows_of(100)) if row["id"] != unused])
    assert load_holdings(config, "north") == before, "neither an unused record nor the order of the file matters"
    used = before.train[3].id
    write_jsonl("a.jsonl", [row for row in rows_of(100) if row["id"] != used])
    after = set(ids(load_holdings(config, "north").train))
    assert set(ids(before.train)) - {used} < after
    config.data.limit = 30
    assert after < set(ids(load_holdings(config, "north").train))


# ---- Dirichlet


def dirichlet(config_of: ConfigOf, source: str, alpha: float) -> tuple[Config, dict[str, list[str]]]:
    config = config_of(split="dirichlet", labels=("a", "b", "c"), train=source, test_share=0.0)
    config.data.dirichlet_alpha = alpha
    held = {}
    for name in organization_names(config):
        try:
            held[name] = ids(load_holdings(config, name).train)
        except TrustChainError:
            held[name] = []
    return config, held


@pytest.fixture
def labelled(write_jsonl: WriteJsonl) -> str:
    return write_jsonl("labelled.jsonl", [r | {"label": "abc"[i % 3]} for i, r in enumerate(rows_of(600))])


@pytest.mark.parametrize("alpha", [1e-6, 0.5, 100.0])
def test_a_dirichlet_split_is_a_partition_and_repeatable(config_of: ConfigOf, labelled: str, alpha: float):
    _, held = dirichlet(config_of, labelled, alpha)
    assert list(held) == ["org_0", "org_1", "org_2", "org_3"]
    assert sorted(i for part in held.values() for i in part) == sorted(ids_of(600))
    assert dirichlet(config_of, labelled, alpha)[1] == held


def test_a_small_alpha_is_more_skewed(config_of: ConfigOf, labelled: str):
    def skew(alpha: float) -> float:
        """Mean over classes of the largest share that one organization has."""
        _, held = dirichlet(config_of, labelled, alpha)
        shares = [[sum(int(i[1:]) % 3 == c for i in part) / 200 for part in held.values()] for c in range(3)]
        return sum(map(max, shares)) / 3

    assert skew(0.05) > 0.7 > 0.4 > skew(1000.0) > 0.25


def test_removing_a_record_leaves_the_dirichlet_split_of_the_others(
    config_of: ConfigOf, labelled: str, write_jsonl: WriteJsonl
):
    _, before = dirichlet(config_of, labelled, 0.5)
    write_jsonl(
        "labelled.jsonl",
        [r | {"label": "abc"[i % 3]} for i, r in enumerate(rows_of(600)) if i not in (5, 17)],
    )
    _, after = dirichlet(config_of, labelled, 0.5)
    assert after == {name: [i for i in part if i not in ("r5", "r17")] for name, part in before.items()}


def ids_of(count: int) -> list[str]:
    return [row["id"] for row in rows_of(count)]


# ---- shards


@given(st.binary(min_size=1), st.text(st.characters(codec="utf-8")), st.integers(1, 50))
def test_a_record_has_one_shard(key: bytes, record_id: str, shards: int):
    assert 0 <= shard_of(key, record_id, shards) < shards
    assert shard_of(key, record_id, shards) == shard_of(key, record_id, shards)


def test_shards_are_even_and_keyed():
    counts = Counter(shard_of(b"key", i, 4) for i in ids_of(4000))
    assert all(abs(n - 1000) < 4 * (4000 * 0.25 * 0.75) ** 0.5 for n in counts.values())
    assert [shard_of(b"key", i, 4) for i in ids_of(8)] == [1, 1, 0, 2, 0, 3, 2, 1]  # frozen
    assert [shard_of(b"another", i, 4) for i in ids_of(40)] != [shard_of(b"key", i, 4) for i in ids_of(40)]


@pytest.mark.shared
@pytest.mark.skipif(not os.environ.get("TRUSTCHAIN_DATA"), reason="TRUSTCHAIN_DATA is not set")
def test_the_seven_sentiment_organizations():
    folder = Path(os.environ["TRUSTCHAIN_DATA"]) / "fed_sentiment"
    config = Config()
    config.model.task, config.model.labels = "classification", ["negative", "neutral", "positive"]
    config.data.split = "sources"
    config.data.organizations = {
        path.name.removesuffix("_train.jsonl"): SourceConfig(str(path), str(path).replace("_train", "_test"))
        for path in folder.glob("*_train.jsonl")
    }
    config.data.limit, config.data.test_limit = 100, 30
    names = organization_names(config)
    assert len(names) == 7
    for name in names:
        holdings = load_holdings(config, name)
        assert (len(holdings.train), len(holdings.test), holdings.skipped.total()) == (100, 30, 0)


def test_excluded_records_subjects_and_organizations_are_left_out_and_nobody_moves_up(tmp_path):
    rows = [
        {"id": f"{o}{i}", "subject": f"p{i % 3}", "organization": o, "text": f"text {i}"}
        for o in "ab"
        for i in range(9)
    ]
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def ids(name, *exclude):
        config = Config()
        config.data.train, config.data.test_share, config.data.limit = str(source), 0.0, 6
        config.data.columns.subject, config.data.exclude = "subject", list(exclude)
        return {record.id: record.subject for record in load_holdings(config, name).train}

    whole = ids("a")
    one = next(iter(whole))
    assert len(whole) == 6
    assert ids("a", one) == ids("a", f"a/{one}") == {i: s for i, s in whole.items() if i != one}
    assert ids("a", "p1") == {i: s for i, s in whole.items() if s != "p1"}
    assert ids("a", "b/p1", "b/*") == whole
    config = Config()
    config.data.train, config.data.exclude = str(source), ["b/*"]
    assert organization_names(config) == ["a"]
