"""`canopy pack`: unlabelled tiles into shards that any number of machines read; streaming, resumable.

A shard's rows are written after the shard, and the index of all after the last, so that the same command goes on with
the shard that is missing and ends at the same bytes. Sources are read file by file, so that memory has no more than a
file and a shard.
"""

import hashlib
import itertools
import json
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from canopy.errors import ConfigError, TrainingError
from canopy.http import redacted
from canopy.progress import Progress, Report, ignore
from canopy.tables import parse_table, table_bytes
from pretrain.config import TilesConfig
from pretrain.data import BadFiles, open_geotiffs, open_stored
from pretrain.shards import FORMAT, INDEX, READERS, Objects, ShardFormat, open_objects, part_key, shard_key

RECORD = "pack.json"
"""What the shards are made of; a folder with another record is another set of shards."""
SHARD_TILES = 512
"""Tiles of a shard: some tens of megabytes."""
ENCODERS = 8
"""Threads that encode tiles; the codecs run outside Python's lock."""
SCHEMA = pa.schema(
    {
        "shard": pa.int32(), "offset": pa.int64(), "bytes": pa.int32(), "checksum": pa.uint32(),
        "gsd_m": pa.float64(), "source": pa.dictionary(pa.int32(), pa.string()),
    }
)  # fmt: skip


@dataclass(frozen=True)
class StreamPosition:
    """How far a stream of tiles is read."""

    files: int
    """Files that are finished; of a chip store, tiles."""
    tiles: int
    """Tiles of the next file that were taken."""
    bad: int = 0
    """Files before it that cannot be used."""


@dataclass(frozen=True)
class PlacedTile:
    """A tile of a stream."""

    image: NDArray[np.uint8]
    """(bands, H, W)."""
    gsd_m: float
    """GSD, true ground metres."""
    source: str
    """Name of the source."""
    after: StreamPosition
    """Position behind the tile."""


def pack(
    config: TilesConfig,
    out: str,
    *,
    shard_tiles: int = SHARD_TILES,
    quality: int | None = None,
    report: Report = ignore,
) -> int:
    """Pack the tiles of a configuration into shards, and return how many there are.

    Args:
        config: Sources or chip store of the tiles.
        out: Folder or URI of the shards.
        shard_tiles: Tiles of a shard.
        quality: Quality of lossy WebP, 1 to 100; without loss if None.
        report: Receiver of the progress, called after each shard.

    Raises:
        ConfigError: Shards in place of sources, an index or shares, or a quality for other bands than three.
        TrainingError: No tiles, too many files that cannot be used, or shards of other tiles in the way.
    """
    if config.shards or config.index or config.shares:
        raise ConfigError("canopy pack takes tiles.sources or tiles.store, without index and shares")
    if quality is not None and config.bands != 3:
        raise ConfigError(f"--quality {quality}: tiles of {config.bands} bands are packed without loss")
    form = ShardFormat(config.tile_px, config.bands, quality)
    stream = _Stream(config)
    objects = open_objects(out, make=True)
    _claim(objects, out, {"format": FORMAT, **asdict(form), "shard_tiles": shard_tiles, "tiles": stream.digest})
    parts = _finished_parts(objects)
    position = StreamPosition(**json.loads(parts[-1].schema.metadata[b"after"])) if parts else StreamPosition(0, 0)
    tiles = stream.tiles(position)
    with ThreadPoolExecutor(ENCODERS) as pool:
        while chunk := list(itertools.islice(tiles, shard_tiles)):
            number = len(parts)
            encoded = list(pool.map(lambda tile: form.encode(tile.image), chunk))
            objects.write(shard_key(number), b"".join(encoded))
            parts.append(_rows(number, chunk, encoded))
            objects.write(part_key(number), table_bytes(parts[-1]))
            done = chunk[-1].after.files
            report(Progress(done, stream.files, "files", f"{sum(map(len, parts)):,} tiles in {len(parts)} shards"))
    stream.bad.require_tiles(sum(map(len, parts)), config)
    objects.write(INDEX, table_bytes(_joined(parts, form)))
    return sum(map(len, parts))


