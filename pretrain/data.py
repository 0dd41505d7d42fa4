"""Unlabelled tiles: where they come from, and in which order they are seen."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from canopy.chips import PARTS, ChipStore, longest_prefix
from canopy.errors import TrainingError
from canopy.ranks import rank, ranks
from pretrain.augment import draw
from pretrain.config import CropConfig, PretrainConfig, TilesConfig
from pretrain.dinov2 import TileBatch
from pretrain.masking import draw_masks

IN_MEMORY_BYTES = 2**30
"""Stores with fewer pixels are read once."""
GOLDEN, WORD = 0x9E3779B97F4A7C15, (1 << 64) - 1


class Tiles(Protocol):
    """Unlabelled tiles of one size."""

    @property
    def sha256(self) -> str:
        """Of the pixels, or of what stands for them."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> NDArray[np.uint8]:
        """(3, H, W) RGB."""
        ...

    def gsd_m(self, number: int) -> float:
        """GSD of a tile, in true ground metres."""
        ...


@dataclass(frozen=True)
class ArrayTiles:
    """Tiles in memory.

    Attributes:
        images: (N, 3, H, W) uint8.
        gsds_m: (N,) metres.
        sha256: Of the images.
    """

    images: NDArray[np.uint8]
    gsds_m: NDArray[np.float64]
    sha256: str

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int) -> NDArray[np.uint8]:
        tile: NDArray[np.uint8] = self.images[number]
        return tile

    def gsd_m(self, number: int) -> float:
        """GSD of a tile, in true ground metres."""
        return float(self.gsds_m[number])


class Store(Protocol):
    """What is asked of a part of a chip store."""

    attributes: dict[str, Any]

    def images(self, rows: Sequence[int] | NDArray[np.int64]) -> NDArray[np.uint8]:
        """(n, 3, H, W) images of some chips."""
        ...

    def column(self, name: str) -> NDArray[Any]:
        """A column of the index of chips."""
        ...


@dataclass(frozen=True)
class StoredTiles:
    """Tiles within the chips of a store, read one by one when they are due; needs no GDAL.

    Attributes:
        parts: Opened parts of the store.
        places: (N, 4) part, chip, first row and first column of each tile.
        tile_px: Side of the tiles.
        sha256: Of the store's digest and the places.
    """

    parts: Sequence[Store]
    places: NDArray[np.int64]
    tile_px: int
    sha256: str

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, number: int) -> NDArray[np.uint8]:
        part, chip, row, col = (int(place) for place in self.places[number])
        image: NDArray[np.uint8] = self.parts[part].images([chip])[0]
        return image[:, row : row + self.tile_px, col : col + self.tile_px]

    def gsd_m(self, number: int) -> float:
        """GSD of a tile, in true ground metres."""
        return float(self.parts[int(self.places[number, 0])].attributes["gsd_m"])

    def sources(self) -> list[str]:
        """The source that each tile is from."""
        names = [part.column("source") for part in self.parts]
        return [str(names[part][chip]) for part, chip in self.places[:, :2]]

    def loaded(self) -> ArrayTiles:
        """The same tiles in memory: a store's overhead of some milliseconds a chip is a tenth of a small step."""
        images = np.empty((len(self), 3, self.tile_px, self.tile_px), np.uint8)
        chips, members = np.unique(self.places[:, :2], axis=0, return_inverse=True)
        for number, (part, chip) in enumerate(chips):
            image = self.parts[part].images([int(chip)])[0]
            for tile in np.flatnonzero(members == number):
                row, col = self.places[tile, 2:]
                images[tile] = image[:, row : row + self.tile_px, col : col + self.tile_px]
        return ArrayTiles(images, np.array([self.gsd_m(n) for n in range(len(self))]), self.sha256)


@dataclass(frozen=True)
class ChosenTiles:
    """Some tiles of a pool, in the order and as often as an index says.

    Attributes:
        pool: All tiles.
        numbers: (N,) of the pool's tiles.
        sha256: Of pool and numbers.
    """

    pool: Tiles
    numbers: NDArray[np.int64]
    sha256: str

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, number: int) -> NDArray[np.uint8]:
        return self.pool[int(self.numbers[number])]

    def gsd_m(self, number: int) -> float:
        """GSD of a tile, in true ground metres."""
        return self.pool.gsd_m(int(self.numbers[number]))


