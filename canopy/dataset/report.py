"""What is in a chip store: counts, ground, heights, splits, licences, decisions, and a picture of it."""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from canopy.dataset.records import DROP, KEEP, PARTS, ChipRecord
from canopy.dataset.store import ChipStore, has_part, read_records
from canopy.errors import DatasetError
from canopy.evaluation.metrics import HEIGHT_CLASSES_M
from tiles.files import replacing, reported

_SHEET_CHIPS = 48
_SHEET_COLS = 8
_TILE_PX = 160
_GAP_PX = 4
_UNKNOWN_GREY = 160


@dataclass(frozen=True)
class PartFacts:
    """Kept chips of a part of a store."""

    chips: int
    """Number of chips."""
    area_ha: float
    """Area of the real pixels, hectares; overlapping chips count twice."""
    gsd_m: list[float]
    """Pixel sides, metres."""


@dataclass(frozen=True)
class LicenceFacts:
    """Kept chips of a licence and credit."""

    chips: int
    """Number of chips."""


@dataclass(frozen=True)
class ShiftFacts:
    """Registration of a labelled scene."""

    shift_x_m: float
    """Best shift of the heights, metres east."""
    shift_y_m: float
    """Best shift of the heights, metres north."""
    shift_correlation: float
    """Multiple correlation at the best shift."""
    unshifted_correlation: float
    """Multiple correlation without a shift."""
    shift_confidence: float
    """Probability that the best shift beats no shift."""
    shift_distinctness: float
    """Probability that the best shift beats every shift elsewhere."""
    applied: bool
    """Whether the heights were moved."""


@dataclass(frozen=True)
class DatasetFacts:
    """Facts of a chip store, for a person."""

    path: str
    """Folder of the store."""
    name: str | None
    """Name in its configuration."""
    chips: dict[str, PartFacts]
    """Part -> kept chips."""
    heights_share: dict[str, float]
    """Height class -> share of the known cells."""
    splits: dict[str, int]
    """Part and split -> kept chips."""
    sites: dict[str, dict[str, int]]
    """Split -> site -> labelled chips; `weak`, where the store has weak labels -> site -> chips with them."""
    licences: dict[str, LicenceFacts]
    """Licence and credit -> kept chips."""
    dropped: dict[str, int]
    """Reason without its numbers -> dropped candidates, the most frequent first."""
    shifts: dict[str, ShiftFacts]
    """Source and scene -> registration."""

    def to_json(self) -> dict[str, Any]:
        """Return the facts as `canopy dataset info --json` prints them."""
        return asdict(self)


def describe_dataset(folder: Path) -> DatasetFacts:
    """Describe a chip store.

    Raises:
        DatasetError: No chip store there.
    """
    records = read_records(folder)
    store = ChipStore.open(folder)
    stored = [record for record in records if record.decision == KEEP]
    dropped = Counter(_kind(record.reason) for record in records if record.decision == DROP)
    return DatasetFacts(
        path=str(folder),
        name=store.attributes.get("name"),
        chips={part: _part_facts([record for record in stored if record.part == part]) for part in _parts(folder)},
        heights_share=_histogram(store),
        splits=dict(Counter(f"{record.part} {record.split}" for record in stored)),
        sites=_sites(stored),
        licences=_licences(stored),
        dropped=dict(dropped.most_common()),
        shifts=_shifts(records),
    )


def _parts(folder: Path) -> tuple[str, ...]:
    """Return the parts of a store: the weak one is in stores of tree points alone."""
    return PARTS if has_part(folder, "weak") else PARTS[:2]


def _part_facts(records: Sequence[ChipRecord]) -> PartFacts:
    sides = [(record.real_rows or 0, record.real_cols or 0, record.gsd_m or 0.0) for record in records]
    area_m2 = sum(rows * cols * gsd_m**2 for rows, cols, gsd_m in sides)
    return PartFacts(len(records), round(area_m2 / 1e4, 2), sorted({round(gsd_m, 2) for _, _, gsd_m in sides}))


def _histogram(store: ChipStore) -> dict[str, float]:
    """Return the share of the known cells in each height class."""
    counts: NDArray[np.float64] = np.zeros(len(HEIGHT_CLASSES_M) - 1)
    # Chip by chip: a store may be larger than memory.
    for row in range(len(store)):
        height_m = store.heights_m([row])
        counts += np.histogram(height_m[np.isfinite(height_m)], bins=np.array(HEIGHT_CLASSES_M))[0]
    names = [f"{low:g}-{high:g}" for low, high in itertools.pairwise(HEIGHT_CLASSES_M)]
    shares = (counts / max(1, counts.sum())).round(4).tolist()
    return dict(zip(names, shares, strict=True))


