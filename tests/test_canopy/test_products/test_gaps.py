"""Gaps are openings joined by their sides, the same through one tile or many, with the sizes that were drawn."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from product_maps import X, Y, height_map, read_rows
from scipy import ndimage

from canopy.errors import CanopyError, ProductError
from canopy.products.gap_sizes import SizeCounter
from canopy.products.gaps import GapRule, derive_gaps


def rows_of(path: Path, out: Path, rule: GapRule, tile_px: int = 2048, **options: Any) -> Any:
    derive_gaps(path, out, rule, tile_px=tile_px, **options)
    return read_rows(out).sort_values("id").reset_index(drop=True)


def test_gaps_have_area_height_outline_and_certainty(tmp_path: Path) -> None:
    """Two gaps that touch at a corner are two; one at the edge of the map is cut, one beside unknown ground too."""
    heights = np.full((20, 24), 12.0)
    heights[4:8, 4:9] = 1.0  # 20 m2
    heights[5, 5] = 9.0  # a tree in it
    heights[8:12, 9:12] = 0.0  # 12 m2, at the first one's corner
    heights[0:2, 14:20] = 0.5  # 12 m2 at the edge
    heights[15:18, 2:6] = 1.5  # 12 m2
    heights[15, 6] = np.nan
    heights[18, 20:23] = 0.0  # 3 m2: too small
    path = height_map(tmp_path / "map.tif", heights, half_m=1.2)
    rows = rows_of(path, tmp_path / "gaps.parquet", GapRule())
    assert rows["id"].tolist() == ["r0_c14", "r15_c2", "r4_c4", "r8_c9"]
    assert rows["area_m2"].tolist() == [12, 12, 19, 12]
    assert rows["is_cut"].tolist() == [True, True, False, False]
    assert rows["mean_m"].tolist() == [0.5, 1.5, 1, 0]
    # The upper end of 0.5 m is 1.7 m, that of 1 m 2.2 m.
    assert rows["sure_share"].tolist() == [1, 0, 0, 1]
    assert rows["perimeter_m"].tolist() == [16, 14, 18 + 4, 14]
    hole = shapely.box(X + 5, Y - 6, X + 6, Y - 5)
    assert rows.geometry[2].equals(shapely.box(X + 4, Y - 8, X + 9, Y - 4).difference(hole))


@pytest.mark.parametrize(("seed", "tile_px", "max_m2"), [(0, 11, 60), (1, 20, 9), (360, 16, 1000)])
def test_one_tile_or_many_give_the_same_gaps(tmp_path: Path, seed: int, tile_px: int, max_m2: int) -> None:
    rng = np.random.default_rng(seed)
    heights = 4 + 5 * ndimage.gaussian_filter(rng.normal(size=(37, 45)), 1.2) / 0.23
    heights[rng.random(heights.shape) < 0.01] = np.nan
    path = height_map(tmp_path / "map.tif", heights)
    rule = GapRule(min_m2=3, max_m2=max_m2)
    whole = derive_gaps(path, tmp_path / "whole.parquet", rule)
    cut = derive_gaps(path, tmp_path / "cut.parquet", rule, tile_px=tile_px)
    first, second = (read_rows(each.path).sort_values("id") for each in (whole, cut))
    assert first["id"].tolist() == second["id"].tolist()
    for name in ("area_m2", "mean_m", "perimeter_m"):
        np.testing.assert_allclose(first[name], second[name])
    assert first["is_cut"].tolist() == second["is_cut"].tolist()
    assert shapely.equals_exact(*(shapely.normalize(rows.geometry.to_numpy()) for rows in (first, second))).all()
    assert whole.sizes.classes == cut.sizes.classes
    with np.errstate(invalid="ignore"):
        _, count = ndimage.label(heights < 2)
        sizes = ndimage.sum_labels(heights < 2, ndimage.label(heights < 2)[0], range(1, count + 1))
    assert whole.sizes.count == (((sizes >= 3) & (sizes <= max_m2)).sum())
    assert whole.sizes.larger == (sizes > max_m2).sum()


def test_the_exponent_of_a_power_law_is_recovered() -> None:
    counter = SizeCounter(10, 100)
    for share in np.random.default_rng(0).random(4000):
        counter.add(10 * (1 - share) ** (-1 / 1.3), is_cut=False, is_large=False)
    counter.add(1e5, is_cut=False, is_large=True)
    sizes = counter.sizes()
    assert sizes.exponent == pytest.approx(2.3, abs=3 * sizes.exponent_error)
    assert sizes.exponent_error == pytest.approx(1.3 / np.sqrt(4000), rel=0.1)
    assert sizes.larger == 1
    assert sum(each.count for each in sizes.classes) == sizes.count == 4000
    assert sizes.classes[0].name == "10 to 25 m2"
    assert "power law of exponent 2.3" in sizes.lines()[-1]


@pytest.mark.parametrize("below_m", [0.0, -1.0, np.nan, np.inf])
def test_a_height_that_no_gap_has_is_refused(tmp_path: Path, below_m: float) -> None:
    path = height_map(tmp_path / "map.tif", np.zeros((9, 9)))
    with pytest.raises(ProductError, match="a height above 0 and areas in increasing order expected"):
        derive_gaps(path, tmp_path / "gaps.csv", GapRule(below_m))
    assert not (tmp_path / "gaps.csv").exists()


def test_a_killed_search_goes_on(tmp_path: Path, canopy: Any) -> None:
    heights = np.where(np.add.outer(np.arange(30), np.arange(30)) % 9 < 4, 1.0, 8.0)
    path = height_map(tmp_path / "map.tif", heights)
    whole = rows_of(path, tmp_path / "whole.csv", GapRule(), tile_px=16)
    seen: list[Any] = []

    def report(progress: Any) -> None:
        seen.append(progress)
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        derive_gaps(path, tmp_path / "gaps.csv", tile_px=16, report=report)
    again = rows_of(path, tmp_path / "gaps.csv", GapRule(), tile_px=16, report=report)
    assert seen[-1].resumed == 2
    assert again.equals(whole)
    code, printed, error = canopy("derive", "gaps", "--map", path, "--out", tmp_path / "gaps.gpkg")
    assert (code, printed.strip()) == (0, str(tmp_path / "gaps.gpkg")), error
    assert "gaps of" in error
    with pytest.raises(CanopyError, match="increasing order expected"):
        derive_gaps(path, tmp_path / "none.csv", GapRule(min_m2=50, max_m2=20))
