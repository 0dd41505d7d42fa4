"""From an area and imagery to a published height map."""

from canopy.prediction.run import Prediction, predict, predict_array

__all__ = ["Prediction", "predict", "predict_array"]
