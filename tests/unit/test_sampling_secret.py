"""Which steps read a record: under privacy nobody but its organization can know."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ledger.identity import load_or_create
from ledger.removal import TRAIN
from trustchain_ray.config import Config
from trustchain_ray.data import Holdings, Record
from trustchain_ray.forgetting.holder import Holder, Usage
from trustchain_ray.party import Party
from trustchain_ray.privacy.account import calibrate
from trustchain_ray.privacy.audit import one_run
from trustchain_ray.privacy.member import MemberPrivacy
from trustchain_ray.sampling import inclusion_steps

ConfigOf = Callable[..., Config]


def key_of(config: Config, keys: Path, dp: str, run: str = "run-1", generation: int = 0) -> bytes:
    config.run.keystore, config.privacy.dp = str(keys), dp
    holdings = Holdings("north", [Record("r", "r", "", "text")])
    return Party(config, "north", run, holdings=holdings)._sampling_key(generation)


def test_it_is_the_organization_s_own_under_privacy_and_the_run_s_without(config_of: ConfigOf, tmp_path: Path) -> None:
    config, (one, other) = config_of(), (tmp_path / name / "keys" for name in ("one", "other"))
    assert key_of(config, one, "none") == key_of(config, other, "none")
    for dp in ("record", "subject"):
        assert key_of(config, one, dp) == key_of(config, one, dp)  # a resumed run samples alike
        assert len({key_of(config, one, dp), key_of(config, other, dp), key_of(config, one, "none")}) == 3
        assert key_of(config, one, dp) != key_of(config, one, dp, "run-2")
        assert key_of(config, one, dp) != key_of(config, one, dp, generation=1)  # a replay samples anew
    assert key_of(config, one, "none") == key_of(config, one, "none", generation=1)  # or gives the same bits


def test_the_first_round_that_read_a_record_is_one_of_training_or_of_a_replay(tmp_path: Path) -> None:
    record = Record("r", "r", "", "text")
    keys = {generation: bytes([generation]) * 32 for generation in (0, 1)}
    read = {g: {step // 4 + 1 for step in inclusion_steps(key, "r", 0.2, 24)} for g, key in keys.items()}
    usage = Usage({"all": 0.2}, {"all": [4] * 6}, 4, frozenset())
    for replayed in ({4, 5, 6}, {6}, set(read[1])):
        rounds = {0: {1, 2, 3}, 1: replayed}
        held = Holdings("north", [record, Record("s", "s", "", "text")])
        sampled = {"all": rounds}.__getitem__
        identity = load_or_create("north", tmp_path)
        holder = Holder(identity, "run", None, held, {"all": [0, 1]}, keys.__getitem__, sampled)
        expected = min((n for g in keys for n in read[g] & rounds[g]), default=0)
        assert holder._first_round(("all", TRAIN), [record], usage) == expected


def test_the_account_tells_which_rounds_a_replay_trained(config_of: ConfigOf, tmp_path: Path) -> None:
    config = config_of()
    config.run.keystore, config.privacy.dp = str(tmp_path / "keys"), "record"
    records = [Record(f"r{i}", f"r{i}", "", "text") for i in range(40)]
    privacy = MemberPrivacy(config, tmp_path, "run", "north", {"a@b": records}, {"a@b": 0.1})
    for number, generation in ((1, 0), (2, 0), (2, 7)):
        privacy.charge("a@b", number, "aa" * 32, 1, generation)
    assert privacy.rounds("a@b") == {0: {1, 2}, 7: {2}}
    assert privacy.rounds("other") == {}


@pytest.mark.parametrize("account", [1.0, 3.0])
def test_the_account_does_not_hold_against_who_knows_the_steps(account: float) -> None:
    rate, steps, canaries, draws = 0.02, 200, 1000, np.random.default_rng(0)
    noise = calibrate(account, 1e-5, rate, steps)
    included = draws.random(canaries) < 0.5
    read = draws.random((steps, canaries)) < rate
    seen: Any = draws.normal(0, noise, (steps, canaries)) + read * included
    assert one_run(seen.sum(0), included, 1e-5).epsilon < account
    assert one_run((seen * read).sum(0) - read.sum(0) / 2, included, 1e-5).epsilon > account
