"""Calibration of height maps with lidar shots: fitted on held-out ground, applied cell by cell."""

from canopy.calibration.application import apply_to_bands, calibrate_map, describe_calibration
from canopy.calibration.curves import Calibration, read_calibration, write_calibration

__all__ = [
    "Calibration",
    "apply_to_bands",
    "calibrate_map",
    "describe_calibration",
    "read_calibration",
    "write_calibration",
]
