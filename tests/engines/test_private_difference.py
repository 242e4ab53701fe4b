"""What the difference of two published models, before and after a removal, tells of the removed record."""

import numpy as np
import pytest
from tiny import base_of, draw, rows_of, tiny

from trustchain_ray.engines.torch_engine import TorchEngine
from trustchain_ray.forgetting.metrics.roc import auc
from trustchain_ray.keys import derive
from trustchain_ray.privacy.steps import PrivateSteps

STEPS = [[0, 3, 1, 7], [2, 10, 5], [4, 3, 8]]
REMOVED = 3
WITHOUT = [[i for i in step if i != REMOVED] for step in STEPS]
TRIALS = 12


class Difference:
    """Models trained with and without one record, as flat vectors."""

    def __init__(self) -> None:
        config = tiny()
        self.engine = TorchEngine(config, base_of(config))
        self.rows, self.begin = rows_of(self.engine, config), draw(self.engine, 1)

    def trained(self, steps: list[list[int]], noise: float, key: str) -> np.ndarray:
        private = PrivateSteps("record", 0.5, noise, derive("test", "noise", key))
        self.engine.load(self.begin, 8.0)
        self.engine.train(self.rows, steps, [0.01] * len(steps), private=private)
        tensors = self.engine.tensors(sorted(self.begin))
        return np.concatenate([tensors[name].ravel() for name in sorted(tensors)]).astype(np.float64)


@pytest.fixture(scope="module")
def difference() -> Difference:
    return Difference()


@pytest.mark.slow
def test_who_knows_the_record_sees_it_in_the_difference_with_the_old_noise_and_not_with_fresh_noise(
    difference: Difference,
) -> None:
    part = difference.trained(STEPS, 0.0, "none") - difference.trained(WITHOUT, 0.0, "none")
    part /= np.linalg.norm(part)
    before = [difference.trained(STEPS, 1.0, f"run {i}") for i in range(TRIALS)]
    never = [difference.trained(WITHOUT, 1.0, f"run {i}") for i in range(TRIALS)]
    after = [difference.trained(WITHOUT, 1.0, f"replay {i}") for i in range(TRIALS)]

    def told(replays: list[np.ndarray]) -> float:
        """AUC of who guesses from the record's own part of each difference whether the record was in the first."""
        was, was_not = (
            np.array([part @ (first - second) for first, second in zip(models, replays, strict=True)])
            for models in (before, never)
        )
        return auc(was, was_not, 0.95).value

    assert told(never) == 1.0
    assert told(after) < 0.7  # 0.5 is guessing
    assert np.linalg.norm(before[0] - after[0]) > 10 * np.linalg.norm(before[0] - never[0])
