"""Images of Dask: lazy, chunk by chunk, with the bits of the loaded image."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rioxarray  # noqa: F401 - registers the accessor
import xarray as xr
from dask import array as dask_array
from height_models import MeanOfGreen

from canopy.errors import ImageryError
from canopy.models.model import load_model
from canopy.prediction.array import predict_array
from tiles.windows import PixelWindow


class Counted:
    """An array that counts the pixels which are read from it."""

    def __init__(self, values: np.ndarray) -> None:
        self.values, self.dtype, self.shape, self.ndim = values, values.dtype, values.shape, values.ndim
        self.windows: list[Any] = []

    def __getitem__(self, key: Any) -> np.ndarray:
        self.windows.append(key)
        return self.values[key]


def noise(side: int = 110, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 250, (3, side, side + 20)).astype(np.uint8)


def placed(values: Any, gsd_m: float = 0.5, crs: str = "EPSG:32612") -> xr.DataArray:
    height, width = values.shape[1:]
    coords = {"y": 4_900_000 - gsd_m * (np.arange(height) + 0.5), "x": 500_000 + gsd_m * (np.arange(width) + 0.5)}
    return xr.DataArray(values, coords, ("band", "y", "x")).rio.write_crs(crs)


def assert_same_bits(image: xr.DataArray, chunk: int = 75, **options: Any) -> None:
    loaded = predict_array(image, MeanOfGreen(), **options)
    lazy = predict_array(image.chunk({"band": 1, "y": chunk, "x": chunk}), MeanOfGreen(), **options)
    assert lazy.chunks is not None
    xr.testing.assert_identical(lazy.compute(scheduler="synchronous"), loaded)
    assert bool(np.isfinite(loaded).any())


def test_nothing_is_read_before_heights_are_computed() -> None:
    counted = Counted(noise())
    image = placed(
        dask_array.from_array(counted, chunks=(3, 60, 100), asarray=False, meta=np.empty((0, 0, 0), np.uint8))
    )
    heights = predict_array(image, MeanOfGreen())
    assert counted.windows == []
    assert heights.shape == (110, 130)
    assert heights.chunks == ((60, 50), (100, 30))
    assert heights.dtype == np.float32


def test_a_chunk_reads_what_it_needs_and_no_more() -> None:
    counted = Counted(noise(1200))
    image = placed(
        dask_array.from_array(counted, chunks=(3, 200, 200), asarray=False, meta=np.empty((0, 0, 0), np.uint8))
    )
    image = image.rio.write_nodata(0)
    predict_array(image, MeanOfGreen())[:200, :200].compute(scheduler="synchronous")
    rows = {key[1].start for key in counted.windows}
    columns = {key[2].start for key in counted.windows}
    assert rows == columns == {0, 200}


def test_bytes_on_the_lattice_of_the_model() -> None:
    assert_same_bits(placed(noise()))


def test_finer_images_in_degrees() -> None:
    # 0.28 m at this latitude, not on the model's grid: each block of the warp needs all its pixels.
    image = placed(noise(110)).drop_vars(("y", "x", "spatial_ref"))
    image = image.assign_coords(y=44.9 - 2.5e-6 * np.arange(110), x=-110.6 + 3.5e-6 * np.arange(130))
    assert_same_bits(image.rio.write_crs("EPSG:4326"), chunk=75)


def test_values_whose_range_is_measured_on_samples() -> None:
    wide = noise().astype(np.uint16) * 7 + 300
    assert_same_bits(placed(wide))
    assert_same_bits(placed((wide / 1000).astype(np.float32)))


def test_unknown_pixels_by_nan_and_by_nodata() -> None:
    holes = noise().astype(np.float32)
    holes[:, 20:50, 40:70] = np.nan
    assert_same_bits(placed(holes))
    zeros = noise()
    zeros[:, :30] = 0
    assert_same_bits(placed(zeros).rio.write_nodata(0))


def test_a_black_frame_that_nothing_declares() -> None:
    framed = noise()
    framed[:, :40] = 0
    framed[:, :, -30:] = 0
    image = placed(framed)
    assert_same_bits(image)
    assert bool(np.isnan(predict_array(image.chunk(y=70), MeanOfGreen())[:35].values).all())


def test_a_dark_pixel_at_the_border_is_no_frame() -> None:
    dark = noise()
    dark[:, 0, 7] = 0
    assert_same_bits(placed(dark))


def test_bands_uncertainty_and_a_masked_encoding(tiny_model: Path) -> None:
    network = load_model(tiny_model, "cpu", "eager")
    image = placed(noise(64)[[2, 1, 0]])
    image.encoding["_FillValue"] = np.uint8(0)
    options: dict[str, Any] = {"bands": (3, 2, 1), "uncertainty": True}
    loaded = predict_array(image, network, **options)
    lazy = predict_array(image.chunk(y=40), network, **options)
    xr.testing.assert_identical(lazy.compute(scheduler="synchronous"), loaded)
    assert lazy.sizes == {"band": 3, "y": 64, "x": 84}


def test_too_coarse_images_are_refused_at_once() -> None:
    with pytest.raises(ImageryError, match="too coarse"):
        predict_array(placed(noise(), gsd_m=2.0).chunk(y=70), MeanOfGreen())


def test_another_process_reads_the_model_by_its_name(tiny_model: Path) -> None:
    from canopy.calibration import Calibration  # noqa: F401 - part of what is sent
    from canopy.prediction.array_map import ArrayMap
    from canopy.prediction.layers import Layers
    from canopy.prediction.lazy import _Plan

    network = load_model(tiny_model, "cpu", "eager")
    plan = ArrayMap.of(placed(noise(64)), Layers(network), None)
    sent = pickle.loads(pickle.dumps(_Plan(plan, (tiny_model, "cpu", "eager"))))
    assert sent.plan().layers.model.sha256 == network.sha256
    assert sent.plan().window == PixelWindow(0, 0, 64, 84)
    with pytest.raises(ImageryError, match="name the model"):
        pickle.dumps(_Plan(plan, (network, "cpu", "eager")))
