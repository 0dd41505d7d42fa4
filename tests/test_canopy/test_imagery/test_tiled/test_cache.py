import os
from pathlib import Path

import numpy as np
import pytest
from servers.web import WebServer
from tile_pyramids import grid

from canopy.imagery.licences import Licence
from canopy.imagery.tiled.cache import TileCache


def test_what_is_stored_comes_back(tmp_path: Path) -> None:
    cache = TileCache(tmp_path, 10**6)
    assert cache.get("https://h/1?key=secret") is None
    cache.put("https://h/1?key=secret", b"tile")
    cache.put("https://h/2", b"")
    assert cache.get("https://h/1?key=secret") == b"tile"
    assert cache.get("https://h/2") == b""
    assert not any("secret" in str(path) for path in tmp_path.rglob("*"))


def test_equal_tiles_are_stored_once(tmp_path: Path) -> None:
    cache = TileCache(tmp_path, 10**6)
    for number in range(5):
        cache.put(f"https://h/{number}", b"sea")
    assert len([path for path in (tmp_path / "objects").rglob("*") if path.is_file()]) == 1


def test_damage_is_a_miss(tmp_path: Path) -> None:
    cache = TileCache(tmp_path, 10**6)
    cache.put("https://h/1", b"tile")
    (stored,) = [path for path in (tmp_path / "objects").rglob("*") if path.is_file()]
    stored.write_bytes(b"til")
    assert cache.get("https://h/1") is None


def test_the_oldest_go_first(tmp_path: Path) -> None:
    cache = TileCache(tmp_path, 3000)
    for number in range(5):
        cache.put(f"https://h/{number}", bytes([number]) * 1000)
    for number, path in enumerate(sorted(tmp_path.rglob("objects/*/*"), key=lambda one: one.read_bytes())):
        os.utime(path, (1000 + number, 1000 + number))
    cache.sweep()
    assert [cache.get(f"https://h/{number}") is not None for number in range(5)] == [False, False, False, True, True]


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    cache = TileCache(tmp_path / "file" / "below", 1000)
    cache.put("https://h/1", b"tile")
    assert cache.get("https://h/1") is None


def test_nothing_is_cached_unless_the_environment_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CANOPY_TILE_CACHE", raising=False)
    assert TileCache.of_environment() is None
    monkeypatch.setenv("CANOPY_TILE_CACHE", str(tmp_path))
    monkeypatch.setenv("CANOPY_TILE_CACHE_GB", "0.5")
    cache = TileCache.of_environment()
    assert cache is not None and (cache.folder, cache.limit_bytes) == (tmp_path, 5 * 10**8)


def test_a_second_run_asks_for_nothing(
    xyz, server: WebServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, expected: np.ndarray
) -> None:
    monkeypatch.setenv("CANOPY_TILE_CACHE", str(tmp_path))
    xyz().read(grid())
    asked_for = server.count("/tiles/")
    np.testing.assert_array_equal(xyz().read(grid()).values, expected)
    assert server.count("/tiles/") == asked_for
    # A licence that forbids copies keeps the tiles off the disk.
    monkeypatch.setenv("CANOPY_TILE_CACHE", str(tmp_path / "other"))
    xyz(licence=Licence("theirs", derive=True, redistribute=False)).read(grid()[:5, :5])
    assert not (tmp_path / "other").exists()
