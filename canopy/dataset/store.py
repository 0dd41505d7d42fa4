"""The chip store: training chips on disk, read without GDAL.

A folder with ``chips.zarr`` (Zarr v3, sharded, one chip an inner chunk) and its index ``chips.parquet`` (GeoParquet).
The store has parts. ``labelled`` has image and height; ``unlabelled`` has images alone; ``weak``, where a source has
tree points, has image and labels, stored where heights are: a cell is a tree's top, ground without trees, or bare, by
codes above any height, or has the height of its tree. Each part has chips of one size; a chip from a smaller scene is
mirrored out to that size, and its index row says how much of it is real. A mirrored border is no forest edge, and its
heights are unknown.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec

from canopy.dataset.records import PARTS, ChipRecord
from canopy.errors import DatasetError, one_line
from canopy.evaluation.weak_ground import BARE, FAR, TREE

_NEEDED = (
    "chip", "part", "decision", "reason", "split", "source", "scene", "site", "licence", "credit", "crs", "row",
    "real_rows", "real_cols", "weight", "gsd_m", "x", "y",
)  # fmt: skip
"""Columns without which a store is of no use."""
STORE = "chips.zarr"
INDEX = "chips.parquet"
FORMAT = {"format": "canopy-chips", "version": 1}
UNKNOWN_CM = 65535
"""Stored height of a cell without one."""
TREE_CODE, FAR_CODE, BARE_CODE = 65534, 65533, 65532
"""Stored weak labels; a value below is the height of the cell's tree, centimetres."""
_LABEL_OF_CODE = {UNKNOWN_CM: np.nan, TREE_CODE: TREE, FAR_CODE: FAR, BARE_CODE: BARE}
SHARD_CHIPS = 64
MAX_CHIP_PX = 8192
"""Largest side of a chip, pixels."""
_CODEC = BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle", typesize=1)


@dataclass(frozen=True)
class Chip:
    """One chip of a store."""

    image: NDArray[np.uint8]
    """(3, H, W) uint8, red, green, blue."""
    height_m: NDArray[np.float32] | None
    """(h, w) float32 metres, NaN where unknown; None in the unlabelled and the weak part."""
    record: ChipRecord
    """Row of the index."""


class ChipCorner(NamedTuple):
    """Upper-left corner of a chip."""

    crs: str
    """CRS: an EPSG code, else WKT."""
    x: float
    """First coordinate."""
    y: float
    """Second coordinate."""


