"""The chip store: training chips on disk, read without GDAL.

A folder with ``chips.zarr`` (Zarr v3, sharded, one chip an inner chunk) and its index ``chips.parquet`` (GeoParquet).
The store has two parts. ``labelled`` holds image and height; ``unlabelled`` holds images alone. Each has chips of one
size; a chip from a smaller scene is mirrored out to that size, and its index row says how much of it is real. A
mirrored border is no forest edge, and its heights are unknown.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
import zarr
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from zarr.codecs import BloscCodec

from canopy.errors import DatasetError

PARTS = ("labelled", "unlabelled")
STORE = "chips.zarr"
INDEX = "chips.parquet"
FORMAT = {"format": "canopy-chips", "version": 1}
UNKNOWN_CM = 65535
SHARD_CHIPS = 64
_CODEC = BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle", typesize=1)


@dataclass(frozen=True)
class Chip:
    """One chip.

    Attributes:
        image: (3, H, W) uint8, red, green, blue.
        height_m: (h, w) float32 metres, NaN where unknown; None in the unlabelled part.
        row: Its row of the index.
    """

    image: NDArray[np.uint8]
    height_m: NDArray[np.float32] | None
    row: dict[str, Any]


class ChipStore:
    """Random access to one part of a chip store.

    Attributes:
        folder: Where it is.
        part: ``labelled`` or ``unlabelled``.
        index: Rows of the stored chips, in the order of the arrays. `read_index` gives the dropped ones too.
        attributes: chip_px, gsd_m, height_cell_m, licences and the configuration's digest.
    """

    def __init__(self, folder: Path, part: str, arrays: Mapping[str, Any], attributes: dict[str, Any]) -> None:
        self.folder, self.part, self.attributes = folder, part, attributes
        self._image, self._height = arrays["image"], arrays.get("height")
        index = read_index(folder)
        kept = index.filter(pc.and_(pc.equal(index["part"], part), pc.greater_equal(index["row"], 0)))
        self.index = kept.sort_by("row")
        if len(self.index) != len(self):
            raise DatasetError(f"{folder}: {len(self)} {part} chips, the index lists {len(self.index)}; rebuild it")

    @classmethod
    def open(cls, folder: str | Path, part: str = "labelled") -> "ChipStore":
        """Open a store.

        Args:
            folder: As `canopy dataset build` made it.
            part: ``labelled`` or ``unlabelled``.

        Raises:
            DatasetError: No chip store there, one of another version, or a damaged one.
        """
        folder = Path(folder)
        if part not in PARTS:
            raise DatasetError(f"no part {part!r} in a chip store: {' or '.join(PARTS)} expected")
        try:
            group: Any = zarr.open_group(folder / STORE, mode="r")
            attributes = dict(group.attrs)
            arrays = dict(group[part].arrays())
        except (OSError, ValueError, KeyError, json.JSONDecodeError) as error:
            raise DatasetError(f"{folder} holds no chip store: canopy dataset build makes one ({error})") from error
        if {key: attributes.get(key) for key in FORMAT} != FORMAT or "image" not in arrays:
            raise DatasetError(
                f"{folder / STORE}: {attributes.get('format')} {attributes.get('version')}, {FORMAT} expected"
            )
        return cls(folder, part, arrays, {**attributes, **dict(group[part].attrs)})

    def __len__(self) -> int:
        return int(self._image.shape[0])

    def __getitem__(self, number: int) -> Chip:
        row = self.index.slice(range(len(self))[number], 1).to_pylist()[0]
        height = self.heights_m([number])[0] if self._height is not None else None
        return Chip(self.images([number])[0], height, row)

    def column(self, name: str) -> NDArray[Any]:
        """A column of the index, one value a chip."""
        return np.asarray(self.index[name].to_numpy())

    def rows(self, split: str) -> NDArray[np.int64]:
        """Numbers of the chips of one split: train, val or test."""
        return np.flatnonzero(self.column("split") == split)

    def place(self, row: int) -> tuple[str, float, float]:
        """CRS, and x and y of the upper-left corner of a chip."""
        return tuple(self.column(name)[row] for name in ("crs", "x", "y"))

    def images(self, rows: Sequence[int] | NDArray[np.int64]) -> NDArray[np.uint8]:
        """Images (n, 3, H, W) uint8 of some chips. One chunk a read: zarr's fancy indexing is ten times slower."""
        return np.stack([self._read(self._image, int(row)) for row in rows])

    def heights_m(self, rows: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float32]:
        """Heights (n, h, w) float32 metres of some chips, NaN where unknown.

        Raises:
            DatasetError: The part has none.
        """
        if self._height is None:
            raise DatasetError(f"{self.folder}: {self.part} chips have no heights")
        centimetres = np.stack([self._read(self._height, int(row)) for row in rows])
        return np.where(centimetres == UNKNOWN_CM, np.nan, centimetres * np.float32(0.01)).astype(np.float32)

    def _read(self, array: Any, row: int) -> NDArray[Any]:
        try:
            return np.asarray(array[row])
        except (RuntimeError, ValueError, OSError) as error:
            raise DatasetError(
                f"{self.folder / STORE}: chip {row} cannot be read ({error}); rebuild the store"
            ) from error


