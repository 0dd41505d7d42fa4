from pathlib import Path
from typing import Any

import numpy as np
import pytest
from imagery_reading import X, Y, grid, read
from rasterio.shutil import copy
from rasters import make_raster
from scipy import ndimage

from canopy.imagery import open_imagery


def collared() -> np.ndarray:
    values = np.full((3, 300, 300), 90)
    rows, cols = np.indices((300, 300))
    values[:, (rows + cols < 120) | (cols > 290)] = 0
    values[:, 150:160, 100:130] = 0
    return values


def test_a_black_collar_is_unknown_and_shadow_is_not(tmp_path: Path) -> None:
    path = make_raster(tmp_path / "a.tif", values=collared())
    image = read(path, grid((300, 300)))
    expected = collared()[0] > 0
    expected[150:160, 100:130] = True
    np.testing.assert_array_equal(np.isfinite(image[0]), expected)
    assert (image[:, 150:160, 100:130] == 0).all()
    part = read(path, grid((40, 40), origin=(X + 10, Y)))
    np.testing.assert_array_equal(part, image[:, :40, 20:60])


def test_a_collar_blurred_by_jpeg_is_unknown(tmp_path: Path) -> None:
    path = make_raster(
        tmp_path / "a.tif",
        values=collared(),
        compress="JPEG",
        photometric="YCBCR",
        tiled=True,
        JPEG_QUALITY=80,
    )
    image = read(path, grid((300, 300)))
    assert np.isnan(image[0, :40, :40]).all()
    assert np.isnan(image[0, :, 292:]).all()
    assert np.isfinite(image[0, 130:, 130:285]).all()
    assert np.isfinite(image[0, 150:160, 100:130]).all()
    np.testing.assert_allclose(image[:, 200:, 150:280], 90 / 255, atol=3 / 255)


# White frames, and nodata that compression blurs.


def framed(colour: float, level: float = 90) -> np.ndarray:
    """A turned image, (3, 300, 300), in a frame of one colour that reaches all corners."""
    rows, cols = np.indices((300, 300))
    inside = np.abs(rows - 150) + np.abs(cols - 150) < 200
    texture = np.random.default_rng(0).integers(-30, 30, (3, 300, 300))
    return np.where(inside, level + texture, colour)


def frame() -> np.ndarray:
    rows, cols = np.indices((300, 300))
    return np.abs(rows - 150) + np.abs(cols - 150) >= 200


@pytest.mark.parametrize(
    ("dtype", "factor"), [("uint8", 1), ("uint16", 1), ("uint16", 257), ("float32", 1), ("float32", 1 / 255)]
)
@pytest.mark.parametrize("colour", [0, 255])
def test_a_frame_of_one_colour_is_unknown_in_any_container(
    tmp_path: Path, dtype: str, factor: float, colour: int
) -> None:
    path = make_raster(tmp_path / "a.tif", dtype=dtype, values=framed(colour) * factor)
    np.testing.assert_array_equal(np.isnan(read(path, grid((300, 300)))[0]), frame())


def test_a_white_frame_of_stretched_values_is_unknown(tmp_path: Path) -> None:
    values = np.where(frame(), 65_535, framed(0, 1000))
    path = make_raster(tmp_path / "a.tif", dtype="uint16", values=values)
    np.testing.assert_array_equal(np.isnan(read(path, grid((300, 300)))[0]), frame())


def test_a_frame_of_an_opaque_image_is_unknown(tmp_path: Path) -> None:
    opaque = np.ones((300, 300), bool)
    path = make_raster(tmp_path / "a.tif", values=framed(255), alpha=opaque)
    np.testing.assert_array_equal(np.isnan(read(path, grid((300, 300)))[0]), frame())


def test_bright_fields_and_clouds_are_no_frame(tmp_path: Path) -> None:
    values = framed(90)
    values[:, 100:200, :50] = 255
    values[:, 200:240, 100:180] = 255
    assert np.isfinite(read(make_raster(tmp_path / "a.tif", values=values), grid((300, 300)))).all()


def test_what_is_declared_is_believed_before_what_looks_like_a_frame(tmp_path: Path) -> None:
    values = framed(0)
    values[:, 140:150, 140:150] = 7
    image = read(make_raster(tmp_path / "a.tif", values=values, nodata=7), grid((300, 300)))
    assert np.isnan(image).sum() == 300


def lossy(path: Path, values: np.ndarray, **options: Any) -> Path:
    """Write a tiled JPEG in a GeoTIFF."""
    return make_raster(
        path, values=values, compress="JPEG", photometric="YCBCR", tiled=True, JPEG_QUALITY=80, **options
    )


@pytest.mark.parametrize("colour", [0, 255])
@pytest.mark.parametrize("where", ["frame", "hole"])
@pytest.mark.parametrize("wrap", [False, True], ids=["file", "in a VRT"])
def test_nodata_in_jpeg_has_no_fringe_and_takes_no_shadows(tmp_path: Path, colour: int, where: str, wrap: bool) -> None:
    values = framed(90)
    hole = frame() if where == "frame" else np.zeros((300, 300), bool)
    hole[100:180, 80:200] |= where == "hole"
    values[:, hole] = colour
    values[:, 220:224, 120:124] = colour
    path = lossy(tmp_path / "a.tif", values, nodata=colour)
    if wrap:
        copy(path, tmp_path / "a.vrt", driver="VRT")
        path = tmp_path / "a.vrt"
    unknown = np.isnan(read(path, grid((300, 300)))[0])
    # Compression mixes fill and image within its blocks of 16 pixels; a few more than 8 levels off are left there.
    assert unknown[hole].mean() > 0.95
    assert unknown[ndimage.binary_erosion(hole, iterations=16)].all()
    assert not unknown[~ndimage.binary_dilation(hole, iterations=9)].any()


def test_windows_of_a_blurred_hole_agree(tmp_path: Path) -> None:
    values = framed(90)
    values[:, 100:180, 80:200] = 0
    source = open_imagery(lossy(tmp_path / "a.tif", values, nodata=0))
    whole = source.read(grid((300, 300))).values
    part = open_imagery(tmp_path / "a.tif").read(grid((60, 50), origin=(X + 30, Y - 40))).values
    np.testing.assert_array_equal(part, whole[:, 80:140, 60:110])


@pytest.mark.parametrize(
    "options",
    [{"compress": "DEFLATE"}, {"driver": "JP2OpenJPEG", "REVERSIBLE": "YES", "QUALITY": "100"}],
    ids=["deflate", "jp2"],
)
def test_lossless_data_keep_their_exact_nodata(tmp_path: Path, options: dict[str, Any]) -> None:
    values = framed(90)
    values[:, 120, 120] = 0
    image = read(make_raster(tmp_path / "a.tif", values=values, nodata=0, **options), grid((300, 300)))
    assert np.argwhere(np.isnan(image[0])).tolist() == [[120, 120]]


@pytest.mark.parametrize("limit", ["_MOST_PX", "_LONGEST_PX"])
def test_files_that_are_too_large_are_not_searched(tmp_path: Path, limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_raster(tmp_path / "a.tif", values=framed(0))
    monkeypatch.setattr(f"canopy.imagery.collar.{limit}", 299)
    assert np.isfinite(read(path, grid((300, 300)))).all()