class _Stream:
    """The tiles of a configuration in their order, from any position on.

    Args:
        config: Sources or chip store of the tiles.
    """

    def __init__(self, config: TilesConfig) -> None:
        self._config, self.bad = config, BadFiles(config.max_bad)
        if config.store is not None:
            self._stored = open_stored(config.store, config.tile_px)
            self.files, self.digest = len(self._stored), self._stored.sha256
            return
        self._geotiffs = open_geotiffs()
        self._paths = [(source, path) for source in config.sources for path in self._geotiffs.list_files(source)]
        self.files = len(self._paths)
        # Size and time stand for the content, which is read only once: a file that is replaced is another set of tiles.
        stats = [(path.stat().st_size, path.stat().st_mtime_ns) for _, path in self._paths]
        described = [(path.name, *stat, source.gsd_m) for (source, path), stat in zip(self._paths, stats, strict=True)]
        self.digest = hashlib.sha256(json.dumps([described, config.empty]).encode()).hexdigest()

    def tiles(self, start: StreamPosition) -> Iterator[PlacedTile]:
        """Yield the tiles behind a position."""
        self.bad.earlier = start.bad
        if self._config.store is not None:
            sources = self._stored.sources()
            for number in range(start.files, self.files):
                gsd_m = self._stored.gsd_m(number)
                yield PlacedTile(self._stored[number], gsd_m, sources[number], StreamPosition(number + 1, 0))
            return
        for number in range(start.files, self.files):
            source, path = self._paths[number]
            try:
                cuts = self._geotiffs.cut_file(path, source.gsd_m, self._config)
            except TrainingError as error:
                self.bad.skip(path, str(error))
                continue
            taken = start.tiles if number == start.files else 0
            for tile in range(taken, len(cuts)):
                files, tiles = (number + 1, 0) if tile + 1 == len(cuts) else (number, tile + 1)
                after = StreamPosition(files, tiles, len(self.bad))
                yield PlacedTile(cuts[tile].image, cuts[tile].gsd_m, source.path.name, after)


def _claim(objects: Objects, out: str, record: dict[str, Any]) -> None:
    """Write the record of a set of shards, or refuse a folder that has another."""
    content = json.dumps(record, sort_keys=True).encode()
    try:
        present = objects.read(RECORD)
    except FileNotFoundError:
        objects.write(RECORD, content)
        return
    if present != content:
        raise TrainingError(f"{redacted(out)} has shards of other tiles or settings: name another --out")


def _finished_parts(objects: Objects) -> list[pa.Table]:
    """Read the rows of the shards that are finished, many side by side: a pool of 18 million tiles has 35,000."""
    parts: list[pa.Table] = []
    with ThreadPoolExecutor(READERS) as pool:
        while True:
            numbers = range(len(parts), len(parts) + READERS)
            answers = list(pool.map(lambda number: _read_part(objects, number), numbers))
            finished = list(itertools.takewhile(lambda part: part is not None, answers))
            parts += finished
            if len(finished) < READERS:
                return parts


def _read_part(objects: Objects, number: int) -> pa.Table | None:
    """Read the rows of a shard; None where it is not finished."""
    try:
        return parse_table(objects.read(part_key(number)), read_dictionary=["source"])
    except FileNotFoundError:
        return None


def _rows(number: int, tiles: list[PlacedTile], encoded: list[bytes]) -> pa.Table:
    """Return the rows of a shard, with the position behind it."""
    sizes = np.array([len(content) for content in encoded])
    columns = {
        "shard": np.full(len(tiles), number), "offset": np.cumsum(sizes) - sizes, "bytes": sizes,
        "checksum": np.array([zlib.crc32(content) for content in encoded], np.uint32),
        "gsd_m": np.array([tile.gsd_m for tile in tiles]), "source": [tile.source for tile in tiles],
    }  # fmt: skip
    table = pa.table({name: pa.array(values).cast(SCHEMA.field(name).type) for name, values in columns.items()})
    return table.replace_schema_metadata({"after": json.dumps(asdict(tiles[-1].after))})


def _joined(parts: list[pa.Table], form: ShardFormat) -> pa.Table:
    """Return the rows of all shards, with their format and a digest of all tiles."""
    table = pa.concat_tables([part.replace_schema_metadata(None) for part in parts]).unify_dictionaries()
    digest = hashlib.sha256()
    for name in ("checksum", "bytes", "gsd_m"):
        digest.update(table[name].combine_chunks().to_numpy().tobytes())
    quality = "" if form.quality is None else str(form.quality)
    return table.replace_schema_metadata(
        {"format": FORMAT, "sha256": digest.hexdigest(), "tile_px": str(form.tile_px), "bands": str(form.bands),
         "quality": quality}
    )  # fmt: skip
