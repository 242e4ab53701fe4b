"""The dial: what isolation costs in utility, and what it saves when something is removed.

    python -m benchmarks.forgetting dial          # needs TRUSTCHAIN_DATA, TRUSTCHAIN_MINILM and TRUSTCHAIN_BASE

Three federations (the quickstart, sentiment, TOFU) are trained with their organizations divided into cohorts in every
way. From the last cohort adapters of each run models are made by every merging, without training again, and scored on
the organizations' test records: means over organizations, beside each organization alone. Costs are shares of the
training steps, by the plan that a removal makes: of one random record, and of one organization.

Layouts are compared with equal steps per cohort and one sampling rate: every cohort has as many optimizer steps as the
one cohort for all, every record is read as often, so the shards' steps hold fewer records. The second series of
the sentiment federation has equal total steps: S shards train a share 1 / S of the rounds, at S times the rate.

`mean x s` and `own + w others` are fixed grids, all of which is shown: none is chosen. An analytic head is a ridge
regression on the frozen base's features from sums over records, which trains nothing. Two upgrades that keep removal
exact stand beside them in the quickstart: rows of A of its own for every organization, and a longer (or no)
warm-up of the base on public records.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import table
from benchmarks.forgetting_dial_merges import Offline, all_merges, means
from benchmarks.forgetting_dial_runs import (
    EQUAL_STEPS,
    METRICS,
    QUICKSTART,
    SERIES,
    TINY_SERIES,
    WORK,
    Layout,
    Runs,
    Save,
    Series,
    removal_costs,
)  # fmt: skip
from benchmarks.forgetting_dial_upgrades import Subspaces

SAMPLES = 40
ISOLATED = "isolated"
HEADS, SUBSPACES = "analytic heads", "orthogonal subspaces"


def dial_part(done: dict[str, Any], save: Save, seeds: Sequence[int], work: Path | None, tiny: bool) -> None:
    """Train every layout, merge in every way, plan removals; what stands in `done` or lies in `work` is not done again.

    The first two of `seeds` count, for TOFU and the second sentiment series the first one.
    """
    runs = Runs(done, save, (work or WORK / ("tiny" if tiny else "full")).resolve(), tiny)
    with runs.stack:
        for i, seed in enumerate(seeds):
            for series in TINY_SERIES if tiny else SERIES:
                if i < series.seeds:
                    _measure(runs, series, seed)


def _measure(runs: Runs, series: Series, seed: int) -> None:
    """One seed of a series."""
    prefix = f"{series.federation}/{series.name}/seed {seed}"
    names = [layout.name for layout in series.layouts]
    divided = [layout for layout in series.layouts if layout.cohorts in ("by_organization", "by_both")]
    subspaces = {f"{layout.name}, {SUBSPACES}": layout for layout in divided} if series.federation == QUICKSTART else {}
    if series.name == EQUAL_STEPS:
        names += [HEADS, *subspaces]
    if all(f"{prefix}/{name}" in runs.done for name in names):
        return
    layouts = {layout.name: layout for layout in series.layouts}
    offline = Offline(runs.trained(series, series.layouts[0], seed))
    for name in names:
        if (key := f"{prefix}/{name}") in runs.done:
            continue
        if name == HEADS:
            runs.note(key, {"scores": means(offline.analytic())})
        elif name in subspaces:
            run = runs.trained(series, subspaces[name], seed)
            runs.note(key, {"scores": means(Subspaces(offline, run).scores())})
        else:
            runs.note(key, _layout(offline, runs.trained(series, layouts[name], seed)))
        print(f"{key}: {json.dumps(runs.done[key])}", flush=True)


def _layout(offline: Offline, path: Path) -> dict[str, Any]:
    """All mergings of a run, and what removals from it cost."""
    said = json.loads((path / "result.json").read_text(encoding="utf-8"))["scores"]
    scores = means(all_merges(offline, path))
    if ISOLATED in said:
        scores |= means({ISOLATED: said[ISOLATED]["by_organization"]})
    return {"cost": removal_costs(path, SAMPLES), "scores": scores}


def dial_table(done: dict[str, Any]) -> str:
    """A table for each series: means over seeds."""
    out = []
    for series in SERIES:
        found = {layout: _seeds(done, series, layout.name) for layout in series.layouts}
        found = {layout: rows for layout, rows in found.items() if rows}
        if not found:
            continue
        metric = METRICS[series.federation]
        names = list(dict.fromkeys(name for rows in found.values() for row in rows for name in row["scores"]))
        names = [name for name in names if name != ISOLATED]
        lines = [_line(layout, rows, names, metric) for layout, rows in found.items()]
        seeds = max(len(rows) for rows in found.values())
        out.append(f"{series.federation}, {series.name}: {metric}, {seeds} seed{'s' if seeds > 1 else ''}")
        out.append(table(["cohorts", "a record", "an organization", "steps", *names], lines))
        isolated = _mean([row for rows in found.values() for row in rows], ISOLATED, metric)
        out += [f"each organization isolated: {isolated}"] if isolated != "-" else []
        for name in dict.fromkeys(n for row in _seeds(done, series, HEADS) for n in row["scores"]):
            out.append(f"{name}: {_mean(_seeds(done, series, HEADS), name, metric)}")
        for layout in series.layouts:
            if rows := _seeds(done, series, f"{layout.name}, {SUBSPACES}"):
                said = ", ".join(f"{name} {_mean(rows, name, metric)}" for name in rows[0]["scores"])
                out.append(f"{layout.name}, {SUBSPACES}: {said}")
    return "\n".join(out)


def _seeds(done: Mapping[str, Any], series: Series, layout: str) -> list[dict[str, Any]]:
    start = f"{series.federation}/{series.name}/seed "
    return [v for key, v in done.items() if key.startswith(start) and key.split("/")[-1] == layout]


def _line(layout: Layout, rows: Sequence[dict[str, Any]], names: Sequence[str], metric: str) -> list[str]:
    costs = [f"{statistics.fmean(row['cost'][what] for row in rows):.1%}" for what in ("record", "organization")]
    steps = str(round(statistics.fmean(row["cost"]["steps"] for row in rows)))
    return [layout.name, *costs, steps, *(_mean(rows, name, metric) for name in names)]


def _mean(rows: Sequence[dict[str, Any]], name: str, metric: str) -> str:
    known = [row["scores"][name][metric] for row in rows if name in row["scores"]]
    return f"{statistics.fmean(known):.3f}" if known else "-"
