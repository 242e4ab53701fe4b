"""What a re-execution concludes: the same, a difference, or that nothing can be compared."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ledger.report import Report
from trustchain_ray import forms
from trustchain_ray.adapter import Tensors, digest, save_tensors
from trustchain_ray.assembly import INITIAL
from trustchain_ray.config import Config
from trustchain_ray.config_files import load_config
from trustchain_ray.errors import TrustChainError
from trustchain_ray.forgetting.attest import Conditions
from trustchain_ray.forgetting.outcome import Outcome
from trustchain_ray.forgetting.reexecute import merge_again
from trustchain_ray.forgetting.standing import Difference, Merged, Recorded
from trustchain_ray.manifest import program_digest
from trustchain_ray.round_writer import update_file
from trustchain_ray.run_directory import RunDirectory

COHORT = "one"
NAME = "layer.lora_B.weight"
WEIGHTS = {"alpha": 4, "beta": 2}
QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
ENVIRONMENT = {"device": "a processor", "engine": "torch", "torch": "2"}


def tensors(seed: int) -> Tensors:
    return {NAME: np.random.default_rng(seed).standard_normal((6, 2)).astype(np.float32)}


@pytest.fixture
def config() -> Config:
    return load_config([str(QUICKSTART)], [])


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A run whose first round has kept its updates."""
    made = RunDirectory(tmp_path)
    files = {INITIAL: tensors(0)}
    files |= {f"rounds/0001/{update_file(COHORT, name)}": tensors(i) for i, name in enumerate(WEIGHTS, 1)}
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        save_tensors(tmp_path / name, content)
    return made


def merged(config: Config, weights: Mapping[str, int]) -> Merged:
    """The merge of the first round, as a coordinator would log it that weighs like this."""
    updates = [tensors(i) for i in range(1, len(WEIGHTS) + 1)]
    form = forms.get(config.model.lora.form)
    step, alpha = config.federation.server_step, config.model.lora.alpha
    adapter = digest(form.merge(tensors(0), updates, list(weights.values()), step, alpha))
    signed = [
        Recorded(name, COHORT, 1, digest(tensors(0)), digest(update), weight, 4)
        for (name, weight), update in zip(WEIGHTS.items(), updates, strict=True)
    ]
    return Merged(COHORT, 1, digest(tensors(0)), adapter, "", tuple(signed))


def test_a_merge_is_the_same_again(config: Config, run: RunDirectory) -> None:
    outcome = merge_again(config, run, [merged(config, WEIGHTS)], Outcome())
    assert (outcome.merges, outcome.left_out, outcome.to_dict()["same"]) == (1, 0, True)


def test_a_merge_with_other_weights_than_were_signed_is_found(config: Config, run: RunDirectory) -> None:
    outcome = merge_again(config, run, [merged(config, {"alpha": 2, "beta": 4})], Outcome())
    assert outcome.differences == [Difference("", COHORT, 1)]
    assert outcome.check("merges").status == "fail"


def test_a_kept_update_that_was_changed_is_named(config: Config, run: RunDirectory) -> None:
    path = run.path / "rounds" / "0001" / update_file(COHORT, "beta")
    save_tensors(path, tensors(9))
    with pytest.raises(TrustChainError, match=r"beta\.safetensors: is not the update that was merged"):
        merge_again(config, run, [merged(config, WEIGHTS)], Outcome())


@pytest.mark.parametrize("gone", [INITIAL, f"rounds/0001/{update_file(COHORT, 'alpha')}"])
def test_a_merge_whose_files_were_not_kept_is_counted(config: Config, run: RunDirectory, gone: str) -> None:
    (run.path / gone).unlink()
    outcome = merge_again(config, run, [merged(config, WEIGHTS)], Outcome())
    assert (outcome.merges, outcome.left_out, outcome.to_dict()["same"]) == (0, 1, None)
    report = Report("run")
    outcome.describe(report, "merges")
    assert report.ok
    assert "1 merges: what they took was not kept" in report.not_checked[0]


def recorded(removal: str = "") -> Recorded:
    return Recorded("alpha", COHORT, 1, "base", "update", 5, 4, removal)


def conditions(**changes: Any) -> Conditions:
    return Conditions({"program": program_digest(), "environments": {"alpha": ENVIRONMENT}} | changes, {})


def test_the_same_program_and_hardware_class_can_be_compared() -> None:
    assert conditions().other_program([recorded()]) == ""
    assert conditions().other_hardware([recorded()], {"alpha": dict(ENVIRONMENT)}) == ""


def test_another_program_cannot_be_compared() -> None:
    assert "program of this version" in conditions(program="0" * 64).other_program([recorded()])


@pytest.mark.parametrize("removal", ["", "a removal without a certificate"])
@pytest.mark.parametrize("change", [{"device": "another processor"}, {"torch": "3"}, {"engine": "deepspeed"}])
def test_another_hardware_class_cannot_be_compared(change: Mapping[str, str], removal: str) -> None:
    now = {"alpha": {**ENVIRONMENT, **change}}
    why = conditions().other_hardware([recorded(removal)], now)
    assert "alpha" in why
    report = Report("run")
    Outcome(inconclusive=why).describe(report, "all")
    assert (report.ok, report.checks[0].status) == (True, "skipped")
    assert report.checks[0].detail == f"cannot be compared bit by bit: {why}"


def test_steps_and_the_first_difference_are_counted_by_removal() -> None:
    outcome = Outcome()
    later = Difference("alpha", COHORT, 2, 3, 4)
    for removal, difference in (("a", None), ("b", None), ("a", later), ("a", Difference("alpha", COHORT, 3))):
        outcome.note(recorded(removal), difference)
    assert {name: (f.steps, f.difference) for name, f in outcome.findings.items()} == {"a": (12, later), "b": (4, None)}
    said = outcome.to_dict()
    assert (said["steps"], said["updates"], said["same"]) == (16, 4, False)
    assert said["first_difference"] == {**vars(later), "text": str(later)}
