"""Highest returns, cleaned of birds and wires, with pits and small gaps filled."""

from pathlib import Path

import laspy
import numpy as np
import pytest
from forest import Forest, make_forest, write_laz
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from laz import on_grid, with_points
from numpy.typing import NDArray

from canopy.lidar import build_chm
from canopy.lidar.surface import LAYERS_M, Columns, canopy_surface, fill_holes, fill_pits, spread
from canopy.lidar.tables import Tables


@given(hnp.arrays(np.float64, (7, 8), elements=st.floats(-50, 50) | st.just(np.nan)))
def test_pits_are_filled_as_the_rule_says(surface: NDArray[np.float64]) -> None:
    """Each cell by itself, against the rule in words."""
    filled = fill_pits(surface)
    levels = np.array(LAYERS_M)
    for row, col in np.ndindex(surface.shape):
        pairs = []
        for dr, dc in ((0, 1), (1, 0), (1, 1), (1, -1)):
            ends = [(row + s * dr, col + s * dc) for s in (1, -1)]
            if all(0 <= r < 7 and 0 <= c < 8 for r, c in ends) and not any(np.isnan(surface[e]) for e in ends):
                pairs.append([surface[e] for e in ends])
        lows = sorted((min(p) for p in pairs), reverse=True)
        expected = surface[row, col]
        if len(lows) >= 3 and lows[2] >= levels[0]:
            level = levels[levels <= lows[2]].max()
            if expected < level:
                expected = np.mean([np.mean(p) for p in pairs if min(p) >= level])
        np.testing.assert_allclose(filled[row, col], expected)


def test_a_lone_hole_is_filled_and_a_wide_one_is_not() -> None:
    surface = np.full((12, 12), 4.0)
    surface[3, 3] = np.nan
    surface[6:11, 6:11] = np.nan
    filled = fill_holes(surface)
    assert filled[3, 3] == 4
    assert np.isnan(filled[7:10, 7:10]).all()


@pytest.mark.parametrize("turn", [0, 20, 45])
def test_a_wire_is_followed_past_a_crown(turn: int) -> None:
    """40 m of wire at 12 m, touching a crown 14 m high and 10 m wide half way; the crown stays."""
    shape = (80, 80)
    columns = Columns.empty(Tables(Path(), shape, 16))
    rows, cols = np.indices(shape)
    ground = np.zeros(80 * 80, np.int32)
    columns.add(np.arange(80 * 80), ground)
    crown = np.hypot(rows - 46, cols - 40) < 5.5
    for height_mm in (4000, 8000, 14000):
        columns.add(np.flatnonzero(crown), np.full(crown.sum(), height_mm, np.int32))
    along = np.arange(-20, 20, 0.4)
    wire_row = np.rint(40 + along * np.sin(np.radians(turn))).astype(int)
    wire_col = np.rint(40 + along * np.cos(np.radians(turn))).astype(int)
    columns.add(wire_row * 80 + wire_col, np.full(along.size, 12_000, np.int32))
    chm = canopy_surface(columns, np.full(shape, 8, np.int32), 1.0)
    assert (chm[crown] == 14).all()
    assert chm[~crown].max() == 0


def test_columns_do_not_depend_on_the_order_of_returns() -> None:
    rng = np.random.default_rng(0)
    cell, height_mm = rng.integers(0, 100, 5000), rng.integers(-3000, 130_000, 5000).astype(np.int32)
    tables = []
    for order in (np.arange(5000), rng.permutation(5000)):
        columns = Columns.empty(Tables(Path(), (10, 10), 16))
        for part in np.array_split(order, 7):
            columns.add(cell[part], height_mm[part])
        tables.append(columns)
    for name in ("top_mm", "low_top_mm", "layers"):
        np.testing.assert_array_equal(getattr(tables[0], name), getattr(tables[1], name))
    assert tables[0].top_mm.max() <= 120_000
    assert canopy_surface(tables[0], np.full((10, 10), 50, np.int32), 1.0).shape == (10, 10)


