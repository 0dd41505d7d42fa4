"""Tiles in shards: packed and resumed to the same bytes, read from folders and buckets, damage and outages."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import obstore
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from chip_stores import forest, forest_config
from forest import write_pair
from hypothesis import given, settings
from hypothesis import strategies as st
from pretraining import tiny_config
from pydantic import ValidationError
from rasters import make_raster

from canopy.dataset.build import build
from canopy.errors import ConfigError, TrainingError
from pretrain import pack as packing
from pretrain.config import TilesConfig
from pretrain.data import read_tiles
from pretrain.pack import pack
from pretrain.shards import INDEX, ShardFormat, open_shards, shard_key
from pretrain.training import pretrain


def write_images(folder: Path, count: int = 3, bands: int = 3) -> Path:
    """Write images of 64 by 96 pixels: six tiles of 32 pixels each."""
    for number in range(count):
        values = np.random.default_rng(number).integers(0, 255, (bands, 64, 96)).astype(np.uint8)
        make_raster(folder / f"{number}.tif", values=values)
    return folder


def tiles_of(folder: Path, **values: Any) -> TilesConfig:
    return TilesConfig.model_validate({"sources": [{"path": str(folder)}], "tile_px": 32, **values})


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("bands", [3, 5])
def test_packed_tiles_are_those_of_the_files(tmp_path: Path, bands: int) -> None:
    config = tiles_of(write_images(tmp_path / "images", bands=bands), bands=bands)
    seen = []
    count = pack(config, str(tmp_path / "shards"), shard_tiles=7, report=lambda now: seen.append((now.done, now.total)))
    expected, tiles = read_tiles(config), open_shards(str(tmp_path / "shards"))
    assert count == len(expected) == len(tiles) == 18
    np.testing.assert_array_equal(tiles.read(range(18)), expected.read(range(18)))
    np.testing.assert_array_equal(tiles[4], expected[4])
    assert [tiles.gsd_m(n) for n in range(18)] == [expected.gsd_m(n) for n in range(18)]
    assert set(tiles.sources()) == {"images"}
    assert sorted(path.name for path in (tmp_path / "shards" / "shards").iterdir()) == [
        "000000.tiles", "000001.tiles", "000002.tiles",
    ]  # fmt: skip
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_training_on_shards_is_that_on_the_files_to_the_bit(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images")
    pack(tiles_of(images), str(tmp_path / "shards"), shard_tiles=5)
    sources = {"sources": [{"path": str(images)}], "tile_px": 32}
    shards = {"sources": [], "shards": str(tmp_path / "shards"), "tile_px": 32}
    logs = []
    for name, tiles in (("files", sources), ("shards", shards)):
        pretrain(tiny_config(tiles=tiles, loop={"steps": 2}), tmp_path / name)
        lines = (tmp_path / name / "log.jsonl").read_text().splitlines()
        logs.append([line.partition('"seconds"')[0] for line in lines])
    assert logs[0] == logs[1]


def test_a_chip_store_is_packed_with_its_sources(tmp_path: Path) -> None:
    write_pair(forest(64, 1, (320_000, 4_100_000)), tmp_path / "data" / "pairs" / "a_1")
    write_pair(forest(40, 3, (330_000, 4_100_000)), tmp_path / "data" / "pairs" / "b_1")
    build(forest_config(tmp_path / "data"), tmp_path / "store")
    config = TilesConfig(store=tmp_path / "store", tile_px=32)
    pack(config, str(tmp_path / "shards"))
    expected, tiles = read_tiles(config), open_shards(str(tmp_path / "shards"))
    np.testing.assert_array_equal(tiles.read(range(len(tiles))), expected.read(range(len(expected))))
    shares = TilesConfig(shards=str(tmp_path / "shards"), tile_px=32, shares={"a": 1.0})
    assert len(read_tiles(shares)) == len(tiles)
    with pytest.raises(TrainingError, match="'c': the store has tiles of a"):
        read_tiles(TilesConfig(shards=str(tmp_path / "shards"), tile_px=32, shares={"c": 1.0}))


class _KilledError(Exception):
    pass


@given(writes=st.integers(1, 11))
@settings(max_examples=11, deadline=None)
def test_a_killed_pack_goes_on_to_the_same_bytes(tmp_path_factory: pytest.TempPathFactory, writes: int) -> None:
    root = tmp_path_factory.mktemp("pack")
    config = tiles_of(write_images(root / "images"))
    pack(config, str(root / "whole"), shard_tiles=4)
    opened = packing.open_objects

    class Killed:
        def __init__(self, address: str, *, make: bool) -> None:
            self.objects, self.left = opened(address, make=make), writes

        def read(self, key: str, start: int | None = None, stop: int | None = None) -> bytes:
            return self.objects.read(key, start, stop)

        def write(self, key: str, content: bytes) -> None:
            self.left -= 1
            if self.left < 0:
                raise _KilledError
            self.objects.write(key, content)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "open_objects", Killed)
        with pytest.raises(_KilledError):
            pack(config, str(root / "cut"), shard_tiles=4)
    if (root / "cut").is_dir():
        with pytest.raises(TrainingError, match="no shards, or not all of them"):
            open_shards(str(root / "cut"))
    pack(config, str(root / "cut"), shard_tiles=4)
    assert contents(root / "cut") == contents(root / "whole")


def test_a_resumed_pack_reads_no_finished_file_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiles_of(write_images(tmp_path / "images"))
    pack(config, str(tmp_path / "shards"), shard_tiles=4)
    for name in ("parts/000004.parquet", INDEX):
        (tmp_path / "shards" / name).unlink()
    from pretrain import geotiff

    cut, opened = geotiff.cut_file, list[str]()
    monkeypatch.setattr(geotiff, "cut_file", lambda path, *rest: opened.append(path.name) or cut(path, *rest))
    assert pack(config, str(tmp_path / "shards"), shard_tiles=4) == 18
    assert opened == ["2.tif"]


def test_bad_files_count_over_resumption_and_changed_files_are_another_set(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images")
    (images / "0.tif").write_bytes(b"none")
    config, out = tiles_of(images, max_bad=1), tmp_path / "shards"
    pack(config, str(out), shard_tiles=12)
    (out / INDEX).unlink()
    assert pack(config, str(out), shard_tiles=12) == 12, "the one bad file was counted before"
    (out / "parts" / "000000.parquet").unlink()
    (images / "1.tif").write_bytes(b"n" * (images / "1.tif").stat().st_size)
    with pytest.raises(TrainingError, match="shards of other tiles or settings"):
        pack(config, str(out), shard_tiles=12)
    write_images(images, count=6)
    for number in (0, 5):
        (images / f"{number}.tif").write_bytes(b"none")
    cut = tmp_path / "cut"
    with pytest.raises(TrainingError, match="2 files cannot be used"):
        pack(config, str(cut), shard_tiles=6)
    with pytest.raises(TrainingError, match="2 files cannot be used"):  # though the first lies behind it
        pack(config, str(cut), shard_tiles=6)


def test_a_bucket_holds_what_a_folder_does(tmp_path: Path, bucket: str) -> None:
    config = tiles_of(write_images(tmp_path / "images"))
    pack(config, str(tmp_path / "shards"), shard_tiles=7)
    pack(config, f"{bucket}/tiles", shard_tiles=7)
    tiles, expected = open_shards(f"{bucket}/tiles"), open_shards(str(tmp_path / "shards"))
    assert tiles.sha256 == expected.sha256
    np.testing.assert_array_equal(tiles.read([17, 0, 9]), expected.read([17, 0, 9]))
    assert pack(config, f"{bucket}/tiles", shard_tiles=7) == 18, "a finished set is left as it is"
    with pytest.raises(TrainingError, match=f"{bucket}/none has no {INDEX}"):
        open_shards(f"{bucket}/none")


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket of a local S3."""
    pytest.importorskip("moto", reason="a local S3 is moto's")
    from servers.s3 import BUCKET, LocalS3

    with LocalS3() as s3:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            monkeypatch.delenv(name)
        for name, value in s3.environment.items():
            monkeypatch.setenv(name, value)
        yield f"s3://{BUCKET}"


