"""The polygons of stands: of a file, or squares of a grid; in the CRS of the map, in groups to be read together."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pyogrio.raw
import pyproj
import shapely
from numpy.typing import NDArray
from odc.geo.crs import CRS
from odc.geo.geom import Geometry

from canopy.errors import ProductError, one_line
from canopy.products.reading import ProductMap, require_overlap
from tiles.aoi import flatten, keep_polygons, to_crs
from tiles.vectors import Polygons, read_vector
from tiles.windows import PixelWindow, cut_windows
from tiles.zonal import ZoneGrid

GROUP_PX = 1024
"""Polygons whose middles lie in a square of this side are read together; a longer one is read alone, in strips."""


@dataclass(frozen=True)
class Zones:
    """Polygons in the CRS of a map."""

    ids: tuple[str | None, ...]
    """Name of each polygon; None where the file has none for it."""
    polygons: Polygons
    """(N,) valid polygons in the CRS of the map."""
    areas_m2: NDArray[np.float64]
    """(N,) areas on the ellipsoid."""

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, numbers: NDArray[np.int64]) -> "Zones":
        """Return some of the polygons by their number."""
        return Zones(tuple(self.ids[n] for n in numbers), self.polygons[numbers], self.areas_m2[numbers])


@dataclass(frozen=True)
class Group:
    """Polygons that are measured together."""

    name: str
    """Name of the group; names sort in the order in which groups are measured."""
    numbers: NDArray[np.int64]
    """Numbers of the polygons."""
    window: PixelWindow | None
    """Window of all cells that they touch; None where they lie outside the map."""
    is_long: bool
    """Whether the group is one polygon that is read in strips."""


def read_zones(path: Path, source: ProductMap, *, layer: str | None = None, field: str | None = None) -> Zones:
    """Read the polygons of a vector file.

    Args:
        path: Vector file.
        source: Map to whose CRS they are brought.
        layer: Name of the layer, where several have areas.
        field: Field whose values name the polygons; their numbers from 1 for None.

    Raises:
        AOIError: The file cannot be read, or a polygon does not fit into the CRS of the map.
        ProductError: A geometry is empty or no polygon, or there is no such field.
    """
    geometries, crs = read_vector(path, layer)
    if not len(geometries):
        raise ProductError(f"{path} has no polygon: stands as polygons expected")
    ids = _read_ids(path, layer, field, len(geometries)) if field else [str(n + 1) for n in range(len(geometries))]
    kinds = shapely.get_type_id(geometries)
    empty = np.flatnonzero((kinds < 0) | shapely.is_empty(geometries) | ~_have_area(geometries))
    wrong = np.flatnonzero(~np.isin(kinds, (3, 6)) & (kinds >= 0))
    for numbers, reason in ((wrong, "is no polygon"), (empty, "is empty or has no area")):
        if numbers.size:
            raise ProductError(
                f"{path}: the geometry of {ids[numbers[0]]!r} {reason} ({numbers.size} of {len(ids)} geometries): "
                "polygons expected"
            )
    polygons = _in_crs(geometries, crs, source.crs)
    return Zones(tuple(ids), polygons, areas_m2(polygons, source.crs))


def require_ground(zones: Zones, source: ProductMap, path: Path) -> None:
    """Refuse polygons of which none has ground in common with a map.

    Args:
        zones: Polygons in the CRS of the map.
        source: Map.
        path: File of the polygons, for messages.

    Raises:
        ProductError: All of them lie elsewhere.
    """
    if not shapely.intersects(zones.polygons, source.geobox().extent.geom).any():
        require_overlap(source, Geometry(shapely.box(*shapely.total_bounds(zones.polygons)), source.crs), path)
        raise ProductError(f"no polygon of {path} has ground in common with {source.path}")


def _have_area(geometries: Polygons) -> NDArray[np.bool_]:
    """Return which geometries have an area, once repaired: the loops of a figure of eight cancel each other before."""
    areas = shapely.area(geometries)
    flat = areas == 0
    areas[flat] = shapely.area(shapely.make_valid(geometries[flat], method="structure", keep_collapsed=False))
    return np.asarray(areas > 0)


def grid_window(source: ProductMap, side: float, window: PixelWindow) -> Zones:
    """Return the squares of a grid whose middles lie in a window; squares lie on multiples of their side.

    Args:
        source: Map in whose CRS the squares are.
        side: Side of a square in units of the CRS.
        window: Window of the map.
    """
    left, top = source.transform @ (window.col0, window.row0)
    right, bottom = source.transform @ (window.col1, window.row1)
    cols, rows = (
        np.arange(math.ceil(low / side - 0.5), math.ceil(high / side - 0.5))
        for low, high in ((left, right), (bottom, top))
    )
    # From north to south and from west to east, as cells of a raster are.
    row, col = (axis.ravel() for axis in np.meshgrid(rows[::-1], cols, indexing="ij"))
    squares = shapely.box(col * side, row * side, (col + 1) * side, (row + 1) * side)
    ids = tuple(f"r{-r:d}_c{c:d}" for r, c in zip(row.tolist(), col.tolist(), strict=True))
    return Zones(ids, squares, areas_m2(squares, source.crs))


def areas_m2(polygons: Polygons, crs: CRS) -> NDArray[np.float64]:
    """Measure polygons on the ellipsoid, square metres."""
    move = crs.transformer_to_crs(CRS("EPSG:4326"))
    lonlat = shapely.transform(shapely.segmentize(polygons, 1000.0), lambda xy: np.column_stack(move(*xy.T)))
    geod = pyproj.Geod(ellps="WGS84")
    # In its normal form shells and holes of a polygon run opposite ways, as the sum of their areas needs it.
    return np.array([abs(geod.geometry_area_perimeter(part)[0]) for part in shapely.normalize(lonlat)])


def group_zones(zones: Zones, grid: ZoneGrid) -> Iterator[Group]:
    """Put polygons that lie near each other into groups, each to be read at once.

    Args:
        zones: Polygons.
        grid: Grid of the map.
    """
    windows = [_window(grid, polygon) for polygon in zones.polygons]
    keys: dict[tuple[int, int], list[int]] = {}
    long: list[int] = []
    for number, window in enumerate(windows):
        if window is None:
            keys.setdefault((-1, -1), []).append(number)
        elif max(window.shape) > GROUP_PX:
            long.append(number)
        else:
            middle = (window.row0 + window.row1) // 2, (window.col0 + window.col1) // 2
            keys.setdefault((middle[0] // GROUP_PX, middle[1] // GROUP_PX), []).append(number)
    for (row, col), members in sorted(keys.items()):
        name = "outside" if row < 0 else f"r{row:06d}_c{col:06d}"
        yield Group(name, np.array(members), _union([windows[n] for n in members]), is_long=False)
    for number in long:
        yield Group(f"long_{number:08d}", np.array([number]), windows[number], is_long=True)


def grid_windows(source: ProductMap) -> list[PixelWindow]:
    """Return the windows by which a grid of squares is made and measured."""
    return cut_windows(source.shape, GROUP_PX)


def _window(grid: ZoneGrid, polygon: Any) -> PixelWindow | None:
    window = grid.window(polygon)
    return window and PixelWindow(window.row_off, window.col_off, window.height, window.width)


def _union(windows: list[PixelWindow | None]) -> PixelWindow | None:
    present = [window for window in windows if window is not None]
    if not present:
        return None
    row0, col0 = min(w.row0 for w in present), min(w.col0 for w in present)
    return PixelWindow(row0, col0, max(w.row1 for w in present) - row0, max(w.col1 for w in present) - col0)


def _in_crs(geometries: Polygons, crs: CRS, target: CRS) -> Polygons:
    """Return polygons in another CRS, valid."""
    if crs == target:
        invalid = ~shapely.is_valid(geometries)
        if not invalid.any():
            return geometries
        repaired = geometries.copy()
        fixed = [keep_polygons(flatten(shapely.make_valid(each, method="structure"))) for each in geometries[invalid]]
        repaired[invalid] = [shapely.MultiPolygon(list(parts)) for parts in fixed]
        return repaired
    return np.array([to_crs(Geometry(each, crs), target).geom for each in geometries], dtype=object)


def _area_layer(path: Path) -> str:
    """Return the layer that `read_vector` chooses; a GeoPackage may have tables of tops and styles as well."""
    layers = pyogrio.list_layers(path)
    areas = [name for name, kind in layers if kind is not None and "Polygon" in kind]
    return str((areas or [name for name, _ in layers])[0])


def _read_ids(path: Path, layer: str | None, field: str, count: int) -> list[str | None]:
    """Read the values of a field as text, None where it has none; `read_vector` has accepted the file."""
    try:
        if path.suffix.lower() in (".parquet", ".geoparquet", ".pq"):
            import pyarrow.parquet as pq

            names = pq.read_schema(path).names
            values = pq.read_table(path, columns=[field])[field].to_pylist() if field in names else None
        else:
            layer = layer or _area_layer(path)
            names = pyogrio.read_info(path, layer=layer)["fields"].tolist()
            options: dict[str, Any] = {"layer": layer, "columns": [field], "read_geometry": False}
            # As Arrow, whole numbers stay whole where one of them is missing.
            values = pyogrio.raw.read_arrow(path, **options)[1][field].to_pylist() if field in names else None
    except (OSError, RuntimeError, ValueError, LookupError) as error:
        raise ProductError(f"{path}: the field {field!r} cannot be read ({one_line(error, 200)})") from error
    if values is None:
        raise ProductError(f"{path} has no field {field!r}: one of {', '.join(map(str, names))} expected")
    if len(values) != count:
        raise ProductError(f"{path}: {count} geometries and {len(values)} values of {field!r}: one for each expected")
    return [None if value is None else str(value) for value in values]
