"""How far a canopy height model lies off its imagery: correlation of colour and height over all shifts.

Crowns show in colour, shadows fall next to them, and both are stronger than any edge. So the height is not compared
with one feature of the image but with the best linear mixture of several, at each shift: the multiple correlation
coefficient. Unknown cells are left out of every sum (masked FFT correlation, Padfield 2012, IEEE Transactions on Image
Processing 21:2706).
Broad structure is removed from both first, for it correlates over tens of metres: forest against meadow, and shadows
that all fall one way.

All sums are sums over cells, so a large scene is read in blocks, each with the margin that filters and shifts reach.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from tiles.windows import PixelWindow

Array = NDArray[np.float64]

DETAIL_M = 3.0
"""Structure broader than this (standard deviation of a Gaussian) is removed: crowns stay, stands go."""
SMOOTH_PX = 1.0
SEARCH_M = 6.0
MIN_CONFIDENCE = 0.9
MIN_DISTINCTNESS = 0.72
MIN_SHIFT_M = 0.5
MAX_REST = 0.7
"""A shift is not accepted where no shift already explains this share of what it explains."""
BLOCK_PX = 2048
"""Side of the blocks of a scene that is larger than one, pixels."""
_DARK = 0.02
_MIN_OVERLAP = 0.5
_MIN_KNOWN = 0.1
_MIN_SPREAD = 1e-6
_RIDGE = 1e-6
_TRUNCATE = 4.0
"""Reach of a Gaussian filter, standard deviations: the default of scipy."""


class Raster(Protocol):
    """A raster that is read by slices: an array in memory, or a file."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of each dimension."""
        ...

    def __getitem__(self, window: tuple[slice, ...], /) -> NDArray[Any]:
        """Read a window: one slice a dimension."""
        ...


@dataclass(frozen=True)
class Shift:
    """Where the heights would lie best."""

    x_m: float
    """Metres to add to the heights' x coordinate, east."""
    y_m: float
    """Metres to add to the heights' y coordinate, north."""
    correlation: float
    """Multiple correlation of height with the image at this shift."""
    unshifted: float
    """Multiple correlation without a shift."""
    confidence: float
    """Probability, under normal errors, that this shift beats no shift."""
    distinctness: float
    """Probability that this shift beats the best shift that is further than `DETAIL_M` from it."""
    accepted: bool
    """Whether it is clearly better than no shift. Only then should it be applied."""

    def whole_cells(self, cell_m: float) -> tuple[int, int]:
        """Return the nearest shift by whole cells, rows down and columns right: no height is blended with another."""
        return -round(self.y_m / cell_m), round(self.x_m / cell_m)


NO_SHIFT = Shift(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, accepted=False)


