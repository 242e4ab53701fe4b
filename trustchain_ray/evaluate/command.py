"""The command line of `trustchain evaluate`."""

import argparse
import json
import sys
from typing import Any

from trustchain_ray.errors import UsageError
from trustchain_ray.evaluate.privacy_table import is_above_its_account, privacy_table

EXAMPLES = """examples:
  trustchain evaluate runs/quickstart
  trustchain evaluate runs/quickstart --model another/adapter --json
  trustchain evaluate runs/quickstart --forgetting --forget removed.jsonl
  trustchain evaluate runs/quickstart --forgetting --forget removed.jsonl --retrained runs/never --old runs/before
  trustchain evaluate runs/quickstart --forgetting --forget removed.jsonl --no-relearn --set new_tokens=50 records=100
  trustchain evaluate runs/quickstart --privacy
  trustchain evaluate runs/audit --privacy --set records=2000 confidence=0.99 --json

--privacy attacks the model with the training records of each organization (members) and its test records (others). A
run that was trained with privacy.canaries=N is audited, too: with privacy.dp=record or subject the exit code is 1 where
the lower bound on epsilon is above what the privacy account says.

--set with --privacy: records, min_k, confidence, batch. With --forgetting: these and new_tokens, quantisations
(int8,nf4 or none), margin.METRIC (loss, probability, log_truth_ratio, rouge), relearn.NAME (lr, batch, most_steps,
every, slack).
"""
SHOWN = (
    *(("forget", m) for m in ("loss", "probability", "accuracy", "rouge", "truth_ratio")),
    *(("forget", m) for m in ("exact_memorisation", "extraction_strength")),
    *(("retain", m) for m in ("loss", "probability", "accuracy", "rouge", "truth_ratio", "exact_memorisation")),
    *(("holdout", m) for m in ("loss", "probability", "accuracy", "rouge")),
)
"""Means of the table; `--json` has all."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("run", metavar="RUN", help="run directory")
    parser.add_argument(
        "--model", metavar="DIR", help="another adapter folder, or run, of the same base (default: the released model)"
    )
    forgetting = parser.add_argument_group("metrics of forgetting")
    forgetting.add_argument("--forgetting", action="store_true", help="measure what the model knows of --forget")
    forgetting.add_argument("--forget", metavar="FILE", help="records that were removed, with the run's columns")
    forgetting.add_argument("--retain", metavar="FILE", help="retained records (default: 200 training records)")
    forgetting.add_argument(
        "--holdout", metavar="FILE", help="records that no model was trained on (default: 200 test records)"
    )
    forgetting.add_argument(
        "--retrained", metavar="RUN_OR_DIR", nargs="+", default=[], help="models that never had the records"
    )
    forgetting.add_argument("--old", metavar="RUN_OR_DIR", help="the model before the removal, for relearn time")
    forgetting.add_argument("--no-relearn", action="store_true", help="leave relearn time out")
    privacy = parser.add_argument_group("privacy")
    privacy.add_argument("--privacy", action="store_true", help="membership attacks, memorisation, audit by canaries")
    parser.add_argument("--set", metavar="KEY=VALUE", nargs="+", default=[], help="how to measure; see below")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")


def run(arguments: argparse.Namespace) -> int:
    """Run the verb. Raises UsageError, TrustChainError."""
    check(arguments)
    if arguments.forgetting:
        from trustchain_ray.evaluate.forgetting import measure_forgetting

        result = measure_forgetting(
            arguments.run,
            arguments.forget,
            _progress,
            model=arguments.model,
            retain=arguments.retain,
            holdout=arguments.holdout,
            retrained=arguments.retrained,
            old=arguments.old,
            relearn=not arguments.no_relearn,
            options=arguments.set,
        )
        print(forgetting_table(result))
    elif arguments.privacy:
        from trustchain_ray.evaluate.privacy import measure_privacy

        result = measure_privacy(arguments.run, _progress, model=arguments.model, options=arguments.set)
        print(privacy_table(result))
    else:
        from trustchain_ray.evaluate.scores import evaluate

        result = evaluate(arguments.run, arguments.model, _progress)
        print(scores_table(result))
    if arguments.json:
        print(json.dumps(result))
    return 1 if arguments.privacy and is_above_its_account(result) else 0


def check(arguments: argparse.Namespace) -> None:
    """Refuse contradictions. Raises UsageError."""
    if arguments.forgetting and not arguments.forget:
        raise UsageError("--forgetting needs the records: --forget FILE, JSON lines with the run's columns")
    if arguments.forgetting and arguments.privacy:
        raise UsageError("--forgetting and --privacy measure different things; give one of them")
    if arguments.set and not (arguments.forgetting or arguments.privacy):
        raise UsageError("--set: only with --forgetting or --privacy")
    names = ("forget", "retain", "holdout", "retrained", "old", "no_relearn")
    given = [f"--{name.replace('_', '-')}" for name in names if getattr(arguments, name)]
    if given and not arguments.forgetting:
        raise UsageError(f"{', '.join(given)}: only with --forgetting")


def scores_table(result: dict[str, Any]) -> str:
    """Scores by organization, their mean, and what the run said of the same model."""
    scores = result["scores"]
    metrics = [name for name in ("accuracy", "token_accuracy", "loss") if name in scores]
    rows = [(n, str(result["records"][n]), row) for n, row in scores["by_organization"].items()]
    rows.append(("mean", str(sum(result["records"].values())), scores))
    if result["of_run"] is not None:
        rows.append(("in the run", "", result["of_run"]))
    lines = ["", f"{'organization':<24}{'records':>10}" + "".join(f"{metric:>16}" for metric in metrics)]
    for name, records, row in rows:
        cells = (f"{row[m]:>16.4f}" if m in row else f"{'-':>16}" for m in metrics)
        lines.append(f"{name:<24}{records:>10}" + "".join(cells))
    what = "released by the run" if result["released"] else "not what the run released"
    return "\n".join([*lines, "", f"model   {result['adapter']['digest']}  {result['adapter']['folder']} ({what})"])


def forgetting_table(result: dict[str, Any]) -> str:
    """The model, each retrained one, and how far the model is from their mean; then what compares them."""
    models = [result["model"], *result["retrained"]]
    header = ["model", *(f"retrained {i}" for i in range(1, len(models)))]
    rows: list[tuple[str, list[float | None]]] = [
        (f"{name} {metric}", [each.get(name, {}).get(metric) for each in models]) for name, metric in SHOWN
    ]
    rows.append(("model utility", [each.get("model_utility") for each in models]))
    for attack in sorted(result["model"].get("membership", {})):
        rows.append((f"attack {attack} (AUC)", [each["membership"][attack]["auc"]["value"] for each in models]))
    rows.append(("relearn steps", [each.get("relearn", {}).get("steps") for each in models]))
    if result["retrained"]:
        header.append("difference")
    lines = ["", f"{'':<28}" + "".join(f"{name:>13}" for name in header)]
    for label, values in rows:
        if any(value is not None for value in values):
            lines.append(f"{label:<28}" + "".join(f"{_cell(value):>13}" for value in [*values, *_difference(values)]))
    compared = {
        "forget quality (KS p)": [each["p_value"] for each in result.get("forget_quality", [])],
        "tug of war": result.get("tug_of_war", []),
        "relearn ratio": result.get("relearn_ratio", []),
    }
    for label, found in compared.items():
        if found:
            lines.append(f"{label:<28}{'':>13}" + "".join(f"{_cell(value):>13}" for value in found))
    for metric, test in result.get("equivalence", {}).items():
        said = "equivalent" if test["equivalent"] else "not shown to be equivalent"
        lines.append(f"{metric} of the forgotten: {said} within {test['margin']:.4g} (p {test['p_value']:.3g})")
    for number, reference in enumerate(result["references"], 1):
        same = "  the same model, bit for bit" if reference["same"] else ""
        lines.append(f"retrained {number}  {reference['digest']}  {reference['folder']}{same}")
    lines.append(f"model        {result['adapter']['digest']}  {result['adapter']['folder']}")
    if result["still_in_training"]:
        lines.append(f"warning      {result['still_in_training']} of the records are still in the run's training data")
    return "\n".join(lines)


def _difference(values: list[float | None]) -> list[float | None]:
    """Of the model from the mean of the references."""
    if len(values) == 1:
        return []
    others = [value for value in values[1:] if value is not None]
    if values[0] is None or len(others) < len(values) - 1:
        return [None]
    return [values[0] - sum(others) / len(others)]


def _cell(value: float | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.4f}"


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