def _sites(records: Sequence[ChipRecord]) -> dict[str, dict[str, int]]:
    labelled, _, weak = PARTS
    sites = {
        split: dict(Counter(one.site for one in records if one.part == labelled and one.split == split))
        for split in ("train", "val", "test")
    }
    weak_sites = dict(Counter(one.site for one in records if one.part == weak))
    return sites | ({weak: weak_sites} if weak_sites else {})


def _licences(records: Sequence[ChipRecord]) -> dict[str, LicenceFacts]:
    counts = Counter((record.licence, record.credit) for record in records)
    return {f"{licence}: {credit}": LicenceFacts(count) for (licence, credit), count in sorted(counts.items())}


def _kind(reason: str) -> str:
    """Return a reason without its numbers and names, so that reasons of one kind are counted together."""
    for start in ("near-duplicate", "rejected by hand", "straddles blocks", "damaged"):
        if reason.startswith(start):
            return start
    return " ".join("n" if any(c.isdigit() for c in word) else word for word in reason.split(";")[0].split())


def _shifts(records: Sequence[ChipRecord]) -> dict[str, ShiftFacts]:
    names = [name for name in ShiftFacts.__dataclass_fields__ if name != "applied"]
    return {
        record.label: ShiftFacts(
            **{name: round(getattr(record, name), 3) for name in names}, applied=record.shift_applied
        )
        for record in records
        if record.part == PARTS[0] and record.shift_x_m is not None
    }


def contact_sheet(folder: Path, path: Path, seed: int = 0) -> Path:
    """Draw chips of every source as a PNG: images, and below each labelled one its heights in the map's colours.

    Grey in a height is unknown. Chips are cut to what is real and scaled to one width.

    Args:
        folder: Folder of the store.
        path: Image to write.
        seed: Seed of the choice of chips.

    Raises:
        DatasetError: No chip store there, or one without chips.
        OutputError: The image cannot be written.
    """
    tiles: list[NDArray[np.uint8]] = []
    for part in _parts(folder):
        store = ChipStore.open(folder, part)
        tiles += [_tile(store, row) for row in _spread(store, _SHEET_CHIPS // 2, seed)]
    if not tiles:
        raise DatasetError(f"{folder} has no chip to draw")
    with reported(path), replacing(path) as draft:
        Image.fromarray(_mosaic(tiles)).save(draft, format="PNG")
    return path


def _tile(store: ChipStore, row: int) -> NDArray[np.uint8]:
    """Draw a chip (h, w, 3): its image, and its heights below."""
    from tiles.style import colorize

    chip = store[row]
    rows, cols = chip.record.real_rows or 0, chip.record.real_cols or 0
    image = _scaled(chip.image[:, :rows, :cols].transpose(1, 2, 0))
    if chip.height_m is None:
        return image
    cell_px = chip.image.shape[1] // chip.height_m.shape[0]
    # The mirrored border has no heights and would be drawn as unknown.
    rgba = colorize(chip.height_m[: rows // cell_px, : cols // cell_px])
    heights = np.where(rgba[..., 3:] > 0, rgba[..., :3], _UNKNOWN_GREY).astype(np.uint8)
    return np.concatenate([image, _scaled(heights)])


def _spread(store: ChipStore, count: int, seed: int) -> list[int]:
    """Choose chips, the same number of each source as far as they go."""
    if not len(store):
        return []
    # The first chip of each source in a random order, then the second of each, and so on.
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
    """Lay tiles out in lines of one height, those with heights first."""
    lines = []
    for height in sorted({len(tile) for tile in tiles}, reverse=True):
        same = [tile for tile in tiles if len(tile) == height]
        for first in range(0, len(same), _SHEET_COLS):
            line = np.full((height + _GAP_PX, _SHEET_COLS * (_TILE_PX + _GAP_PX), 3), 255, np.uint8)
            for col, tile in enumerate(same[first : first + _SHEET_COLS]):
                left = col * (_TILE_PX + _GAP_PX)
                line[:height, left : left + _TILE_PX] = tile
            lines.append(line)
    return np.concatenate(lines)
