"""The work folder of a surface: finished results come back as they were, a changed base or changed records do not."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trustchain_ray.config import Config
from trustchain_ray.errors import TrustChainError, UsageError
from trustchain_ray.measure.store import Store, free_name, work_folder
from trustchain_ray.worker import Packed


@pytest.fixture
def store(tmp_path: Path) -> Any:
    made = Store.create(tmp_path / "surface.json", Config(), {"ranks": [4]})
    yield made
    made.close()


def test_a_result_comes_back_with_its_states(store: Store, tmp_path: Path):
    state = Packed.of({"w": np.arange(6, dtype=np.float32).reshape(2, 3)})
    store.save("alone north", {"seconds": 1.25, "held": {"north": 3}, "states": {"north": state}})
    assert store.load("alone south") is None
    assert store.load("alone north")["seconds"] == 1.25
    again = store.load("alone north", states=True)["states"]["north"]
    assert np.array_equal(again.tensors()["w"], state.tensors()["w"])
    store.close()
    reopened = Store.open(tmp_path / "surface.json")
    assert reopened.settings() == {"ranks": [4]}
    assert reopened.load("alone north")["held"] == {"north": 3}
    reopened.close()


def test_nothing_is_overwritten(store: Store, tmp_path: Path):
    with pytest.raises(UsageError, match="--resume"):
        Store.create(tmp_path / "surface.json", Config(), {})
    assert free_name(str(tmp_path), "surface") == tmp_path / "surface-2.json"
    assert free_name(str(tmp_path), "other") == tmp_path / "other.json"


def test_two_commands_do_not_share_a_work_folder(store: Store, tmp_path: Path):
    with pytest.raises(TrustChainError, match="in use by process"):
        Store.open(tmp_path / "surface.json")


def test_what_was_never_begun_cannot_be_resumed(tmp_path: Path):
    with pytest.raises(UsageError, match="no begun measurement"):
        Store.open(tmp_path / "absent.json")


def test_another_base_or_other_records_are_named(store: Store):
    store.agree({"base": "aa", "training_records": "bb"})
    store.agree({"base": "aa", "training_records": "bb"})
    with pytest.raises(TrustChainError, match="training_records: bb -> cc"):
        store.agree({"base": "aa", "training_records": "cc"})


def test_a_damaged_result_is_named_not_believed(store: Store, tmp_path: Path):
    store.save("one", {"seconds": 1.0})
    (path,) = (work_folder(tmp_path / "surface.json") / "results").iterdir()
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(TrustChainError, match=f"{path.name} is missing or damaged"):
        store.load("one")
