"""Cover is the share of known ground above a height, on a lattice of the CRS, through one tile or many."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from product_maps import X, Y, height_map
from rio_cogeo.cogeo import cog_validate

from canopy.errors import CanopyError
from canopy.products import cover
from canopy.products.cover import derive_cover


def test_cells_count_by_their_share_and_unknown_ones_not_at_all(tmp_path: Path) -> None:
    """Cells of 4 m on a map of 1 m that begins 1.5 m east of the lattice: one between two counts by half."""
    heights = np.zeros((8, 8))
    heights[:, 2] = 5.0
    heights[4:, 4:] = np.nan
    path = height_map(tmp_path / "map.tif", heights, origin=(X + 1.5, Y))
    with rasterio.open(derive_cover(path, tmp_path / "cover.tif", cell_m=4)) as raster:
        values = raster.read(1)
        assert raster.bounds.left == X and raster.bounds.top == Y
        assert raster.descriptions == ("cover",)
    # Of the first column of cells 2.5 m are known: 2 m bare, then half of column 2.
    expected = [[0.5 / 2.5, 0.5 / 4, 0], [0.5 / 2.5, np.nan, np.nan]]
    np.testing.assert_allclose(values, [[*expected[0][:2], np.nan], expected[1]], rtol=1e-6)


def test_bands_of_bounds_tiles_and_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heights = np.random.default_rng(0).uniform(0, 10, (130, 170))
    path = height_map(tmp_path / "map.tif", heights, half_m=2.0)
    whole = derive_cover(path, tmp_path / "whole.tif", cell_m=10)
    monkeypatch.setattr(cover, "TILE_PX", 100)
    cut = derive_cover(path, tmp_path / "cut.tif", cell_m=10)
    with rasterio.open(whole) as one, rasterio.open(cut) as other:
        np.testing.assert_allclose(one.read(), other.read(), rtol=1e-6)
        assert one.descriptions == cover.BANDS
        middle, low, high = one.read()
    blocks = (heights > 2).reshape(13, 10, 17, 10).mean(axis=(1, 3))
    np.testing.assert_allclose(middle, blocks, rtol=1e-6)
    assert ((low <= middle) & (middle <= high)).all()
    np.testing.assert_allclose(low, (heights > 4).reshape(13, 10, 17, 10).mean(axis=(1, 3)), rtol=1e-6)
    assert cog_validate(whole, strict=True, quiet=True)[0]


def test_what_cannot_be_is_refused(tmp_path: Path, canopy: Any) -> None:
    path = height_map(tmp_path / "map.tif", np.ones((30, 30)))
    for options, words in (({"cell_m": 1.5}, "at least two"), ({"cell_m": 90}, "larger"), ({"above_m": 0}, "above 0")):
        with pytest.raises(CanopyError, match=words):
            derive_cover(path, tmp_path / "cover.tif", **options)
    code, _, error = canopy("derive", "cover", "--map", path, "--out", tmp_path / "cover.png")
    assert (code, "a name ending in .tif" in error) == (1, True)
    assert [name.name for name in tmp_path.iterdir()] == ["map.tif"]
    code, printed, _ = canopy("derive", "cover", "--map", path, "--out", tmp_path / "cover.tif", "--cell-m", "10")
    assert (code, printed.strip()) == (0, str(tmp_path / "cover.tif"))
