"""The accessor of xarray: after ``import canopy.xarray``, an image has ``image.canopy.height()``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import rioxarray  # noqa: F401 - registers image.rio
import xarray as xr

from canopy.models.bundle import DEFAULT_MODEL

if TYPE_CHECKING:
    from canopy.models.model import HeightModel

__all__ = ["CanopyAccessor"]


@xr.register_dataset_accessor("canopy")  # type: ignore[no-untyped-call]
@xr.register_dataarray_accessor("canopy")  # type: ignore[no-untyped-call]
class CanopyAccessor:
    """Heights of an image: ``image.canopy.height()``."""

    def __init__(self, image: xr.DataArray | xr.Dataset) -> None:
        self._image = image

    def height(self, model: "str | Path | HeightModel" = DEFAULT_MODEL, **options: Any) -> xr.DataArray:
        """Predict canopy height on the image's own grid.

        Args:
            model: Name of a bundled model, path of a bundle, or a model.
            options: Options of `canopy.predict_array`: bands, uncertainty, calibration, device, backend and others.

        Returns:
            (y, x) float32 metres above ground, NaN where the image is unknown.

        Raises:
            CanopyError: See `canopy.predict_array`.
        """
        from canopy.prediction.array import predict_array

        return predict_array(self._image, model, **options)
