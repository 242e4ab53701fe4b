"""Pictures of an episode, in text and in pixels, with NumPy alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from envs.dynamics import Dynamics, State

Picture = np.ndarray[Any, np.dtype[np.uint8]]

CELL = 16
CURVE = 64
MARKS = " ▄█"  # indexed by half-effort units
BACKGROUND = (250, 250, 248)
EFFORT_COLORS = ((225, 225, 222), (134, 182, 217), (33, 102, 172))
QUALITY_COLOR = (214, 96, 77)


def write(dynamics: Dynamics, history: Sequence[State]) -> str:
    """Return the episode as text: one line an organization, one column a round (blank, half, full)."""
    game, played = dynamics.game, history[1:]
    width = max(len(name) for name in game.names)
    lines = [f"{game.payoff.value}, round {len(played)} of {game.horizon}"]
    for i, organization in enumerate(game.organizations):
        efforts = "".join(MARKS[dynamics.units[state.last[i]]] for state in played)
        left = (dynamics.budget[i] - history[-1].spent[i]) / 2
        total = sum(float(dynamics.stage.rewards[dynamics.profile(state.last), i]) for state in played)
        lines.append(f"{organization.name:<{width}} |{efforts:<{game.horizon}}| budget {left:g}, rewards {total:+.3f}")
    quality = float(dynamics.stage.quality[dynamics.profile(history[-1].last)])
    return "\n".join([*lines, f"quality {quality:.3f}"])


def draw(dynamics: Dynamics, history: Sequence[State]) -> Picture:
    """Return the episode as pixels: effort cells, one row an organization, above the curve of quality.

    Returns
    -------
    (CELL * organizations + CURVE, CELL * horizon, 3) uint8.
    """
    count, horizon = len(dynamics.game.organizations), dynamics.game.horizon
    picture = np.empty((CELL * count + CURVE, CELL * horizon, 3), dtype=np.uint8)
    picture[:] = BACKGROUND
    for column, state in enumerate(history[1:]):
        left = slice(column * CELL, (column + 1) * CELL - 1)
        for row in range(count):
            color = EFFORT_COLORS[dynamics.units[state.last[row]]]
            picture[row * CELL : (row + 1) * CELL - 1, left] = color
        quality = float(dynamics.stage.quality[dynamics.profile(state.last)])
        top = picture.shape[0] - 2 - round(quality * (CURVE - 4))
        picture[top : top + 2, left] = QUALITY_COLOR
    return picture