def test_a_damaged_tile_among_many_costs_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = tiles_of(write_images(tmp_path / "images"))
    pack(config, str(tmp_path / "shards"))
    path = tmp_path / "shards" / shard_key(0)
    index = pq.read_table(tmp_path / "shards" / INDEX)
    content = bytearray(path.read_bytes())
    content[index["offset"][5].as_py() + 40] ^= 1
    path.write_bytes(content)
    caplog.set_level(logging.WARNING)
    tiles = open_shards(str(tmp_path / "shards"), max_bad=1)
    for _ in range(2):
        np.testing.assert_array_equal(tiles.read(range(18)), read_tiles(config).read([*range(5), 6, *range(6, 18)]))
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith(f"skipped tile 5 in {shard_key(0)} of {tmp_path / 'shards'}: its bytes")
    with pytest.raises(TrainingError, match=r"1 tiles are damaged, the last tile 5 .* tiles\.max_bad, 0,"):
        open_shards(str(tmp_path / "shards")).read(range(18))


def test_a_tile_that_arrives_cut_is_asked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiles_of(write_images(tmp_path / "images"))
    pack(config, str(tmp_path / "shards"))
    tiles, get, calls = open_shards(str(tmp_path / "shards")), obstore.get_range, list[int]()

    def cut(store: Any, key: str, **where: Any) -> Any:
        calls.append(1)
        return bytes(get(store, key, **where))[: 10 if len(calls) == 1 else None]

    monkeypatch.setattr(obstore, "get_range", cut)
    np.testing.assert_array_equal(tiles[3], read_tiles(config)[3])
    assert len(calls) == 2


