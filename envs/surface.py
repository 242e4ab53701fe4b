"""Response surfaces: the quality of the model that a joint effort trains.

`ClosedFormSurface` is the saturating curve of the literature. `MeasuredSurface` is a table of real
trainings, kept as versioned JSON with its provenance.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from envs.arrays import Floats, Ints
from envs.errors import GameError

if TYPE_CHECKING:
    from envs.game import OrganizationType

FORMAT = "trustchain-surface/1"
Cell = tuple[tuple[float, ...], tuple[int, ...]]


@dataclass(frozen=True)
class ClosedFormSurface:
    """A(e, r) = ceiling * (1 - exp(-steepness * sum_i e_i * q_i * n_i * g(r_i))), g(r) = r / (r + rank_half).

    Attributes
    ----------
    ceiling
        Quality with endless data, in (0, 1].
    steepness
        Per effective record; positive.
    rank_half
        Rank at which a record counts half; 0 makes quality independent of the rank.
    """

    ceiling: float
    steepness: float
    rank_half: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 < self.ceiling <= 1.0:
            raise GameError(f"closed-form surface: ceiling is {self.ceiling}, give a number in (0, 1]")
        if not 0.0 < self.steepness < math.inf:
            raise GameError(f"closed-form surface: steepness is {self.steepness}, give a positive number")
        if not 0.0 <= self.rank_half < math.inf:
            raise GameError(f"closed-form surface: rank_half is {self.rank_half}, give a number of at least 0")

    def quality(self, efforts: Floats, ranks: Ints, organizations: Sequence[OrganizationType]) -> Floats:
        """Return the quality of each joint effort.

        Parameters
        ----------
        efforts
            (profiles, organizations), in [0, 1].
        ranks
            (profiles, organizations), 0 where the effort is 0.
        organizations
            Their types, in column order.

        Returns
        -------
        (profiles,) in [0, 1].
        """
        records = np.array([one.data_quality * one.records for one in organizations])
        gain = np.where(ranks > 0, ranks / np.maximum(ranks + self.rank_half, 1.0), 0.0)
        # (J, N) times (N,): summed by numpy row by row, then one exponential per row.
        exponent = (efforts * gain * records).sum(axis=1)
        return np.asarray(self.ceiling * -np.expm1(-self.steepness * exponent), dtype=np.float64)

    def canonical(self) -> dict[str, Any]:
        """Return what the game's digest covers."""
        return {
            "kind": "closed_form",
            "ceiling": float(self.ceiling),
            "steepness": float(self.steepness),
            "rank_half": float(self.rank_half),
        }


@dataclass(frozen=True)
class SurfacePoint:
    """One measured training.

    Attributes
    ----------
    efforts
        One an organization, in [0, 1].
    ranks
        One an organization, 0 where its effort is 0.
    quality
        In [0, 1], on the public validation set.
    standard_error
        Of the quality, over seeds.
    measurements
        Anything else that was recorded: seconds, bytes, epsilon.
    """

    efforts: tuple[float, ...]
    ranks: tuple[int, ...]
    quality: float
    standard_error: float = 0.0
    measurements: Mapping[str, float | None] = field(default_factory=dict)

    @classmethod
    def at_rank(
        cls,
        efforts: Sequence[float],
        rank: int,
        quality: float,
        standard_error: float = 0.0,
        measurements: Mapping[str, float | None] | None = None,
    ) -> SurfacePoint:
        """Return a point whose participants all train at one rank."""
        ranks = tuple(rank if effort > 0 else 0 for effort in efforts)
        return cls(tuple(efforts), ranks, quality, standard_error, dict(measurements or {}))


