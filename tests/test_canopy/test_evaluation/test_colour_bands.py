"""Colours and near-infrared on another grid, whatever their file says of alpha."""

from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from rasters import ORIGIN, UTM, make_raster

from canopy.errors import EvaluationError
from canopy.evaluation.colour_bands import PixelGrid, open_colours, open_infrared
from tiles.windows import PixelWindow

SIDE = 96
WHOLE = PixelWindow(0, 0, SIDE, SIDE)


@pytest.fixture
def grid() -> PixelGrid:
    return PixelGrid(UTM, Affine(0.5, 0, ORIGIN[0], 0, -0.5, ORIGIN[1]), (SIDE, SIDE))


@pytest.fixture
def bands() -> np.ndarray:
    """Red, green, blue and near-infrared, (4, SIDE, SIDE), of which the last is 0 in part."""
    values = np.random.default_rng(0).integers(1, 255, (4, SIDE, SIDE)).astype(np.uint8)
    values[3, :20, :20] = 0
    return values


@pytest.mark.parametrize(
    ("order", "options"),
    [
        ((0, 1, 2, 3), {}),  # GDAL declares the fourth of four bands as alpha
        ((0, 1, 2, 3), {"photometric": "RGB", "ALPHA": "NO"}),
        ((2, 1, 0, 3), {"colorinterp": ("blue", "green", "red", "undefined")}),
        ((3, 0, 1, 2), {"colorinterp": ("undefined", "red", "green", "blue")}),
    ],
)
def test_near_infrared_is_what_is_no_colour(
    tmp_path: Path, grid: PixelGrid, bands: np.ndarray, order: tuple[int, ...], options: dict
) -> None:
    path = make_raster(tmp_path / "rgbn.tif", values=bands[list(order)], **options)
    with open_colours(path, grid) as opened:
        np.testing.assert_array_equal(opened.read(opened.colours, WHOLE), bands[:3])
        np.testing.assert_array_equal(opened.read_infrared(WHOLE), bands[3])


def test_opacity_is_believed_and_is_no_near_infrared(tmp_path: Path, grid: PixelGrid, bands: np.ndarray) -> None:
    opaque = np.ones((SIDE, SIDE), bool)
    opaque[:, :40] = False
    with open_colours(make_raster(tmp_path / "rgba.tif", values=bands[:3], alpha=opaque), grid) as opened:
        assert opened.infrared is None and np.isnan(opened.read_infrared(WHOLE)).all()
        np.testing.assert_array_equal(np.isfinite(opened.read((1,), WHOLE)[0]), opaque)
    with open_infrared(make_raster(tmp_path / "rgbna.tif", values=bands, alpha=opaque), grid) as opened:
        np.testing.assert_array_equal(opened.read_infrared(WHOLE)[:, 41:], bands[3, :, 41:])
    with open_infrared(make_raster(tmp_path / "alpha.tif", values=bands), grid) as opened:
        np.testing.assert_array_equal(opened.read_infrared(WHOLE), bands[3])


def test_ground_beyond_the_imagery_is_unknown(tmp_path: Path, grid: PixelGrid, bands: np.ndarray) -> None:
    path = make_raster(tmp_path / "part.tif", values=bands[:, :, :50], photometric="RGB", ALPHA="NO")
    with open_colours(path, grid) as opened:
        for values in (opened.read(opened.colours, WHOLE)[0], opened.read_infrared(WHOLE)):
            assert np.isfinite(values[:, :50]).all() and np.isnan(values[:, 50:]).all()
        assert np.isnan(opened.read((1,), PixelWindow(-9, -9, 9, 9))).all()


def test_other_imagery_is_refused(tmp_path: Path, grid: PixelGrid, bands: np.ndarray) -> None:
    far = make_raster(tmp_path / "far.tif", values=bands[:1], origin=(ORIGIN[0] + 9_000, ORIGIN[1]))
    with pytest.raises(EvaluationError, match=r"far\.tif lies elsewhere"), open_infrared(far, grid):
        pass
    bare = make_raster(tmp_path / "bare.tif", values=bands[:3], crs=None)
    with pytest.raises(EvaluationError, match=r"bare\.tif has no CRS"), open_colours(bare, grid):
        pass
    deep = make_raster(tmp_path / "deep.tif", values=bands, dtype="uint16")
    with pytest.raises(EvaluationError, match="uint16 near-infrared, uint8 expected"), open_infrared(deep, grid):
        pass
    rgb = make_raster(tmp_path / "rgb.tif", values=bands[:3])
    with pytest.raises(EvaluationError, match=r"rgb\.tif: 3 bands; near-infrared alone"), open_infrared(rgb, grid):
        pass
    two = make_raster(tmp_path / "two.tif", values=bands[:2])
    with pytest.raises(EvaluationError, match="2 bands of uint8; 3 or more of uint8 expected"), open_colours(two, grid):
        pass
