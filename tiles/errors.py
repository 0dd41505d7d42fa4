"""Errors of the tiler, and the root of Canopy's error tree.

::

    CanopyError                 what a user can cause; the command line prints it in one line, exit 1
    ├── AOIError                the area of interest cannot be read or mapped
    ├── RasterError             a raster is damaged, or breaks the height profile
    ├── VectorError             a file of features cannot be read or shown
    ├── OutputError             an output cannot be written: disk full, permissions, a foreign file in the way
    │   └── OutputBusyError     another run works on the same output
    ├── ImageryError            imagery cannot be read, placed or interpreted       (canopy.errors)
    │   └── CoverageError       no imagery where the AOI lies                        (canopy.errors)
    ├── SourceError             a remote service does not answer as expected         (canopy.errors)
    ├── LidarError              point clouds cannot be read, placed or used          (canopy.errors)
    ├── ModelError              a bundle is missing, damaged or foreign              (canopy.errors)
    ├── ConfigError             a configuration does not hold                        (canopy.errors)
    ├── DatasetError            a chip store or what it is built from is unusable     (canopy.errors)
    ├── TrainingError           training data or a training run is unusable          (canopy.errors)
    ├── EvaluationError         a map cannot be scored against a truth               (canopy.errors)
    ├── CalibrationError        a calibration cannot be fitted, read or applied      (canopy.errors)
    └── ProductError            a product cannot be derived from a map               (canopy.errors)

A message says what was found, what was expected and what to do, in one line.
"""


class CanopyError(Exception):
    """Root of every error that a user can cause."""


class AOIError(CanopyError):
    """The area of interest cannot be read or mapped."""


class RasterError(CanopyError):
    """A raster is damaged, or does not hold to the height profile."""


class VectorError(CanopyError):
    """A file of features cannot be read or shown."""


class OutputError(CanopyError):
    """An output cannot be written."""


class OutputBusyError(OutputError):
    """Another run works on the same output."""


def one_line(error: BaseException | str, limit: int | None = None) -> str:
    """Return the text of an error in one line, for a message that quotes it.

    Args:
        error: The error. The cause of a foreign one is quoted in its place: rasterio's own text only points there.
        limit: Longest text to return, in characters; None for all of it.
    """
    while isinstance(error, BaseException) and not isinstance(error, CanopyError) and error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:limit] or type(error).__name__
