"""The yardstick: metrics of canopy height, one definition each, on arrays and on rasters of any size."""

from canopy.evaluation.metrics import Heights, height_metrics

__all__ = ["Heights", "height_metrics"]
