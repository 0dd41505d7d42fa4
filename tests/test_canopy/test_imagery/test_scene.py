from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from imagery_reading import SHAPE, X, Y, grid, read, refused, stored, truncated
from rasterio import Affine
from rasterio.shutil import copy
from rasters import UTM, make_raster

from canopy.errors import ImageryError, SourceError
from canopy.http import HttpClient, Retry
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
    monkeypatch.setattr("canopy.imagery.remote.client", lambda: HttpClient(retry=Retry(attempts=1)))
    with pytest.raises(SourceError, match=r"127\.0\.0\.1:9/a\.tif: .*refused"):
        open_imagery("http://127.0.0.1:9/a.tif")


# Scale and offset, and each band's own nodata.


def test_a_percent_image_is_the_same_picture(tmp_path: Path) -> None:
    percent = np.random.default_rng(0).integers(1, 101, (3, *SHAPE))
    for dtype in ("uint8", "uint16", "int16"):
        path = make_raster(tmp_path / f"{dtype}.tif", dtype=dtype, values=percent, scales=[0.01] * 3)
        np.testing.assert_allclose(read(path), percent / 100, atol=1e-6)


def test_gains_may_differ_by_band(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(40, 240, (3, *SHAPE)) / 255
    scales, offsets = np.array([0.001, 0.0005, 0.002]), np.array([-0.1, 0.0, 0.05])
    stored_values = np.round((picture - offsets[:, None, None]) / scales[:, None, None])
    path = make_raster(
        tmp_path / "a.tif", dtype="uint16", values=stored_values, scales=scales, offsets=offsets, photometric="RGB"
    )
    np.testing.assert_allclose(read(path), picture, atol=0.0011)
    shifted = grid((40, 40), origin=(X + 5.2, Y - 5.2))
    plain = make_raster(tmp_path / "b.tif", dtype="float32", values=picture)
    np.testing.assert_allclose(read(path, shifted), read(plain, shifted), atol=0.0011)


def test_one_gain_serves_a_panchromatic_image(tmp_path: Path) -> None:
    percent = np.random.default_rng(0).integers(1, 101, (1, *SHAPE))
    path = make_raster(tmp_path / "a.tif", values=percent, scales=[0.01])
    np.testing.assert_allclose(read(path), np.broadcast_to(percent / 100, (3, *SHAPE)), atol=1e-6)


@pytest.mark.parametrize("scale", [0.0, float("nan"), float("inf")])
def test_a_gain_that_is_no_number_is_ignored_and_said(
    tmp_path: Path, scale: float, caplog: pytest.LogCaptureFixture
) -> None:
    path = make_raster(tmp_path / "a.tif", scales=[scale] * 3)
    np.testing.assert_allclose(read(path), stored(path) / 255, atol=1e-6)
    assert "scale and offset tags" in caplog.text


def test_an_unscaled_type_and_a_scaled_one_need_a_scale(tmp_path: Path) -> None:
    make_raster(tmp_path / "d" / "a.tif", dtype="uint16")
    make_raster(tmp_path / "d" / "b.tif", dtype="uint16", scales=[0.01] * 3)
    refused(tmp_path / "d", r"types float64, uint16.*--scale")


def banded(path: Path, nodata: Sequence[float | None]) -> Path:
    """Write a VRT of a raster with a nodata value of its own in each band."""
    vrt = path.with_suffix(".vrt")
    copy(path, vrt, driver="VRT")
    text = vrt.read_text()
    for number, value in enumerate(nodata, 1):
        start = text.index(">", text.index(f'band="{number}"')) + 1
        text = f"{text[:start]}{'' if value is None else f'<NoDataValue>{value}</NoDataValue>'}{text[start:]}"
    vrt.write_text(text)
    return vrt


@pytest.mark.parametrize(
    ("nodata", "hole"),
    [
        ((7, 8, 9), (7, 50, 50)),
        ((7, 8, 9), (50, 50, 9)),
        ((None, None, 9), (50, 50, 9)),
        ((0, 255, 0), (0, 255, 0)),
        ((0, None, None), (0, 0, 0)),
        ((0, 0, 9), (50, 50, 9)),
    ],
)
def test_each_band_has_its_own_nodata(
    tmp_path: Path, nodata: tuple[float | None, ...], hole: tuple[int, int, int]
) -> None:
    values = np.random.default_rng(0).integers(100, 200, (3, *SHAPE))
    values[:, 20:30, 40:60] = np.array(hole)[:, None, None]
    unknown = np.isnan(read(banded(make_raster(tmp_path / "a.tif", values=values), nodata)))
    assert unknown[:, 20:30, 40:60].all() and unknown.sum() == 3 * 10 * 20


@pytest.mark.parametrize("colour", [(0, 50, 50), (0, 0, 50), (0, 255, 1)])
def test_a_colour_with_an_extreme_is_no_nodata(tmp_path: Path, colour: tuple[int, int, int]) -> None:
    values = np.random.default_rng(0).integers(100, 200, (3, *SHAPE))
    values[:, 20:30, 40:60] = np.array(colour)[:, None, None]
    vrt = banded(make_raster(tmp_path / "a.tif", values=values), (0, 255, 0) if 255 in colour else (0, 0, 0))
    assert np.isfinite(read(vrt)).all()


# What the user says in place of the file.


def test_nodata_can_be_named_and_denied(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(100, 200, (3, *SHAPE))
    values[:, 20:30, 40:60] = 13
    plain = make_raster(tmp_path / "a.tif", values=values)
    declared = make_raster(tmp_path / "b.tif", values=values, nodata=13)
    assert np.isnan(read(plain, nodata=13)).sum() == 3 * 200
    assert np.isfinite(read(declared, nodata="none")).all()
    assert np.isfinite(read(declared, nodata=14)).all()


def test_bands_of_two_types_are_refused(tmp_path: Path) -> None:
    vrt = tmp_path / "a.vrt"
    copy(make_raster(tmp_path / "a.tif"), vrt, driver="VRT")
    text = vrt.read_text()
    vrt.write_text(text.replace('dataType="Byte" band="2"', 'dataType="UInt16" band="2"'))
    refused(vrt, "colour bands of types uint16, uint8, expected one type")


def test_a_height_map_is_no_imagery(tmp_path: Path) -> None:
    refused(
        make_raster(tmp_path / "a.tif", dtype="float32", bands=1, tags={"CANOPY_MODEL": "x"}), "a canopy height map"
    )


def test_a_long_float_is_not_light(tmp_path: Path) -> None:
    values = np.random.default_rng(0).uniform(0.1, 0.9, (3, *SHAPE)).astype("float32")
    values[:, 5:9, 5:9] = np.finfo("float32").min
    image = read(make_raster(tmp_path / "a.tif", dtype="float32", values=values))
    assert np.isnan(image[:, 5:9, 5:9]).all() and np.isnan(image).sum() == 48


# A small file may ask for much memory.


def test_a_block_that_no_memory_takes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    options = {"driver": "GTiff", "crs": UTM, "transform": Affine(0.5, 0, X, 0, -0.5, Y), "dtype": "uint8"}
    with rasterio.open(path, "w", count=3, width=600_000_000, height=8, SPARSE_OK="TRUE", **options):
        pass
    assert path.stat().st_size < 10_000
    refused(path, r"blocks of 1\.7 GiB.*TILED=YES")


def test_a_pixel_of_the_map_that_needs_too_many_of_the_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    options = {"driver": "GTiff", "crs": UTM, "transform": Affine(1e-4, 0, X, 0, -1e-4, Y), "dtype": "uint8"}
    size = {"width": 60_000, "height": 60_000, "tiled": True, "blockxsize": 4096, "blockysize": 4096}
    with rasterio.open(path, "w", count=3, SPARSE_OK="TRUE", **options, **size):
        pass
    refused(path, "of its pixels decide 1 x 1 of the map", nodata=0)
