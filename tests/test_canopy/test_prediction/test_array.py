"""Heights of images in memory."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rioxarray
import xarray as xr
from height_models import MeanOfGreen
from odc.geo.geom import box
from rasters import make_raster

from canopy.prediction.array import predict_array
from canopy.prediction.entry import predict


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    return make_raster(
        tmp_path / "scene.tif",
        crs="EPSG:32612",
        origin=(500000, 4900100),
        resolution=0.5,
        shape=(200, 200),
        pattern="noise",
    )


AREA = box(500010, 4900010, 500090, 4900080, "EPSG:32612")


def test_array_gives_what_the_file_gives(scene: Path, tmp_path: Path) -> None:
    made = predict(AREA, scene, MeanOfGreen(), tmp_path / "file.tif")
    heights = predict_array(rioxarray.open_rasterio(scene), MeanOfGreen())
    assert heights.shape == (200, 200)
    with rasterio.open(made.path) as opened:
        part = heights.rio.clip_box(*opened.bounds).values
        np.testing.assert_allclose(part, opened.read(1), atol=1e-5)


def masked_image(path: Path) -> xr.DataArray:
    """An image as rioxarray reads a scene with nodata: float32 with NaN, its file's own encoding attached."""
    values = np.random.default_rng(0).integers(1, 255, (3, 100, 100)).astype(np.uint8)
    values[:, :10] = 0
    make_raster(path, crs="EPSG:32612", origin=(500000, 4900100), values=values, nodata=0)
    image = rioxarray.open_rasterio(path, masked=True)
    assert isinstance(image, xr.DataArray)
    assert image.encoding["_FillValue"] == 0
    return image.load()


def read_back_tif(heights: xr.DataArray, folder: Path) -> np.ndarray:
    heights.rio.to_raster(folder / "heights.tif")
    with rasterio.open(folder / "heights.tif") as opened:
        assert np.isnan(opened.nodata)
        return opened.read(1)


def read_back_netcdf(heights: xr.DataArray, folder: Path) -> np.ndarray:
    heights.to_netcdf(folder / "heights.nc", engine="scipy")
    with xr.open_dataset(folder / "heights.nc", engine="scipy") as opened:
        return opened["canopy_height"].values


def read_back_zarr(heights: xr.DataArray, folder: Path) -> np.ndarray:
    heights.to_zarr(folder / "heights.zarr", consolidated=False)
    with xr.open_zarr(folder / "heights.zarr", consolidated=False, chunks=None) as opened:
        return opened["canopy_height"].values


@pytest.mark.parametrize("read_back", [read_back_tif, read_back_netcdf, read_back_zarr])
def test_heights_of_masked_imagery_are_written_as_they_are(tmp_path: Path, read_back: Any) -> None:
    heights = predict_array(masked_image(tmp_path / "scene.tif"), MeanOfGreen(), scale=(0, 255))
    assert np.isnan(heights.values[:10]).all()
    assert not np.isnan(heights.values[10:]).any()
    values = read_back(heights, tmp_path)
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, heights.values)


def test_a_scale_is_the_users_to_give(tmp_path: Path) -> None:
    image = masked_image(tmp_path / "scene.tif")
    full = predict_array(image, MeanOfGreen(), scale=(0, 255))
    half = predict_array(image, MeanOfGreen(), scale=(0, 510))
    np.testing.assert_allclose(half.values[10:], full.values[10:] / 2, atol=0.01)
