"""What a chip store holds: counts, ground, heights, splits, licences, decisions, and a picture of it."""

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from canopy.dataset.store import PARTS, ChipStore, read_index
from canopy.errors import DatasetError
from canopy.evaluation.metrics import HEIGHT_CLASSES_M

_SHEET_CHIPS = 48
_SHEET_COLS = 8
_TILE_PX = 160
_GAP_PX = 4


def describe_dataset(folder: Path) -> dict[str, Any]:
    """Counts, area, height histogram, splits, licences, decisions by reason, and the shift of each labelled scene.

    The area is that of the kept chips' real pixels; overlapping chips count twice.

    Raises:
        DatasetError: No chip store there.
    """
    rows = read_index(folder).to_pylist()
    store = ChipStore.open(folder)
    kept = [row for row in rows if row["decision"] == "keep"]
    return {
        "path": str(folder),
        "name": store.attributes.get("name"),
        "chips": {part: _counts([row for row in kept if row["part"] == part]) for part in PARTS},
        "heights_share": _histogram(store),
        "splits": dict(Counter(f"{row['part']} {row['split']}" for row in kept)),
        "sites": {split: dict(Counter(row["site"] for row in kept if row["split"] == split and row["part"] == PARTS[0]))
                  for split in ("train", "val", "test")},
        "licences": _licences(kept),
        "dropped": dict(Counter(_kind(row["reason"]) for row in rows if row["decision"] == "drop").most_common()),
        "shifts": _shifts(rows),
    }  # fmt: skip


def _counts(rows: list[dict[str, Any]]) -> dict[str, Any]:
    area = sum(row["real_rows"] * row["real_cols"] * row["gsd_m"] ** 2 for row in rows)
    return {
        "chips": len(rows),
        "area_ha": round(area / 1e4, 2),
        "gsd_m": sorted({round(row["gsd_m"], 2) for row in rows}),
    }


def _histogram(store: ChipStore) -> dict[str, float]:
    """Share of the known cells of each height class."""
    counts: NDArray[np.float64] = np.zeros(len(HEIGHT_CLASSES_M) - 1)
    for row in range(len(store)):
        height_m = store.heights_m([row])
        counts += np.histogram(height_m[np.isfinite(height_m)], bins=np.array(HEIGHT_CLASSES_M))[0]
    names = [f"{low:g}-{high:g}" for low, high in itertools.pairwise(HEIGHT_CLASSES_M)]
    shares = (counts / max(1, counts.sum())).round(4).tolist()
    return dict(zip(names, shares, strict=True))


def _licences(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    counts = Counter((row["licence"], row["credit"]) for row in rows)
    return {f"{licence}: {credit}": {"chips": count} for (licence, credit), count in sorted(counts.items())}


def _kind(reason: str) -> str:
    """A reason without its numbers and names, so that like ones are counted together."""
    for start in ("near-duplicate", "rejected by hand", "straddles blocks", "damaged"):
        if reason.startswith(start):
            return start
    return " ".join("n" if any(c.isdigit() for c in word) else word for word in reason.split(";")[0].split())


def _shifts(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    table = {}
    for row in rows:
        if row["part"] == PARTS[0] and row["shift_x_m"] is not None:
            names = ("shift_x_m", "shift_y_m", "shift_correlation", "unshifted_correlation", "shift_confidence",
                     "shift_distinctness")  # fmt: skip
            figures: dict[str, Any] = {name: round(row[name], 3) for name in names}
            table[f"{row['source']}/{row['scene']}"] = figures | {"applied": row["shift_applied"]}
    return table


def contact_sheet(folder: Path, path: Path, seed: int = 0) -> Path:
    """Draw chips of every source as a PNG: images, and below each labelled one its heights in the map's colours.

    Grey in a height is unknown. Chips are cut to what is real and scaled to one width.

    Raises:
        DatasetError: No chip store there.
    """
    from tiles.style import colorize

    tiles: list[NDArray[np.uint8]] = []
    for part in PARTS:
        store = ChipStore.open(folder, part)
        for row in _spread(store, _SHEET_CHIPS // 2, seed):
            chip = store[row]
            sides = chip.row["real_rows"], chip.row["real_cols"]
            image = _scaled(chip.image[:, : sides[0], : sides[1]].transpose(1, 2, 0))
            below = np.full_like(image, 255)
            if chip.height_m is not None:
                fold = chip.image.shape[1] // chip.height_m.shape[0]
                rgba = colorize(chip.height_m[: sides[0] // fold, : sides[1] // fold])
                below = _scaled(np.where(rgba[..., 3:] > 0, rgba[..., :3], 160).astype(np.uint8))
            tiles.append(np.concatenate([image, below] if part == PARTS[0] else [image]))
    if not tiles:
        raise DatasetError(f"{folder} holds no chip to draw")
    Image.fromarray(_mosaic(tiles)).save(path, format="PNG")
    return path


def _spread(store: ChipStore, count: int, seed: int) -> list[int]:
    """Chips, the same number of each source as far as they go."""
    if not len(store):
        return []
    order = np.random.default_rng(seed).permutation(len(store))
    turn: Counter[str] = Counter()
    sources, ranked = store.column("source"), []
    for row in order:
        turn[sources[row]] += 1
        ranked.append((turn[sources[row]], sources[row], int(row)))
    return [row for _, _, row in sorted(ranked)[:count]]


def _scaled(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(image).resize((_TILE_PX, _TILE_PX), Image.Resampling.NEAREST))


def _mosaic(tiles: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    lines = []
    for height in sorted({len(tile) for tile in tiles}, reverse=True):
        alike = [tile for tile in tiles if len(tile) == height]
        for at in range(0, len(alike), _SHEET_COLS):
            line = np.full((height + _GAP_PX, _SHEET_COLS * (_TILE_PX + _GAP_PX), 3), 255, np.uint8)
            for col, tile in enumerate(alike[at : at + _SHEET_COLS]):
                left = col * (_TILE_PX + _GAP_PX)
                line[:height, left : left + _TILE_PX] = tile
            lines.append(line)
    return np.concatenate(lines)