class HeightChips(Dataset[tuple[Tensor, Tensor]]):
    """Image (3, H, W) float32 in [0, 1] and height_m (h, w) float32, NaN where unknown, of labelled chips."""

    def __init__(self, store: ChipStore, split: str = "train") -> None:
        self.store, self.rows = store, store.rows(split)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        rows = self.rows[[number]]
        return _image(self.store.images(rows)[0]), torch.from_numpy(self.store.heights_m(rows)[0])


class ImageChips(Dataset[Tensor]):
    """Images (3, h, w) float32 in [0, 1] for pretraining, cut to what is real: no mirrored border.

    Sides differ between chips, for scenes are smaller than chips; crops are drawn within.
    """

    def __init__(self, store: ChipStore, split: str = "train") -> None:
        self.store, self.rows = store, store.rows(split)
        self._sides = np.stack([store.column("real_rows"), store.column("real_cols")], axis=1)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Tensor:
        row = int(self.rows[number])
        rows, cols = self._sides[row]
        return _image(self.store.images([row])[0][:, :rows, :cols].copy())


def _image(image: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(image).float().div(255)


@dataclass(frozen=True)
class CategoryBatches:
    """Batches that each hold chips with very short and with very tall trees (Brandt et al. 2026).

    Attributes:
        rows: (n,) numbers of the chips in their store.
        weight: (n,) how often a chip is drawn for the rest of a batch.
        short_share: (n,) share of its known cells below 1 m.
        tall_share: (n,) share of its known cells above 25 m.
        batch: Chips in a batch.
        short: Least share of a batch drawn in proportion to `short_share`.
        tall: The same for `tall_share`.
        seed: A batch is a function of it and of the batch's number.
    """

    rows: NDArray[np.int64]
    weight: NDArray[np.float64]
    short_share: NDArray[np.float64]
    tall_share: NDArray[np.float64]
    batch: int
    short: float = 0.1
    tall: float = 0.15
    seed: int = 0

    @classmethod
    def of(cls, store: ChipStore, rows: NDArray[np.int64], batch: int, **settings: Any) -> "CategoryBatches":
        """Batches over some chips of a store; settings are the last attributes.

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
        """Chips of batch `number`, in the store's numbers."""
        generator = np.random.default_rng((self.seed, number))
        tall = int(np.ceil(self.tall * self.batch)) if self.tall_share.sum() > 0 else 0
        short = min(self.batch - tall, int(np.ceil(self.short * self.batch))) if self.short_share.sum() > 0 else 0
        parts = ((tall, self.tall_share), (short, self.short_share), (self.batch - tall - short, 1.0))
        return np.concatenate([self._draw(generator, count, share) for count, share in parts if count])

    def _draw(self, generator: np.random.Generator, count: int, share: Any) -> NDArray[np.int64]:
        chance = self.weight * share
        return generator.choice(self.rows, count, p=chance / chance.sum())

    def __iter__(self) -> Iterator[list[int]]:
        """Endless batches, as `torch.utils.data.DataLoader` takes for its ``batch_sampler``."""
        number = 0
        while True:
            yield self(number).tolist()
            number += 1


def read_index(folder: Path) -> pa.Table:
    """Read the whole index: kept and dropped candidates.

    Raises:
        DatasetError: No index, or a damaged one.
    """
    try:
        return pq.read_table(folder / INDEX)
    except (OSError, pa.ArrowException) as error:
        raise DatasetError(f"{folder / INDEX} is no chip index: canopy dataset build makes one ({error})") from error


class PartWriter:
    """Appends chips to one part, a shard at a time."""

    def __init__(self, group: Any, part: str, count: int, chip_px: int, height_px: int | None) -> None:
        shape, made = (count, 3, chip_px, chip_px), group.create_group(part)
        self._arrays = [_array(made, "image", shape, "uint8", 0)]
        if height_px is not None:
            self._arrays.append(_array(made, "height", (count, height_px, height_px), "uint16", UNKNOWN_CM))
        made.attrs.update({"chip_px": chip_px} | ({"height_px": height_px} if height_px else {}))
        self._held: list[tuple[NDArray[Any], ...]] = []
        self._at = 0

    def append(self, *chip: NDArray[Any]) -> None:
        """Add an image (3, H, W) uint8 and, in the labelled part, a height (h, w) uint16 centimetres."""
        self._held.append(chip)
        if len(self._held) == SHARD_CHIPS:
            self.flush()

    def flush(self) -> None:
        """Write the chips held."""
        for number, array in enumerate(self._arrays if self._held else []):
            array[self._at : self._at + len(self._held)] = np.stack([chip[number] for chip in self._held])
        self._at += len(self._held)
        self._held = []


def _array(group: Any, name: str, shape: tuple[int, ...], dtype: str, fill: int) -> Any:
    inner = shape[1:]
    return group.create_array(
        name, shape=shape, dtype=dtype, chunks=(1, *inner), shards=(SHARD_CHIPS, *inner), compressors=_CODEC,
        fill_value=fill,
    )  # fmt: skip


def longest_prefix(name: str, prefixes: Iterable[str]) -> str | None:
    """The longest of some prefixes that fits a name, for shares by source; None if none does."""
    return max((prefix for prefix in prefixes if name.startswith(prefix)), key=len, default=None)
