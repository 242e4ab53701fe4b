"""`trustchain evaluate` on a run of the command line: the run's own scores, and metrics of forgetting."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from trustchain_ray.cli import main

pytestmark = pytest.mark.slow


@pytest.fixture
def evaluate(command: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """The verb in this process, which needs no Ray: its JSON, and what it said on the way."""
    monkeypatch.setenv("TRUSTCHAIN_HOME", str(command.home))

    def run(*arguments: str) -> tuple[dict[str, Any], str]:
        assert main(["evaluate", *arguments, "--json"]) == 0
        said = capsys.readouterr()
        return json.loads(said.out.splitlines()[-1]), said.out + said.err

    return run


def test_scores_are_those_of_the_run(evaluate: Any, finished: dict[str, Any]) -> None:
    result, said = evaluate(finished["run"])
    own = finished["scores"]["federated"]
    assert result["adapter"]["digest"] == finished["model_digest"]
    assert result["released"]
    assert result["records"] == {"alpha": 8, "beta": 8}
    for name, scores in own["by_organization"].items():
        assert result["scores"]["by_organization"][name] == pytest.approx(scores, abs=1e-5)
    assert {m: result["scores"][m] for m in ("accuracy", "loss")} == pytest.approx(
        {m: own[m] for m in ("accuracy", "loss")}, abs=1e-5
    )
    assert "released by the run" in said


def test_forgetting_is_measured_beside_a_reference(evaluate: Any, finished: dict[str, Any], tmp_path: Path) -> None:
    before = tmp_path / "before"
    shutil.copytree(Path(finished["run"]) / "model", before)
    files = {}
    for name, first, trained in (("forget", 0, True), ("holdout", 50, False)):
        complaint = "a racing pulse" if trained else "a broken tooth"
        answers = [" neurology", " urology"]
        rows = [
            {
                "prompt": f"Patient {i} of alpha has {complaint}. Department:",
                "answer": " cardiology",
                "perturbed_answer": answers,
            }
            for i in range(first, first + 12, 4)
        ]
        files[name] = tmp_path / f"{name}.jsonl"
        files[name].write_text("".join(json.dumps(row) + "\n" for row in rows))
    result, said = evaluate(
        finished["run"], "--forgetting", "--forget", str(files["forget"]), "--holdout", str(files["holdout"]),
        "--retrained", str(before), "--old", str(before), "--set", "new_tokens=4", "records=8",
    )  # fmt: skip
    assert result["records"] == {"forget": 3, "retain": 8, "holdout": 3}
    assert result["still_in_training"] == 3
    assert "warning: 3 of 3 records" in said
    assert result["references"][0]["same"]
    measured = {"forget", "retain", "holdout", "membership", "model_utility", "quantised", "relearn"}
    assert measured <= set(result["model"])
    assert {"forget_quality", "tug_of_war", "equivalence", "relearn_ratio"} <= set(result)
    assert result["model"]["forget"] == result["retrained"][0]["forget"]
