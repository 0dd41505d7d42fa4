from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from imagery_reading import SHAPE, read, refused
from PIL import Image
from rasterio.shutil import copy
from rasters import ORIGIN, UTM, make_raster, pattern_values

from canopy.imagery import open_imagery

RGB = np.round(pattern_values("gradient", 3, SHAPE, UTM, rasterio.Affine.identity())).astype("uint8")


def colorinterp(path: Path, *names: str) -> Path:
    """Give a VRT of a raster the colour interpretations that no GeoTIFF can declare."""
    vrt = path.with_suffix(".vrt")
    copy(path, vrt, driver="VRT")
    text = vrt.read_text()
    for tag in ("Gray", "Undefined", "Red", "Green", "Blue", "Alpha", "Cyan", "Magenta", "Yellow", "Black"):
        text = text.replace(f"<ColorInterp>{tag}</ColorInterp>", "")
    for number, name in enumerate(names, 1):
        start = text.index(">", text.index(f'band="{number}"')) + 1
        text = f"{text[:start]}<ColorInterp>{name}</ColorInterp>{text[start:]}"
    vrt.write_text(text)
    return vrt


def test_a_palette_is_expanded(tmp_path: Path) -> None:
    index = np.indices(SHAPE)[1][None] % 3
    colours = {0: (10, 20, 30, 255), 1: (40, 50, 60, 255), 2: (0, 0, 0, 0)}
    path = make_raster(tmp_path / "a.tif", values=index, colormap=colours)
    image = read(path)
    np.testing.assert_allclose(image[:, 5, 3] * 255, (10, 20, 30), rtol=1e-6)
    np.testing.assert_allclose(image[:, 5, 4] * 255, (40, 50, 60), rtol=1e-6)
    if np.isfinite(image[0, 5, 5]):  # the TIFF colour table has no alpha
        assert (image[:, 5, 5] == 0).all()


