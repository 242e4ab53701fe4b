"""Federations for the tests of the game."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from envs import ClosedFormSurface, GameConfig, OrganizationType, Payoff


def random_game(payoff: Payoff, seed: int, organizations: int = 4, **changes: Any) -> GameConfig:
    """Return a heterogeneous federation; `changes` replace fields of the game."""
    random = np.random.default_rng(seed)
    parties = tuple(
        OrganizationType(
            name=f"hospital-{i}",
            records=int(random.integers(200, 2000)),
            data_quality=float(random.uniform(0.3, 1.0)),
            unit_cost=float(random.uniform(2e-5, 3e-4)),
            value=float(random.uniform(0.2, 1.0)),
        )
        for i in range(organizations)
    )
    fields: dict[str, Any] = {
        "organizations": parties,
        "surface": ClosedFormSurface(ceiling=0.9, steepness=1 / 1500),
        "payoff": payoff,
        "reward": sum(party.value for party in parties),
        "horizon": 4,
    }
    return GameConfig(**(fields | changes))


@pytest.fixture(scope="session")
def make_game() -> Callable[..., GameConfig]:
    return random_game
