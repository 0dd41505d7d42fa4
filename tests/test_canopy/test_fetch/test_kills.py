"""A fetch that is killed, as the system kills, and started again ends in the bytes of one that was left alone."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from servers import meta, neon
from servers.web import WebServer

pytestmark = pytest.mark.slow
COL, ROW = 7 * 32_768 + 2048, 400 * 32_768 + 4096
SHARE = (0.2, 0.5, 0.8)
"""Shares of the requests of a whole run after which a run is killed."""


@pytest.fixture
def slow_neon(neon_server: neon.NeonServer) -> Iterator[neon.NeonServer]:
    """A server that takes its time, so that a kill meets a file in the middle."""
    for web in (neon_server.web, neon_server.store):
        web.forget()
        web.latency_s = 0.05
    neon_server.wrong_crc.clear()
    yield neon_server
    for web in (neon_server.web, neon_server.store):
        web.latency_s = 0.0


@pytest.fixture
def publisher(tmp_path: Path) -> Iterator[WebServer]:
    """A published map of several blocks."""
    key = meta.key(10, COL, ROW)
    folder = tmp_path / "published"
    values = np.random.default_rng(0).integers(0, 60, (5000, 5000)).astype(np.uint8)
    meta.write_tile(folder / "v2" / "chm" / f"{key}.tif", 10, values, COL, ROW)
    meta.write_footprints(
        folder / "v2" / "metadata" / f"{key}.geojson",
        meta.outline(COL, ROW, COL + 5000, ROW + 5000, acq_date="2019-10-25"),
    )
    with WebServer(latency_s=0.05) as server:
        server.files("/", folder)
        yield server


def contents(folder: Path) -> dict[str, bytes]:
    """The files that a user asked for, but for the folder's own name; records of a run and items have its time."""
    return {
        str(path.relative_to(folder)): path.read_bytes().replace(bytes(folder), b"FOLDER")
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".json" and path.name != "lock" and not path.name.endswith(".lock")
    }


def check_kills(command: Callable[[Path], list[str]], servers: list[WebServer], folder: Path) -> None:
    """Run a command to its end, then kill it several times on its way in another folder and compare.

    Args:
        command: Arguments of a fetch into a folder.
        servers: Servers whose requests are counted.
        folder: Folder of both results.
    """

    def start(out: Path) -> "subprocess.Popen[str]":
        arguments = [str(Path(sys.executable).with_name("canopy")), "fetch", *command(out)]
        return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def count() -> int:
        return sum(len(server.calls) for server in servers)

    alone, killed = folder / "alone", folder / "killed"
    for out in (alone, killed):
        out.mkdir()
    process = start(alone)
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    whole = count()
    kills, done = 0, False
    for share in SHARE:
        for server in servers:
            server.forget()
        process = start(killed)
        while process.poll() is None and count() < share * whole:
            time.sleep(0.002)
        # What is there already is not asked for again, so a later run may end before it is killed.
        done = process.poll() == 0
        if done:
            break
        kills += process.poll() is None
        process.kill()
        process.communicate()
    assert kills
    if not done:
        process = start(killed)
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    assert contents(killed) == contents(alone)


def test_neon(slow_neon: neon.NeonServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "NEON_TOKEN", neon.TOKEN)
    monkeypatch.setitem(os.environ, "CANOPY_NEON_API", slow_neon.api)

    def command(out: Path) -> list[str]:
        return ["neon", "--site", "TEAK", "--aoi", slow_neon.aoi, "--years", "2018", "--out", str(out / "teak")]

    check_kills(command, [slow_neon.web, slow_neon.store], tmp_path)


def test_published_maps(publisher: WebServer, tmp_path: Path) -> None:
    west, south, east, north = meta.degrees(COL, ROW, COL + 5000, ROW + 5000)

    def command(out: Path) -> list[str]:
        area = f"{west:.9f},{south:.9f},{east:.9f},{north:.9f}"
        return ["chm", "--product", "meta-v2", f"--aoi={area}", "--mirror", f"{publisher.url}/v2", "--out",
                str(out / "map.tif")]  # fmt: skip

    check_kills(command, [publisher], tmp_path)
