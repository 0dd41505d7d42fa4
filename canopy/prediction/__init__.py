"""From an area and imagery to a published height map."""

from canopy.prediction.array import predict_array
from canopy.prediction.run import Prediction, predict

__all__ = ["Prediction", "predict", "predict_array"]
