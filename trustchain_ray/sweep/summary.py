"""The results of a sweep: means with confidence intervals over repeats, as rows, CSV, JSON lines and a text table."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trustchain_ray.sweep.outcomes import OUTCOMES
from trustchain_ray.sweep.points import short_names
from trustchain_ray.sweep.runner import Swept

CONFIDENCE = 0.95
SHOWN = {
    "participation": ("effort", ".0%"),
    "quality": ("quality", ".4f"),
    "welfare": ("welfare", ".4f"),
    "nash_conv": ("NashConv", ".2%"),
    "price_of_anarchy": ("anarchy", ".3f"),
    "budget_balance": ("budget", "+.4f"),
    "individual_rationality": ("rational", ".0%"),
    "epsilon": ("epsilon", ".2f"),
    "unlearning_cost": ("unlearning", ".4f"),
}
MOST_LINES = 48
DUST = 1e-12  # of floating point


@dataclass(frozen=True)
class Interval:
    """A mean and the half width of its 95 % confidence interval (Student's t over repeats; None for one repeat)."""

    mean: float
    half: float | None
    count: int


@dataclass(frozen=True)
class Result:
    """One point: its values, an interval for each outcome that it has, and the least and largest value over its pure
    equilibria (means over repeats, which may differ in their games)."""

    values: dict[str, Any]
    outcomes: dict[str, Interval | None]
    equilibrium: dict[str, tuple[float, float] | None]
    equilibria: float


def interval(values: Sequence[float]) -> Interval:
    """Return the confidence interval of a mean."""
    from scipy.stats import t

    count = len(values)
    mean = math.fsum(values) / count
    if count == 1:
        return Interval(mean, None, 1)
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    width = float(t.ppf((1 + CONFIDENCE) / 2, count - 1)) * math.sqrt(variance / count)
    return Interval(mean, width, count)


def results(swept: Swept) -> list[Result]:
    """Return the finished points in grid order; a point that failed in some repeats has the others."""
    found = []
    for point in swept.points:
        rows = swept.rows[point.name]
        if not rows:
            continue
        outcomes: dict[str, Interval | None] = {}
        exact: dict[str, tuple[float, float] | None] = {}
        for key in OUTCOMES:
            values = [row["outcomes"][key] for row in rows if row["outcomes"][key] is not None]
            outcomes[key] = interval(values) if values else None
            spans = [row["equilibrium"][key] for row in rows if row["equilibrium"][key] is not None]
            exact[key] = (_mean([low for low, _ in spans]), _mean([high for _, high in spans])) if spans else None
        found.append(Result(point.values, outcomes, exact, _mean([row["equilibrium"]["count"] for row in rows])))
    return found


def to_csv(swept: Swept) -> str:
    """Return a line a repeat (values, outcomes, ends of the equilibria) and a line a failure."""
    keys = list(swept.points[0].values)
    spans = [f"equilibrium_{key}_{end}" for key in OUTCOMES for end in ("least", "largest")]
    columns = ["point", *keys, "repeat", *OUTCOMES, "equilibria", *spans, "optimal_welfare", "seconds", "failed"]
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    for point in swept.points:
        values = {key: value if isinstance(value, str) else json.dumps(value) for key, value in point.values.items()}
        for row in swept.rows[point.name]:
            exact = row["equilibrium"]
            ends = {
                f"equilibrium_{key}_{end}": exact[key][i]
                for key in OUTCOMES
                if exact[key]
                for i, end in enumerate(("least", "largest"))
            }
            writer.writerow(
                {"point": point.number, **values, "repeat": row["repeat"], **row["outcomes"],
                 "equilibria": exact["count"], **ends, "optimal_welfare": exact["optimum"]["welfare"],
                 "seconds": row["seconds"]}
            )  # fmt: skip
        if point.name in swept.failed:
            writer.writerow({"point": point.number, **values, "failed": swept.failed[point.name]})
    return out.getvalue()


def to_json_lines(swept: Swept) -> str:
    """Return one object a repeat with all that is known of it, and one a failed point."""
    lines = []
    for point in swept.points:
        named = {"point": point.number, "values": point.values}
        lines += [json.dumps(named | row, allow_nan=False) for row in swept.rows[point.name]]
        if point.name in swept.failed:
            lines.append(json.dumps(named | {"failed": swept.failed[point.name]}))
    return "".join(f"{line}\n" for line in lines)


def table(found: Sequence[Result]) -> str:
    """Return a line a point: mean and half width of every outcome that some point has, and the exact equilibria."""
    names = short_names(list(found[0].values)) if found else {}
    head = [names[key] for key in names]
    rows = [[_value(result.values[key]) for key in names] for result in found]
    return _lay_out(head, rows, found)


def marginals(found: Sequence[Result]) -> str:
    """Return a line a value of each parameter: means over all points that have it."""
    lines = []
    for key, name in (short_names(list(found[0].values)) if found else {}).items():
        groups: dict[str, list[Result]] = {}
        for result in found:
            groups.setdefault(_value(result.values[key]), []).append(result)
        if len(groups) > 1:
            pooled = [_pool(members) for members in groups.values()]
            lines.append(_lay_out([name], [[value] for value in groups], pooled))
    return "\n\n".join(lines)


def _pool(members: Sequence[Result]) -> Result:
    """Means over points; an interval over different points would mean nothing."""
    outcomes: dict[str, Interval | None] = {}
    exact: dict[str, tuple[float, float] | None] = {}
    for key in OUTCOMES:
        means = [one.mean for member in members if (one := member.outcomes[key]) is not None]
        outcomes[key] = Interval(_mean(means), None, len(means)) if means else None
        spans = [span for member in members if (span := member.equilibrium[key]) is not None]
        exact[key] = (_mean([low for low, _ in spans]), _mean([high for _, high in spans])) if spans else None
    return Result({}, outcomes, exact, _mean([member.equilibria for member in members]))


def _lay_out(head: Sequence[str], rows: Sequence[Sequence[str]], found: Sequence[Result]) -> str:
    shown = {key: text for key, text in SHOWN.items() if any(result.outcomes[key] for result in found)}
    titles = [*head, *(title for title, _ in shown.values()), "equilibria: effort", "quality"]
    cells = [titles]
    for values, result in zip(rows, found, strict=True):
        outcomes = [_interval(result.outcomes[key], form) for key, (_, form) in shown.items()]
        exact = [_span(result.equilibrium[key], SHOWN[key][1]) for key in ("participation", "quality")]
        cells.append([*values, *outcomes, *exact])
    widths = [max(len(row[i]) for row in cells) for i in range(len(titles))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)


def _interval(one: Interval | None, form: str) -> str:
    if one is None:
        return "-"
    text = format(one.mean if abs(one.mean) > DUST else 0.0, form)
    return f"{text} ±{format(one.half, form.lstrip('+'))}" if one.half and one.half > DUST else text


def _span(span: tuple[float, float] | None, form: str) -> str:
    if span is None:
        return "none"
    low, high = (format(end, form) for end in span)
    return low if low == high else f"{low} to {high}"


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return json.dumps(value) if isinstance(value, (list, Mapping)) else str(value)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
