"""Canopy: tree height at sub-metre resolution from RGB imagery.

    canopy.predict("region.geojson", imagery="scenes/", out="heights.tif")  # an area: a file, as the command writes it
    canopy.predict_array(image)                                             # an image of rioxarray: its heights
    canopy.load_model().predict(chips)                                      # a tensor of chips: a tensor of heights
    import canopy.xarray                                                    # image.canopy.height()

Heights are float32 metres above ground, NaN where unknown; 0 is bare ground. Whatever is wrong with an area, imagery or
a model raises a `CanopyError` that says what to do.

Everything public is imported on first use, so that ``import canopy`` stays free of torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from canopy.version import __version__

__all__ = [
    "CanopyError",
    "CanopyModel",
    "Prediction",
    "__version__",
    "load_model",
    "predict",
    "predict_array",
]

if TYPE_CHECKING:
    from canopy.errors import CanopyError
    from canopy.models.model import CanopyModel, load_model
    from canopy.prediction.array import predict_array
    from canopy.prediction.entry import predict
    from canopy.prediction.request import Prediction

_HOMES = {
    "CanopyError": "canopy.errors",
    "CanopyModel": "canopy.models.model",
    "Prediction": "canopy.prediction.request",
    "load_model": "canopy.models.model",
    "predict": "canopy.prediction.entry",
    "predict_array": "canopy.prediction.array",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'canopy' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """Return the public names, those that are not imported yet included."""
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
