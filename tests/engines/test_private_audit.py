"""The audit of the mechanism itself: sums, noise and sampling of private steps, with canaries of one coordinate each.

Such a canary is the strongest that the mechanism admits: its gradient has the norm of the clip and meets no other.
"""

import numpy as np
import pytest
import torch
from tiny import base_of, draw, tiny

from trustchain_ray.engines.torch_engine import TorchEngine
from trustchain_ray.keys import derive, generator
from trustchain_ray.privacy.account import calibrate
from trustchain_ray.privacy.audit import Bound, one_run
from trustchain_ray.privacy.gradients import PrivateGradient
from trustchain_ray.privacy.steps import PrivateSteps
from trustchain_ray.sampling import plan

CANARIES, DELTA = 500, 1e-5


@pytest.fixture(scope="module")
def engine() -> TorchEngine:
    config = tiny()
    engine = TorchEngine(config, base_of(config))
    engine.load(draw(engine, 1), 8.0)
    return engine


def audited(engine: TorchEngine, rate: float, steps: int, noise: float, key: int) -> Bound:
    """The bound from the sum of all noised gradients."""
    private = PrivateSteps("record", 1.0, noise, derive("audit", "noise", key))
    gradient = PrivateGradient(engine.adapter, sorted(engine.shapes()), engine.loaded, private, 32)
    included = generator("audit", "included", key).integers(2, size=CANARIES).astype(bool)
    there = np.flatnonzero(included)
    sizes = [parameter.numel() for parameter in gradient.parameters.values()]
    seen = np.zeros(CANARIES)
    for number, step in enumerate(plan(derive("audit", "steps", key), [f"c{i}" for i in there], rate, steps)):
        total = torch.zeros(sum(sizes), dtype=torch.float64)
        total[there[step]] = 1.0
        parts = zip(gradient.parameters.items(), total.split(sizes), strict=True)
        gradient.release({name: part.view_as(parameter).clone() for (name, parameter), part in parts}, number)
        noised = torch.cat([p.grad.flatten() for p in gradient.parameters.values() if p.grad is not None])
        seen += noised[:CANARIES].numpy()
    return one_run(seen, included, DELTA)


@pytest.mark.parametrize(("rate", "steps"), [(1.0, 1), (0.25, 16)], ids=["one step", "sampled steps"])
@pytest.mark.parametrize("account", [1.0, 3.0])
def test_the_bound_is_below_the_account_and_above_it_without_the_noise(
    engine: TorchEngine, rate: float, steps: int, account: float
) -> None:
    noise = calibrate(account, DELTA, rate, steps)
    assert all(audited(engine, rate, steps, noise, key).epsilon <= account for key in range(5))
    assert audited(engine, rate, steps, 0.0, 0).epsilon > account


def test_a_quarter_of_the_noise_is_seen(engine: TorchEngine) -> None:
    noise = calibrate(1.0, DELTA, 1.0, 1)
    assert audited(engine, 1.0, 1, noise / 4, 0).epsilon > 1.0
    assert audited(engine, 1.0, 1, noise, 0).epsilon > 0.0


def test_most_of_a_large_epsilon_is_not_reached_but_a_part_is(engine: TorchEngine) -> None:
    noise = calibrate(8.0, DELTA, 1.0, 1)
    bounds = [audited(engine, 1.0, 1, noise, key).epsilon for key in range(5)]
    assert min(bounds) > 1.5
    assert max(bounds) < 8.0