def read_tiles(config: TilesConfig) -> Tiles:
    """Read all sources, or open the store; where an index is named, choose by it.

    Raises:
        TrainingError: No imagery, imagery that is not RGB uint8, or an index of another pool.
        DatasetError: No chip store.
    """
    pool: Tiles
    if config.store is None:
        pool = _cut_files(config)
    else:
        stored = open_stored(config.store, config.tile_px)
        pool = stored.loaded() if len(stored) * 3 * config.tile_px**2 <= IN_MEMORY_BYTES else stored
        if config.shares:
            return share_out(pool, stored.sources(), config.shares)
    return pool if config.index is None else choose(pool, config.index)


def _cut_files(config: TilesConfig) -> ArrayTiles:
    # here, so that a node that reads a store of tiles needs no GDAL
    from pretrain.geotiff import cut_files

    pairs = [pair for source in config.sources for pair in cut_files(source, config)]
    if not pairs:
        names = ", ".join(str(source.path) for source in config.sources)
        raise TrainingError(f"every tile of {names} is more than {config.empty:.0%} empty")
    images = np.stack([tile for tile, _ in pairs])
    return ArrayTiles(images, np.array([g for _, g in pairs]), hashlib.sha256(images.tobytes()).hexdigest())


def open_stored(folder: Path, tile_px: int) -> StoredTiles:
    """All ground of a chip store that is not held out: unlabelled chips, and the images of labelled ones.

    Raises:
        DatasetError: No chip store.
        TrainingError: Its chips are smaller than the tiles.
    """
    parts = [ChipStore.open(folder, part) for part in PARTS]
    places: list[tuple[int, int, int, int]] = []
    for number, part in enumerate(parts):
        if len(part) and part.attributes["chip_px"] < tile_px:
            raise TrainingError(f"{folder}: {part.part} chips of {part.attributes['chip_px']} px, tiles of {tile_px}")
        rows, cols = part.column("real_rows"), part.column("real_cols")
        for chip in part.rows("train"):
            places += [
                (number, int(chip), row, col)
                for row in starts(int(rows[chip]), tile_px)
                for col in starts(int(cols[chip]), tile_px)
            ]
    if not places:
        raise TrainingError(f"{folder} holds no chip to train on")
    made = np.array(places, np.int64)
    digest = hashlib.sha256(f"{parts[0].attributes['digest']} {tile_px}".encode() + made.tobytes()).hexdigest()
    return StoredTiles(parts, made, tile_px, digest)


def starts(length: int, tile_px: int) -> list[int]:
    """Where tiles begin side by side; the last is pushed back inside, or the only one mirrored beyond the end."""
    return sorted({*range(0, length - tile_px + 1, tile_px), max(0, length - tile_px)})


def choose(pool: Tiles, index: Path) -> ChosenTiles:
    """Choose tiles by a Parquet index with a column `tile`.

    Raises:
        TrainingError: No such index, or one of another pool.
    """
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(index)
        numbers = table["tile"].to_numpy().astype(np.int64)
    except (OSError, KeyError, ValueError) as error:
        raise TrainingError(f"{index}: not an index of tiles (canopy curate makes one): {error}") from error
    made_for = (table.schema.metadata or {}).get(b"tiles_sha256", b"").decode()
    if made_for != pool.sha256 or not len(numbers):
        raise TrainingError(f"{index} was made for tiles {made_for[:12] or 'unknown'}, these are {pool.sha256[:12]}")
    return _chosen(pool, numbers)


def share_out(pool: Tiles, sources: Sequence[str], shares: dict[str, float]) -> ChosenTiles:
    """Repeat tiles until each share of them is of the sources that it is for.

    Args:
        pool: All tiles.
        sources: The source of each.
        shares: Prefix of sources -> share; the longest prefix that fits a source counts.

    Raises:
        TrainingError: A share of sources that the store does not hold.
    """
    fits = [longest_prefix(source, shares) for source in sources]
    members = {prefix: [n for n, fit in enumerate(fits) if fit == prefix] for prefix, share in shares.items() if share}
    if missing := [prefix for prefix, numbers in members.items() if not numbers]:
        raise TrainingError(
            f"tiles.shares names {missing[0]!r}: the store has tiles of {', '.join(sorted(set(sources)))}"
        )
    # the tiles of largest weight set the scale: a tile of the others comes once or more
    scale = max(len(numbers) / shares[prefix] for prefix, numbers in members.items())
    chosen = [
        np.resize(np.array(numbers, np.int64), round(scale * shares[prefix])) for prefix, numbers in members.items()
    ]
    return _chosen(pool, np.concatenate(chosen))


