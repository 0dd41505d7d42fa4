"""Unlabelled tiles: in memory, in a chip store, in shards, or chosen from a pool."""

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from canopy.dataset.records import PARTS
from canopy.dataset.store import ChipStore, longest_prefix
from canopy.errors import TrainingError
from pretrain.config import TilesConfig, TileSourceConfig
from pretrain.shards import ShardedTiles, open_shards
from tiles.windows import window_starts

IN_MEMORY_BYTES = 2**30
"""Stores with fewer pixels are read once."""
_LOG = logging.getLogger(__name__)


class Tiles(Protocol):
    """Unlabelled tiles of one size."""

    @property
    def sha256(self) -> str:
        """Digest of the pixels, or of the digest of their store."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> NDArray[np.uint8]:
        """Return a tile, (bands, H, W) uint8, first RGB."""
        ...

    def read(self, numbers: Sequence[int]) -> NDArray[np.uint8]:
        """Return some tiles, (n, bands, H, W)."""
        ...

    def gsd_m(self, number: int) -> float:
        """Return the GSD of a tile, in true ground metres."""
        ...


@dataclass(frozen=True)
class ArrayTiles:
    """Tiles in memory."""

    images: NDArray[np.uint8]
    """(N, bands, H, W), first RGB."""
    gsds_m: NDArray[np.float64]
    """(N,) GSD of each tile, metres."""
    sha256: str
    """Digest of the images."""

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int) -> NDArray[np.uint8]:
        tile: NDArray[np.uint8] = self.images[number]
        return tile

    def read(self, numbers: Sequence[int]) -> NDArray[np.uint8]:
        """Return some tiles, (n, bands, H, W)."""
        return self.images[list(numbers)]

    def gsd_m(self, number: int) -> float:
        """Return the GSD of a tile, in true ground metres."""
        return float(self.gsds_m[number])


class StorePart(Protocol):
    """The chips of a part of a store, as far as tiles need them."""

    attributes: dict[str, Any]
    """Attributes of the Zarr group, with `gsd_m` and `chip_px`."""

    def images(self, rows: Sequence[int] | NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the (n, 3, H, W) uint8 images of some chips."""
        ...

    def column(self, name: str) -> NDArray[Any]:
        """Return a column of the index of chips."""
        ...


@dataclass(frozen=True)
class StoredTiles:
    """Tiles within the chips of a store, read one by one when they are needed; needs no GDAL."""

    parts: Sequence[StorePart]
    """Opened parts of the store."""
    origins: NDArray[np.int64]
    """(N, 4) part, chip, first row and first column of each tile."""
    tile_px: int
    """Side of the tiles."""
    sha256: str
    """Digest of the store's digest and the origins."""

    def __len__(self) -> int:
        return len(self.origins)

    def __getitem__(self, number: int) -> NDArray[np.uint8]:
        part, chip, row, col = (int(value) for value in self.origins[number])
        image: NDArray[np.uint8] = self.parts[part].images([chip])[0]
        return image[:, row : row + self.tile_px, col : col + self.tile_px]

    def read(self, numbers: Sequence[int]) -> NDArray[np.uint8]:
        """Return some tiles, (n, bands, H, W)."""
        return np.stack([self[number] for number in numbers])

    def gsd_m(self, number: int) -> float:
        """Return the GSD of a tile, in true ground metres."""
        return float(self.parts[int(self.origins[number, 0])].attributes["gsd_m"])

    def sources(self) -> list[str]:
        """Return the source of each tile."""
        names = [part.column("source") for part in self.parts]
        return [str(names[part][chip]) for part, chip in self.origins[:, :2]]

    def loaded(self) -> ArrayTiles:
        """Read all tiles into memory: a store's overhead of some milliseconds a chip is a tenth of a small step."""
        images = np.empty((len(self), 3, self.tile_px, self.tile_px), np.uint8)
        # each chip is read once, for all tiles that lie in it
        chips, members = np.unique(self.origins[:, :2], axis=0, return_inverse=True)
        for number, (part, chip) in enumerate(chips):
            image = self.parts[part].images([int(chip)])[0]
            for tile in np.flatnonzero(members == number):
                row, col = self.origins[tile, 2:]
                images[tile] = image[:, row : row + self.tile_px, col : col + self.tile_px]
        return ArrayTiles(images, np.array([self.gsd_m(n) for n in range(len(self))]), self.sha256)


