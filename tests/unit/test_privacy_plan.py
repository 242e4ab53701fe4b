"""`trustchain privacy plan`: what it refuses in one message, and what it says where the noise drowns the steps."""

import re
from pathlib import Path

import pytest

from trustchain_ray.cli import main
from trustchain_ray.privacy.signal import step_warning

QUICKSTART = str(Path(__file__).parents[2] / "configs" / "quickstart.yaml")


def plan(*overrides: str) -> int:
    return main(["privacy", "plan", "-c", QUICKSTART, "privacy.dp=record", *overrides])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("privacy.epsilon=0", r"privacy\.epsilon=0\.0: must be at least 0\.001"),
        ("privacy.epsilon=-1", r"privacy\.epsilon=-1\.0: must be at least 0\.001"),
        ("privacy.delta=0.05", r"privacy\.delta=0\.05: with \d+ units .* must be below 1/\d+"),
        ("privacy.delta=0.2", r"privacy\.delta=0\.2: must be from 0 to 0\.1"),
        ("training.sampling_rate=1.5", r"training\.sampling_rate=1\.5: must be from 0 to 1"),
    ],
)
def test_a_budget_that_protects_nobody_is_refused_in_one_message(
    override: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan(override) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.search(message, err), err
    assert err.count(override.split("=")[0]) == 1


def test_the_plan_says_what_to_change_where_the_noise_drowns_the_steps(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan("training.batch_size=8") == 0
    said = capsys.readouterr().out.splitlines()[-1]
    assert re.match(
        r"warning: privacy\.dp=record: a step's noise is .* in the mean of 4: .* \(now 8 of \d+ units\)", said
    )


def test_steps_that_hold_more_signal_than_noise_need_no_warning() -> None:
    assert step_warning("record", 2.0, 4, 64, 4000) is None  # the mean of four has half of the noise
    assert "1.5 times in the mean of 4" in str(step_warning("record", 3.0, 4, 64, 4000))
