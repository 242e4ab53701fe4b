"""Plots of a sweep: outcomes over a parameter with confidence intervals, exact equilibria on the same axes."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trustchain_ray.sweep.outcomes import OUTCOMES
from trustchain_ray.sweep.points import is_number, label, short_names
from trustchain_ray.sweep.summary import Result

MOST_TICKS = 8
LEAST_RATIO = 8.0  # between the ends of a positive axis from which on it is logarithmic


def plot(found: Sequence[Result], axis: str, folder: Path) -> list[Path]:
    """Draw one picture an outcome.

    The parameter on the horizontal axis is `axis`, else the numeric one with most values. Of the others, the one
    with most values makes the columns, the next one the colours, the next one the rows; what is left makes further
    pictures.
    Points are means over repeats with 95 % intervals; the band of the same colour reaches from the least to the largest
    value over the pure equilibria, by enumeration, and a gap in it means that there is none.

    Parameters
    ----------
    found
        Results of `trustchain_ray.sweep.summary`.
    axis
        `sweep.axis`.
    folder
        Gets `<outcome>.png`.

    Returns
    -------
    The pictures; none where no parameter has two values or matplotlib is not installed.
    """
    if not found or not axes_of(found, axis):
        return []
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for outcome in OUTCOMES:
        drawn = [result for result in found if result.outcomes[outcome] is not None]
        if drawn:
            written += _pictures(outcome, found, axes_of(found, axis), folder)
    return written


def available() -> bool:
    """Return whether matplotlib is installed."""
    from importlib.util import find_spec

    return find_spec("matplotlib") is not None


def axes_of(found: Sequence[Result], axis: str) -> list[str]:
    """Return the parameters with more than one value: horizontal axis, columns, colours, rows, and what is left."""
    counts = {key: len(_values(found, key)) for key in found[0].values}
    free = [key for key, count in counts.items() if count > 1]
    if not free:
        return []
    numeric = [key for key in free if all(is_number(value) for value in _values(found, key))]
    first = axis if axis in free else max(numeric or free, key=lambda key: counts[key])
    return [first, *sorted((key for key in free if key != first), key=lambda key: -counts[key])]


def _pictures(outcome: str, found: Sequence[Result], axes: list[str], folder: Path) -> list[Path]:
    rest = axes[4:]
    written = []
    for number, chosen in enumerate(itertools.product(*(_values(found, key) for key in rest)), 1):
        fixed = dict(zip(rest, chosen, strict=True))
        mine = [result for result in found if all(result.values[key] == value for key, value in fixed.items())]
        if mine:
            path = folder / (f"{outcome}.png" if not rest else f"{outcome}-{number}.png")
            _draw(outcome, mine, axes, fixed, path)
            written.append(path)
    return written


def _draw(outcome: str, found: Sequence[Result], axes: list[str], fixed: dict[str, Any], path: Path) -> None:
    # The object interface alone: pyplot keeps every figure and looks for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = short_names(list(found[0].values))
    across, colours, down = (axes[i] if len(axes) > i else None for i in (1, 2, 3))
    columns, rows = (_values(found, key) if key else [None] for key in (across, down))
    figure = Figure(figsize=(1.2 + 3.0 * len(columns), 0.9 + 2.6 * len(rows)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(rows), len(columns), squeeze=False, sharex=True, sharey=True)
    for (i, row), (j, column) in itertools.product(enumerate(rows), enumerate(columns)):
        panel = panels[i][j]
        inside = [
            result
            for result in found
            if (down is None or result.values[down] == row) and (across is None or result.values[across] == column)
        ]
        fill(panel, outcome, inside, axes[0], colours, _values(found, colours) if colours else [None])
        title = [f"{names[key]} {_text(value)}" for key, value in ((across, column), (down, row)) if key]
        panel.set_title(", ".join(title), fontsize=9)
        panel.tick_params(labelsize=8)
        if i == len(rows) - 1:
            panel.set_xlabel(names[axes[0]], fontsize=9)
    figure.supylabel(OUTCOMES[outcome], fontsize=9)
    _legend(figure, panels[0][0], names[colours] if colours else "")
    if fixed:
        figure.suptitle(label(fixed), fontsize=9)
    part = path.with_name(path.name + ".part")
    figure.savefig(part, format="png")
    part.replace(path)


def fill(
    panel: Any, outcome: str, found: Sequence[Result], axis: str, colours: str | None, shades: Sequence[Any]
) -> None:
    ticks = _values(found, axis)
    numeric = all(is_number(tick) for tick in ticks)
    if numeric and min(ticks) > 0 and max(ticks) / min(ticks) >= LEAST_RATIO:
        panel.set_xscale("log")
        panel.minorticks_off()
    if not numeric or len(ticks) <= MOST_TICKS:
        panel.set_xticks(ticks if numeric else range(len(ticks)), [_text(tick) for tick in ticks])
    for number, shade in enumerate(shades):
        line = [result for result in found if colours is None or result.values[colours] == shade]
        places = [float(r.values[axis]) if numeric else float(ticks.index(r.values[axis])) for r in line]
        line = [result for _, result in sorted(zip(places, line, strict=True), key=lambda pair: pair[0])]
        places.sort()
        colour = f"C{number}"
        ends = [result.equilibrium[outcome] or (float("nan"), float("nan")) for result in line]
        lows, highs = [low for low, _ in ends], [high for _, high in ends]
        panel.fill_between(places, lows, highs, color=colour, alpha=0.15, linewidth=0)
        for edge in (lows, highs):
            panel.plot(places, edge, color=colour, linestyle="--", linewidth=1.0)
        shown = [(x, one) for x, result in zip(places, line, strict=True) if (one := result.outcomes[outcome])]
        panel.errorbar(
            [x for x, _ in shown],
            [one.mean for _, one in shown],
            yerr=[one.half or 0.0 for _, one in shown],
            color=colour,
            marker="o",
            markersize=4,
            linewidth=1.2,
            capsize=2,
            label=_text(shade) if colours else "learned",
        )


def _legend(figure: Any, panel: Any, title: str) -> None:
    from matplotlib.lines import Line2D

    handles, names = panel.get_legend_handles_labels()
    handles.append(Line2D([], [], color="grey", linestyle="--", linewidth=1.0))
    figure.legend(
        handles, [*names, "exact equilibria"], title=title, fontsize=8, title_fontsize=8, loc="outside right upper"
    )


def _values(found: Sequence[Result], key: str) -> list[Any]:
    """Values of a parameter in the order of the grid."""
    seen: dict[str, Any] = {}
    for result in found:
        seen.setdefault(json.dumps(result.values[key], sort_keys=True), result.values[key])
    return list(seen.values())


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