def _chosen(pool: Tiles, numbers: NDArray[np.int64]) -> ChosenTiles:
    return ChosenTiles(pool, numbers, hashlib.sha256(pool.sha256.encode() + numbers.tobytes()).hexdigest())


def draw_batch(number: int, tiles: Tiles, config: PretrainConfig, patch_px: int) -> TileBatch:
    """This rank's share of a batch, as a function of the batch's number alone.

    Chance is drawn for the whole batch on every rank, so that the number of ranks changes nothing.

    Args:
        number: Of the batch, from 0.
        tiles: All tiles.
        config: Batch size, crops, masks, seed.
        patch_px: Side of the encoder's patches.
    """
    global_crops, local_crops = crops_at(number // config.loop.accumulate, config)
    generator = torch.Generator().manual_seed(config.loop.seed * 1_000_003 + number)
    own = rank_rows(config.batch)
    first = number * config.batch
    chosen = [shuffled(first + row, len(tiles), config.loop.seed) for row in range(own.start, own.stop)]
    global_draws = draw(global_crops, config.colour, config.batch, generator)
    local_draws = draw(local_crops, config.colour, config.batch, generator)
    grid, count = (global_crops.px // patch_px,) * 2, global_crops.count
    share = config.masks.share if config.terms.ibot else 0.0
    masks = draw_masks(count * config.batch, grid, share, config.masks.ratio, generator).view(count, -1, *grid)
    return TileBatch(
        tiles=torch.from_numpy(np.stack([tiles[i] for i in chosen])),
        gsd_m=torch.tensor([tiles.gsd_m(i) for i in chosen]),
        global_draws=global_draws.take(own),
        local_draws=local_draws.take(own),
        masks=masks[:, own],
        global_px=global_crops.px,
        local_px=local_crops.px,
        masked_images=float(masks.flatten(2).any(dim=2).sum()) / ranks(),
    )


def crops_at(step: int, config: PretrainConfig) -> tuple[CropConfig, CropConfig]:
    """Global and local crops at a step: the last phase may have larger ones."""
    phase = config.high_resolution
    if phase is None or step < phase.start * config.loop.steps:
        return config.global_crops, config.local_crops
    return (
        config.global_crops.model_copy(update={"px": phase.global_px}),
        config.local_crops.model_copy(update={"px": phase.local_px}),
    )


def rank_rows(batch: int) -> slice:
    """Rows of a batch that this rank works on.

    Raises:
        TrainingError: The ranks do not divide the batch.
    """
    share, rest = divmod(batch, ranks())
    if rest:
        raise TrainingError(f"batch {batch} over {ranks()} ranks: a multiple of the ranks expected")
    return slice(rank() * share, (rank() + 1) * share)


def shuffled(position: int, length: int, seed: int) -> int:
    """Number of the tile at a position of an endless stream that shuffles all tiles anew in every epoch.

    A keyed bijection (Black and Rogaway 2002, section 4: a Feistel network, walked until it falls inside) needs
    neither memory nor a past, so half a billion tiles resume as five do.
    """
    epoch, at = divmod(position, length)
    half = max(1, -(-(length - 1).bit_length() // 2))
    while True:
        at = _feistel(at, half, (seed << 32) + epoch)
        if at < length:
            return at


def _feistel(value: int, half_bits: int, key: int) -> int:
    mask = (1 << half_bits) - 1
    left, right = value >> half_bits, value & mask
    for turn in range(4):
        left, right = right, left ^ (_mix(right + (turn << half_bits), key) & mask)
    return (left << half_bits) | right


def _mix(value: int, key: int) -> int:
    """Scrambles 64 bits (Steele et al. 2014, SplitMix)."""
    mixed = (value * GOLDEN + key * GOLDEN + GOLDEN) & WORD
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & WORD
    return mixed ^ (mixed >> 31)
