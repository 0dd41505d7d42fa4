"""How stored values become display reflectance."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from canopy.errors import ImageryError

_PERCENTILES = (0.5, 99.5)
_DISPLAY = (0.02, 0.98)
_MIN_CONTRAST = 0.5
_INTEGER_RANGES = (255, 1023, 2047, 4095, 10_000, 16_383, 65_535)


@dataclass(frozen=True)
class Rescale:
    """A linear map of stored values to display reflectance, the same for the three bands, clipped to [0, 1].

    The model was trained on display imagery, so values are brought to a display range once per source:

    - values that the user names map to 0 and 1;
    - integers of at most 255: 0 and 255 map to 0 and 1, whatever their type;
    - floats within [0, 1] whose 99.5th percentile exceeds 0.5 are display values already;
    - all else (11-bit to 16-bit, surface reflectance): the 0.5th and 99.5th percentiles of a sample of all
      files and bands together, so that the colour balance is kept, map to 0.02 and 0.98. The range is at
      least half the 99.5th percentile, so that all water, snow or cloud is not stretched to noise.
    """

    low: float
    """Stored value that becomes 0."""
    high: float
    """Stored value that becomes 1."""
    rule: str
    """Which rule chose the two, for `describe()`."""

    def __str__(self) -> str:
        return f"{self.low:g}..{self.high:g} -> 0..1 ({self.rule})"

    def apply(self, values: NDArray[np.generic]) -> NDArray[np.float32]:
        """Return display reflectance.

        Args:
            values: Any shape, stored values of any real type.

        Returns:
            Same shape, float32 in [0, 1]; NaN stays NaN.
        """
        out = np.empty(values.shape, np.float32)
        if self.low:
            np.subtract(values, np.float32(self.low), out=out, dtype=np.float32, casting="unsafe")
            out *= np.float32(1 / (self.high - self.low))
        else:
            np.multiply(values, np.float32(1 / self.high), out=out, dtype=np.float32, casting="unsafe")
        if values.dtype == np.uint8 and self.low == 0 and self.high >= 255:
            return out
        return np.clip(out, 0, 1, out=out)


def choose_rescale(
    samples: Sequence[NDArray[np.generic]], dtype: str, requested: tuple[float, float] | None = None
) -> Rescale:
    """Decide the rescale of a source.

    Args:
        samples: (n,) each: valid stored values of one file, any band.
        dtype: The files' common type.
        requested: Values that map to 0 and 1, from the user.

    Raises:
        ImageryError: The requested range is empty or not finite.
    """
    if requested is not None:
        return _requested_range(*requested)
    integer = np.issubdtype(np.dtype(dtype), np.integer)
    if dtype == "uint8":
        return Rescale(0, 255, "8-bit")
    pooled = np.concatenate([sample.ravel() for sample in samples]) if samples else np.empty(0, dtype)
    if pooled.size == 0:
        return Rescale(0, _INTEGER_RANGES[-1] if integer else 1, f"no valid {dtype} values sampled")
    top = float(pooled.max())
    if integer and top <= 255 and pooled.min() >= 0:
        return Rescale(0, 255, f"8-bit values in {dtype}")
    low, high = (float(value) for value in np.percentile(pooled, _PERCENTILES))
    if not integer and pooled.min() >= 0 and top <= 1 and high > 0.5:
        return Rescale(0, 1, "display values")
    if high <= low:
        return _constant(high, integer)
    return _stretch(low, high)


def _requested_range(low: float, high: float) -> Rescale:
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise ImageryError(f"scale {low:g},{high:g}: expected two finite values, low < high; correct --scale")
    return Rescale(float(low), float(high), "as asked")


def _stretch(low: float, high: float) -> Rescale:
    low = min(low, high - _MIN_CONTRAST * abs(high))
    gain = (high - low) / (_DISPLAY[1] - _DISPLAY[0])
    bottom = low - _DISPLAY[0] * gain
    return Rescale(bottom, bottom + gain, "joint 0.5-99.5 % stretch; override with --scale")


def _constant(value: float, integer: bool) -> Rescale:
    """Return the smallest usual range that contains a constant image."""
    ranges = _INTEGER_RANGES if integer else (1, *_INTEGER_RANGES)
    top = next((top for top in ranges if value <= top), value)
    return Rescale(min(0.0, 2 * value), float(top), "constant image; override with --scale")