def test_a_palette_with_transparent_colours_has_holes(tmp_path: Path) -> None:
    index = (np.indices(SHAPE)[1] % 3).astype("uint8")
    image = Image.fromarray(index, "P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.save(tmp_path / "a.png", transparency=bytes([255, 255, 0]))
    (tmp_path / "a.pgw").write_text(f"0.5\n0\n0\n-0.5\n{ORIGIN[0] + 0.25}\n{ORIGIN[1] - 0.25}\n")
    pixels = read(tmp_path / "a.png", crs=UTM)
    np.testing.assert_array_equal(np.isnan(pixels[0]), index == 2)
    np.testing.assert_allclose(pixels[:, 0, 1] * 255, (40, 50, 60), rtol=1e-6)


def test_a_palette_with_an_alpha_band(tmp_path: Path) -> None:
    index = np.indices(SHAPE)[1][None] % 2
    alpha = np.indices(SHAPE)[0][None] // 48 * 255
    path = make_raster(tmp_path / "a.tif", values=np.concatenate([index, alpha]), photometric="MINISBLACK")
    vrt = colorinterp(path, "Palette", "Alpha")
    table = '<ColorTable><Entry c1="9" c2="8" c3="7" c4="255"/><Entry c1="90" c2="80" c3="70" c4="255"/></ColorTable>'
    vrt.write_text(vrt.read_text().replace("Palette</ColorInterp>", f"Palette</ColorInterp>{table}"))
    image = read(vrt)
    assert np.isnan(image[:, :48]).all()
    np.testing.assert_allclose(image[:, 60, 1] * 255, (90, 80, 70), rtol=1e-6)


@pytest.mark.parametrize(("dtype", "top"), [("uint8", 255), ("uint16", 65_535)])
def test_inks_become_light(tmp_path: Path, dtype: str, top: int) -> None:
    inks = np.zeros((4, *SHAPE), dtype)
    inks[:, 20:, :40] = np.array([top, 0, 0, 0], dtype)[:, None, None]
    inks[:, 20:, 40:80] = np.array([top // 4, top // 2, 0, top // 3], dtype)[:, None, None]
    path = make_raster(tmp_path / "a.tif", dtype=dtype, values=inks, photometric="CMYK")
    image = read(path)
    np.testing.assert_allclose(image[:, 30, 20], (0, 1, 1), atol=1e-4)
    light = (1 - np.array([1 / 4, 1 / 2, 0])) * (1 - 1 / 3)
    np.testing.assert_allclose(image[:, 30, 60], light, atol=1.5 / 255)


@pytest.mark.parametrize("how", ["in a VRT", "in a TIFF"])
def test_luma_becomes_red_green_and_blue(tmp_path: Path, how: str) -> None:
    luma = np.moveaxis(np.asarray(Image.fromarray(np.moveaxis(RGB, 0, 2)).convert("YCbCr")), 2, 0)
    if how == "in a VRT":
        path = make_raster(tmp_path / "a.tif", values=luma, photometric="MINISBLACK")
        path = colorinterp(path, "YCbCr_Y", "YCbCr_Cb", "YCbCr_Cr")
    else:
        path = tmp_path / "b.tif"
        Image.fromarray(np.moveaxis(RGB, 0, 2)).convert("YCbCr").save(path)
        path.with_suffix(".tfw").write_text(f"0.5\n0\n0\n-0.5\n{ORIGIN[0] + 0.25}\n{ORIGIN[1] - 0.25}\n")
    np.testing.assert_allclose(read(path, crs=UTM), RGB / 255, atol=3 / 255)


def test_luma_of_floats_is_refused(tmp_path: Path) -> None:
    path = make_raster(tmp_path / "a.tif", values=RGB, dtype="float32", photometric="MINISBLACK")
    refused(colorinterp(path, "YCbCr_Y", "YCbCr_Cb", "YCbCr_Cr"), "YCBCR in float32, expected unsigned integers")


@pytest.mark.parametrize("bands", [1, 3])
@pytest.mark.parametrize(
    ("dtype", "factor"), [("uint8", 1), ("uint16", 1), ("uint16", 8), ("uint16", 257), ("float32", 1 / 255)]
)
def test_0_is_white_where_the_file_says_so(tmp_path: Path, bands: int, dtype: str, factor: float) -> None:
    values = RGB[:bands].astype(float) * factor
    plain = make_raster(tmp_path / "a.tif", dtype=dtype, values=values, photometric="MINISBLACK")
    turned = make_raster(tmp_path / "b.tif", dtype=dtype, values=values, photometric="MINISWHITE")
    np.testing.assert_allclose(read(turned), 1 - read(plain), atol=1e-6)
    assert "0 is white" in open_imagery(turned).describe()


# GDAL gives a VRT of one such band a palette, which a large type overflows.
@pytest.mark.parametrize(("dtype", "factor", "bands"), [("uint8", 1, 1), ("uint16", 8, 1), ("uint16", 8, 3)])
def test_0_is_white_in_a_vrt_too(tmp_path: Path, dtype: str, factor: int, bands: int) -> None:
    values = RGB[:bands].astype(int) * factor
    turned = make_raster(tmp_path / "b.tif", dtype=dtype, values=values, photometric="MINISWHITE")
    copy(turned, tmp_path / "c.vrt", driver="VRT")
    np.testing.assert_allclose(read(tmp_path / "c.vrt"), read(turned), atol=1e-6)


def test_a_bilevel_image_is_turned_once(tmp_path: Path) -> None:
    options: dict[str, Any] = {"values": (RGB[:1] > 100).astype(int), "nbits": 1}
    image = read(make_raster(tmp_path / "a.tif", photometric="MINISWHITE", **options), scale=(0, 255), alpha=False)
    valid = np.isfinite(image[0])
    np.testing.assert_array_equal(image[0][valid], (1 - options["values"][0])[valid])
