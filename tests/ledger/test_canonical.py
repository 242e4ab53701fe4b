import json
import os
import struct
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.canonical import (
    canonical_json,
    parse_canonical,
    safetensors_digest,
    safetensors_entries,
    tensors_digest,
    write_atomic,
)
from ledger.errors import LedgerError

scalars = st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text()
documents = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)


def test_strings_and_key_order_of_rfc_8785():
    # RFC 8785, sections 3.2.2.2 and 3.2.3
    assert canonical_json('\u20ac$\u000f\nA\'B"\\\\"/') == '"\u20ac$\\u000f\\nA\'B\\"\\\\\\\\\\"/"'.encode()
    keys = ["\u20ac", "\r", "\ufb33", "1", "\U0001f600", "\u0080", "\u00f6"]
    order = list(json.loads(canonical_json(dict.fromkeys(keys, 0))))
    assert order == ["\r", "1", "\u0080", "\u00f6", "\u20ac", "\U0001f600", "\ufb33"]


@pytest.mark.slow
@given(documents)
def test_every_document_comes_back(document):
    data = canonical_json(document)
    assert parse_canonical(data) == document
    assert canonical_json(parse_canonical(data)) == data


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (1.5, "floats are refused"),
        ({"a": [0, float("nan")]}, r"a\[1\]: floats"),
        (2**53, "2\\*\\*53"),
        ({1: "a"}, "key is not a string"),
        ((1, 2), "tuple"),
        (b"x", "bytes"),
        ("\ud800", "surrogate"),
        ({"\ud800": 1}, "surrogate"),
    ],
)
def test_what_has_no_canonical_form_is_refused(value, reason):
    with pytest.raises(LedgerError, match=reason):
        canonical_json(value)


def test_a_value_that_contains_itself_is_refused():
    loop: list[object] = []
    loop.append(loop)
    with pytest.raises(LedgerError, match="nested"):
        canonical_json(loop)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b'{"a":1,"a":1}', "'a' occurs twice"),
        (b'{"a": 1}', "canonical form"),
        (b'{"b":1,"a":1}', "canonical form"),
        (b"1.0", "floats"),
        (b"1e3", "floats"),
        (b"NaN", "floats"),
        (b"-0", "canonical form"),
        (b'"\\u0041"', "canonical form"),
        (b'"\\ud800"', "surrogate"),
        (b"\xff", "not JSON"),
        (b"", "not JSON"),
        (b"[1]\n", "canonical form"),
        (b"9" * 5000, "not JSON"),
        (b"[" * 100_000, "nested"),
        (b"9007199254740992", "2\\*\\*53"),
    ],
)
def test_other_spellings_are_refused(data, reason):
    with pytest.raises(LedgerError, match=reason):
        parse_canonical(data)


def test_digest_is_of_names_types_shapes_and_bytes():
    base = {"a": ("F32", (2,), bytes(8)), "b": ("I8", (3,), b"abc")}
    digest = tensors_digest(base)
    assert digest == tensors_digest(dict(reversed(base.items())))
    assert digest == tensors_digest({**base, "b": ("I8", (3,), memoryview(b"abc"))})
    others = [
        {"a": base["a"]},
        {**base, "c": ("I8", (0,), b"")},
        {**base, "a": ("F32", (1, 2), bytes(8))},
        {**base, "a": ("I32", (2,), bytes(8))},
        {**base, "b": ("I8", (3,), b"abd")},
        {"a": base["a"], "B": base["b"]},
    ]
    assert len({digest, *map(tensors_digest, others)}) == len(others) + 1


def test_digest_refuses_bytes_that_do_not_fit():
    with pytest.raises(LedgerError, match="needs 8 bytes, got 7"):
        tensors_digest({"a": ("F32", (2,), bytes(7))})
    with pytest.raises(LedgerError, match="unknown dtype"):
        tensors_digest({"a": ("F33", (2,), bytes(8))})


def _file(tmp_path, header, data=b""):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return path


