"""Images of one area on a server of this process."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from odc.geo.geom import Geometry, box
from rasters import ORIGIN, UTM, make_raster
from servers.web import WebServer

from canopy.http import HttpClient, Retry
from canopy.imagery import remote
from canopy.imagery.signing import forget_tokens
from canopy.imagery.stac import opening
from canopy.imagery.stac.api import RETRIED_IN_SEARCHES

X, Y = ORIGIN


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[WebServer]:
    """A server without routes, and clients that do not pause."""
    quick = HttpClient(retry=Retry(attempts=3, pause_s=0), retried=RETRIED_IN_SEARCHES)
    plain = HttpClient(retry=Retry(attempts=3, pause_s=0))
    monkeypatch.setattr(remote, "client", lambda: plain)
    monkeypatch.setattr(opening, "client", lambda: quick)
    monkeypatch.setenv("CANOPY_CACHE", str(tmp_path / "cache"))
    forget_tokens()
    with WebServer() as server:
        yield server


@pytest.fixture(scope="package")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images of the same 48 m x 64 m, one of the western half of another date, one grey."""
    folder = tmp_path_factory.mktemp("images")
    make_raster(folder / "old.tif", pattern="noise")
    make_raster(folder / "new.tif", pattern="world")
    make_raster(folder / "half.tif", shape=(96, 64), pattern="gradient")
    make_raster(folder / "grey.tif", bands=1)
    make_raster(folder / "infrared.tif", bands=4, pattern="world",
                colorinterp=["red", "green", "blue", "alpha"])  # fmt: skip
    return folder


@pytest.fixture
def area() -> Geometry:
    """An area in the middle of the images."""
    return box(X + 4, Y - 44, X + 60, Y - 4, UTM)
