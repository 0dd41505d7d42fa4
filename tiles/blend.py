"""Blending: hides how overlapping chips become one seamless map.

Weights are multiples of 2**-24 that sum to exactly 1, and sums run in float64 in raster order, so a pixel's
bits depend neither on the window nor on the tiling through which it is computed.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from tiles.windows import PixelWindow

_STEPS = 4096  # weight levels per axis; the product of two axes then fits float32's 24 bits


@dataclass(frozen=True)
class ChipLattice:
    """Overlapping square chips, anchored to the CRS origin like the pixels."""

    chip_px: int
    """Chip side in pixels."""
    overlap_px: int
    """Pixels shared by neighbouring chips, at most half a chip."""

    def __post_init__(self) -> None:
        """Refuse an overlap in which more than two chips of a row would meet."""
        if self.chip_px < 1 or not 0 <= 2 * self.overlap_px <= self.chip_px:
            raise ValueError(
                f"chip_px is {self.chip_px} and overlap_px {self.overlap_px}; expected 0 <= overlap_px <= chip_px / 2"
            )

    @property
    def stride_px(self) -> int:
        """Pixels between the origins of neighbouring chips."""
        return self.chip_px - self.overlap_px

    def chip(self, row: int, col: int) -> PixelWindow:
        """Give the window of a chip in lattice pixels."""
        return PixelWindow(row * self.stride_px, col * self.stride_px, self.chip_px, self.chip_px)

    def covering(self, window: PixelWindow) -> list[tuple[int, int]]:
        """List (row, col) of every chip that meets a window, in raster order."""
        rows = self._range(window.row0, window.row1)
        cols = self._range(window.col0, window.col1)
        return [(row, col) for row in rows for col in cols]

    def _range(self, start: int, stop: int) -> range:
        """Give the chip indices along an axis that meet the pixels from `start` to `stop`."""
        return range((start - self.chip_px) // self.stride_px + 1, (stop - 1) // self.stride_px + 1)

    @cached_property
    def weights(self) -> NDArray[np.float32]:
        """Feather of a chip: (chip_px, chip_px) float32 in (0, 1], read-only.

        A raised-cosine ramp over the overlap on each side; where chips overlap, weights sum to exactly 1.
        """
        ramp = _ramp(self.overlap_px)
        flat = np.full(self.chip_px - 2 * self.overlap_px, _STEPS, np.int64)
        profile = np.concatenate([ramp, flat, ramp[::-1]])
        weights = (np.outer(profile, profile) / _STEPS**2).astype(np.float32)
        weights.setflags(write=False)
        return weights


class Blender:
    """Accumulates weighted chips over one window."""

    def __init__(self, lattice: ChipLattice, window: PixelWindow, bands: int) -> None:
        """Start with nothing known.

        Args:
            lattice: Lattice of the chips.
            window: Pixels to blend.
            bands: Values per pixel, K.
        """
        self._lattice = lattice
        self._window = window
        self._sum = np.zeros((bands, *window.shape), np.float64)
        self._weight = np.zeros(window.shape, np.float32)
        self._last: tuple[int, int] | None = None

    def add(self, row: int, col: int, heights: NDArray[np.float32]) -> None:
        """Add one chip; what lies outside the window is ignored.

        Args:
            row: Row of the chip.
            col: Column of the chip.
            heights: (K, chip_px, chip_px) float32, metres.

        Raises:
            ValueError: the shape or type is wrong, or the chip does not follow the last one in raster order,
                on which the bits of the sums depend.
        """
        expected = (self._sum.shape[0], self._lattice.chip_px, self._lattice.chip_px)
        if heights.shape != expected or heights.dtype != np.float32:
            raise ValueError(f"chip is {heights.shape} {heights.dtype}; expected {expected} float32")
        if self._last is not None and (row, col) <= self._last:
            raise ValueError(f"chip {(row, col)} came after {self._last}; expected raster order, each once")
        self._last = (row, col)
        chip = self._lattice.chip(row, col)
        part = chip.intersect(self._window)
        if part is None:
            return
        inside, target = part.slices_in(chip), part.slices_in(self._window)
        weights = self._lattice.weights[inside]
        self._sum[:, *target] += np.multiply(heights[:, *inside], weights, dtype=np.float64)
        self._weight[target] += weights

    def result(self) -> NDArray[np.float32]:
        """Give the blend: (K, H, W) float32, metres, NaN where a chip that covers the pixel was not added."""
        blend = self._sum.astype(np.float32)
        blend[:, self._weight < 1.0] = np.nan
        return blend


def _ramp(length: int) -> NDArray[np.int64]:
    """Rise from above 0 to below 1 in `length` pixels: int64 in 1/4096, mirror images sum to 4096."""
    share = (np.arange(length // 2) + 0.5) / max(length, 1)
    rise = np.maximum(np.round(_STEPS * (0.5 - 0.5 * np.cos(np.pi * share))).astype(np.int64), 1)
    middle = np.full(length % 2, _STEPS // 2, np.int64)
    return np.concatenate([rise, middle, _STEPS - rise[::-1]])
