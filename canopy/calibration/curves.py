"""What a calibration does to a height: a rising curve, a gain that varies over the land, and what else it reads.

    calibrated = gain * curve(height + upper * max(0, p95 - max(height, doubt_m)))

The curve goes through the origin, so ground stays ground unless the model itself doubts it (`upper` > 0): a map's
zeros are either meadows or forest that it missed, and its height alone cannot say which. Its 95th percentile can, where
it lies above `doubt_m`, the level that it reaches over nearly all bare ground.

The ends of the interval take the curve and the gain, never the way toward p95, which would lift the low end with the
height; then they move apart until held-out shots lie between them.
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
"""Method of the fit; linear and isotonic stand in older files."""
Finite = Annotated[float, Field(allow_inf_nan=False)]
CANOPY_M = 2.0
"""Height from which a cell counts as canopy; the curve leaves lower heights as they are."""
TALLEST_M = 130.0
"""Greatest calibrated height, metres: trees end there, and a curve goes on past its last knot."""
LIMIT = math.log(2.0)
"""Largest logarithm of a gain: it lies between a half and two."""


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

    def log_gain_at(self, x: Array, y: Array) -> Array:
        """Return the log gain at coordinates of its CRS; same shape as x and y."""
        values = np.array(self.log_gain)
        # Clipped to the grid, so that the gain is constant beyond its outermost points.
        row = np.clip((self.top - y) / self.step, 0, values.shape[0] - 1)
        col = np.clip((x - self.left) / self.step, 0, values.shape[1] - 1)
        up, left = np.floor(row).astype(int), np.floor(col).astype(int)
        down, right = np.minimum(up + 1, values.shape[0] - 1), np.minimum(left + 1, values.shape[1] - 1)
        dy, dx = row - up, col - left
        above = values[up, left] * (1 - dx) + values[up, right] * dx
        below = values[down, left] * (1 - dx) + values[down, right] * dx
        mixed: Array = above * (1 - dy) + below * dy
        return mixed

    def log_gain_on(self, geobox: GeoBox) -> Array:
        """Return the log gain (H, W) at the centres of a geobox's pixels, of any CRS.

        Raises:
            CalibrationError: The geobox has no CRS.
        """
        height, width = geobox.shape
        cols, rows = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
        a = geobox.affine
        x, y = a.a * cols + a.b * rows + a.c, a.d * cols + a.e * rows + a.f
        if geobox.crs is None:
            raise CalibrationError("a map without CRS cannot be calibrated with a local calibration")
        if geobox.crs != self.crs:
            x, y = Transformer.from_crs(geobox.crs.to_wkt(), self.crs, always_xy=True).transform(x, y)
        return self.log_gain_at(x, y)


class FeatureGain(_Frozen):
    """Log gain as a linear function of the encoder's features, averaged over a footprint."""

    model_sha256: str
    """The bundle whose encoder gives the features."""
    weights: tuple[Finite, ...] = Field(min_length=1)
    bias: Finite
    sigma_m: Finite = Field(gt=0)
    """Standard deviation of the Gaussian footprint, metres."""


class IntervalEnds(_Frozen):
    """How far the ends of the interval move apart, by calibrated height: linear between its knots, constant beyond."""

    height_m: tuple[Finite, ...] = Field(min_length=1)
    """Calibrated heights of the knots, rising."""
    lower_m: tuple[Annotated[float, Field(ge=0, allow_inf_nan=False)], ...]
    """Metres by which the low end goes down at each knot."""
    upper_m: tuple[Annotated[float, Field(ge=0, allow_inf_nan=False)], ...]
    """Metres by which the high end goes up at each knot."""

    @model_validator(mode="after")
    def _has_one_offset_a_knot(self) -> Self:
        if not len(self.height_m) == len(self.lower_m) == len(self.upper_m):
            raise ValueError("height_m, lower_m and upper_m differ in length")
        if any(b <= a for a, b in pairwise(self.height_m)):
            raise ValueError("height_m must rise")
        return self

    def widened(self, height_m: Array, low_m: Array, high_m: Array) -> tuple[Array, Array]:
        """Return both ends moved apart, the low end not below 0; arrays of one shape, metres."""
        low_m = low_m - np.interp(height_m, self.height_m, self.lower_m)
        widened_m = high_m + np.interp(height_m, self.height_m, self.upper_m)
        return np.maximum(low_m, 0), np.minimum(widened_m, np.fmax(high_m, TALLEST_M))


