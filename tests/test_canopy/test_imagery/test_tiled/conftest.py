from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from servers.web import WebServer
from tile_pyramids import TileRoute, grid, mercator_tiles, write_tiles

from canopy.http import Retry
from canopy.imagery.tiled import TiledImagery, open_tiles
from canopy.imagery.tiled.matrices import TileKey

QUICK = Retry(attempts=2, pause_s=0.0)


@pytest.fixture(scope="session")
def tiles() -> dict[TileKey, bytes]:
    return mercator_tiles()


@pytest.fixture(scope="session")
def tile_folder(tiles: dict[TileKey, bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiles(tmp_path_factory.mktemp("tiles"), tiles)


@pytest.fixture(scope="session")
def expected(tile_folder: Path) -> np.ndarray:
    """What every source of the tiles reads on `grid()`."""
    return open_tiles(tile_folder).read(grid()).values


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    """A server of the test's own: requests that a failed reading leaves on their way would count in the next test."""
    monkeypatch.delenv("CANOPY_TILE_CACHE", raising=False)
    with WebServer() as server:
        yield server


@pytest.fixture
def route(server: WebServer, tiles: dict[TileKey, bytes]) -> TileRoute:
    """An XYZ service at ``/tiles``."""
    service = TileRoute(tiles)
    server.route("/tiles/", service.xyz)
    return service


@pytest.fixture
def xyz(server: WebServer, route: TileRoute):
    """Open the XYZ service."""

    def opened(options: str = "", **arguments) -> TiledImagery:
        address = f"xyz+{server.url}/tiles/{{z}}/{{x}}/{{y}}.png#zoom=17{options}"
        return open_tiles(address, **{"retry": QUICK, **arguments})

    return opened
