"""Adapters: the buffer, the digest and the file."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from ledger.canonical import safetensors_digest
from trustchain_ray.adapter import (
    LORA_A,
    LORA_B,
    Layout,
    Tensors,
    digest,
    head,
    layers,
    load_tensors,
    save_tensors,
)
from trustchain_ray.errors import TrustChainError
from trustchain_ray.initial import fresh_adapter

AdapterOf = Callable[..., Tensors]
any_tensors = st.dictionaries(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
    array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4).flatmap(
        lambda shape: arrays(np.float32, shape, elements=st.floats(width=32))
    ),
    max_size=4,
)


def same(a: Tensors, b: Tensors) -> bool:
    return {n: (t.shape, t.tobytes()) for n, t in a.items()} == {n: (t.shape, t.tobytes()) for n, t in b.items()}


@given(any_tensors)
def test_packing_and_unpacking(tensors: Tensors):
    layout = Layout.of(tensors)
    buffer = layout.pack(tensors)
    assert buffer.dtype == np.float32
    assert buffer.shape == (layout.size,) == (sum(t.size for t in tensors.values()),)
    assert same(layout.unpack(buffer), tensors)
    assert Layout.of(dict(reversed(tensors.items()))) == layout


@settings(deadline=None)
@given(any_tensors)
def test_a_file_gives_the_same_tensors_and_digest_back(tmp_path_factory: pytest.TempPathFactory, tensors: Tensors):
    path = tmp_path_factory.mktemp("adapter") / "a.safetensors"
    save_tensors(path, tensors, {"format": "pt"})
    assert same(load_tensors(path), tensors)
    assert digest(tensors) == safetensors_digest(path) == digest(dict(reversed(tensors.items())))
    assert same(safetensors.numpy.load_file(path), tensors), "the library reads it too"


def test_the_digest_sees_every_bit_name_and_shape(adapter_of: AdapterOf):
    tensors = adapter_of(0, rank=2, widths=((5, 3),))
    digests = {digest(tensors)}
    for name, tensor in tensors.items():
        for position in range(tensor.nbytes * 8):
            changed = bytearray(tensor.tobytes())
            changed[position // 8] ^= 1 << position % 8
            digests.add(digest(tensors | {name: np.frombuffer(changed, np.float32).reshape(tensor.shape)}))
        digests.add(digest(tensors | {name: tensor.reshape(tensor.shape[::-1])}))
        digests.add(digest({n + "x" if n == name else n: t for n, t in tensors.items()}))
        digests.add(digest({n: t for n, t in tensors.items() if n != name}))
    first, second = tensors
    digests.add(digest({first: tensors[second], second: tensors[first]}))
    assert len(digests) == 1 + sum(t.nbytes * 8 + 3 for t in tensors.values()) + 1


def test_the_digest_does_not_depend_on_how_the_array_lies_in_memory(adapter_of: AdapterOf):
    tensors = adapter_of(0)
    fortran = {name: np.asfortranarray(t) for name, t in tensors.items()}
    big_endian = {name: t.astype(">f4") for name, t in tensors.items()}
    assert digest(tensors) == digest(fortran) == digest(big_endian)


def test_a_frozen_digest():
    tensors = {
        "a.lora_B.weight": np.arange(4, dtype=np.float32).reshape(2, 2),
        "head": np.zeros((0, 3), np.float32),
    }
    assert digest(tensors) == "2b7830340965d6492b7966253f6a1088f09b1f598f23c2d56bbd65c65af5f429"


def test_loaded_tensors_are_copies_that_can_be_changed(adapter_of: AdapterOf, tmp_path: Path):
    path = tmp_path / "a.safetensors"
    save_tensors(path, adapter_of(0))
    tensors = load_tensors(path)
    tensors["layer0.lora_A.weight"][0, 0] = 7
    assert load_tensors(path)["layer0.lora_A.weight"][0, 0] != 7


def test_damaged_files_are_refused_by_name(adapter_of: AdapterOf, tmp_path: Path):
    path = tmp_path / "a.safetensors"
    save_tensors(path, adapter_of(0))
    good = path.read_bytes()
    length = int.from_bytes(good[:8], "little")
    header = json.loads(good[8 : 8 + length])
    header["layer0.lora_A.weight"]["dtype"] = "F99"
    unknown = json.dumps(header).encode()
    for data in (
        b"",
        good[:7],
        good[:-1],
        good[: 8 + length],
        good + b"\0",
        good + good,
        good[:8] + b"x" + good[9:],
        len(unknown).to_bytes(8, "little") + unknown + good[8 + length :],
    ):
        path.write_bytes(data)
        with pytest.raises(TrustChainError, match=r"a\.safetensors is not a usable adapter file"):
            load_tensors(path)
    path.unlink()
    with pytest.raises(TrustChainError, match=r"a\.safetensors is not a usable adapter file"):
        load_tensors(path)


def test_other_types_are_refused(tmp_path: Path):
    path = tmp_path / "a.safetensors"
    safetensors.numpy.save_file({"x": np.zeros(3, np.float64)}, path)
    with pytest.raises(TrustChainError, match="tensor x has type F64; adapters are stored as F32"):
        load_tensors(path)


def test_layers_and_head(adapter_of: AdapterOf):
    tensors = adapter_of(0, head=True)
    assert layers(tensors) == ["layer0", "layer1"]
    assert list(head(tensors)) == ["classifier.weight"]


@pytest.mark.parametrize("form", ["ffa", "fedavg", "svd", "flora"])
def test_a_fresh_adapter_changes_nothing_but_can_learn(form: str):
    shapes = {"x.lora_A.weight": (8, 16), "x.lora_B.weight": (6, 8), "classifier.weight": (2, 6)}
    tensors = fresh_adapter(shapes, "key", "frozen", 4, form)
    a, b = tensors["x" + LORA_A], tensors["x" + LORA_B]
    assert (a.shape, b.shape, a.dtype, len(tensors)) == ((4, 16), (6, 4), np.float32, 2)
    assert not b.any()
    if form == "ffa":
        np.testing.assert_allclose(a @ a.T, np.eye(4), atol=1e-6)
    else:
        assert 0.5 / 4 < np.abs(a).max() <= 1 / 4
    assert same(tensors, fresh_adapter(dict(reversed(shapes.items())), "key", "frozen", 4, form))
    for key, purpose in (("other", "frozen"), ("key", "1/north/all")):
        assert not np.array_equal(fresh_adapter(shapes, key, purpose, 4, form)["x" + LORA_A], a)


def test_a_rank_above_the_width_cannot_have_orthonormal_rows():
    shapes = {"x.lora_A.weight": (8, 3), "x.lora_B.weight": (6, 8)}
    a = fresh_adapter(shapes, "key", "frozen", 8, "ffa")["x" + LORA_A]
    assert a.shape == (8, 3)
    assert np.abs(a).max(1).min() > 0
