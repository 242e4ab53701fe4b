"""The section `privacy`: what it refuses, its delta, and what it loads."""

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from trustchain_ray.errors import UsageError
from trustchain_ray.privacy.account import epsilon, per_step_noise
from trustchain_ray.privacy.pld import Charge
from trustchain_ray.privacy.settings import CHOICES, RANGES, PrivacyConfig, problems, resolved_delta


def test_defaults_are_within_their_ranges_and_documented() -> None:
    settings = PrivacyConfig()
    assert settings.dp in CHOICES["privacy.dp"]
    for path, least, most in RANGES:
        value = getattr(settings, path.removeprefix("privacy."))
        assert least is None or value >= least
        assert most is None or value <= most
    assert all(entry.metadata["doc"].endswith(".") for entry in fields(settings))
    assert list(problems(settings, engine="deepspeed", max_grad_norm=1.0)) == []


@pytest.mark.parametrize("dp", ["record", "subject", "paper"])
def test_what_does_not_go_with_private_steps_is_named(dp: str) -> None:
    settings = PrivacyConfig(dp=dp, noise_multiplier=0.01)
    found = list(problems(settings, engine="deepspeed", max_grad_norm=0.5, form="ffa"))
    assert any(line.startswith("privacy.noise_multiplier=0.01: less than 0.05") for line in found)
    assert any("training.max_grad_norm=0.5" in line and "privacy.clip" in line for line in found)
    assert any("use training.engine=torch" in line for line in found)
    assert any("use model.lora.form=fedavg" in line for line in found) == (dp == "paper")
    assert list(problems(PrivacyConfig(dp=dp), form="fedavg")) == []
    assert list(problems(PrivacyConfig(dp="organization"), engine="deepspeed", max_grad_norm=1.0)) == []


def test_delta_follows_the_smallest_member_and_must_be_below_one_in_n() -> None:
    assert resolved_delta(0.0, 4000) == 4000**-1.1 < 1 / 4000
    assert resolved_delta(1e-6, 4000) == 1e-6
    assert 0 < resolved_delta(0.0, 1) < 0.5
    with pytest.raises(UsageError, match=r"privacy\.delta=0\.00025: with 4000 units .* below 1/4000"):
        resolved_delta(1 / 4000, 4000)


def test_the_published_noise_of_a_step_is_no_more_than_the_exact_one_allows() -> None:
    for budget in (0.2, 0.9):
        assert epsilon((Charge(1.0, per_step_noise(budget, 1e-5), 1),), 1e-5) <= budget
    assert per_step_noise(1.0, 1e-5) == pytest.approx(4.845, abs=1e-3)
    with pytest.raises(UsageError, match="must be above 0"):
        per_step_noise(0.0, 1e-5)


def test_settings_and_the_accountant_load_neither_torch_nor_ray() -> None:
    code = (
        "import trustchain_ray.privacy.settings, trustchain_ray.privacy.account, trustchain_ray.privacy.steps, sys\n"
        "print(sorted({'torch', 'ray', 'transformers', 'peft', 'scipy'} & set(sys.modules)))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
