import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from imagery_reading import SHAPE, read, refused
from rasterio.enums import ColorInterp
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


# A declared alpha is believed where its values are those of an opacity.

INFRARED = np.random.default_rng(3).integers(0, 255, SHAPE)


def scene(order: tuple[int, int, int] = (0, 1, 2)) -> np.ndarray:
    """A sunlit scene with bluish shadows, (3, h, w) in the order of its outer bands."""
    light = np.random.default_rng(0).uniform(10, 220, SHAPE)
    noise = np.random.default_rng(1).uniform(0, 6, (3, *SHAPE))
    rgb = np.stack([light * 1.05, light, 20 + light * 0.75]) + noise
    return rgb[list(order)].astype(int)


def warnings_of(caplog: pytest.LogCaptureFixture) -> str:
    return " ".join(record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_near_infrared_in_the_place_of_alpha_is_no_mask(
    tmp_path: Path, dtype: str, caplog: pytest.LogCaptureFixture
) -> None:
    values = np.concatenate([scene(), INFRARED[None]])
    path = make_raster(tmp_path / "a.tif", dtype=dtype, values=values, photometric="RGB", ALPHA="YES")
    with rasterio.open(path) as dataset:
        assert dataset.colorinterp[3] == ColorInterp.alpha
    np.testing.assert_allclose(read(path), values[:3] / 255, atol=1e-6)
    assert "band 4, declared alpha, has many values" in warnings_of(caplog)
    assert "RGBN" in warnings_of(caplog) and "--bands" in warnings_of(caplog)


def test_bgrn_is_recognised_by_its_shadows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    values = np.concatenate([scene((2, 1, 0)), INFRARED[None]])
    path = make_raster(tmp_path / "a.tif", values=values)
    np.testing.assert_allclose(read(path), values[[2, 1, 0]] / 255, atol=1e-6)
    assert "BGRN" in warnings_of(caplog)
    assert "bands 3,2,1" in open_imagery(path).describe()


def test_named_bands_decide_over_the_values(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    values = np.concatenate([scene((2, 1, 0)), INFRARED[None]])
    path = make_raster(tmp_path / "a.tif", values=values)
    np.testing.assert_allclose(read(path, bands=(1, 2, 3)), values[:3] / 255, atol=1e-6)
    assert not warnings_of(caplog)


def opacity(kind: str) -> np.ndarray:
    columns = np.indices(SHAPE)[1]
    feather = np.clip((columns - 20) * 16, 0, 255)
    return {
        "holes": np.where(columns > 30, 255, 0),
        "feathered": feather,
        "opaque": np.full(SHAPE, 255),
        "ones": np.where(columns > 30, 1, 0),
        "half": np.where(columns > 30, 128, 0),
        "empty": np.zeros(SHAPE, int),
    }[kind]


@pytest.mark.parametrize("kind", ["holes", "feathered", "opaque", "ones", "half", "empty"])
def test_an_opacity_is_a_mask(tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    alpha = opacity(kind)
    path = make_raster(tmp_path / "a.tif", values=np.concatenate([scene(), alpha[None]]))
    np.testing.assert_array_equal(np.isfinite(read(path)[0]), alpha > 0)
    assert not warnings_of(caplog)
    assert np.isfinite(read(path, alpha=False)).all()


def test_alpha_can_be_forced(tmp_path: Path) -> None:
    path = make_raster(tmp_path / "a.tif", values=np.concatenate([scene(), INFRARED[None]]))
    np.testing.assert_array_equal(np.isnan(read(path, alpha=True)[0]), INFRARED == 0)


def test_a_panchromatic_image_keeps_its_alpha_apart(tmp_path: Path) -> None:
    path = make_raster(tmp_path / "a.tif", values=np.stack([scene()[0], opacity("holes")]), photometric="MINISBLACK")
    with rasterio.open(path, "r+") as dataset:
        dataset.colorinterp = [ColorInterp.gray, ColorInterp.alpha]
    assert np.isfinite(read(path, alpha=False)).all()
    assert np.isnan(read(path)).any()


def test_water_in_infrared_is_data(tmp_path: Path) -> None:
    """Open water is near 0 in near-infrared: few values, none of them opaque."""
    dark = np.random.default_rng(2).integers(0, 6, (1, *SHAPE))
    assert np.isfinite(read(make_raster(tmp_path / "a.tif", values=np.concatenate([scene(), dark])))).all()


def test_declared_alpha_that_is_data_leaves_no_colours_named(tmp_path: Path) -> None:
    path = make_raster(tmp_path / "a.tif", values=np.stack([scene()[0], INFRARED]), photometric="MINISBLACK")
    with rasterio.open(path, "r+") as dataset:
        dataset.colorinterp = [ColorInterp.gray, ColorInterp.alpha]
    refused(path, r"2 bands without colour names.*--bands")


def test_one_band_can_be_named_thrice(tmp_path: Path) -> None:
    path = make_raster(tmp_path / "a.tif", pattern="constant")
    np.testing.assert_allclose(read(path, bands=(2, 2, 2)), LEVELS[1] / 255, rtol=1e-6)