@dataclass(frozen=True)
class MeasuredSurface:
    """A table of measured qualities over (coalition, effort, rank).

    A joint effort that was measured has its measured quality. With `interpolate`, an effort strictly between
    0 and 1 that was not measured is filled in by Owen's multilinear extension over the full-effort
    coalitions of the same ranks, A(e) = sum_S prod_{i in S} e_i prod_{i not in S} (1 - e_i) A(S): the chord
    between staying out and full effort, organization by organization. Ranks are never interpolated.

    Attributes
    ----------
    organizations
        Names, in column order of the points.
    metric
        What quality is: `accuracy`.
    points
        The measurements; the empty coalition must be among them.
    provenance
        Where the numbers come from: model, data digest, seeds, date, machine class. Strings only.
    interpolate
        Whether unmeasured efforts are filled in.
    """

    organizations: tuple[str, ...]
    metric: str
    points: tuple[SurfacePoint, ...]
    provenance: Mapping[str, str]
    interpolate: bool = True

    def __post_init__(self) -> None:
        if not self.organizations:
            raise GameError("surface: zero organizations, give at least one")
        cells: set[Cell] = set()
        for number, point in enumerate(self.points):
            _check_point(f"surface: point {number}", point, len(self.organizations))
            cell = (point.efforts, point.ranks)
            if cell in cells:
                raise GameError(
                    f"surface: point {number} measures efforts {point.efforts} at ranks {point.ranks} "
                    "a second time; keep one point, averaged over its seeds"
                )
            cells.add(cell)
        if not any(not any(point.efforts) for point in self.points):
            raise GameError("surface: the empty coalition (all efforts 0) is missing, measure the base model")

    @property
    def ranks(self) -> tuple[int, ...]:
        """Ranks that occur, rising."""
        return tuple(sorted({rank for point in self.points for rank in point.ranks if rank > 0}))

    def quality(self, efforts: Floats, ranks: Ints, organizations: Sequence[OrganizationType]) -> Floats:
        """Return the quality of each joint effort; see `ClosedFormSurface.quality` for the shapes.

        Raises
        ------
        GameError
            Where the organizations are not those measured, or a joint effort is not covered.
        """
        names = tuple(one.name for one in organizations)
        if names != self.organizations:
            raise GameError(
                f"surface: measured for {', '.join(self.organizations)}, asked for {', '.join(names)}; "
                "measure this federation or name the organizations in the measured order"
            )
        missing = sorted({int(rank) for rank in np.unique(ranks) if rank > 0} - set(self.ranks))
        if missing:
            raise GameError(
                f"surface: rank {missing[0]} was not measured (measured: {list(self.ranks)}); measure it "
                "with `trustchain measure`, or play with measured ranks only"
            )
        table = {(point.efforts, point.ranks): point.quality for point in self.points}
        rows = zip(efforts.tolist(), ranks.tolist(), strict=True)
        return np.array([self._one(table, tuple(row), tuple(rank)) for row, rank in rows])

    def _one(self, table: Mapping[Cell, float], efforts: tuple[float, ...], ranks: tuple[int, ...]) -> float:
        measured = table.get((efforts, ranks))
        if measured is not None:
            return measured
        if not self.interpolate or all(effort in (0.0, 1.0) for effort in efforts):
            raise GameError(
                f"surface: efforts {efforts} at ranks {ranks} were not measured; measure them, or play "
                "with one rank if only single-rank federations were measured"
            )
        # A participant of effort e is in the coalition with probability e.
        choices = [((0.0, 1.0 - e), (1.0, e)) if 0.0 < e < 1.0 else ((e, 1.0),) for e in efforts]
        total = 0.0
        for corner in itertools.product(*choices):
            at = tuple(effort for effort, _ in corner)
            at_ranks = tuple(rank if effort > 0 else 0 for effort, rank in zip(at, ranks, strict=True))
            if (at, at_ranks) not in table:
                raise GameError(
                    f"surface: efforts {efforts} at ranks {ranks} were not measured, and the coalition "
                    f"{at} at ranks {at_ranks} that would fill them in is missing; measure it"
                )
            total += math.prod(weight for _, weight in corner) * table[at, at_ranks]
        return total

    def canonical(self) -> dict[str, Any]:
        """Return what the game's digest covers: the measured numbers, not their provenance."""
        rows = sorted([list(p.efforts), list(p.ranks), float(p.quality)] for p in self.points)
        encoded = json.dumps(rows, separators=(",", ":"), allow_nan=False)
        return {
            "kind": "measured",
            "metric": self.metric,
            "organizations": list(self.organizations),
            "interpolate": self.interpolate,
            "points": hashlib.sha256(encoded.encode()).hexdigest(),
        }

    def save(self, path: str | Path) -> None:
        """Write the surface as JSON; a crash leaves the old file or the new one."""
        document = {
            "format": FORMAT,
            "metric": self.metric,
            "organizations": list(self.organizations),
            "interpolate": self.interpolate,
            "provenance": dict(self.provenance),
            "points": [
                {
                    "efforts": list(point.efforts),
                    "ranks": list(point.ranks),
                    "quality": point.quality,
                    "standard_error": point.standard_error,
                    "measurements": dict(point.measurements),
                }
                for point in self.points
            ],
        }
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".part")
        partial.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
        os.replace(partial, path)

    @classmethod
    def load(cls, path: str | Path) -> MeasuredSurface:
        """Read a surface that `save` wrote.

        Raises
        ------
        GameError
            With the path, where the file is missing, is not such a surface, or holds a bad point.
        """
        try:
            document = json.loads(Path(path).read_text())
            if document["format"] != FORMAT:
                raise GameError(f"format is {document['format']!r}, this version reads {FORMAT!r}; measure again")
            points = tuple(
                SurfacePoint(
                    tuple(float(effort) for effort in point["efforts"]),
                    tuple(int(rank) for rank in point["ranks"]),
                    point["quality"],
                    point["standard_error"],
                    point["measurements"],
                )
                for point in document["points"]
            )
            names = tuple(document["organizations"])
            return cls(names, document["metric"], points, document["provenance"], document["interpolate"])
        except GameError as error:
            raise GameError(f"{path}: {error}") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise GameError(f"{path}: not a {FORMAT} file ({type(error).__name__}: {error}); measure again") from error


def _check_point(where: str, point: SurfacePoint, width: int) -> None:
    if len(point.efforts) != width or len(point.ranks) != width:
        raise GameError(
            f"{where} has {len(point.efforts)} efforts and {len(point.ranks)} ranks for {width} "
            "organizations; give one of each an organization"
        )
    for effort, rank in zip(point.efforts, point.ranks, strict=True):
        if not 0.0 <= effort <= 1.0:
            raise GameError(f"{where}: effort {effort} is not in [0, 1]")
        if (effort > 0.0) != (rank > 0):
            raise GameError(f"{where}: effort {effort} with rank {rank}; the rank is 0 exactly where the effort is 0")
    if isinstance(point.quality, bool) or not isinstance(point.quality, (int, float)):
        raise GameError(f"{where}: quality is {point.quality!r}, give a number in [0, 1]")
    if not 0.0 <= point.quality <= 1.0:
        raise GameError(
            f"{where}: quality is {point.quality}, give a number in [0, 1]; repeat a training that diverged"
        )
    if not 0.0 <= point.standard_error < math.inf:
        raise GameError(f"{where}: standard error is {point.standard_error}, give a finite number of at least 0")
