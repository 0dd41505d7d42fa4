"""Errors of the product; the whole tree is drawn in `tiles.errors`."""

from tiles.errors import AOIError, CanopyError, OutputBusyError, OutputError, RasterError, VectorError, one_line

__all__ = [
    "AOIError",
    "CalibrationError",
    "CanopyError",
    "ConfigError",
    "CoverageError",
    "DatasetError",
    "EvaluationError",
    "ImageryError",
    "LidarError",
    "ModelError",
    "OutputBusyError",
    "OutputError",
    "ProductError",
    "RasterError",
    "SourceError",
    "TrainingError",
    "VectorError",
    "one_line",
]


class ImageryError(CanopyError):
    """Imagery cannot be read, placed on the ground or interpreted."""


class CoverageError(ImageryError):
    """No imagery where the area of interest lies."""


class SourceError(CanopyError):
    """A remote service does not answer as expected."""

    def __init__(self, message: str, status: int | None = None) -> None:
        """Keep the message, and the status of the answer where there was one."""
        super().__init__(message)
        self.status = status


class LidarError(CanopyError):
    """Point clouds cannot be read, placed on the ground, or hold no ground."""


class ModelError(CanopyError):
    """A model bundle is missing, damaged, or not one of ours."""


class ConfigError(CanopyError):
    """A configuration does not hold."""


class TrainingError(CanopyError):
    """Training data or a training run is unusable."""


class EvaluationError(CanopyError):
    """A map cannot be scored against a truth."""


class CalibrationError(CanopyError):
    """A calibration cannot be fitted, read or applied."""


class ProductError(CanopyError):
    """A product cannot be derived from a map."""


class DatasetError(CanopyError):
    """A chip store or what it is built from is unusable."""
