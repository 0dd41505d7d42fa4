from pathlib import Path
from typing import Any

import numpy as np
import pytest
from imagery_reading import SHAPE, X, Y, grid, read, refused, truncated
from rasters import make_raster

from canopy.errors import ImageryError
from canopy.imagery import open_imagery

HOLE = np.s_[10:20, 30:50]


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize("kind", ["nodata", "mask", "alpha", "external mask"])
def test_declared_holes(tmp_path: Path, dtype: str, kind: str) -> None:
    valid = np.ones(SHAPE, bool)
    valid[HOLE] = False
    options: dict[str, Any] = {}
    if kind == "nodata":
        values = np.full((3, *SHAPE), 90.0)
        values[:, ~valid] = 3
        options = {"values": values, "nodata": 3}
    elif kind == "alpha":
        options = {"alpha": valid, "photometric": "RGB"}
    else:
        options = {"mask": valid}
    path = make_raster(tmp_path / "a.tif", dtype=dtype, **options)
    np.testing.assert_array_equal(np.isfinite(read(path, scale=(0, 255))), np.broadcast_to(valid, (3, *SHAPE)))


def test_zero_is_a_value_unless_declared(tmp_path: Path) -> None:
    values = np.full((3, *SHAPE), 90)
    values[:, 10:20, 30:50] = 0
    values[0, 40:50, 30:50] = 0
    assert np.isfinite(read(make_raster(tmp_path / "a.tif", values=values))).all()
    declared = read(make_raster(tmp_path / "b.tif", values=values, nodata=0))
    assert np.isnan(declared[:, 10:20, 30:50]).all()
    assert np.isfinite(declared[:, 40:50, 30:50]).all()
    assert np.isnan(declared).mean() == pytest.approx(200 / (96 * 128))


def test_not_finite_values_are_unknown(tmp_path: Path) -> None:
    values = np.full((3, *SHAPE), 0.7)
    values[0, 5, 5], values[1, 6, 6], values[2, 7, 7] = np.nan, np.inf, -np.inf
    path = make_raster(tmp_path / "a.tif", dtype="float32", values=values)
    image = read(path, scale=(0, 1))
    assert np.argwhere(np.isnan(image[1])).tolist() == [[5, 5], [6, 6], [7, 7]]
    np.testing.assert_allclose(image[np.isfinite(image)], 0.7, rtol=1e-6)
    assert np.isfinite(read(path, grid((10, 10), resolution=4), scale=(0, 1))).all()


def test_all_nodata_opens_and_is_unknown(tmp_path: Path) -> None:
    path = make_raster(tmp_path / "a.tif", dtype="uint16", values=np.full((3, *SHAPE), 9), nodata=9)
    assert np.isnan(read(path)).all()


def test_complex_values(tmp_path: Path) -> None:
    refused(make_raster(tmp_path / "a.tif", dtype="complex64"), "complex64 values")


@pytest.mark.parametrize("shift", [0.0, 0.2])
def test_a_truncated_file_is_never_nodata(tmp_path: Path, shift: float) -> None:
    source = open_imagery(truncated(tmp_path))
    assert np.isfinite(source.read(grid((50, 50), origin=(X + 10, Y - 10))).values).all()
    with pytest.raises(ImageryError, match=r"a\.tif: cannot be read"):
        source.read(grid((100, 100), origin=(X + 100 + shift, Y - 480)))


def test_a_truncated_file_fails_early_where_its_ends_are_needed(tmp_path: Path) -> None:
    refused(truncated(tmp_path / "sampled", "uint16"), r"a\.tif: cannot be read")
    refused(truncated(tmp_path / "collar", nodata=None), r"a\.tif: cannot be read")


def test_a_dead_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("canopy.imagery.scene._GDAL", {"GDAL_HTTP_MAX_RETRY": "0"})
    refused("http://127.0.0.1:9/a.tif", "cannot be read")