def estimate_shift(
    image: Raster, height_m: Raster, cell_m: float, *, search_m: float = SEARCH_M, block_px: int = BLOCK_PX
) -> Shift:
    """Estimate the shift that brings heights onto their image.

    The peak's standing is judged by Fisher's z over as many independent samples as discs of `DETAIL_M` fit into the
    ground, against no shift and against the best shift elsewhere, so that unrelated rasters yield no shift.

    Args:
        image: (3, k H, k W) intensities, red, green, blue; any NaN is unknown.
        height_m: (H, W) metres above ground, NaN where unknown.
        cell_m: Cell size of the heights, metres.
        search_m: Largest shift along either axis, metres; at most a quarter of the raster's side is searched.
        block_px: Side of the blocks in which a scene of more pixels than one is read; the result does not depend on it.

    Returns:
        The best shift, to a fraction of a pixel; `NO_SHIFT` where nothing can be compared.

    Raises:
        ValueError: The image is no whole multiple of the heights.
    """
    cell_px = _cell_px(image, height_m)
    pixel_m = cell_m / cell_px
    reach = min(round(search_m / pixel_m), min(image.shape[1:]) // 4)
    if reach < 1:
        return NO_SHIFT
    scene = PixelWindow(0, 0, *height_m.shape)
    blocks = list(_blocks(scene, cell_px, block_px))
    # Brightness is measured against the brightest pixel of the whole scene, so it is known before any block is used.
    white = max(float(np.fmax.reduce(_read(image, block, cell_px), axis=None, initial=0)) for block in blocks) or 1.0
    sums = _ShiftSums(reach, DETAIL_M / pixel_m)
    for block in blocks:
        sums.add(image, height_m, block, scene, cell_px, white)
    if sums.valid_px < _MIN_KNOWN * sums.all_px or sums.spread < _MIN_SPREAD:
        return NO_SHIFT
    samples = sums.valid_px / (math.pi * (DETAIL_M / pixel_m) ** 2)
    return _judge(np.sqrt(sums.explained()), pixel_m, samples)


def _cell_px(image: Raster, height_m: Raster) -> int:
    cell_px = int(image.shape[1] // max(1, height_m.shape[0]))
    if cell_px < 1 or tuple(image.shape[1:]) != (cell_px * height_m.shape[0], cell_px * height_m.shape[1]):
        raise ValueError(f"image {image.shape[1:]} over heights {height_m.shape}: a whole multiple expected")
    return cell_px


def _blocks(scene: PixelWindow, cell_px: int, block_px: int) -> Iterator[PixelWindow]:
    """Yield blocks of cells that tile a scene: one for a scene of no more pixels than a block."""
    if scene.height * scene.width * cell_px**2 <= block_px**2:
        yield scene
        return
    side = max(1, block_px // cell_px)
    for row in range(0, scene.height, side):
        for col in range(0, scene.width, side):
            yield PixelWindow(row, col, min(side, scene.height - row), min(side, scene.width - col))


def _read(image: Raster, cells: PixelWindow, cell_px: int) -> NDArray[Any]:
    rows, cols = slice(cells.row0 * cell_px, cells.row1 * cell_px), slice(cells.col0 * cell_px, cells.col1 * cell_px)
    return image[slice(0, 3), rows, cols]


def _features(image: NDArray[Any], white: float, detail_px: float) -> Array:
    """Compute the detail (3, H, W) of green against red, green against blue, and brightness; 0 where unknown."""
    bright = np.asarray(image, np.float64) / white
    # Logarithms, so that differences are ratios and shade changes them little; the darkest pixels are noise.
    red, green, blue = np.log(bright + _DARK)
    planes = (green - red, green - blue, bright.mean(axis=0))
    return np.stack([np.nan_to_num(_detail(_smooth(plane, SMOOTH_PX), detail_px)) for plane in planes])


def _smooth(plane: Array, sigma: float) -> Array:
    """Blur the known pixels of a plane; unknown ones (NaN) stay unknown and have no weight."""
    valid = np.isfinite(plane)
    if valid.all():
        # The weights would all be 1, at twice the time.
        return np.asarray(ndimage.gaussian_filter(plane, sigma, truncate=_TRUNCATE), np.float64)
    weight = ndimage.gaussian_filter(valid.astype(np.float64), sigma, truncate=_TRUNCATE)
    smooth = ndimage.gaussian_filter(np.where(valid, plane, 0.0), sigma, truncate=_TRUNCATE) / np.maximum(weight, 1e-9)
    return np.where(valid, smooth, np.nan)


def _detail(plane: Array, sigma: float) -> Array:
    return np.asarray(plane - _smooth(plane, sigma), np.float64)


@dataclass
class _ShiftSums:
    """Sums over cells at each shift, (2 reach + 1, 2 reach + 1): row and column `reach` are no shift.

    The shift moves the heights, down and right.
    """

    reach: int
    """Largest shift, pixels."""
    detail_px: float
    """`DETAIL_M` in pixels."""
    all_px: int = 0
    """Pixels added, with a height or without."""
    valid_px: int = 0
    """Pixels added with a height."""
    offset: float | None = None
    """Subtracted from all heights so that sums of squares keep their digits; any value gives the same result."""
    moments: list[float] = field(default_factory=lambda: [0.0, 0.0])
    """Sums of the heights and of their squares over all known pixels."""
    shifted: dict[str, Array] = field(default_factory=dict)
    """Sums at each shift, by name; `mean`, `cross` and `square` have the features as their last dimensions."""

    def add(
        self, image: Raster, height_m: Raster, block: PixelWindow, scene: PixelWindow, cell_px: int, white: float
    ) -> None:
        """Add the heights of a block against the image at each shift.

        Args:
            image: The scene's image.
            height_m: The scene's heights.
            block: Cells to add.
            scene: All cells.
            cell_px: Pixels along the side of a cell.
            white: Intensity of the brightest pixel.
        """
        # Filters mirror at the edge of what they are given. Within the scene that edge lies so far out that no
        # pixel of the block, nor any pixel that a shift brings onto it, feels the mirror.
        filters_px = math.ceil(_TRUNCATE * SMOOTH_PX + 0.5) + math.ceil(_TRUNCATE * self.detail_px + 0.5)
        reached = _clip(block.pad(-(-self.reach // cell_px)), scene)
        margin = _clip(reached.pad(-(-filters_px // cell_px)), scene)
        # The square root, so that one tall tree does not outweigh many low ones.
        heights = np.sqrt(np.maximum(height_m[margin.slices_in(scene)], 0)).repeat(cell_px, 0).repeat(cell_px, 1)
        detail = _detail(heights, self.detail_px)[_pixels(block, margin, cell_px)]
        valid = np.isfinite(detail)
        self.all_px, self.valid_px = self.all_px + valid.size, self.valid_px + int(valid.sum())
        if not valid.any():
            return
        if self.offset is None:
            self.offset = float(np.nanmean(detail))
        filled = np.where(valid, detail - self.offset, 0.0)
        self.moments[0] += float(filled.sum())
        self.moments[1] += float((filled**2).sum())
        features = _features(_read(image, margin, cell_px), white, self.detail_px)
        features = features[:, *_pixels(reached, margin, cell_px)]
        self._correlate(features, filled, valid, _pixels(block, reached, cell_px))

    @property
    def spread(self) -> float:
        """Standard deviation of all known heights' detail."""
        count = max(1, self.valid_px)
        mean = self.moments[0] / count
        return math.sqrt(max(0.0, self.moments[1] / count - mean**2))

    def _correlate(self, features: Array, filled: Array, valid: NDArray[np.bool_], inside: tuple[slice, slice]) -> None:
        """Add one block: features (n, H, W) of all that shifts reach, heights (h, w) that lie `inside` of them."""
        shape = [fft.next_fast_len(size + 2 * self.reach + 1, real=True) for size in features.shape[1:]]
        # A negative shift stands at the end of a cyclic correlation, where a negative index takes it from.
        shifts = np.arange(-self.reach, self.reach + 1)

        def spectrum(plane: NDArray[Any]) -> NDArray[np.complex128]:
            return np.asarray(fft.rfft2(plane, shape), np.complex128)

        def laid(plane: NDArray[Any]) -> NDArray[np.complex128]:
            whole = np.zeros(features.shape[1:])
            whole[inside] = plane
            return spectrum(whole)

        def sums(one: NDArray[np.complex128], other: NDArray[np.complex128]) -> Array:
            return np.asarray(fft.irfft2(one * other.conj(), shape)[np.ix_(shifts, shifts)], np.float64)

        weight, first, second = laid(valid.astype(np.float64)), laid(filled), laid(filled**2)
        ones = spectrum(np.ones(features.shape[1:]))
        self._accumulate("count", sums(ones, weight))
        self._accumulate("total", sums(ones, first))
        self._accumulate("squares", sums(ones, second))
        del ones, second
        spectra = [spectrum(feature) for feature in features]
        self._accumulate("mean", np.stack([sums(one, weight) for one in spectra], axis=-1))
        self._accumulate("cross", np.stack([sums(one, first) for one in spectra], axis=-1))
        del spectra, first
        products = [sums(spectrum(features[i] * features[j]), weight) for i, j in _pairs(len(features))]
        self._accumulate("square", np.stack(products, axis=-1))

    def _accumulate(self, name: str, values: Array) -> None:
        self.shifted[name] = self.shifted[name] + values if name in self.shifted else values

    def explained(self) -> Array:
        """Return the share of the heights' variance that a mixture of features explains at each shift.

        The coefficient of multiple determination: c' S^-1 c / v, with c the covariances of features and heights, S
        those of the features and v the variance of the heights, over the cells that the shift leaves on the image.
        """
        n = np.maximum(self.shifted["count"], 1.0)
        total, squares = self.shifted["total"], self.shifted["squares"]
        mean = self.shifted["mean"] / n[..., None]
        cross = self.shifted["cross"] - mean * total[..., None]
        features = mean.shape[-1]
        spread = np.empty((*n.shape, features, features))
        for number, (i, j) in enumerate(_pairs(features)):
            moment = self.shifted["square"][..., number] - n * mean[..., i] * mean[..., j]
            spread[..., i, j] = spread[..., j, i] = moment
        # A ridge keeps features that hardly vary from being divided by nothing.
        ridge = _RIDGE * np.trace(spread, axis1=-2, axis2=-1) + 1e-12
        spread += ridge[..., None, None] * np.eye(features)
        explained = np.einsum("...i,...i", cross, np.linalg.solve(spread, cross[..., None])[..., 0])
        share = explained / np.maximum(squares - total**2 / n, 1e-12)
        return np.where(n > _MIN_OVERLAP * self.valid_px, share.clip(0, 1), 0.0)


def _pairs(count: int) -> list[tuple[int, int]]:
    """Return the cells of the lower triangle of a matrix."""
    return [(int(i), int(j)) for i, j in zip(*np.tril_indices(count), strict=True)]


def _clip(window: PixelWindow, scene: PixelWindow) -> PixelWindow:
    inside = window.intersect(scene)
    assert inside is not None  # a window around a block of the scene
    return inside


def _pixels(cells: PixelWindow, outer: PixelWindow, cell_px: int) -> tuple[slice, slice]:
    """Return the pixel slices of a window of cells in an array of the pixels of another window."""
    rows, cols = cells.slices_in(outer)
    return slice(rows.start * cell_px, rows.stop * cell_px), slice(cols.start * cell_px, cols.stop * cell_px)


def _judge(surface: Array, pixel_m: float, samples: float) -> Shift:
    """Judge the peak of the correlations at all shifts (2 reach + 1, 2 reach + 1)."""
    reach = len(surface) // 2
    row, col = (int(index) for index in np.unravel_index(surface.argmax(), surface.shape))
    best, unshifted = float(surface[row, col]), float(surface[reach, reach])
    # On the border of the search the true peak may lie beyond.
    inside = 0 < row < 2 * reach and 0 < col < 2 * reach
    down, right = _vertex(surface[:, col], row), _vertex(surface[row], col)
    x_m, y_m = (right - reach) * pixel_m, (reach - down) * pixel_m
    confidence = _beats(best, unshifted, samples)
    distinctness = _beats(best, _runner_up(surface, row, col, DETAIL_M / pixel_m), samples)
    clear = confidence >= MIN_CONFIDENCE and distinctness >= MIN_DISTINCTNESS and unshifted**2 <= MAX_REST * best**2
    accepted = inside and clear and math.hypot(x_m, y_m) >= MIN_SHIFT_M
    return Shift(x_m, y_m, best, unshifted, confidence, distinctness, accepted)


def _runner_up(surface: Array, row: int, col: int, distance: float) -> float:
    """Return the highest correlation further than `distance` pixels from the peak."""
    rows, cols = np.ogrid[: len(surface), : len(surface)]
    far = np.hypot(rows - row, cols - col) > distance
    return float(surface[far].max()) if far.any() else 0.0


def _beats(correlation: float, other: float, samples: float) -> float:
    """Return the probability that one correlation exceeds another: Fisher's z has an error of 1 / sqrt(samples)."""
    gain = math.atanh(min(correlation, 1 - 1e-9)) - math.atanh(min(other, 1 - 1e-9))
    return 0.5 + 0.5 * math.erf(gain * math.sqrt(samples) / 2)


def _vertex(line: Array, peak: int) -> float:
    """Return where the parabola through a maximum and its neighbours is highest."""
    if not 0 < peak < len(line) - 1:
        return float(peak)
    before, top, after = (float(value) for value in line[peak - 1 : peak + 2])
    curvature = before - 2 * top + after
    return peak + (0.5 * (before - after) / curvature if curvature < 0 else 0.0)