@dataclass(frozen=True)
class ChosenTiles:
    """Some tiles of a pool, in the order of an index and as often as it names them."""

    pool: Tiles
    """All tiles."""
    numbers: NDArray[np.int64]
    """(N,) numbers of the pool's tiles."""
    sha256: str
    """Digest of the pool's digest and the numbers."""

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, number: int) -> NDArray[np.uint8]:
        return self.pool[int(self.numbers[number])]

    def read(self, numbers: Sequence[int]) -> NDArray[np.uint8]:
        """Return some tiles, (n, bands, H, W)."""
        return self.pool.read([int(self.numbers[number]) for number in numbers])

    def gsd_m(self, number: int) -> float:
        """Return the GSD of a tile, in true ground metres."""
        return self.pool.gsd_m(int(self.numbers[number]))


def read_tiles(config: TilesConfig) -> Tiles:
    """Read all sources, or open the store; where an index is named, choose by it.

    Args:
        config: Sources or store, side of the tiles, and which of the tiles to draw how often.

    Raises:
        TrainingError: No imagery, too many files that cannot be used, or an index of another pool.
        DatasetError: No chip store.
    """
    pool: Tiles  # all tiles first; which of them are drawn, and how often, comes after
    if config.shards is not None:
        pool = _checked(open_shards(config.shards, config.max_bad), config)
        if config.shares:
            return share_out(pool, pool.sources(), config.shares)
    elif config.store is None:
        pool = _cut_files(config)
    else:
        stored = open_stored(config.store, config.tile_px)
        pool = stored.loaded() if len(stored) * 3 * config.tile_px**2 <= IN_MEMORY_BYTES else stored
        if config.shares:
            return share_out(pool, stored.sources(), config.shares)
    return pool if config.index is None else choose(pool, config.index)


def _checked(tiles: ShardedTiles, config: TilesConfig) -> ShardedTiles:
    """Refuse shards of other tiles than those that are expected."""
    actual, expected = (tiles.format.tile_px, tiles.format.bands), (config.tile_px, config.bands)
    if actual != expected:
        raise TrainingError(
            f"{config.shards}: (tile_px, bands) are {actual}, those of the configuration {expected}: give the former"
        )
    return tiles


@dataclass
class BadFiles:
    """Files that cannot be used, each one line of the log, up to a number."""

    most: int
    """Most files that may be skipped, `tiles.max_bad`."""
    lines: list[str] = field(default_factory=list)
    """Path and reason of each."""
    earlier: int = 0
    """Files that an interrupted command has skipped."""

    def __len__(self) -> int:
        return self.earlier + len(self.lines)

    def skip(self, path: Path, reason: str) -> None:
        """Skip a file.

        Raises:
            TrainingError: Too many cannot be used.
        """
        self.lines.append(f"{path}: {reason}")
        _LOG.warning("skipped %s", self.lines[-1])
        if len(self) > self.most:
            raise TrainingError(
                f"{len(self)} files cannot be used, the last {self.lines[-1]}; up to tiles.max_bad, {self.most}, "
                "are skipped: fix or remove them, or raise it"
            )

    def require_tiles(self, count: int, config: TilesConfig) -> None:
        """Refuse to go on without a tile, and say how many files were skipped.

        Raises:
            TrainingError: There is none.
        """
        if not count:
            names = ", ".join(str(source.path) for source in config.sources)
            skipped = f"; of the files skipped the first is {self.lines[0]}" if self.lines else ""
            raise TrainingError(f"no tile of {names} is less than {config.empty:.0%} empty{skipped}")
        if len(self):
            _LOG.warning("%d files skipped of up to %d (tiles.max_bad)", len(self), self.most)


def _cut_files(config: TilesConfig) -> ArrayTiles:
    """Read the tiles of GeoTIFFs into memory."""
    geotiffs, cuts, bad = open_geotiffs(), list[Any](), BadFiles(config.max_bad)
    for source in config.sources:
        for path in geotiffs.list_files(source):
            try:
                cuts += geotiffs.cut_file(path, source.gsd_m, config)
            except TrainingError as error:
                bad.skip(path, str(error))
    bad.require_tiles(len(cuts), config)
    images = np.stack([cut.image for cut in cuts])
    return ArrayTiles(images, np.array([cut.gsd_m for cut in cuts]), hashlib.sha256(images.tobytes()).hexdigest())


