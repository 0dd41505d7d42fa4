from pathlib import Path
from typing import Any

import numpy as np
import pytest
from imagery_reading import SHAPE, read
from rasters import LEVELS, make_raster

from canopy.errors import ImageryError
from canopy.imagery import open_imagery


@pytest.mark.parametrize(
    ("options", "order"),
    [
        ({"colorinterp": ["blue", "green", "red", "undefined"]}, (3, 2, 1)),
        ({"colorinterp": ["red", "green", "blue", "undefined"]}, (1, 2, 3)),
        ({"descriptions": ["Blue", "Green", "Red", "NIR"]}, (3, 2, 1)),
        ({"descriptions": ["nir", "r", "g", "b"]}, (2, 3, 4)),
    ],
)
def test_four_bands_by_name(tmp_path: Path, options: dict[str, Any], order: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).integers(1, 255, (4, *SHAPE))
    path = make_raster(tmp_path / "a.tif", dtype="uint16", values=values, photometric="MINISBLACK", **options)
    expected = values[[band - 1 for band in order]] / 255
    np.testing.assert_allclose(read(path), expected, atol=1e-6)


def test_four_unnamed_bands_need_bands(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(1, 255, (4, *SHAPE))
    path = make_raster(tmp_path / "a.tif", dtype="uint16", values=values, photometric="MINISBLACK")
    with pytest.raises(ImageryError, match=r"RGBN or BGRN.*--bands"):
        open_imagery(path)
    np.testing.assert_allclose(read(path, bands=(3, 2, 1)), values[[2, 1, 0]] / 255, atol=1e-6)
    with pytest.raises(ImageryError, match="1 to 4"):
        open_imagery(path, bands=(3, 2, 5))


def test_three_unnamed_bands_are_rgb(tmp_path: Path) -> None:
    path = make_raster(tmp_path / "a.tif", dtype="uint16", photometric="MINISBLACK", pattern="constant")
    np.testing.assert_allclose(read(path)[:, 0, 0], np.array(LEVELS) / 255, rtol=1e-6)


@pytest.mark.parametrize("with_alpha", [False, True])
def test_one_band_is_repeated_and_said(tmp_path: Path, with_alpha: bool) -> None:
    alpha = np.indices(SHAPE)[1] > 30 if with_alpha else None
    path = make_raster(tmp_path / "a.tif", bands=1, alpha=alpha)
    image = read(path)
    np.testing.assert_array_equal(image[0], image[2])
    assert np.isnan(image).any() == with_alpha
    assert "panchromatic" in open_imagery(path).describe()
