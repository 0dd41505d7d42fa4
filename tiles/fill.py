"""Unknown pixels, filled before a network sees them: the one fill of training, scoring and prediction.

A network that reads a border as an edge of the forest sees heights fall to nothing there. So what is unknown shows what
is known, reflected: an image on its own goes on as its mirror image, as training chips do.
"""

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Image = NDArray[np.float32]
Pixel = TypeVar("Pixel", bound=np.generic)
MOST_REFLECTIONS = 64
"""A strip narrower than its distance is reflected to and fro; what stays unresolved takes the nearest value."""


def extend(image: NDArray[Pixel], before: tuple[int, int], after: tuple[int, int]) -> NDArray[Pixel]:
    """Extend an image without unknown pixels by its reflection: what `fill_unknown` does around a rectangle.

    Args:
        image: (C, h, w), any type.
        before: Rows and columns to add above and to the left.
        after: Rows and columns to add below and to the right.

    Returns:
        (C, h + ..., w + ...), same type.
    """
    return np.pad(image, ((0, 0), *zip(before, after, strict=True)), mode="symmetric")


def fill_unknown(image: Image, part: tuple[slice, slice] | None = None) -> Image:
    """Fill the unknown pixels of an image by reflection across the nearest known pixel.

    Where a reflection lands on an unknown pixel it is reflected again, up to `MOST_REFLECTIONS` times; what stays
    unresolved takes the nearest known value. A rectangle of known pixels goes on as `extend` does it.

    Args:
        image: (3, H, W) float32, NaN in all bands where unknown.
        part: Rows and columns to return; all if None.

    Returns:
        (3, h, w) float32 without NaN; zeros where no pixel is known.
    """
    rows, cols = part or (slice(None), slice(None))
    pixels = image[:, rows, cols]
    unknown = np.isnan(image[0])
    if not unknown[rows, cols].any():
        return pixels
    if unknown.all():
        return np.zeros_like(pixels)
    nearest: NDArray[np.int64] = ndimage.distance_transform_edt(
        unknown, return_distances=False, return_indices=True
    ).astype(np.int64)
    inside = np.zeros(unknown.shape, bool)
    inside[rows, cols] = True
    start = np.stack(np.nonzero(unknown & inside))
    source = _reflect(start, nearest, unknown)
    filled = image.copy()
    filled[:, start[0], start[1]] = image[:, source[0], source[1]]
    return filled[:, rows, cols]


def _reflect(start: NDArray[np.int64], nearest: NDArray[np.int64], unknown: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the known pixel (2, n) whose value each unknown pixel (2, n) takes.

    Args:
        start: Row and column of the unknown pixels.
        nearest: (2, H, W) row and column of the known pixel nearest to each pixel.
        unknown: (H, W).
    """
    source = nearest[:, start[0], start[1]]
    position, open_ = start.copy(), np.arange(start.shape[1])
    last = np.array(unknown.shape)[:, None] - 1
    for _ in range(MOST_REFLECTIONS):
        # A position beyond the image is looked up at the image's border, and reflected from where it truly lies.
        row, col = np.clip(position, 0, last)
        mirror = nearest[:, row, col]
        step = mirror - position
        # The first pixel beyond a border repeats the border's own, as in a symmetric pad.
        position = mirror + step - np.sign(step)
        within = ((position >= 0) & (position <= last)).all(axis=0)
        row, col = np.clip(position, 0, last)
        resolved = within & ~unknown[row, col]
        source[:, open_[resolved]] = position[:, resolved]
        open_, position = open_[~resolved], position[:, ~resolved]
        if not open_.size:
            break
    return source