def test_a_store_that_fails_is_an_error_of_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack(tiles_of(write_images(tmp_path / "images")), str(tmp_path / "shards"))
    tiles = open_shards(str(tmp_path / "shards"))

    def fail(*_: Any, **__: Any) -> Any:
        raise OSError("connection\nreset")

    monkeypatch.setattr(obstore, "get_range", fail)
    with pytest.raises(TrainingError, match=r"000000\.tiles: connection reset; check .* same command again"):
        tiles.read([0, 1])
    monkeypatch.undo()
    (tmp_path / "shards" / shard_key(0)).unlink()
    with pytest.raises(TrainingError, match=r"shards/000000\.tiles is missing"):
        tiles.read([0])


def test_a_lossy_set_is_small_and_near(tmp_path: Path) -> None:
    rows, cols = np.mgrid[0:64, 0:96]
    smooth = np.stack([rows * 2, cols * 2, rows + cols]).astype(np.uint8)
    make_raster(tmp_path / "images" / "0.tif", values=smooth)
    config = tiles_of(tmp_path / "images")
    pack(config, str(tmp_path / "lossy"), quality=90)
    tiles = open_shards(str(tmp_path / "lossy"))
    error = np.abs(tiles.read(range(6)).astype(int) - read_tiles(config).read(range(6)))
    assert 0 < error.mean() < 4
    assert tiles.format == ShardFormat(32, 3, 90)


def test_what_cannot_be_packed_or_read_says_why(tmp_path: Path) -> None:
    images, out = write_images(tmp_path / "images"), str(tmp_path / "shards")
    with pytest.raises(ConfigError, match="tiles of 5 bands are packed without loss"):
        pack(tiles_of(images, bands=5), out, quality=90)
    pack(tiles_of(images), out)
    with pytest.raises(TrainingError, match="shards of other tiles or settings"):
        pack(tiles_of(images), out, quality=80)
    with pytest.raises(ConfigError, match=r"tiles\.sources or tiles\.store"):
        pack(TilesConfig(shards=out), str(tmp_path / "again"))
    with pytest.raises(TrainingError, match=r"\(tile_px, bands\) are \(32, 3\), those of the configuration \(64, 3\)"):
        read_tiles(TilesConfig(shards=out, tile_px=64))
    with pytest.raises(TrainingError, match="no folder"):
        open_shards(str(tmp_path / "nowhere"))
    assert not (tmp_path / "nowhere").exists()
    with pytest.raises(TrainingError, match=r"ftp://host/a: a folder, or s3://"):
        open_shards("ftp://me:secret@host/a?key=1")
    with pytest.raises(ValidationError, match=r"one of tiles\.sources, tiles\.store and tiles\.shards"):
        TilesConfig(shards=out, store=tmp_path)
    pq.write_table(pa.table({"a": [1]}), tmp_path / "shards" / INDEX)
    with pytest.raises(TrainingError, match="is not of the format"):
        open_shards(out)
    (tmp_path / "shards" / INDEX).write_bytes(b"PAR1")
    with pytest.raises(TrainingError, match=f"{INDEX} cannot be read"):
        open_shards(out)


def test_bad_files_are_skipped_up_to_a_number(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images")
    (images / "1.tif").write_bytes(b"none")
    assert pack(tiles_of(images), str(tmp_path / "shards"), shard_tiles=5) == 12
    with pytest.raises(TrainingError, match="1 files cannot be used"):
        pack(tiles_of(images, max_bad=0), str(tmp_path / "strict"))
    for number in (0, 2):
        (images / f"{number}.tif").unlink()
    with pytest.raises(TrainingError, match=r"no tile of .* is less than"):
        pack(tiles_of(images), str(tmp_path / "none"))