def test_birds_and_wires_are_dropped_and_slender_trees_stay(tmp_path: Path) -> None:
    forest = make_forest(64, seed=4, trees_per_ha=60, buildings=0, slope=0.0)
    path = write_laz(forest, tmp_path / "f.laz")
    plain = on_grid(forest, build_chm([path], tmp_path / "a.tif").path)
    at = np.arange(2, 62, 0.5)
    ground = forest.ground_m[np.full(len(at), 20), at.astype(int)]
    wire = np.column_stack([forest.transform.c + at, np.full(len(at), forest.transform.f - 20.5), ground + 14])
    bird = [[forest.transform.c + 40.3, forest.transform.f - 40.6, forest.ground_m[40, 40] + 60]]
    strung = with_points(path, tmp_path / "w.laz", np.vstack([wire, bird]))
    result = on_grid(forest, build_chm([strung], tmp_path / "b.tif").path)
    open_sky = plain < 2
    assert (result[20, 2:62][open_sky[20, 2:62]] > 2).mean() < 0.1
    assert np.delete(result, 20, axis=0).max() < 46
    np.testing.assert_array_equal(np.delete(result, [20, 40], axis=0), np.delete(plain, [20, 40], axis=0))


@pytest.mark.parametrize(
    ("per_cell", "expected"), [(8, 0), (4, 0), (3, 1), (1.2, 1), (0.5, 1), (0.4, 2), (0.1, 4), (0.01, 8), (0, 8)]
)
def test_neighbourhoods_grow_until_they_have_some_returns(per_cell: float, expected: int) -> None:
    count = np.zeros((100, 100), np.int32)
    count.reshape(-1)[: round(10_000 * per_cell)] = max(1, round(per_cell))
    count = np.random.default_rng(0).permutation(count.reshape(-1)).reshape(100, 100)
    if per_cell >= 1:
        count[:] = (
            np.random.default_rng(0).multinomial(round(10_000 * per_cell), np.full(10_000, 1e-4)).reshape(100, 100)
        )
    assert np.median(spread(count, 1.0)) == expected


def test_density_is_local_so_that_a_sparse_strip_beside_a_dense_one_is_judged_as_such() -> None:
    count = np.full((60, 60), 9, np.int32)
    count[:, 30:] = np.random.default_rng(0).random((60, 30)) < 0.5
    grown = spread(count, 1.0)
    assert (grown[:, :24] == 0).all() and (grown[:, 38:] >= 1).all()


def thinned(cloud: Path, out: Path, per_m2: float) -> Path:
    """Write a random part of a cloud of 64 x 64 m."""
    las = laspy.read(cloud)
    chosen = np.random.default_rng(0).random(len(las.points)) < per_m2 * 64 * 64 / len(las.points)
    part = laspy.LasData(las.header)
    part.points = las.points[chosen]
    part.write(out)
    return out


@pytest.mark.parametrize("per_m2", [4.0, 1.2, 0.5, 0.25])
def test_sparse_clouds_keep_their_canopy(
    forest: Forest, cloud: Path, tmp_path: Path, per_m2: float, caplog: pytest.LogCaptureFixture
) -> None:
    """Cells with a return of canopy: at 1.2 returns/m2 13 %, at 0.5 60 % of them were taken for wires and birds."""
    sparse = thinned(cloud, tmp_path / "s.laz", per_m2)
    las = laspy.read(sparse)
    row = np.floor(forest.transform.f - np.asarray(las.y)).astype(int)
    col = np.floor(np.asarray(las.x) - forest.transform.c).astype(int)
    measured = np.zeros(forest.chm_m.shape, bool)
    tall = (np.asarray(las.classification) == 5) & (forest.chm_m[row, col] > 4)
    measured[row[tall], col[tall]] = True
    chm = on_grid(forest, build_chm([sparse], tmp_path / "s.tif").path)
    assert measured.sum() > 50
    assert (chm[measured] > 2).mean() > 0.98
    assert ("sparse clouds" in caplog.text) == (per_m2 < 2)
    if per_m2 < 2:
        assert "--resolution 2" in caplog.text


def test_dense_clouds_are_not_called_sparse(cloud: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    build_chm([cloud], tmp_path / "d.tif")
    assert "sparse" not in caplog.text
