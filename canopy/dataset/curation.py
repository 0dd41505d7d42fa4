"""Is a candidate chip good enough to learn from? Its figures, and a decision with its reason in words."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from canopy.dataset.config import CurationConfig
from canopy.dataset.records import ChipRecord

SHORT_M = 1.0
TALL_M = 25.0
WEAK_BATCH = 4
"""Chips that the weak model predicts at a time."""
_BLACK = 6
_WHITE = 235
_MIN_CONTRAST = 2.0
_MIN_SHIFT_CONFIDENCE = 0.75
_HASH_SIDE = 16
_BANDS = 16


@dataclass(frozen=True)
class ImageFigures:
    """Figures of a chip's image; the fields are columns of the index."""

    blank_share: float
    """Share of pixels without imagery, or black."""
    white_share: float
    """Share of pixels near white in all bands."""
    contrast: float
    """Standard deviation of the brightness of pixels with imagery, of 255."""
    hash: str
    """Difference hash in hexadecimal."""


@dataclass(frozen=True)
class HeightFigures:
    """Figures of a chip's heights; the fields are columns of the index."""

    known_share: float
    """Share of cells with a height."""
    height_mean_m: float
    """Mean of the known heights, metres; 0 where none is."""
    height_max_m: float
    """Greatest known height, metres."""
    short_share: float
    """Share of known cells below `SHORT_M`."""
    tall_share: float
    """Share of known cells above `TALL_M`."""
    building_share: float
    """Share of cells that are buildings."""


def image_figures(image: NDArray[np.uint8], valid: NDArray[np.bool_]) -> ImageFigures:
    """Measure an image.

    Args:
        image: (3, H, W) uint8, the real part of a chip.
        valid: (H, W) whether there is imagery.
    """
    blank = ~valid | (image <= _BLACK).all(axis=0)
    return ImageFigures(
        blank_share=float(blank.mean()),
        white_share=float((image >= _WHITE).all(axis=0).mean()),
        contrast=float(image.mean(axis=0)[valid].std()) if valid.any() else 0.0,
        hash=difference_hash(image).tobytes().hex(),
    )


def height_figures(height_m: NDArray[np.floating], building: NDArray[np.bool_], floor_m: float) -> HeightFigures:
    """Measure heights.

    Args:
        height_m: (h, w) metres, NaN where unknown.
        building: (h, w) whether a cell is a building.
        floor_m: Heights below this were set to 0 by the publisher. Above 1 m, no cell is known to be short.
    """
    heights = height_m[np.isfinite(height_m)]
    # Without any height all figures are those of a single 0, and known_share says so.
    filled = heights if heights.size else np.zeros(1)
    return HeightFigures(
        known_share=float(heights.size / height_m.size),
        height_mean_m=float(filled.mean()),
        height_max_m=float(filled.max()),
        short_share=float((filled < SHORT_M).mean()) if heights.size and floor_m <= SHORT_M else 0.0,
        tall_share=float((filled > TALL_M).mean()),
        building_share=float(building.mean()),
    )


def reasons(record: ChipRecord, config: CurationConfig) -> Iterator[str]:
    """Yield why a candidate is dropped, whatever its split; nothing for a kept one. Unknown figures drop nothing."""
    # The order is that of the words in the index: shape, image, heights, then how the two fit.
    side = min(record.real_rows or 0, record.real_cols or 0)
    if side < config.min_real_px:
        yield f"{side} px wide, at least {config.min_real_px} expected"
    shares = (
        (record.blank_share, config.max_blank, "without image"),
        (record.white_share, config.max_white, "near white: cloud, snow or overexposed"),
        (record.building_share, config.max_building, "buildings"),
    )
    for share, most, what in shares:
        if share is not None and share > most:
            yield f"{share:.0%} {what}, {most:.0%} allowed"
    if record.contrast is not None and record.contrast < _MIN_CONTRAST:
        yield f"blank: brightness varies by {record.contrast:.1f} of 255"
    if record.known_share is not None and record.known_share < config.min_known:
        yield f"heights known for {record.known_share:.0%}, at least {config.min_known:.0%} expected"
    yield from _label_reasons(record, config)


