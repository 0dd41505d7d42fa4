from pathlib import Path

import numpy as np
import pytest
from imagery_reading import grid, refusal
from odc.geo.geom import Geometry
from rasters import ORIGIN, UTM, make_raster

from canopy.imagery.masks import MaskRaster, open_masks

AREA = Geometry(grid().extent.geom, UTM)


def mask(path: Path, values: np.ndarray, **options: object) -> MaskRaster:
    """Open a mask of 4 m pixels from the corner of `grid()` on."""
    settings = {"crs": UTM, "origin": ORIGIN, "resolution": 4, "shape": values.shape, "bands": 1, **options}
    make_raster(path, values=values[None], **settings)  # type: ignore[arg-type]
    return open_masks([path], AREA)[0]


def test_a_pixel_has_the_mask_under_its_centre(tmp_path: Path) -> None:
    values = np.array([[0, 1], [7, 0]])
    covered = mask(tmp_path / "a.tif", values).covers(grid())
    # Eight pixels of .5 m lie on one of the mask's; beyond it nothing is masked.
    expected = np.zeros(grid().shape, bool)
    expected[:16, :16] = np.kron(values > 0, np.ones((8, 8), bool))
    np.testing.assert_array_equal(covered, expected)


def test_the_window_does_not_matter(tmp_path: Path) -> None:
    one = mask(tmp_path / "a.tif", np.random.default_rng(0).integers(0, 2, (12, 16)))
    whole = one.covers(grid())
    np.testing.assert_array_equal(one.covers(grid()[13:40, 7:101]), whole[13:40, 7:101])


def test_another_crs_is_met(tmp_path: Path) -> None:
    make_raster(tmp_path / "a.tif", crs="EPSG:4326", origin=(2.99, 45.2), resolution=0.1, shape=(1, 1), bands=1,
                values=np.ones((1, 1, 1)))  # fmt: skip
    assert open_masks([tmp_path / "a.tif"], AREA)[0].covers(grid()).all()


def test_nodata_and_nan_mask_nothing(tmp_path: Path) -> None:
    assert not mask(tmp_path / "a.tif", np.full((12, 16), 9), nodata=9).covers(grid()).any()
    values = np.full((12, 16), np.nan)
    assert not mask(tmp_path / "b.tif", values, dtype="float32").covers(grid()).any()


def test_names_come_from_the_user_or_the_file(tmp_path: Path) -> None:
    mask(tmp_path / "clouds.tif", np.ones((12, 16)))
    names = [one.name for one in open_masks([tmp_path / "clouds.tif", f"big water={tmp_path / 'clouds.tif'}"], AREA)]
    assert names == ["clouds", "big water"]
    assert open_masks([], AREA) == ()


def test_a_mask_that_is_replaced_stops_the_run(tmp_path: Path) -> None:
    one = mask(tmp_path / "a.tif", np.ones((12, 16)))
    (tmp_path / "a.tif").write_bytes((tmp_path / "a.tif").read_bytes() + b"x")
    with refusal("replaced or removed"):
        one.covers(grid())


def test_a_mask_far_finer_than_the_map_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("canopy.imagery.masks._MOST_PX", 100)
    with refusal("resample it with gdalwarp"):
        mask(tmp_path / "a.tif", np.ones((12, 16))).covers(grid())
