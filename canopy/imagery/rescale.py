"""How the values of a source become display reflectance."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from canopy.errors import ImageryError

_PERCENTILES = (0.5, 99.5)
_FEW = (0.1, 99.9)
"""Values outside are too few to say what the others are."""
_DISPLAY = (0.02, 0.98)
_MIN_CONTRAST = 0.5
_OVERSHOOT = 0.05
"""Share of the range by which resampled display values may leave it."""
_ON_STEPS = 0.995
"""Share of the values that must be multiples of a step."""
_INTEGER_RANGES = (255, 1023, 2047, 4095, 10_000, 16_383, 65_535)

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Rescale:
    """A linear map of values to display reflectance, the same for the three bands, clipped to [0, 1].

    The model was trained on display imagery, so values are brought to a display range once per source. What the
    values are decides, never their type, nor the few that are extreme; each rule reads "all but .1 % at each end":

    - values that the user names map to 0 and 1;
    - bytes, and whole numbers from 0 to 255 of any type: 0 and 255 map to 0 and 1;
    - whole numbers to 65535 that are multiples of 257 or 256 (bytes made wide), or that use more than half of that
      range: 0 and 65535 (65280 for 256);
    - fractions from 0 to 1, with 5 % beyond for overshoots: display values already if they are multiples of 1/255,
      or use more than half of the range; the same for fractions that use more than half of 0 to 255;
    - all else (11-bit to 16-bit, surface reflectance): the 0.5th and 99.5th percentiles of a sample of all
      files and bands together, so that the colour balance is kept, map to 0.02 and 0.98. The range is at
      least half the 99.5th percentile, so that all water, snow or cloud is not stretched to noise.

    The last rule depends on the files that are opened together: the same scene alone, cropped or among others gets
    another range, unless `scale_option` is passed on.
    """

    low: float
    """Value that becomes 0."""
    high: float
    """Value that becomes 1."""
    rule: str
    """Which rule chose the two, for `describe()`."""
    stretched: bool = False
    """Whether the two were measured on the files."""

    def __str__(self) -> str:
        option = f"; the same for other files: --scale {self.scale_option}" if self.stretched else ""
        return f"{self.low:g}..{self.high:g} -> 0..1 ({self.rule}{option})"

    @property
    def scale_option(self) -> str:
        """The two values as --scale takes them, without loss."""
        return f"{self.low!r},{self.high!r}"

    def apply(self, values: NDArray[np.generic]) -> NDArray[np.float32]:
        """Return display reflectance.

        Args:
            values: Any shape, values of any real type.

        Returns:
            Same shape, float32 in [0, 1]; NaN stays NaN.
        """
        out = np.empty(values.shape, np.float32)
        if self.low:
            np.subtract(values, np.float32(self.low), out=out, dtype=np.float32, casting="unsafe")
            out *= np.float32(1 / (self.high - self.low))
        else:
            np.multiply(values, np.float32(1 / self.high), out=out, dtype=np.float32, casting="unsafe")
        # Bytes divided by 255 cannot leave the range, and clipping takes as long as the division.
        if values.dtype == np.uint8 and self.low == 0 and self.high >= 255:
            return out
        return np.clip(out, 0, 1, out=out)

    def is_far(self, values: Values) -> NDArray[np.bool_]:
        """Return which values lie outside the range by more than its width: no light, but a fill."""
        width = self.high - self.low
        return np.asarray((values > self.high + width) | (values < self.low - width))


def requested_rescale(low: float, high: float) -> Rescale:
    """Return the rescale that the user asks for.

    Raises:
        ImageryError: The range is empty or not finite.
    """
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise ImageryError(f"scale {low:g},{high:g}: expected two finite values, low < high; correct --scale")
    return Rescale(float(low), float(high), "as asked")


def choose_rescale(samples: Sequence[NDArray[np.generic]], dtype: str) -> Rescale:
    """Decide the rescale of a source.

    Args:
        samples: (n,) each: valid values of one file, any band, after its scale and offset.
        dtype: The files' common type; of physical values a float.
    """
    if dtype == "uint8":
        return Rescale(0, 255, "8-bit")
    integer = np.issubdtype(np.dtype(dtype), np.integer)
    pooled = np.concatenate([sample.ravel() for sample in samples]) if samples else np.empty(0)
    if pooled.size == 0:
        return Rescale(0, _INTEGER_RANGES[-1] if integer else 1, f"no valid {dtype} values sampled")
    values = pooled.astype(np.float64)
    if display := _display(values, dtype):
        return display
    low, high = (float(value) for value in np.percentile(values, _PERCENTILES))
    return _constant(high, integer) if high <= low else _stretch(low, high)


def _display(values: Values, dtype: str) -> Rescale | None:
    """Return the rescale of values that are display values already, in whatever container."""
    # Most specific first: bytes are also 16-bit numbers, and fractions also numbers below 255.
    bottom, top = (float(value) for value in np.percentile(values, _FEW))
    upper = float(np.percentile(values, _PERCENTILES[1]))
    whole = dtype[0] in "ui" or (top > 1 and _on_steps(values, 1, 1e-3))
    if whole:
        return _whole_numbers(values, bottom, top, upper, dtype) if bottom >= 0 else None
    for limit, rule in ((1, "display values"), (255, f"8-bit values in {dtype}")):
        inside = bottom >= -_OVERSHOOT * limit and top <= (1 + _OVERSHOOT) * limit
        if inside and (upper > limit / 2 or (limit == 1 and upper > 0 and _on_steps(values, 1 / 255, 1e-6))):
            return Rescale(0, limit, rule)
    return None


def _whole_numbers(values: Values, bottom: float, top: float, upper: float, dtype: str) -> Rescale | None:
    """Return the rescale of whole numbers that are bytes or use the 16-bit range; None for others."""
    if top <= 255:
        return Rescale(0, 255, f"8-bit values in {dtype}")
    if top > 65_535:
        return None
    # 257 maps 255 to 65535, 256 is a shift by 8 bits; real 16-bit data are multiples of neither.
    for step in (257, 256):
        if _on_steps(values, step, 0):
            return Rescale(0, 255 * step, f"8-bit values times {step}")
    return Rescale(0, 65_535, "16-bit display values") if upper > 65_535 / 2 else None


def _on_steps(values: Values, step: float, tolerance: float) -> bool:
    """Return whether nearly all values are multiples of a step."""
    steps = values / step
    return float(np.mean(np.abs(steps - np.rint(steps)) <= tolerance / step)) >= _ON_STEPS


def _stretch(low: float, high: float) -> Rescale:
    # Solved for the ends of 0..1, given that `low` and `high` become .02 and .98.
    low = min(low, high - _MIN_CONTRAST * abs(high))
    gain = (high - low) / (_DISPLAY[1] - _DISPLAY[0])
    bottom = low - _DISPLAY[0] * gain
    # Six digits are what a person reads and types again, so what is printed is the range itself.
    low, high = (float(f"{end:.6g}") for end in (bottom, bottom + gain))
    return Rescale(low, high, "joint 0.5-99.5 % stretch of these files", stretched=True)


def _constant(value: float, integer: bool) -> Rescale:
    """Return the smallest usual range that contains a constant image."""
    ranges = _INTEGER_RANGES if integer else (1, *_INTEGER_RANGES)
    top = next((top for top in ranges if value <= top), value)
    return Rescale(min(0.0, 2 * value), float(top), "constant image", stretched=True)
