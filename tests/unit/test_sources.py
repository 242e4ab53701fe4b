"""Rows of files and data sets: every format gives the same rows, every bad row says where and what."""

import csv
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trustchain_ray.errors import TrustChainError
from trustchain_ray.sources import read_rows

ROWS = [
    {"id": "1", "text": "plain", "label": "good"},
    {"id": "2", "text": 'a "quoted", text\nof two lines\twith a tab', "label": "bad"},
    {"id": "3", "text": "ünïcode � 日本語 \U0001f600", "label": "good"},
]


def as_jsonl(rows: list[dict[str, str]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def as_csv(rows: list[dict[str, str]], delimiter: str = ",") -> bytes:
    import io

    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def as_parquet(rows: list[dict[str, str]]) -> bytes:
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    return bytes(sink.getvalue())


FORMATS: dict[str, Callable[[list[dict[str, str]]], bytes]] = {
    ".jsonl": as_jsonl,
    ".ndjson": as_jsonl,
    ".csv": as_csv,
    ".tsv": lambda rows: as_csv(rows, "\t"),
    ".parquet": as_parquet,
}
PACKED = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}


@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize("kind", FORMATS)
def test_all_formats_give_the_same_rows(tmp_path: Path, kind: str, packed: str):
    path = tmp_path / f"rows{kind}{packed}"
    path.write_bytes(PACKED[packed](FORMATS[kind](ROWS)))
    rows = list(read_rows(str(path)))
    assert [row.values for row in rows] == ROWS
    assert [row.number for row in rows] == [1, 2, 3]
    assert all(row.problem is None for row in rows)
    assert all(row.where.startswith(str(path)) for row in rows)


def test_a_data_set_on_disk_gives_the_same_rows(tmp_path: Path):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    whole = datasets.Dataset.from_list(ROWS)
    whole.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": whole, "dev": whole.select([2])}).save_to_disk(tmp_path / "split")
    assert [row.values for row in read_rows(f"hf:{tmp_path / 'one'}")] == ROWS
    assert [row.values for row in read_rows(f"hf:{tmp_path / 'split'}")] == ROWS
    dev = list(read_rows(f"hf:{tmp_path / 'split'}:dev"))
    assert [row.values for row in dev] == ROWS[2:]
    assert "split:dev row 1" in dev[0].where
    with pytest.raises(TrustChainError, match=r"hf:.*:nowhere cannot be loaded"):
        list(read_rows(f"hf:{tmp_path / 'split'}:nowhere"))


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"id": ', "not valid JSON"),
        (b"[1, 2]", "not a JSON object"),
        (b"5", "not a JSON object"),
        (b'{"id": "\xff"}', "not valid UTF-8"),
        (b'{"id": ' + b"1" * 5000 + b"}", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
    ],
    ids=["broken", "list", "number", "latin", "digits", "deep"],
)
def test_a_bad_json_line_is_one_bad_row(tmp_path: Path, line: bytes, problem: str):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"id": "a"}\n\n' + line + b'\n{"id": "b"}\n')
    first, bad, last = read_rows(str(path))
    assert (first.values, last.values) == ({"id": "a"}, {"id": "b"})
    assert bad.where == f"{path}:3"
    assert bad.problem is not None
    assert bad.problem.startswith(problem)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"1,2,3", "wrong number of columns: the header has 2"),
        (b"1", "wrong number of columns: the header has 2"),
        (b"1,\xff\xfe", "not valid UTF-8"),
        (b'1,"a" b', "not valid CSV"),
        (b"1," + b"x" * 200_000, "not valid CSV"),
    ],
    ids=["more", "fewer", "latin", "quote", "long"],
)
def test_a_bad_csv_line_is_one_bad_row(tmp_path: Path, line: bytes, problem: str):
    path = tmp_path / "rows.csv"
    path.write_bytes(b"id,text\n0,a\n" + line + b"\n9,b\n")
    first, bad, last = read_rows(str(path))
    assert (first.values, last.values) == ({"id": "0", "text": "a"}, {"id": "9", "text": "b"})
    assert bad.where == f"{path}:3"
    assert bad.problem is not None
    assert bad.problem.startswith(problem)


def test_a_quote_that_is_never_closed_does_not_swallow_the_rest_silently(tmp_path: Path):
    path = tmp_path / "rows.csv"
    path.write_text('id,text\n0,a\n1,"b\n2,c\n3,d\n')
    assert any(row.problem for row in read_rows(str(path)))


def test_a_byte_order_mark_is_not_part_of_the_first_column(tmp_path: Path):
    for name, data in (("a.csv", as_csv(ROWS)), ("a.jsonl", as_jsonl(ROWS))):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + data)
        assert [row.values for row in read_rows(str(tmp_path / name))] == ROWS


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("rows.txt", b"a", "unknown kind '.txt'"),
        ("rows.gz", gzip.compress(b"a", mtime=0), "unknown kind ''"),
        ("rows.parquet", b"PAR1 no", "not a readable Parquet file"),
        ("rows.parquet", b"", "not a readable Parquet file"),
        ("rows.csv", b'id,"te"xt\n', ":1: the header is not valid CSV"),
        ("rows.jsonl.gz", b"no gzip", "cannot be read"),
        ("rows.jsonl.gz", gzip.compress(as_jsonl(ROWS), mtime=0)[:40], "cannot be read"),
        ("rows.jsonl.gz", gzip.compress(as_jsonl(ROWS), mtime=0)[:14] + b"\xff" * 60, "cannot be read"),
        ("rows.jsonl.xz", b"no xz", "cannot be read"),
        ("rows.csv.xz", lzma.compress(as_csv(ROWS))[:60], "cannot be read"),
    ],
)
def test_a_source_that_is_damaged_as_a_whole(tmp_path: Path, name: str, data: bytes, message: str):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(TrustChainError, match=message) as caught:
        list(read_rows(str(path)))
    assert str(path) in str(caught.value)


def test_a_missing_source(tmp_path: Path):
    for path in (tmp_path / "nowhere.jsonl", tmp_path):
        with pytest.raises(TrustChainError, match="there is no data file"):
            list(read_rows(str(path)))


printable = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), max_size=12)


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
@given(st.lists(st.fixed_dictionaries({"id": printable, "text": printable}), min_size=1, max_size=6))
def test_any_text_is_the_same_in_every_format(tmp_path: Path, rows: list[dict[str, str]]):
    for kind, write in FORMATS.items():
        path = tmp_path / f"any{kind}"
        path.write_bytes(write(rows))
        assert [row.values for row in read_rows(str(path))] == rows, kind
