"""How far a canopy height model lies beside its imagery: correlation of colour and height over all shifts.

Crowns show in colour, shadows fall beside them, and both are stronger than any edge. So the height is not compared
with one feature of the image but with the best linear mixture of several, at each shift: the multiple correlation
coefficient. Unknown cells are left out of every sum (masked FFT correlation, Padfield 2012, IEEE Transactions on Image
Processing 21:2706).
Broad structure is taken out of both first, for it correlates over tens of metres: forest against meadow, and shadows
that all fall one way.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

Array = NDArray[np.float64]

DETAIL_M = 3.0
"""Structure broader than this (standard deviation of a Gaussian) is taken out: crowns stay, stands go."""
SMOOTH_PX = 1.0
SEARCH_M = 6.0
MIN_CONFIDENCE = 0.9
MIN_DISTINCTNESS = 0.72
MIN_SHIFT_M = 0.5
MAX_REST = 0.7
"""A shift is not accepted where no shift already explains this share of what it explains."""
_DARK = 0.02
_MIN_OVERLAP = 0.5
_RIDGE = 1e-6


@dataclass(frozen=True)
class Shift:
    """Where the heights would lie best.

    Attributes:
        x_m: To be added to the heights' x coordinate, metres east.
        y_m: To be added to the heights' y coordinate, metres north.
        correlation: Multiple correlation of height with the image at this shift.
        unshifted: The same without a shift.
        confidence: Probability, under normal errors, that this shift beats no shift.
        distinctness: The same against the best shift that is further than `DETAIL_M` from this one.
        accepted: Whether it is clearly better than no shift. Only then should it be applied.
    """

    x_m: float
    y_m: float
    correlation: float
    unshifted: float
    confidence: float
    distinctness: float
    accepted: bool

    @property
    def length_m(self) -> float:
        """Distance, metres."""
        return math.hypot(self.x_m, self.y_m)


NO_SHIFT = Shift(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, accepted=False)


def estimate_shift(image: NDArray[Any], height_m: NDArray[Any], cell_m: float, *, search_m: float = SEARCH_M) -> Shift:
    """Estimate the shift that brings heights onto their image.

    The peak's standing is judged by Fisher's z over as many independent samples as discs of `DETAIL_M` fit into the
    ground, against no shift and against the best shift elsewhere, so that unrelated rasters yield no shift.

    Args:
        image: (3, k H, k W) intensities, red, green, blue; any NaN is unknown.
        height_m: (H, W) metres above ground, NaN where unknown.
        cell_m: Cell size of the heights, metres.
        search_m: Largest shift looked for along either axis; at most a quarter of the raster's side is.

    Returns:
        The best shift, to a fraction of a pixel; `NO_SHIFT` where nothing can be compared.

    Raises:
        ValueError: The image is no whole multiple of the heights.
    """
    fold = _fold(image, height_m)
    pixel_m = cell_m / fold
    reach = min(round(search_m / pixel_m), min(image.shape[1:]) // 4)
    detail_px = DETAIL_M / pixel_m
    features = _features(image, detail_px)
    heights = _detail(np.sqrt(np.maximum(height_m, 0)).repeat(fold, axis=0).repeat(fold, axis=1), detail_px)
    known = np.isfinite(heights)
    if reach < 1 or known.mean() < 0.1 or np.nanstd(heights) < 1e-6:
        return NO_SHIFT
    surface = np.sqrt(_explained(features, heights, reach))
    samples = float(known.sum()) / (math.pi * detail_px**2)
    return _judge(surface, pixel_m, samples)


def shift_heights(height_m: NDArray[Any], shift: Shift, cell_m: float) -> NDArray[Any]:
    """Move heights by whole cells, the nearest to the shift, so that no height is blended with its neighbour.

    Args:
        height_m: (H, W) metres.
        shift: As estimated.
        cell_m: Cell size, metres.

    Returns:
        (H, W), NaN where nothing was moved in.
    """
    moved: NDArray[Any] = ndimage.shift(
        height_m, (-round(shift.y_m / cell_m), round(shift.x_m / cell_m)), order=0, cval=np.nan
    )
    return moved


def _fold(image: NDArray[Any], height_m: NDArray[Any]) -> int:
    fold = int(image.shape[1] // max(1, height_m.shape[0]))
    if fold < 1 or image.shape[1:] != (fold * height_m.shape[0], fold * height_m.shape[1]):
        raise ValueError(f"image {image.shape[1:]} over heights {height_m.shape}: a whole multiple expected")
    return fold


def _features(image: NDArray[Any], detail_px: float) -> Array:
    """Detail (3, H, W) of green against red, green against blue, and brightness; 0 where unknown."""
    bright = np.asarray(image, np.float64) / (np.nanmax(image) or 1)
    red, green, blue = np.log(bright + _DARK)
    planes = (green - red, green - blue, bright.mean(axis=0))
    return np.stack([np.nan_to_num(_detail(_smooth(plane, SMOOTH_PX), detail_px)) for plane in planes])


def _smooth(plane: Array, sigma: float) -> Array:
    known = np.isfinite(plane)
    weight = ndimage.gaussian_filter(known.astype(np.float64), sigma)
    smooth = ndimage.gaussian_filter(np.where(known, plane, 0.0), sigma) / np.maximum(weight, 1e-9)
    return np.where(known, smooth, np.nan)


def _detail(plane: Array, sigma: float) -> Array:
    return np.asarray(plane - _smooth(plane, sigma), np.float64)


def _explained(features: Array, heights: Array, reach: int) -> Array:
    """Share of the heights' variance (2 reach + 1, 2 reach + 1) that a mixture of features explains at each shift.

    Row and column `reach` are no shift; the shift moves the heights, down and right.
    """
    count = len(features)
    shape = [fft.next_fast_len(size + 2 * reach + 1, real=True) for size in heights.shape]
    known = np.isfinite(heights)
    at = np.arange(-reach, reach + 1)

    def spectrum(plane: NDArray[Any]) -> NDArray[np.complex128]:
        return np.asarray(fft.rfft2(plane, shape), np.complex128)

    def sums(plane: Array, other: NDArray[np.complex128]) -> Array:
        return np.asarray(fft.irfft2(spectrum(plane) * other.conj(), shape)[np.ix_(at, at)], np.float64)

    filled = np.where(known, heights - np.nanmean(heights), 0.0)
    seen, first, second = spectrum(known.astype(np.float64)), spectrum(filled), spectrum(filled**2)
    ones = np.ones(heights.shape)
    n = np.maximum(sums(ones, seen), 1.0)
    total, squares = sums(ones, first), sums(ones, second)
    mean = np.stack([sums(feature, seen) for feature in features], axis=-1) / n[..., None]
    cross = np.stack([sums(feature, first) for feature in features], axis=-1) - mean * total[..., None]
    spread = np.empty((*n.shape, count, count))
    for i, j in zip(*np.tril_indices(count), strict=True):
        moment = sums(features[i] * features[j], seen) - n * mean[..., i] * mean[..., j]
        spread[..., i, j] = spread[..., j, i] = moment
    ridge = _RIDGE * np.trace(spread, axis1=-2, axis2=-1) + 1e-12
    spread += ridge[..., None, None] * np.eye(count)
    explained = np.einsum("...i,...i", cross, np.linalg.solve(spread, cross[..., None])[..., 0])
    share = explained / np.maximum(squares - total**2 / n, 1e-12)
    return np.where(n > _MIN_OVERLAP * known.sum(), share.clip(0, 1), 0.0)


def _judge(surface: Array, pixel_m: float, samples: float) -> Shift:
    reach = len(surface) // 2
    row, col = (int(at) for at in np.unravel_index(surface.argmax(), surface.shape))
    best, unshifted = float(surface[row, col]), float(surface[reach, reach])
    inside = 0 < row < 2 * reach and 0 < col < 2 * reach
    down, right = _vertex(surface[:, col], row), _vertex(surface[row], col)
    x_m, y_m = (right - reach) * pixel_m, (reach - down) * pixel_m
    confidence = _beats(best, unshifted, samples)
    distinctness = _beats(best, _runner_up(surface, row, col, DETAIL_M / pixel_m), samples)
    clear = confidence >= MIN_CONFIDENCE and distinctness >= MIN_DISTINCTNESS and unshifted**2 <= MAX_REST * best**2
    accepted = inside and clear and math.hypot(x_m, y_m) >= MIN_SHIFT_M
    return Shift(x_m, y_m, best, unshifted, confidence, distinctness, accepted)


def _runner_up(surface: Array, row: int, col: int, distance: float) -> float:
    """Highest correlation further than `distance` pixels from the peak."""
    rows, cols = np.ogrid[: len(surface), : len(surface)]
    far = np.hypot(rows - row, cols - col) > distance
    return float(surface[far].max()) if far.any() else 0.0


def _beats(correlation: float, other: float, samples: float) -> float:
    """Probability that one correlation exceeds another: Fisher's z has an error of 1 / sqrt(samples) in each."""
    gain = math.atanh(min(correlation, 1 - 1e-9)) - math.atanh(min(other, 1 - 1e-9))
    return 0.5 + 0.5 * math.erf(gain * math.sqrt(samples) / 2)


def _vertex(line: Array, at: int) -> float:
    """Where the parabola through a maximum and its neighbours is highest."""
    if not 0 < at < len(line) - 1:
        return float(at)
    before, peak, after = (float(value) for value in line[at - 1 : at + 2])
    curvature = before - 2 * peak + after
    return at + (0.5 * (before - after) / curvature if curvature < 0 else 0.0)
