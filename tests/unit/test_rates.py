"""Learning rates: constants of the run."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trustchain_ray.config import CHOICES, TrainingConfig
from trustchain_ray.rates import learning_rates

schedules = st.sampled_from(CHOICES["training.schedule"])


def test_the_schedules_by_hand():
    def rates(schedule: str, warmup: int = 0) -> list[float]:
        return learning_rates(TrainingConfig(lr=2.0, schedule=schedule, warmup_steps=warmup), 0, 4, 4)

    assert rates("constant") == [2.0, 2.0, 2.0, 2.0]
    assert rates("linear") == [2.0, 1.5, 1.0, 0.5]
    assert rates("cosine") == pytest.approx([2.0, 1 + 0.5**0.5, 1.0, 1 - 0.5**0.5])
    assert rates("constant", warmup=4) == [0.5, 1.0, 1.5, 2.0]
    assert rates("linear", warmup=2) == [1.0, 1.5, 1.0, 0.5]


@given(schedules, st.integers(0, 30), st.integers(1, 60), st.integers(0, 60), st.integers(0, 60))
def test_a_slice_equals_the_same_positions_of_the_whole(schedule: str, warmup: int, total: int, first: int, count: int):
    training = TrainingConfig(lr=0.3, schedule=schedule, warmup_steps=warmup)
    whole = learning_rates(training, 0, first + count, total)
    assert learning_rates(training, first, count, total) == whole[first:]
    assert len(whole) == first + count


@given(schedules, st.integers(0, 30), st.integers(1, 60))
def test_rates_are_positive_at_most_the_peak_and_fall_after_the_warm_up(schedule: str, warmup: int, total: int):
    rates = learning_rates(TrainingConfig(lr=0.3, schedule=schedule, warmup_steps=warmup), 0, total, total)
    assert all(0 < rate <= 0.3 for rate in rates)
    after = rates[max(0, warmup - 1) :]
    assert after == sorted(after, reverse=True)


def test_no_rate_beyond_the_end_is_negative():
    assert learning_rates(TrainingConfig(lr=0.3, schedule="linear"), 4, 3, 4) == [0.0, 0.0, 0.0]