class Calibration(_Frozen):
    """A fitted calibration: one JSON file."""

    version: Literal[1] = 1
    kind: Kind
    knots_m: tuple[tuple[Finite, Finite], ...] = Field(min_length=2)
    """(map height, calibrated height) from (0, 0) on, both never falling; beyond the last, its ratio."""
    upper: Finite = Field(default=0, ge=0, lt=1)
    """Share of the way from the height to its 95th percentile, in [0, 1)."""
    doubt_m: Finite = Field(default=CANOPY_M, ge=CANOPY_M)
    """95th percentile from which heights move toward it, metres."""
    gain: GainGrid | None = None
    features: FeatureGain | None = None
    interval: IntervalEnds | None = None
    """How the ends of the interval move apart; None in a file that was fitted without an interval."""
    fit: dict[str, Any] = Field(default_factory=dict)
    """What it was fitted on, and the table of methods on held-out ground."""

    @model_validator(mode="after")
    def _rises_from_the_origin(self) -> Self:
        if any(self.knots_m[0]):
            raise ValueError("knots_m must begin at (0, 0)")
        if any(b[0] <= a[0] or b[1] < a[1] for a, b in pairwise(self.knots_m)):
            raise ValueError("knots_m must rise: first column strictly, second never falling")
        return self

    @property
    def sha256(self) -> str:
        """Identity of what it does, whatever it was fitted on."""
        # Fields added later are left out at their defaults, so that older files keep the identity in maps' tags.
        defaults = {"doubt_m": CANOPY_M, "interval": None}
        later = {name for name, value in defaults.items() if getattr(self, name) == value}
        return hashlib.sha256(self.model_dump_json(exclude={"fit", *later}).encode()).hexdigest()

    def apply(self, height_m: Array, *, p95_m: Array | None = None, log_gain: Array | None = None) -> Array:
        """Return calibrated heights, monotone in `height_m`.

        Args:
            height_m: Metres, any shape, NaN where unknown.
            p95_m: Upper end of the 90 % interval, same shape; needed where `upper` is not 0.
            log_gain: Logarithm of the gain, same shape: `gain` or `features` at those cells, or 0.

        Returns:
            float32 metres, same shape, at least 0.

        Raises:
            CalibrationError: The calibration reads `p95_m`, and there is none.
        """
        read_m = height_m
        if self.upper > 0:
            if p95_m is None:
                raise CalibrationError("this calibration reads canopy_height_p95: map with --uncertainty")
            read_m = raised_m(height_m, p95_m, self.upper, self.doubt_m)
        return self._curved(read_m, log_gain)

    def apply_bands(self, bands_m: Array, *, log_gain: Array | None = None) -> Array:
        """Return calibrated height, or height with its interval.

        Args:
            bands_m: (1, H, W) height, or (3, H, W) height with the ends of its interval, metres.
            log_gain: (H, W) logarithm of the gain, or None.

        Returns:
            float32 metres, same shape; low end <= height <= high end.
        """
        if len(bands_m) == 1:
            return self.apply(bands_m[0], log_gain=log_gain)[None]
        # First the height, from all three bands; then the ends, each from its own band, opened by calibrated height;
        # last their order, which a lifted zero could break.
        height_m = self.apply(bands_m[0], p95_m=bands_m[2], log_gain=log_gain)
        low_m, high_m = self.ends(height_m, bands_m[1], bands_m[2], log_gain=log_gain)
        return np.stack([height_m, np.minimum(low_m, height_m), np.maximum(high_m, height_m)]).astype(np.float32)

    def ends(
        self, calibrated_m: Array, low_m: Array, high_m: Array, *, log_gain: Array | None = None
    ) -> tuple[Array, Array]:
        """Return the calibrated ends of the interval of heights that are calibrated already; arrays of one shape."""
        low_m, high_m = self._curved(low_m, log_gain), self._curved(high_m, log_gain)
        return (low_m, high_m) if self.interval is None else self.interval.widened(calibrated_m, low_m, high_m)

    def _curved(self, height_m: Array, log_gain: Array | None) -> Array:
        """Return the curve's heights times the gain."""
        x, y = np.array(self.knots_m).T
        height_m = np.asarray(height_m, np.float64)
        # Past the last knot the curve keeps that knot's ratio: a straight line through the origin.
        curved = np.where(height_m > x[-1], height_m * (y[-1] / x[-1]), np.interp(height_m, x, y))
        if log_gain is not None:
            curved = curved * np.exp(np.clip(log_gain, -LIMIT, LIMIT))
        # What lies above the tallest tree already stays as it is.
        curved = np.clip(curved, 0, np.fmax(height_m, TALLEST_M))
        return np.where(np.isnan(height_m), np.nan, curved).astype(np.float32)


def raised_m(height_m: Array, p95_m: Array, upper: float, doubt_m: float) -> Array:
    """Return heights moved toward their 95th percentile where that is beyond doubt; monotone in `height_m`."""
    raised: Array = height_m + upper * np.maximum(0, p95_m - np.maximum(height_m, doubt_m))
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
