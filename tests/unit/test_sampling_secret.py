"""Which steps read a record: under privacy nobody but its organization can know."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trustchain_ray.config import Config
from trustchain_ray.data import Holdings, Record
from trustchain_ray.party import Party
from trustchain_ray.privacy.account import calibrate
from trustchain_ray.privacy.audit import one_run

ConfigOf = Callable[..., Config]


def key_of(config: Config, keys: Path, dp: str, run: str = "run-1") -> bytes:
    config.run.keystore, config.privacy.dp = str(keys), dp
    holdings = Holdings("north", [Record("r", "r", "", "text")])
    return Party(config, "north", run, holdings=holdings)._sampling_key()


def test_it_is_the_organization_s_own_under_privacy_and_the_run_s_without(config_of: ConfigOf, tmp_path: Path) -> None:
    config, (one, other) = config_of(), (tmp_path / name / "keys" for name in ("one", "other"))
    assert key_of(config, one, "none") == key_of(config, other, "none")
    for dp in ("record", "subject"):
        assert key_of(config, one, dp) == key_of(config, one, dp)  # a resumed run samples alike
        assert len({key_of(config, one, dp), key_of(config, other, dp), key_of(config, one, "none")}) == 3
        assert key_of(config, one, dp) != key_of(config, one, dp, "run-2")


@pytest.mark.parametrize("account", [1.0, 3.0])
def test_the_account_does_not_hold_against_who_knows_the_steps(account: float) -> None:
    rate, steps, canaries, draws = 0.02, 200, 1000, np.random.default_rng(0)
    noise = calibrate(account, 1e-5, rate, steps)
    included = draws.random(canaries) < 0.5
    read = draws.random((steps, canaries)) < rate
    seen: Any = draws.normal(0, noise, (steps, canaries)) + read * included
    assert one_run(seen.sum(0), included, 1e-5).epsilon < account
    assert one_run((seen * read).sum(0) - read.sum(0) / 2, included, 1e-5).epsilon > account
