"""Shards at scale: opening an index of many tiles, and reading a rank's share of a batch.

    python benchmarks/shards.py                          # ten million rows, 48 tiles of 256 px a step

The index is random; tiles are smooth ground with noise. They lie in a folder, and answers come at once, or late by
--delay-ms as those of an object store do. Times are medians; memory is that of a process of its own.
"""

import argparse
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import rasterio

from pretrain.config import TilesConfig
from pretrain.pack import SCHEMA, pack
from pretrain.shards import FORMAT, INDEX, open_shards


def main() -> None:
    """Measure the index and the reading, and print both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--tiles", type=int, default=48, help="tiles of a rank's step: 3,072 over 64 ranks")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--delay-ms", type=float, default=50.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_index(Path(folder), options.rows)
        seconds, peak_gb = in_process(folder)
        size_mb = (Path(folder) / INDEX).stat().st_size / 1e6
        print(f"index     {options.rows:,} rows, {size_mb:.0f} MB, opened in {seconds:.1f} s, peak {peak_gb:.2f} GB")
    with tempfile.TemporaryDirectory() as folder:
        sources = TilesConfig.model_validate({"sources": [{"path": str(write_scene(Path(folder)))}]})
        pack(sources, f"{folder}/shards")
        for delay_ms in (0.0, options.delay_ms):
            step_s = reading_s(f"{folder}/shards", options.tiles, options.steps, delay_ms / 1e3)
            print(
                f"reading   {options.tiles} tiles of 256 px, answers late by {delay_ms:g} ms: {1e3 * step_s:.0f} ms, "
                f"{options.tiles / step_s:.0f} tiles/s"
            )


def write_index(folder: Path, rows: int) -> None:
    """Write an index of tiles of 40 to 120 kB in shards of 512."""
    generator = np.random.default_rng(0)
    sizes = generator.integers(40_000, 120_000, rows)
    ends = np.cumsum(sizes)
    columns = {
        "shard": np.arange(rows) // 512, "offset": (ends - sizes) % 2**26, "bytes": sizes,
        "checksum": generator.integers(0, 2**32, rows, np.uint32), "gsd_m": generator.choice([0.3, 0.5, 0.6], rows),
        "source": pa.DictionaryArray.from_arrays(np.arange(rows, dtype=np.int32) % 40, [f"city {n}" for n in range(40)])
    }  # fmt: skip
    table = pa.table({name: pa.array(values).cast(SCHEMA.field(name).type) for name, values in columns.items()})
    metadata = {"format": FORMAT, "sha256": "0", "tile_px": "256", "bands": "3", "quality": ""}
    pq.write_table(table.replace_schema_metadata(metadata), folder / INDEX, compression="zstd")


def in_process(folder: str) -> tuple[float, float]:
    """Open an index in a fresh process, and return seconds and its peak of memory in GB."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(opening, (folder,))


def opening(folder: str) -> tuple[float, float]:
    """Return seconds and peak memory, GB, of opening an index."""
    started = time.perf_counter()
    tiles = open_shards(folder)
    assert len(tiles) and tiles.gsd_m(len(tiles) - 1) > 0
    return time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def write_scene(folder: Path, side: int = 4096) -> Path:
    """Write a scene of smooth ground with noise, and return its path."""
    generator = np.random.default_rng(1)
    rows, cols = np.mgrid[:side, :side].astype(np.float32)
    ground = 120 + 60 * np.sin(rows / 90) * np.cos(cols / 130)
    image = np.clip(ground + generator.normal(0, 6, (3, side, side)), 0, 255).astype(np.uint8)
    path = folder / "scene.tif"
    with rasterio.open(
        path, "w", driver="GTiff", count=3, height=side, width=side, dtype="uint8", crs="EPSG:32610",
        transform=rasterio.transform.from_origin(500_000, 4_500_000, 0.5, 0.5),
    ) as file:  # fmt: skip
        file.write(image)
    return path


def reading_s(address: str, count: int, steps: int, delay_s: float) -> float:
    """Return the median time of reading some random tiles, each answer late by a delay."""
    tiles, generator = open_shards(address), np.random.default_rng(2)
    tiles._objects = _Late(tiles._objects.read, delay_s)
    times = []
    for _ in range(steps):
        numbers = [int(number) for number in generator.integers(0, len(tiles), count)]
        started = time.perf_counter()
        tiles.read(numbers)
        times.append(time.perf_counter() - started)
    return float(np.median(times))


class _Late:
    """Objects that answer late."""

    def __init__(self, read: Callable[..., bytes], delay_s: float) -> None:
        self._read, self._delay_s = read, delay_s

    def read(self, key: str, start: int | None = None, stop: int | None = None) -> bytes:
        """Return a range of an object after the delay."""
        time.sleep(self._delay_s)
        return self._read(key, start, stop)

    def write(self, key: str, content: bytes) -> Any:
        """Refuse: only reading is measured."""
        raise NotImplementedError


if __name__ == "__main__":
    main()
