"""Is a candidate chip good enough to learn from? Its figures, and a decision with its reason in words."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from canopy.dataset.config import CurationConfig

SHORT_M = 1.0
TALL_M = 25.0
_BLACK = 6
_WHITE = 235
_FLAT = 2.0
_HASH_SIDE = 16
_BANDS = 16


def image_figures(image: NDArray[np.uint8], seen: NDArray[np.bool_]) -> dict[str, Any]:
    """Figures of an image.

    Args:
        image: (3, H, W) the real part of a chip.
        seen: (H, W) where there is imagery.

    Returns:
        blank_share (unseen or black), white_share (all bands near white), contrast (standard deviation of
        brightness), hash (of what it shows).
    """
    blank = ~seen | (image <= _BLACK).all(axis=0)
    return {
        "blank_share": float(blank.mean()),
        "white_share": float((image >= _WHITE).all(axis=0).mean()),
        "contrast": float(image.mean(axis=0)[seen].std()) if seen.any() else 0.0,
        "hash": difference_hash(image).tobytes().hex(),
    }


def height_figures(height_m: NDArray[np.floating], building: NDArray[np.bool_], floor_m: float) -> dict[str, Any]:
    """Figures of heights (h, w): known share, mean, maximum, shares of very short and very tall trees, of buildings.

    Where the publisher set low heights to 0, nothing is known to be below 1 m, and the short share is 0.
    """
    known = height_m[np.isfinite(height_m)]
    filled = known if known.size else np.zeros(1)
    return {
        "known_share": float(known.size / height_m.size),
        "height_mean_m": float(filled.mean()),
        "height_max_m": float(filled.max()),
        "short_share": float((filled < SHORT_M).mean()) if known.size and floor_m <= SHORT_M else 0.0,
        "tall_share": float((filled > TALL_M).mean()),
        "building_share": float(building.mean()),
    }


def reasons(row: Mapping[str, Any], config: CurationConfig) -> Iterator[str]:
    """Why a candidate is dropped whatever its split; nothing where it is kept. Unknown figures (None) drop nothing."""
    side = min(row["real_rows"], row["real_cols"])
    if side < config.min_real_px:
        yield f"{side} px wide, {config.min_real_px} wanted"
    bounds = (
        ("blank_share", config.max_blank, "without image"),
        ("white_share", config.max_white, "near white: cloud, snow or overexposed"),
        ("building_share", config.max_building, "buildings"),
    )
    for name, most, what in bounds:
        if (share := row.get(name)) is not None and share > most:
            yield f"{share:.0%} {what}, {most:.0%} allowed"
    if row["contrast"] < _FLAT:
        yield f"blank: brightness varies by {row['contrast']:.1f} of 255"
    if (known := row.get("known_share")) is not None and known < config.min_known:
        yield f"heights known for {known:.0%}, {config.min_known:.0%} wanted"
    yield from _label_reasons(row, config)


def _label_reasons(row: Mapping[str, Any], config: CurationConfig) -> Iterator[str]:
    gap, most = row.get("date_gap_years"), config.max_date_gap_years
    if gap is not None and most is not None and gap > most:
        yield f"image and heights {gap:.1f} years apart, {most:g} allowed"
    if config.max_unproven_m is None or row.get("shift_applied") is not False or row["shift_confidence"] <= 0.75:
        return
    away = float(np.hypot(row["shift_x_m"], row["shift_y_m"]))
    if away > config.max_unproven_m:
        yield f"heights perhaps {away:.1f} m beside the image, not certain enough to move them"


@lru_cache(maxsize=1)
def _weak_model(name: str) -> Any:
    from canopy.models.model import load_model

    return load_model(name, device="cpu")


def disagreement_m(
    images: Sequence[NDArray[np.uint8]], heights_m: Sequence[NDArray[np.floating]], model: str, batch: int = 4
) -> list[float]:
    """Mean absolute difference between labels and a weak model's heights, metres; 0 where no label is known.

    Args:
        images: (3, H, W) each, at the model's GSD.
        heights_m: (h, w) each, NaN where unknown; H and W are whole multiples of h and w.
        model: Bundle.
        batch: Images at a time.
    """
    import torch

    made: list[float] = []
    for first in range(0, len(images), batch):
        stack = torch.from_numpy(np.stack(images[first : first + batch])).float().div(255)
        predicted = _weak_model(model).predict(stack)
        for height, label in zip(predicted, heights_m[first : first + batch], strict=True):
            fold = height.shape[0] // label.shape[0]
            means = torch.nn.functional.avg_pool2d(height[None], fold)[0].numpy()
            error = np.abs(means - label)
            made.append(float(np.nanmean(error)) if np.isfinite(error).any() else 0.0)
    return made


def difference_hash(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """256 bits (32,) uint8 of an image (3, H, W): whether brightness rises to the right, over a 16 x 16 grid."""
    grey = image.mean(axis=0)
    zoom = (_HASH_SIDE / grey.shape[0], (_HASH_SIDE + 1) / grey.shape[1])
    soft = ndimage.gaussian_filter(grey, [0.4 / factor for factor in zoom])
    small = ndimage.zoom(soft, zoom, order=1, grid_mode=True, mode="nearest")
    return np.packbits(small[:_HASH_SIDE, 1 : _HASH_SIDE + 1] > small[:_HASH_SIDE, :_HASH_SIDE])


def near_duplicates(hashes: Sequence[str], dates: Sequence[str | None], bits: int) -> dict[int, int]:
    """Chips that show what an earlier chip shows.

    One place seen in two years is no duplicate: the light, the season and the trees differ. So two chips whose dates
    are both known and differ are never duplicates of each other.

    Args:
        hashes: `difference_hash` in hexadecimal.
        dates: Acquisition dates.
        bits: Hashes that differ in no more bits are alike; below 16.

    Returns:
        Chip -> the earlier chip that it repeats.
    """
    packed = [np.frombuffer(bytes.fromhex(text), np.uint8) for text in hashes]
    seen: dict[tuple[int, bytes], list[int]] = {}
    found: dict[int, int] = {}
    for number, code in enumerate(packed):
        # Fewer differing bits than bands leave one band whole, so only chips that share a band are compared.
        bands = [(band, part.tobytes()) for band, part in enumerate(np.split(code, _BANDS))]
        for other in _candidates(seen, bands):
            same_day = dates[number] is None or dates[other] is None or dates[number] == dates[other]
            if same_day and int(np.bitwise_count(code ^ packed[other]).sum()) <= bits:
                found[number] = other
                break
        else:
            for band in bands:
                seen.setdefault(band, []).append(number)
    return found


def _candidates(seen: Mapping[tuple[int, bytes], list[int]], bands: Iterable[tuple[int, bytes]]) -> list[int]:
    return sorted({number for band in bands for number in seen.get(band, ())})
