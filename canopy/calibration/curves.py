"""What a calibration does to a height: a rising curve, a gain that varies over the land, and what it reads besides.

    calibrated = gain * curve(height + upper * max(0, p95 - max(height, 2 m)))

The curve goes through the origin, so ground stays ground unless the model itself holds a tall canopy possible there
(`upper` > 0): a map's zeros are either meadows or forest that it missed, and its height alone cannot tell which.
"""

import hashlib
import math
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pyproj import Transformer

from canopy.errors import CalibrationError
from tiles.files import replacing

Array = NDArray[np.floating[Any]]
Kind = Literal["identity", "percentile", "linear", "isotonic", "quantile", "local", "features"]
Finite = Annotated[float, Field(allow_inf_nan=False)]
TREE_M = 2.0
LIMIT = math.log(2.0)
"""A gain lies between a half and two."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class GainGrid(_Frozen):
    """Logarithm of a gain at the points of a coarse grid, bilinear between them and constant beyond."""

    crs: str
    """Projected CRS, as WKT."""
    left: Finite
    """x of the first column of points, units of the CRS."""
    top: Finite
    """y of the first row of points."""
    step: Finite = Field(gt=0)
    """Distance of neighbouring points, units of the CRS."""
    log_gain: tuple[tuple[Annotated[float, Field(ge=-LIMIT, le=LIMIT)], ...], ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _is_a_grid(self) -> Self:
        if not self.log_gain[0] or len({len(row) for row in self.log_gain}) != 1:
            raise ValueError("rows of log_gain differ in length, or are empty")
        return self

    def at(self, x: Array, y: Array) -> Array:
        """Log gain at places of its CRS; same shape as x and y."""
        values = np.array(self.log_gain)
        row = np.clip((self.top - y) / self.step, 0, values.shape[0] - 1)
        col = np.clip((x - self.left) / self.step, 0, values.shape[1] - 1)
        up, left = np.floor(row).astype(int), np.floor(col).astype(int)
        down, right = np.minimum(up + 1, values.shape[0] - 1), np.minimum(left + 1, values.shape[1] - 1)
        dy, dx = row - up, col - left
        above = values[up, left] * (1 - dx) + values[up, right] * dx
        below = values[down, left] * (1 - dx) + values[down, right] * dx
        mixed: Array = above * (1 - dy) + below * dy
        return mixed

    def on(self, geobox: GeoBox) -> Array:
        """Log gain (H, W) at the centres of a geobox's pixels, of any CRS."""
        height, width = geobox.shape
        cols, rows = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
        place = geobox.affine
        x, y = place.a * cols + place.b * rows + place.c, place.d * cols + place.e * rows + place.f
        if geobox.crs is None:
            raise CalibrationError("a map without CRS cannot be calibrated with a local calibration")
        if geobox.crs != self.crs:
            x, y = Transformer.from_crs(geobox.crs.to_wkt(), self.crs, always_xy=True).transform(x, y)
        return self.at(x, y)


class FeatureGain(_Frozen):
    """Log gain as a linear function of the encoder's features, averaged over a footprint."""

    model_sha256: str
    """The bundle whose encoder gives the features."""
    weights: tuple[Finite, ...] = Field(min_length=1)
    bias: Finite
    sigma_m: Finite = Field(gt=0)
    """Of the Gaussian footprint."""


class Calibration(_Frozen):
    """A fitted calibration: one JSON file.

    Attributes:
        knots_m: (map height, calibrated height) from (0, 0) on, both never falling; beyond the last, its ratio.
        upper: Share of the way from the height to its 95th percentile, in [0, 1).
        fit: On what it was fitted, and the table of methods before and after.
    """

    version: Literal[1] = 1
    kind: Kind
    knots_m: tuple[tuple[Finite, Finite], ...] = Field(min_length=2)
    upper: Finite = Field(default=0, ge=0, lt=1)
    gain: GainGrid | None = None
    features: FeatureGain | None = None
    fit: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _rises_from_the_origin(self) -> Self:
        if any(self.knots_m[0]):
            raise ValueError("knots_m must begin at (0, 0)")
        if any(b[0] <= a[0] or b[1] < a[1] for a, b in pairwise(self.knots_m)):
            raise ValueError("knots_m must rise: first column strictly, second never falling")
        return self

    @property
    def sha256(self) -> str:
        """Of what it does, whatever it was fitted on."""
        return hashlib.sha256(self.model_dump_json(exclude={"fit"}).encode()).hexdigest()

    @property
    def is_identity(self) -> bool:
        """Whether it leaves every height as it is."""
        straight = all(x == y for x, y in self.knots_m)
        return straight and self.upper == 0 and self.gain is None and self.features is None

    def apply(self, height_m: Array, *, p95_m: Array | None = None, log_gain: Array | None = None) -> Array:
        """Calibrated heights, monotone in `height_m`.

        Args:
            height_m: Metres, any shape, NaN where unknown.
            p95_m: Upper end of the 90 % interval, same shape; needed where `upper` is not 0.
            log_gain: Logarithm of the gain, same shape: `gain` or `features` at those places, or 0.

        Returns:
            Metres, float32, 0 or more; NaN where `height_m` is.

        Raises:
            CalibrationError: The calibration reads the 95th percentile and there is none.
        """
        if self.upper > 0 and p95_m is None:
            raise CalibrationError("this calibration reads canopy_height_p95: map with --uncertainty")
        seen = height_m if p95_m is None else raised_m(height_m, p95_m, self.upper)
        x, y = np.array(self.knots_m).T
        seen = np.asarray(seen, np.float64)
        curved = np.where(seen > x[-1], seen * (y[-1] / x[-1]), np.interp(seen, x, y))
        if log_gain is not None:
            curved = curved * np.exp(np.clip(log_gain, -LIMIT, LIMIT))
        return np.where(np.isnan(height_m), np.nan, np.maximum(curved, 0)).astype(np.float32)

    def apply_bands(self, bands_m: Array, *, log_gain: Array | None = None) -> Array:
        """Calibrated height, or height with its interval: (1, H, W) or (3, H, W) metres.

        The ends of the interval take the same way as the height, so they keep their order and their coverage.
        """
        p95_m = bands_m[2] if len(bands_m) == 3 else None
        return np.stack([self.apply(band, p95_m=p95_m, log_gain=log_gain) for band in bands_m])


def raised_m(height_m: Array, p95_m: Array, upper: float) -> Array:
    """Heights moved toward their 95th percentile where that is a tree's; monotone in `height_m`."""
    raised: Array = height_m + upper * np.maximum(0, p95_m - np.maximum(height_m, TREE_M))
    return raised


IDENTITY = Calibration(kind="identity", knots_m=((0, 0), (1, 1)))


def read_calibration(path: Path) -> Calibration:
    """Read a calibration.

    Raises:
        CalibrationError: No such file, or not a calibration.
    """
    try:
        return Calibration.model_validate_json(path.read_bytes())
    except OSError as error:
        raise CalibrationError(f"cannot read the calibration {path}: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise CalibrationError(f"{path} is not a calibration of canopy calibrate: {where}: {first['msg']}") from error


def write_calibration(calibration: Calibration, path: Path) -> None:
    """Write a calibration as JSON, all or nothing."""
    with replacing(path) as draft:
        draft.write_text(calibration.model_dump_json(indent=1) + "\n", encoding="utf-8")
