import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest

from envs import (
    ClosedFormSurface,
    GameConfig,
    GameError,
    MeasuredSurface,
    OrganizationType,
    Payoff,
    SurfacePoint,
)
from envs.stage_game import stage_game

PARTIES = (OrganizationType("a", 100, 0.5, 1e-3, 1.0), OrganizationType("b", 300, 1.0, 1e-3, 1.0))
FULL = {(0, 0): 0.5, (1, 0): 0.6, (0, 1): 0.7, (1, 1): 0.76}


def measured(extra=(), **changes):
    points = tuple(SurfacePoint.at_rank(tuple(map(float, e)), 8, q, 0.01, {"seconds": 3.0}) for e, q in FULL.items())
    return replace(MeasuredSurface(("a", "b"), "accuracy", points + tuple(extra), {"seed": "0"}), **changes)


def one(surface, efforts, ranks):
    return float(surface.quality(np.array([efforts], dtype=float), np.array([ranks]), PARTIES)[0])


def test_closed_form_is_the_formula():
    surface = ClosedFormSurface(0.9, 0.01)
    assert one(surface, (0.5, 1.0), (8, 8)) == pytest.approx(0.9 * (1 - math.exp(-0.01 * (0.5 * 50 + 300))))
    assert one(surface, (0.0, 0.0), (0, 0)) == 0.0
    ranked = ClosedFormSurface(0.9, 0.01, rank_half=8.0)
    assert one(ranked, (0.0, 1.0), (0, 8)) == pytest.approx(0.9 * (1 - math.exp(-0.01 * 150)))


@pytest.mark.parametrize(
    "fields", [(0.0, 1.0), (1.1, 1.0), (0.9, 0.0), (0.9, math.nan), (math.nan, 1.0), (0.9, 1.0, -1)]
)
def test_bad_closed_forms_are_refused(fields):
    with pytest.raises(GameError, match="closed-form surface"):
        ClosedFormSurface(*fields)


def test_measured_points_are_returned_as_measured():
    surface = measured([SurfacePoint.at_rank((0.5, 0.0), 8, 0.58)])
    for efforts, quality in FULL.items():
        assert one(surface, efforts, tuple(8 * e for e in efforts)) == quality
    assert one(surface, (0.5, 0.0), (8, 0)) == 0.58


def test_unmeasured_efforts_are_the_multilinear_extension():
    assert one(measured(), (0.5, 1.0), (8, 8)) == pytest.approx((0.7 + 0.76) / 2)
    assert one(measured(), (0.25, 0.5), (8, 8)) == pytest.approx(
        sum(FULL[corner] * (0.25 if corner[0] else 0.75) * 0.5 for corner in itertools.product((0, 1), repeat=2))
    )
    with pytest.raises(GameError, match=r"efforts \(0.5, 1.0\) at ranks \(8, 8\) were not measured"):
        one(measured(interpolate=False), (0.5, 1.0), (8, 8))


def test_uncovered_ranks_and_coalitions_are_refused():
    with pytest.raises(GameError, match=r"rank 16 was not measured \(measured: \[8\]\)"):
        one(measured(), (1.0, 1.0), (16, 16))
    mixed = measured([SurfacePoint((1.0, 0.0), (16, 0), 0.61)])
    with pytest.raises(GameError, match=r"at ranks \(16, 8\) were not measured"):
        one(mixed, (1.0, 1.0), (16, 8))
    hole = measured(points=measured().points[:-1])
    with pytest.raises(GameError, match=r"the coalition \(1.0, 1.0\) at ranks \(8, 8\) .* is missing"):
        one(hole, (0.5, 1.0), (8, 8))
    game = GameConfig(PARTIES, measured(), Payoff.SHAPLEY, 1.0, ranks=(4,))
    with pytest.raises(GameError, match="rank 4 was not measured"):
        stage_game(game)


def test_a_surface_of_other_organizations_is_refused():
    with pytest.raises(GameError, match="measured for a, b, asked for b, a"):
        measured().quality(np.zeros((1, 2)), np.zeros((1, 2), dtype=int), PARTIES[::-1])


@pytest.mark.parametrize(
    ("point", "message"),
    [
        (SurfacePoint.at_rank((1.0, 1.0), 8, math.nan), "quality is nan"),
        (SurfacePoint.at_rank((0.5, 1.0), 8, 1.2), "quality is 1.2"),
        (SurfacePoint.at_rank((0.5, 1.0), 8, "0.7"), "quality is '0.7'"),
        (SurfacePoint.at_rank((0.5, 1.0), 8, 0.7, math.nan), "standard error is nan"),
        (SurfacePoint.at_rank((0.5, math.nan), 8, 0.7), "effort nan is not in"),
        (SurfacePoint((0.5, 1.0), (8, 0), 0.7), "effort 1.0 with rank 0"),
        (SurfacePoint((0.5,), (8,), 0.7), "1 efforts and 1 ranks for 2"),
        (SurfacePoint.at_rank((1.0, 1.0), 8, 0.7), "a second time"),
    ],
)
def test_bad_points_are_refused(point, message):
    with pytest.raises(GameError, match=message):
        measured([point])


def test_the_empty_coalition_must_be_measured():
    with pytest.raises(GameError, match="empty coalition"):
        measured(points=measured().points[1:])


def test_save_and_load_keep_everything(tmp_path):
    surface = measured([SurfacePoint((1.0, 1.0), (4, 8), 0.1 + 0.2)])
    surface.save(tmp_path / "runs" / "surface.json")
    assert MeasuredSurface.load(tmp_path / "runs" / "surface.json") == surface


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: d.update(format="trustchain-surface/9"), "format is 'trustchain-surface/9'"),
        (lambda d: d.pop("points"), "KeyError: 'points'"),
        (lambda d: d["points"][0].update(quality=float("nan")), "point 0: quality is nan"),
        (lambda d: d["points"][0].update(efforts=None), "TypeError"),
    ],
)
def test_damaged_files_are_refused_with_their_path(tmp_path, damage, message):
    path = tmp_path / "surface.json"
    measured().save(path)
    document = json.loads(path.read_text())
    damage(document)
    path.write_text(json.dumps(document))
    with pytest.raises(GameError, match=message) as caught:
        MeasuredSurface.load(path)
    assert str(path) in str(caught.value)


def test_missing_and_truncated_files_are_refused(tmp_path):
    with pytest.raises(GameError, match="FileNotFoundError"):
        MeasuredSurface.load(tmp_path / "none.json")
    (tmp_path / "cut.json").write_text('{"format": "trustchain-surf')
    with pytest.raises(GameError, match="JSONDecodeError"):
        MeasuredSurface.load(tmp_path / "cut.json")


def test_a_measured_game_plays(tmp_path):
    stage = stage_game(GameConfig(PARTIES, measured(), Payoff.SHAPLEY, 2.0))
    both = int((np.array([2, 2]) * stage.profiles.strides).sum())
    # Shapley by hand: (0.1 + 0.06) / 2 and (0.2 + 0.16) / 2.
    np.testing.assert_allclose(stage.benefits[both], [0.16, 0.36])
