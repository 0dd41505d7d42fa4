"""Canopy: tree height at sub-metre resolution from RGB imagery.

Everything public is imported on first use, so that ``import canopy`` stays free of torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
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
    from canopy.prediction import Prediction, predict, predict_array

_HOMES = {
    "CanopyError": "canopy.errors",
    "CanopyModel": "canopy.models.model",
    "Prediction": "canopy.prediction",
    "load_model": "canopy.models.model",
    "predict": "canopy.prediction",
    "predict_array": "canopy.prediction",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'canopy' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