def _label_reasons(record: ChipRecord, config: CurationConfig) -> Iterator[str]:
    # An unknown date is no reason: most imagery says none.
    gap, most = record.date_gap_years, config.max_date_gap_years
    if gap is not None and most is not None and gap > most:
        yield f"image and heights {gap:.1f} years apart, {most:g} allowed"
    if config.max_unproven_m is None or record.shift_applied or record.shift_confidence is None:
        return
    shift_m = math.hypot(record.shift_x_m or 0.0, record.shift_y_m or 0.0)
    if record.shift_confidence > _MIN_SHIFT_CONFIDENCE and shift_m > config.max_unproven_m:
        yield f"heights perhaps {shift_m:.1f} m off the image, not certain enough to move them"


@lru_cache(maxsize=1)
def _weak_model(name: str) -> Any:
    from canopy.models.model import load_model

    return load_model(name, device="cpu")


def disagreement_m(
    images: Sequence[NDArray[np.uint8]], heights_m: Sequence[NDArray[np.floating]], model: str
) -> list[float]:
    """Return the mean absolute difference between labels and a weak model's heights, metres; 0 without any label.

    Args:
        images: (3, H, W) uint8 each, at the model's GSD; at most `WEAK_BATCH` fit in a pass of the model.
        heights_m: (h, w) float each, NaN where unknown; H and W are whole multiples of h and w.
        model: Bundle.
    """
    import torch

    differences: list[float] = []
    for first in range(0, len(images), WEAK_BATCH):
        stack = torch.from_numpy(np.stack(images[first : first + WEAK_BATCH])).float().div(255)
        predictions = _weak_model(model).predict(stack)
        for prediction, label in zip(predictions, heights_m[first : first + WEAK_BATCH], strict=True):
            # A label's cell is compared with the mean of the predictions inside it.
            cell_px = prediction.shape[0] // label.shape[0]
            means = torch.nn.functional.avg_pool2d(prediction[None], cell_px)[0].numpy()
            error = np.abs(means - label)
            differences.append(float(np.nanmean(error)) if np.isfinite(error).any() else 0.0)
    return differences


def difference_hash(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Hash an image (3, H, W) to 256 bits (32,) uint8: whether brightness rises to the right, over a 16 x 16 grid."""
    # One column more than bits, because each bit compares two neighbours.
    grey = image.mean(axis=0)
    zoom = (_HASH_SIDE / grey.shape[0], (_HASH_SIDE + 1) / grey.shape[1])
    # Smoothed to the grid's cells first, so that noise of single pixels turns no bit.
    soft = ndimage.gaussian_filter(grey, [0.4 / factor for factor in zoom])
    small = ndimage.zoom(soft, zoom, order=1, grid_mode=True, mode="nearest")
    return np.packbits(small[:_HASH_SIDE, 1 : _HASH_SIDE + 1] > small[:_HASH_SIDE, :_HASH_SIDE])


def near_duplicates(hashes: Sequence[str], dates: Sequence[str | None], bits: int) -> dict[int, int]:
    """Find the chips that show what an earlier chip shows.

    The same ground seen in two years is no duplicate: the light, the season and the trees differ. So two chips whose
    dates are both known and differ are never duplicates of each other.

    Args:
        hashes: `difference_hash` of each chip, in hexadecimal.
        dates: Acquisition date of each chip.
        bits: Most bits in which the hashes of near-duplicates differ; below 16.

    Returns:
        Number of each repeated chip -> number of the earlier chip that it repeats.
    """
    codes = [np.frombuffer(bytes.fromhex(text), np.uint8) for text in hashes]
    originals: dict[tuple[int, bytes], list[int]] = {}
    repeats: dict[int, int] = {}
    for number, code in enumerate(codes):
        # Fewer differing bits than bands leave one band whole, so only chips that share a band are compared.
        bands = [(band, part.tobytes()) for band, part in enumerate(np.split(code, _BANDS))]
        for other in _sharing_a_band(originals, bands):
            same_day = dates[number] is None or dates[other] is None or dates[number] == dates[other]
            if same_day and int(np.bitwise_count(code ^ codes[other]).sum()) <= bits:
                repeats[number] = other
                break
        else:
            for band in bands:
                originals.setdefault(band, []).append(number)
    return repeats


def _sharing_a_band(originals: Mapping[tuple[int, bytes], list[int]], bands: Iterable[tuple[int, bytes]]) -> list[int]:
    return sorted({number for band in bands for number in originals.get(band, ())})
