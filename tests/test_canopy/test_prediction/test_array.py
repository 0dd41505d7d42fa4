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
from tiny_models import save_tiny_model

from canopy.calibration.curves import IDENTITY
from canopy.errors import CalibrationError, ImageryError
from canopy.models.domain import fit_domain
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


def test_uncertainty_adds_the_ends_of_the_interval_as_named_bands(
    scene: Path, tiny_model: Path, tmp_path: Path
) -> None:
    image = rioxarray.open_rasterio(scene)[:, :90, :100]
    heights = predict_array(image, tiny_model, device="cpu", backend="eager", uncertainty=True)
    assert list(heights["band"].values) == ["canopy_height", "canopy_height_p05", "canopy_height_p95"]
    lower, upper = heights.sel(band="canopy_height_p05"), heights.sel(band="canopy_height_p95")
    assert bool((lower <= heights[0]).all() and (heights[0] <= upper).all())
    assert bool((upper > lower).any())
    plain = predict_array(image, tiny_model, device="cpu", backend="eager")
    np.testing.assert_allclose(heights[0].values, plain.values, atol=1 / 128)
    heights.rio.to_raster(tmp_path / "heights.tif")
    with rasterio.open(tmp_path / "heights.tif") as written:
        assert written.descriptions == ("canopy_height", "canopy_height_p05", "canopy_height_p95")


def test_a_calibration_is_applied_as_to_a_map(scene: Path, tmp_path: Path) -> None:
    doubled = IDENTITY.model_copy(update={"kind": "linear", "knots_m": ((0.0, 0.0), (1.0, 2.0))})
    image = rioxarray.open_rasterio(scene)[:, :80, :80]
    plain = predict_array(image, MeanOfGreen())
    (tmp_path / "c.json").write_text(doubled.model_dump_json())
    for calibration in (doubled, tmp_path / "c.json"):
        calibrated = predict_array(image, MeanOfGreen(), calibration=calibration)
        np.testing.assert_allclose(calibrated.values, 2 * plain.values, rtol=1e-6)


def test_a_calibration_of_the_interval_needs_the_interval(scene: Path) -> None:
    with pytest.raises(CalibrationError, match="--uncertainty"):
        predict_array(
            rioxarray.open_rasterio(scene), MeanOfGreen(), calibration=IDENTITY.model_copy(update={"upper": 0.5})
        )


def test_imagery_unlike_the_trainings_is_mapped_with_a_warning(
    scene: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = np.random.default_rng(0).uniform(0, 0.05, (40, 3, 64, 64)).astype(np.float32)
    model = save_tiny_model(tmp_path / "dark.safetensors", domain=fit_domain(rows))
    image = rioxarray.open_rasterio(scene)[:, :128, :128]
    predict_array(image, model, device="cpu", backend="eager")
    assert "looks unlike what tiny was trained on" in caplog.text
    caplog.clear()
    predict_array(image.chunk(y=64), model, device="cpu", backend="eager").compute(scheduler="synchronous")
    assert caplog.text.count("looks unlike") == 1


def test_values_that_no_file_stores_are_refused(scene: Path) -> None:
    image = rioxarray.open_rasterio(scene)[:, :64, :64].astype("float16")
    with pytest.raises(ImageryError, match=r"float16.*image.astype"):
        predict_array(image, MeanOfGreen())
