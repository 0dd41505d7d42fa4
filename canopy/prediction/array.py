"""Heights of an image in memory, on the image's own grid."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from rasterio.io import MemoryFile

from canopy.calibration import Calibration
from canopy.errors import ModelError
from canopy.imagery import open_imagery
from canopy.models.bundle import DEFAULT_MODEL
from canopy.models.domain import warn_outside
from canopy.models.model import HeightModel, load_model
from canopy.prediction.array_map import ArrayMap, write_image
from canopy.prediction.bands import as_rgb
from canopy.prediction.entry import read_fitted
from canopy.prediction.layers import Layers
from canopy.prediction.request import check_gsd, check_pixel_options

_LOG = logging.getLogger(__name__)


def predict_array(
    image: xr.DataArray | xr.Dataset,
    model: str | Path | HeightModel = DEFAULT_MODEL,
    *,
    device: str = "auto",
    backend: str = "auto",
    bands: Sequence[int] | None = None,
    uncertainty: bool = False,
    calibration: str | Path | Calibration | None = None,
    force: bool = False,
    scale: tuple[float, float] | None = None,
) -> xr.DataArray:
    """Predict canopy height for an image in memory, on the image's own grid.

    The image is treated as `predict` treats a file: its true GSD is measured, it is resampled to the model's GSD, and
    the heights are resampled back. An image of Dask stays lazy: the heights have its chunks, the same bits as those of
    the loaded image, and each chunk reads the pixels that it needs. Chunks of 1,000 pixels and more cost least.

    Args:
        image: (band=3, y, x) red, green, blue with its CRS and transform (rioxarray); integers, or floats where NaN is
            unknown. Dimensions of length 1 in front are dropped. A Dataset has the variables red, green and blue, or
            one variable with three bands.
        model: Name of a bundled model, path of a bundle, or a model.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``; for a model given by name or path.
        backend: ``auto`` or another of `canopy.models.options.BACKENDS`; for a model given by name or path.
        bands: 1-based numbers of the red, green and blue band, where the image has others too or another order.
        uncertainty: Whether the 5th and 95th percentile of height follow.
        calibration: File of `canopy calibrate`, or a calibration, applied to the heights.
        force: Whether to accept imagery coarser than twice the model's GSD.
        scale: Values that mean black and white, where the choice from the values is wrong.

    Returns:
        (y, x) float32 metres above ground, NaN where the image is unknown; with `uncertainty` (band=3, y, x): height,
        5th and 95th percentile.

    Raises:
        CanopyError: The image has no CRS, another shape, or is too coarse; or model or calibration are unusable.
    """
    check_pixel_options(bands, scale)
    rgb = as_rgb(image, bands)
    fitted = read_fitted(calibration, uncertainty)
    network = _network(model, device, backend)
    layers = Layers(network, uncertainty, fitted.features if fitted is not None else None)
    plan = ArrayMap.of(rgb, layers, fitted)
    if rgb.chunks is not None:
        from canopy.prediction.lazy import predict_lazily

        return like(rgb, predict_lazily(rgb, plan, scale, force, (model, device, backend)), plan)
    with MemoryFile() as memory:
        write_image(rgb, memory.name)
        source = open_imagery(memory.name, scale=scale)
        check_gsd(source, network.card, force)
        check = plan.domain_check()
        heights = plan.heights(source, plan.window, check)
    if check is not None:
        warn_outside(check, network.card.name)
    return like(rgb, heights, plan)


def _network(model: str | Path | HeightModel, device: str, backend: str) -> HeightModel:
    """Return the model, read where it is given by name or path."""
    if isinstance(model, str | Path):
        return load_model(model, device, backend)
    if not (hasattr(model, "predict") and hasattr(model, "card")):
        raise ModelError(f"model of type {type(model).__name__}: a name, a path or a model of load_model expected")
    return model


def like(rgb: xr.DataArray, heights: NDArray[np.float32] | Any, plan: ArrayMap) -> xr.DataArray:
    """Return heights (K, y, x) with the coordinates of an image, and nothing of how the image's values were stored."""
    plain = rgb.isel({rgb.dims[0]: 0}, drop=True)
    model = plan.layers.model.card.name
    attributes: dict[str, Any] = {"units": "m", "long_name": "canopy height above ground", "model": model}
    if len(plan.bands) == 1:
        array = plain.copy(data=heights[0])
    else:
        names = xr.Variable("band", list(plan.bands))
        array = xr.concat([plain.copy(data=heights[band]) for band in range(len(plan.bands))], names)
        attributes["long_name"] = plan.bands  # rioxarray names the bands of a file by it
    array = array.rename("canopy_height")
    array.attrs = attributes
    array.encoding = {key: value for key, value in rgb.encoding.items() if key == "grid_mapping"}
    named: xr.DataArray = array.rio.write_nodata(np.nan)
    return named
