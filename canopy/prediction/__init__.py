"""From an area and imagery to a published height map. Torch is imported when a map is computed, not before."""

from typing import TYPE_CHECKING, Any

from canopy.prediction.entry import predict
from canopy.prediction.request import Prediction

__all__ = ["Prediction", "predict", "predict_array"]

if TYPE_CHECKING:
    from canopy.prediction.array import predict_array


def __getattr__(name: str) -> Any:
    if name != "predict_array":
        raise AttributeError(f"module 'canopy.prediction' has no attribute {name!r}")
    from canopy.prediction.array import predict_array

    return predict_array