def _entry(begin, end, shape, dtype="U8"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_safetensors_are_read(tmp_path):
    header = {"__metadata__": {"format": "pt"}, "b": _entry(0, 4, [2, 2]), "a": _entry(4, 8, [1], "F32")}
    path = _file(tmp_path, header, b"wxyz\0\0\x80\x3f")
    tensors, metadata = safetensors_entries(path)
    assert metadata == {"format": "pt"}
    assert {name: (d, s, bytes(v)) for name, (d, s, v) in tensors.items()} == {
        "a": ("F32", (1,), b"\0\0\x80\x3f"),
        "b": ("U8", (2, 2), b"wxyz"),
    }
    assert safetensors_digest(path) == tensors_digest(tensors)


def test_the_library_reads_the_same(tmp_path):
    torch = pytest.importorskip("torch")
    library = pytest.importorskip("safetensors.torch")
    tensors = {
        "x": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3),
        "y": torch.ones(2),
        "z": torch.zeros(0, 3),
    }
    path = tmp_path / "x.safetensors"
    library.save_file(tensors, path, metadata={"k": "v"})
    entries, metadata = safetensors_entries(path)
    assert metadata == {"k": "v"}
    assert entries["x"][:2] == ("BF16", (2, 3))
    assert bytes(entries["x"][2]) == tensors["x"].view(torch.uint8).numpy().tobytes()
    assert entries["z"][1:] == ((0, 3), b"")


@pytest.mark.parametrize(
    ("header", "data", "reason"),
    [
        ({"a": _entry(0, 2, [2])}, b"abc", "file holds 3"),
        ({"a": _entry(0, 2, [2])}, b"a", "file holds 1"),
        ({"a": _entry(1, 3, [2])}, b"abc", "gap or overlap"),
        ({"a": _entry(0, 2, [2]), "b": _entry(1, 3, [2])}, b"abc", "gap or overlap"),
        ({"a": _entry(-1, 1, [2])}, b"a", "gap or overlap"),
        ({"a": _entry(0, 2, [3])}, b"ab", "do not fit"),
        ({"a": _entry(0, 2, [-2])}, b"ab", "list of sizes"),
        ({"a": _entry(0, 1, [True])}, b"a", "list of sizes"),
        ({"a": _entry(0, 2, [2], "U9")}, b"ab", "unknown dtype"),
        ({"a": {"dtype": "U8"}}, b"", "needs exactly"),
        ({"__metadata__": {"a": 1}}, b"", "table of strings"),
        (b'{"a":1,"a":1}', b"", "occurs twice"),
        (b"[]", b"", "not a JSON object"),
        (b" {}", b"", "not a JSON object"),
        (b"{", b"", "not JSON"),
        (b"{}", b"x", "file holds 1"),
    ],
)
def test_bad_safetensors_are_refused(tmp_path, header, data, reason):
    with pytest.raises(LedgerError, match=reason):
        safetensors_entries(_file(tmp_path, header, data))


def test_bad_header_length_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    for raw in (b"", b"1234567", struct.pack("<Q", 2**63) + b"{}", struct.pack("<Q", 3) + b"{}"):
        path.write_bytes(raw)
        with pytest.raises(LedgerError, match=r"x\.safetensors"):
            safetensors_entries(path)
    with pytest.raises(LedgerError, match="cannot be read"):
        safetensors_entries(tmp_path / "none")


def test_write_atomic_replaces_and_leaves_nothing_behind(tmp_path):
    path = tmp_path / "a.json"
    write_atomic(path, b"one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert os.listdir(tmp_path) == ["a.json"]


def test_write_atomic_keeps_the_old_file_on_a_full_disk(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_atomic(path, b"one")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LedgerError, match="No space left"):
        write_atomic(path, b"two")
    assert path.read_bytes() == b"one"
    assert os.listdir(tmp_path) == ["a.json"]


def test_deep_nesting_is_refused_also_where_a_library_raised_the_recursion_limit():
    code = (
        "import sys; sys.setrecursionlimit(100_000)\n"
        "from ledger.canonical import parse_canonical\n"
        "from ledger.errors import LedgerError\n"
        "try: parse_canonical(b'[' * 100_000)\n"
        "except LedgerError as error: assert 'nested' in str(error); print('refused')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "refused"


def test_nesting_up_to_the_limit_is_read():
    assert parse_canonical(b"[" * 60 + b"]" * 60)
    assert parse_canonical(b'["' + b"[" * 500 + b'"]') == ["[" * 500]
