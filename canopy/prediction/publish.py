"""The map of a run gets its name: what is specific to predicted maps; `tiles.publish` has the order of steps."""

from collections.abc import Sequence
from pathlib import Path

from odc.geo.geom import Geometry

from tiles.grid import Tile, TileGrid
from tiles.planes import PlaneSpec
from tiles.publish import MapRecord, publish_map
from tiles.windows import PixelWindow


def tile_path(folder: Path, tile: Tile) -> Path:
    """Return where a run keeps a finished tile."""
    return folder / f"{tile.name}.tif"


def publish_tiles(
    tiles: Sequence[Tile],
    grid: TileGrid,
    window: PixelWindow,
    bands: Sequence[str],
    record: MapRecord,
    path: Path,
    folder: Path,
    planes: Sequence[PlaneSpec] = (),
    project_area: Geometry | None = None,
) -> None:
    """Publish the finished tiles of a run as one map.

    Args:
        tiles: Tiles of the run, all committed.
        grid: Grid of the tiles.
        window: Pixels of the map.
        bands: Names of the bands.
        record: Origin of the map.
        path: Name of the map.
        folder: Folder of the tiles, and of the draft.
        planes: Rasters that the tiles have behind their heights.
        project_area: Area that the map's QGIS project shows; None for no project.

    Raises:
        RasterError: A tile or the assembled map is not valid.
        OutputError: The map cannot be written.
    """
    members = [
        (tile_path(folder, tile), tile.window.row0 - window.row0, tile.window.col0 - window.col0) for tile in tiles
    ]
    publish_map(members, path, grid.lattice.geobox(window), bands, record, folder, planes, project_area)
