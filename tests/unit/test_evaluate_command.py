"""The command line of evaluate: what it takes and refuses before anything is loaded, and its tables."""

import argparse
from typing import Any

import pytest

from trustchain_ray.errors import UsageError
from trustchain_ray.evaluate.command import add_arguments, check, forgetting_table, scores_table
from trustchain_ray.evaluate.privacy_table import is_above_its_account, privacy_table


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(["run", *arguments])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--forgetting"], "--forgetting needs the records: --forget FILE"),
        (["--forget", "f.jsonl"], "--forget: only with --forgetting"),
        (["--set", "batch=4"], "--set: only with --forgetting or --privacy"),
        (["--privacy", "--no-relearn"], "--no-relearn: only with --forgetting"),
        (["--privacy", "--forgetting", "--forget", "f.jsonl"], "give one of them"),
        (["--retrained", "a", "b", "--old", "c"], "--retrained, --old: only with --forgetting"),
    ],
)
def test_contradictions_are_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check(parsed(*arguments))


def test_several_references_and_settings_stand_behind_one_option() -> None:
    arguments = parsed("--forgetting", "--forget", "f", "--retrained", "a", "b", "--set", "batch=4", "records=9")
    check(arguments)
    assert (arguments.retrained, arguments.set) == (["a", "b"], ["batch=4", "records=9"])


def test_scores_stand_by_organization_with_their_mean_beside_those_of_the_run() -> None:
    rows = {"north": {"accuracy": 0.5, "loss": 1.25}, "south": {"accuracy": 0.25, "loss": 1.75}}
    result: dict[str, Any] = {
        "adapter": {"folder": "runs/a/model", "digest": "abcd"},
        "released": True,
        "records": {"north": 10, "south": 4},
        "scores": {"accuracy": 0.375, "loss": 1.5, "by_organization": rows},
        "of_run": {"accuracy": 0.3751, "loss": 1.5},
    }
    cells = [line.split() for line in scores_table(result).splitlines()]
    assert ["organization", "records", "accuracy", "loss"] in cells
    assert ["south", "4", "0.2500", "1.7500"] in cells
    assert ["mean", "14", "0.3750", "1.5000"] in cells
    assert ["in", "the", "run", "0.3751", "1.5000"] in cells
    other = scores_table({**result, "released": False, "of_run": None})
    assert "in the run" not in other
    assert "not what the run released" in other


def result_of(*forget_losses: float, **more: Any) -> dict[str, Any]:
    """A result of which the table shows the losses of forgotten records: of the model and of references."""
    model, *retrained = ({"forget": {"loss": loss}} for loss in forget_losses)
    references = [{"folder": f"r{i}", "digest": f"d{i}", "same": i == 1} for i in range(len(retrained))]
    return {
        "adapter": {"folder": "m", "digest": "dm"}, "references": references, "still_in_training": 0,
        "model": model, "retrained": retrained, **more,
    }  # fmt: skip


def test_the_difference_is_taken_from_the_mean_of_the_references() -> None:
    table = forgetting_table(result_of(3.0, 1.0, 2.0, tug_of_war=[0.5, 0.75], relearn_ratio=[1.0, None]))
    cells = [line.split() for line in table.splitlines()]
    assert ["forget", "loss", "3.0000", "1.0000", "2.0000", "1.5000"] in cells
    assert ["tug", "of", "war", "0.5000", "0.7500"] in cells
    assert ["relearn", "ratio", "1.0000", "-"] in cells
    assert "retrained 2  d1  r1  the same model, bit for bit" in table
    assert "warning" not in table


def test_without_references_there_is_no_difference_and_a_warning_is_repeated() -> None:
    table = forgetting_table(result_of(3.0, still_in_training=2))
    assert "difference" not in table
    assert "2 of the records are still in the run's training data" in table


def audited(epsilon: float, kept: bool | None, **account: Any) -> dict[str, Any]:
    return {
        "canaries": 40, "included": 22, "seen": "update", "mean_exposure": 1.5, "auc": {"value": 0.625},
        "bound": {"epsilon": epsilon, "right": 30, "guesses": 40}, "kept": kept,
        "account": {"epsilon": 3.0, "delta": 1e-5, "unit": "record", "composed": True, **account},
    }  # fmt: skip


def privacy_of(task: str, **organizations: dict[str, Any]) -> dict[str, Any]:
    area = {"value": 0.5, "low": 0.4, "high": 0.6}
    rates = [{"resolved": resolved, "rate": area} for resolved in (True, False)]
    attacked = {
        "members": 9, "others": 100, "membership": {"loss": {"auc": area, "true_positive_rates": rates}},
        "memorisation": {"extraction_strength": {"members": 0.25, "others": 0.125}},
    }  # fmt: skip
    audit = {"confidence": 0.95, "by_organization": organizations, "all": next(iter(organizations.values()), None)}
    return {
        "task": task, "adapter": {"folder": "m", "digest": "d"}, "audit": audit if organizations else None,
        "attacks": {"by_organization": {"north": attacked}, "all": attacked},
    }  # fmt: skip


def test_the_audit_stands_beside_the_account_and_says_where_it_is_above() -> None:
    fine, broken = privacy_of("causal", north=audited(1.25, True)), privacy_of("causal", north=audited(3.5, False))
    cells = [line.split() for line in privacy_table(fine).splitlines()]
    assert ["north", "40", "22", "update", "1.50", "0.625", "30/40", "1.25", "3.00", "1e-05"] in cells
    assert ["north", "(9/100)", "loss", "0.500", *["[0.400,", "0.600]", "0.500", "[0.400,", "0.600]", "-"]] in cells
    assert ["north", "extraction", "strength", "0.250", "0.125"] in cells
    assert "ABOVE THE ACCOUNT" in privacy_table(broken)
    assert (is_above_its_account(fine), is_above_its_account(broken)) == (False, True)


def test_what_an_audit_does_not_say_is_said() -> None:
    paper = privacy_of("causal", north=audited(3.5, None, composed=False, unit="paper"))
    assert "holds for one step" in privacy_table(paper)
    assert not is_above_its_account(paper)
    whole = privacy_of("causal", north=audited(0.0, None, unit="organization"))
    assert "canaries are records, and do not test it" in privacy_table(whole)
    few = privacy_of("classification", north={**audited(0.0, None), "bound": None, "seen": "model"})
    assert "too few canaries" in privacy_table(few)
    assert "federation.keep_updates=all" in privacy_table(few)
    assert "do not apply" in privacy_table(privacy_of("classification"))
    assert not is_above_its_account(privacy_of("classification"))