def open_geotiffs() -> "GeoTiffReader":
    """Return what reads GeoTIFFs: a machine that reads a chip store or shards needs no GDAL.

    Raises:
        TrainingError: GDAL or PROJ is missing.
    """
    try:
        from pretrain.geotiff import cut_file, list_files
    except ImportError as error:
        raise TrainingError(
            f"tiles.sources are GeoTIFFs, which need GDAL, and {error.name} is missing: install it, or give a chip "
            "store as tiles.store, or shards as tiles.shards"
        ) from error
    return GeoTiffReader(list_files, cut_file)


@dataclass(frozen=True)
class GeoTiffReader:
    """What lists the files of a source and cuts them."""

    list_files: Callable[[TileSourceConfig], list[Path]]
    """Files of a source, sorted."""
    cut_file: Callable[[Path, float | None, TilesConfig], Sequence[Any]]
    """Tiles of a file, each with `image` and `gsd_m`, by the GSD of its source."""


def open_stored(folder: Path, tile_px: int) -> StoredTiles:
    """Open all ground of a chip store that is not held out: unlabelled chips, and the images of labelled ones.

    Args:
        folder: Folder of the store.
        tile_px: Side of the tiles that chips are cut into.

    Raises:
        DatasetError: No chip store.
        TrainingError: Its chips are smaller than the tiles.
    """
    parts = [ChipStore.open(folder, part) for part in PARTS[:2]]
    origins: list[tuple[int, int, int, int]] = []
    for number, part in enumerate(parts):
        if len(part) and part.attributes["chip_px"] < tile_px:
            raise TrainingError(f"{folder}: {part.part} chips of {part.attributes['chip_px']} px, tiles of {tile_px}")
        # tiles lie in what is real of a chip, not in its mirrored border
        rows, cols = part.column("real_rows"), part.column("real_cols")
        for chip in part.rows("train"):
            origins += [
                (number, int(chip), row, col)
                for row in window_starts(int(rows[chip]), tile_px)
                for col in window_starts(int(cols[chip]), tile_px)
            ]
    if not origins:
        raise TrainingError(
            f"{folder} has no chip to train on: unlabelled chips, or chips of the split train, expected"
        )
    array = np.array(origins, np.int64)
    digest = hashlib.sha256(f"{parts[0].attributes['digest']} {tile_px}".encode() + array.tobytes()).hexdigest()
    return StoredTiles(parts, array, tile_px, digest)


def choose(pool: Tiles, index: Path) -> ChosenTiles:
    """Choose tiles by a Parquet index with a column `tile`.

    Args:
        pool: All tiles.
        index: Index of `canopy curate`.

    Raises:
        TrainingError: No such index, or one of another pool.
    """
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(index)
        numbers = table["tile"].to_numpy().astype(np.int64)
    except (OSError, KeyError, ValueError) as error:
        raise TrainingError(f"{index}: not an index of tiles (canopy curate makes one): {error}") from error
    sha256 = (table.schema.metadata or {}).get(b"tiles_sha256", b"").decode()
    if sha256 != pool.sha256 or not len(numbers):
        raise TrainingError(
            f"{index} was made for tiles {sha256[:12] or 'unknown'}, these are {pool.sha256[:12]}: run canopy curate"
        )
    return _chosen(pool, numbers)


def share_out(pool: Tiles, sources: Sequence[str], shares: dict[str, float]) -> ChosenTiles:
    """Repeat tiles until each share of them is of the sources that it is for.

    Args:
        pool: All tiles.
        sources: Source of each tile.
        shares: Prefix of sources -> share; the longest prefix that fits a source counts.

    Raises:
        TrainingError: A share of sources that the store does not contain.
    """
    fits = [longest_prefix(source, shares) for source in sources]
    members = {prefix: [n for n, fit in enumerate(fits) if fit == prefix] for prefix, share in shares.items() if share}
    if missing := [prefix for prefix, numbers in members.items() if not numbers]:
        raise TrainingError(
            f"tiles.shares names {missing[0]!r}: the store has tiles of {', '.join(sorted(set(sources)))}"
        )
    # The sources with the most tiles for their share come once each; those of the others once or more.
    scale = max(len(numbers) / shares[prefix] for prefix, numbers in members.items())
    chosen = [
        np.resize(np.array(numbers, np.int64), round(scale * shares[prefix])) for prefix, numbers in members.items()
    ]
    return _chosen(pool, np.concatenate(chosen))


def _chosen(pool: Tiles, numbers: NDArray[np.int64]) -> ChosenTiles:
    """Name some tiles of a pool, with a digest of both."""
    return ChosenTiles(pool, numbers, hashlib.sha256(pool.sha256.encode() + numbers.tobytes()).hexdigest())