class ChipStore:
    """Random access to one part of a chip store.

    Attributes:
        folder: Folder of the store.
        part: ``labelled``, ``unlabelled`` or ``weak``.
        index: Rows of the stored chips, in the order of the arrays. `read_index` gives the dropped ones too.
        attributes: chip_px, gsd_m, height_cell_m, licences and the configuration's digest.
    """

    def __init__(self, folder: Path, part: str, arrays: Mapping[str, Any], attributes: dict[str, Any]) -> None:
        self.folder, self.part, self.attributes = folder, part, attributes
        self._image, self._height = arrays["image"], arrays.get("height")
        index = read_index(folder)
        # Dropped candidates have row -1; the arrays have the others in the order of their rows.
        stored = index.filter(pc.and_(pc.equal(index["part"], part), pc.greater_equal(index["row"], 0)))
        self.index = stored.sort_by("row")
        if len(self.index) != len(self):
            raise DatasetError(f"{folder}: {len(self)} {part} chips, the index lists {len(self.index)}; rebuild it")

    @classmethod
    def open(cls, folder: str | Path, part: str = "labelled") -> "ChipStore":
        """Open a store.

        Args:
            folder: Folder that `canopy dataset build` wrote.
            part: ``labelled``, ``unlabelled`` or ``weak``.

        Raises:
            DatasetError: No chip store there, one of another version, a damaged one, or one without the part.
        """
        folder = Path(folder)
        if part not in PARTS:
            raise DatasetError(f"no part {part!r} in a chip store: {', '.join(PARTS[:-1])} or {PARTS[-1]} expected")
        try:
            group: Any = zarr.open_group(folder / STORE, mode="r")
            members = group[part]
            # One by one: read together, the second damaged array would print its error to the terminal.
            arrays = {name: members[name] for name in ("image", "height") if name in members}
            arrays = {name: array for name, array in arrays.items() if isinstance(array, zarr.Array)}
            attributes = {**dict(group.attrs), **dict(members.attrs)}
        except Exception as error:  # zarr raises a dozen kinds where its metadata is damaged
            raise DatasetError(
                f"{folder} is no chip store ({one_line(error, 300)}): canopy dataset build makes one"
            ) from error
        if {key: attributes.get(key) for key in FORMAT} != FORMAT:
            raise DatasetError(
                f"{folder / STORE}: {attributes.get('format')} {attributes.get('version')}, {FORMAT} expected"
            )
        _require_chips(folder / STORE / part, arrays, attributes)
        return cls(folder, part, arrays, attributes)

    def __len__(self) -> int:
        return int(self._image.shape[0])

    def __getitem__(self, number: int) -> Chip:
        row = self.index.slice(range(len(self))[number], 1).to_pylist()[0]
        height = self.heights_m([number])[0] if self._height is not None and self.part == PARTS[0] else None
        return Chip(self.images([number])[0], height, ChipRecord.of(row))

    def column(self, name: str) -> NDArray[Any]:
        """Return a column of the index, one value a chip."""
        return np.asarray(self.index[name].to_numpy())

    def rows(self, split: str) -> NDArray[np.int64]:
        """Return the numbers of the chips of one split: train, val or test."""
        return np.flatnonzero(self.column("split") == split)

    def corner(self, row: int) -> ChipCorner:
        """Return the upper-left corner of a chip."""
        return ChipCorner(*(self.column(name)[row] for name in ChipCorner._fields))

    def images(self, rows: Sequence[int] | NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the images (n, 3, H, W) uint8 of some chips."""
        # One chunk a read: zarr's fancy indexing is ten times slower.
        return np.stack([self._read(self._image, int(row)) for row in rows])

    def heights_m(self, rows: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the heights (n, h, w) float32 metres of some chips, NaN where unknown.

        Raises:
            DatasetError: The part has none.
        """
        if self._height is None or self.part != PARTS[0]:
            raise DatasetError(f"{self.folder}: {self.part} chips have no heights")
        centimetres = np.stack([self._read(self._height, int(row)) for row in rows])
        return np.where(centimetres == UNKNOWN_CM, np.nan, centimetres * np.float32(0.01)).astype(np.float32)

    def labels(self, rows: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the weak labels (n, h, w) of some chips, as `canopy.evaluation.weak_ground` codes them.

        Raises:
            DatasetError: The part has none.
        """
        if self._height is None or self.part != PARTS[2]:
            raise DatasetError(f"{self.folder}: {self.part} chips have no weak labels")
        return decode_labels(np.stack([self._read(self._height, int(row)) for row in rows]))

    def _read(self, array: Any, row: int) -> NDArray[Any]:
        try:
            return np.asarray(array[row])
        except Exception as error:  # of zarr, of its codecs, or of the system
            raise DatasetError(
                f"{self.folder / STORE}: chip {row} cannot be read ({one_line(error, 300)}); rebuild the store"
            ) from error


def encode_labels(labels: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Return weak labels as they are stored."""
    codes: NDArray[np.uint16] = np.rint(np.nan_to_num(labels.clip(0)) * 100).astype(np.uint16)
    codes[np.isnan(labels)] = UNKNOWN_CM
    for code, label in _LABEL_OF_CODE.items():
        codes[labels == label] = code
    return codes


def decode_labels(codes: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Return weak labels from stored ones."""
    labels = (codes * np.float32(0.01)).astype(np.float32)
    for code, label in _LABEL_OF_CODE.items():
        labels[codes == code] = label
    return labels


def has_part(folder: Path, part: str) -> bool:
    """Return whether a store has a part; only stores with tree points have the weak one."""
    return (folder / STORE / part).is_dir()


def _require_chips(path: Path, arrays: Mapping[str, Any], attributes: Mapping[str, Any]) -> None:
    """Refuse arrays of other shapes than a build writes: reading one chip of them could take all memory, or hours."""
    expected = {"image": ("uint8", 4), "height": ("uint16", 3)}
    for name, array in arrays.items():
        dtype, dimensions = expected[name]
        fits = array.dtype == dtype and array.ndim == dimensions and max(array.shape[1:]) <= MAX_CHIP_PX
        whole = fits and array.chunks == (1, *array.shape[1:]) and array.shards == (SHARD_CHIPS, *array.shape[1:])
        if not whole or (name == "image" and array.shape[1] != len("rgb")):
            raise DatasetError(f"{path}: {name} is {array.shape} {array.dtype}, chips expected; rebuild the store")
    numbers = [attributes.get(name) for name in ("gsd_m", "height_cell_m", "chip_px")]
    if "image" not in arrays or not all(isinstance(value, int | float) and value > 0 for value in numbers):
        raise DatasetError(f"{path}: images or their gsd_m, height_cell_m or chip_px are missing; rebuild the store")


@dataclass(frozen=True)
class CategoryBatches:
    """Batches of chips, each with very short and with very tall trees (Brandt et al. 2026)."""

    rows: NDArray[np.int64]
    """(n,) numbers of the chips in their store."""
    weight: NDArray[np.float64]
    """(n,) relative frequency of each chip among the rest of a batch."""
    short_share: NDArray[np.float64]
    """(n,) share of each chip's known cells below 1 m."""
    tall_share: NDArray[np.float64]
    """(n,) share of each chip's known cells above 25 m."""
    batch: int
    """Chips in a batch."""
    short: float = 0.1
    """Least share of a batch that is drawn in proportion to `short_share`."""
    tall: float = 0.15
    """Least share of a batch that is drawn in proportion to `tall_share`."""
    seed: int = 0
    """Seed of the batches: a batch is a function of seed and number."""

    @classmethod
    def of(cls, store: ChipStore, rows: NDArray[np.int64], batch: int, **settings: Any) -> "CategoryBatches":
        """Return the batches over some chips of a store; settings are the last attributes.

        Raises:
            DatasetError: No chip.
        """
        if not len(rows):
            raise DatasetError(f"{store.folder}: no chip to draw from; see canopy dataset info {store.folder}")
        weight, short, tall = (
            store.column(name)[rows].astype(np.float64) for name in ("weight", "short_share", "tall_share")
        )
        return cls(rows, weight, short, tall, batch=batch, **settings)

    def __call__(self, number: int) -> NDArray[np.int64]:
        """Draw the chips of batch `number`, in the store's numbers: tall ones first, then short ones, then any."""
        generator = np.random.default_rng((self.seed, number))
        # Where no chip has any tall (or short) cell, its places in the batch go to all chips.
        tall = int(np.ceil(self.tall * self.batch)) if self.tall_share.sum() > 0 else 0
        short = min(self.batch - tall, int(np.ceil(self.short * self.batch))) if self.short_share.sum() > 0 else 0
        parts = ((tall, self.tall_share), (short, self.short_share), (self.batch - tall - short, 1.0))
        return np.concatenate([self._draw(generator, count, share) for count, share in parts if count])

    def _draw(self, generator: np.random.Generator, count: int, share: Any) -> NDArray[np.int64]:
        chance = self.weight * share
        return generator.choice(self.rows, count, p=chance / chance.sum())


def read_index(folder: Path) -> pa.Table:
    """Read the whole index: kept and dropped candidates.

    Raises:
        DatasetError: No index, or a damaged one.
    """
    try:
        index = pq.read_table(folder / INDEX)
        index.validate(full=True)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DatasetError(
            f"{folder / INDEX} is no chip index ({one_line(error, 300)}): canopy dataset build makes one"
        ) from error
    if missing := [name for name in _NEEDED if name not in index.column_names]:
        raise DatasetError(f"{folder / INDEX} is no chip index: column {missing[0]} is missing; rebuild the store")
    return index


def read_records(folder: Path) -> list[ChipRecord]:
    """Read the records of all candidates, kept and dropped.

    Raises:
        DatasetError: No index, or a damaged one.
    """
    return [ChipRecord.of(row) for row in read_index(folder).to_pylist()]


class PartWriter:
    """Append chips to one part of a new store, a shard at a time."""

    def __init__(self, group: Any, part: str, count: int, chip_px: int, height_px: int | None) -> None:
        """Create the part's arrays.

        Args:
            group: Zarr group of the store.
            part: ``labelled`` or ``unlabelled``.
            count: Chips that will be appended.
            chip_px: Side of the images.
            height_px: Side of the heights or weak labels; None for a part without.
        """
        new = group.create_group(part)
        self._arrays = [_create(new, "image", (count, 3, chip_px, chip_px), "uint8", 0)]
        if height_px is not None:
            self._arrays.append(_create(new, "height", (count, height_px, height_px), "uint16", UNKNOWN_CM))
        new.attrs.update({"chip_px": chip_px} | ({"height_px": height_px} if height_px else {}))
        self._pending: list[tuple[NDArray[Any], ...]] = []
        self._written = 0

    def append(self, *chip: NDArray[Any]) -> None:
        """Add an image (3, H, W) uint8 and, but in the unlabelled part, heights or labels (h, w) uint16."""
        self._pending.append(chip)
        if len(self._pending) == SHARD_CHIPS:
            self.flush()

    def flush(self) -> None:
        """Write the chips that are still in memory."""
        for number, array in enumerate(self._arrays if self._pending else []):
            stop = self._written + len(self._pending)
            array[self._written : stop] = np.stack([chip[number] for chip in self._pending])
        self._written += len(self._pending)
        self._pending = []


def _create(group: Any, name: str, shape: tuple[int, ...], dtype: str, fill: int) -> Any:
    # Inner chunks are read alone, and shards of 64 keep the number of files low.
    chip = shape[1:]
    return group.create_array(
        name, shape=shape, dtype=dtype, chunks=(1, *chip), shards=(SHARD_CHIPS, *chip), compressors=_CODEC,
        fill_value=fill,
    )  # fmt: skip


def longest_prefix(name: str, prefixes: Iterable[str]) -> str | None:
    """Return the longest of some prefixes that fits a name, for shares by source; None if none does."""
    return max((prefix for prefix in prefixes if name.startswith(prefix)), key=len, default=None)
