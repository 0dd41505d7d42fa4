"""`canopy derive trees`: the trees of a height map, each with its height, its interval and its crown.

The map is read tile by tile with a halo from which a tile's trees follow exactly (`crowns.halo_px`). A tree belongs to
the tile that contains its top, and is named by the cell of its top on the lattice of the CRS: tiles, and maps that are
cut out of larger ones, give the same trees.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import rasterio
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.io import DatasetReader

from canopy.errors import ProductError
from canopy.evaluation.rasters import mask_on, require_mask
from canopy.products.crowns import NO_TREE, Crowns, Cut, find_crowns, halo_px
from canopy.products.outlines import keep_pieces_of_tops, outlines
from canopy.products.reading import ProductMap, open_map
from canopy.products.treetops import WINDOWS, Cells, Floats, WindowLine, smooth
from canopy.products.work import Work, hold_work, part_name
from canopy.products.writing import (
    CSV,
    GEOMETRY,
    GEOPACKAGE,
    PARQUET,
    TableSpec,
    provenance,
    publish_table,
    require_suffix,
)  # fmt: skip
from canopy.progress import Progress, Report, ignore
from tiles.cog import CACHE_BYTES
from tiles.heights import open_raster
from tiles.qgis import crowns_qml
from tiles.windows import PixelWindow, cut_windows

MAX_GSD_M = 1.0
"""Longest side of a cell at which crowns are still apart, metres."""
TILE_PX = 2048
_COLUMNS = pa.schema(
    [
        ("tree_id", pa.string()),
        ("height_m", pa.float32()),
        ("height_p05_m", pa.float32()),
        ("height_p95_m", pa.float32()),
        ("crown_area_m2", pa.float32()),
        ("crown_diameter_m", pa.float32()),
        ("confidence", pa.float32()),
        ("touches_unknown", pa.bool_()),
        ("top_x", pa.float64()),
        ("top_y", pa.float64()),
        (GEOMETRY, pa.binary()),
    ]
)


@dataclass(frozen=True)
class TreeOptions:
    """Where one tree ends and the next begins; lengths in true ground metres."""

    window: WindowLine = field(default_factory=lambda: WINDOWS["mixed"])
    """Width of the search window by height."""
    smooth_m: float = 0.5
    """Standard deviation of the Gaussian that smooths heights first, metres."""
    lowest_m: float = 2.0
    """Lowest tree, and lowest part of a crown, metres."""
    crown_share: float = 0.3
    """Lowest part of a crown, as a share of its top's height."""
    max_radius_m: float = 10.0
    """Widest crown radius, metres."""

    def __post_init__(self) -> None:
        """Refuse values that no forest has."""
        if not 0 <= self.smooth_m <= 5:
            raise ProductError(f"smoothing of {self.smooth_m:g} m: 0 to 5 m expected")
        if not 0 <= self.lowest_m <= 100:
            raise ProductError(f"lowest tree of {self.lowest_m:g} m: 0 to 100 m expected")
        if not 0 <= self.crown_share < 1:
            raise ProductError(f"crown share of {self.crown_share:g}: 0 to 1 expected")
        if not 0 < self.max_radius_m <= 30:
            raise ProductError(f"crown radius of {self.max_radius_m:g} m: above 0 and up to 30 m expected")


@dataclass(frozen=True)
class TreeSummary:
    """Result of `derive_trees`."""

    path: Path
    """File of the trees."""
    trees: int
    """Number of trees."""
    median_height_m: float | None
    """Median of the tiles' median heights, weighted by trees, metres; None without trees."""
    has_intervals: bool
    """Whether heights have intervals."""

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON."""
        return {**asdict(self), "path": str(self.path)}


def derive_trees(
    path: Path,
    out: Path,
    options: TreeOptions | None = None,
    *,
    mask: Path | None = None,
    error_m: float | None = None,
    tile_px: int = TILE_PX,
    overwrite: bool = False,
    report: Report = ignore,
) -> TreeSummary:
    """Find the trees of a height map; the same call continues an interrupted one.

    Args:
        path: Height map with cells of at most `MAX_GSD_M`.
        out: File to write: crowns and tops as layers (.gpkg), crowns (.parquet), or tops (.csv).
        options: Where one tree ends and the next begins.
        mask: Raster that excludes cells, such as roofs, where it is neither 0 nor nodata.
        error_m: Standard error of a cell's height, metres, in place of the map's intervals.
        tile_px: Side of a tile, cells; the trees do not depend on it.
        overwrite: Whether an existing file is replaced.
        report: Called after each tile.

    Raises:
        ProductError: The map is of no use for trees.
        RasterError: The map cannot be read.
        OutputError: The file exists or cannot be written.
    """
    options = options or TreeOptions()
    require_suffix(out, (*GEOPACKAGE, *PARQUET, *CSV))
    settings = {**asdict(options), "error_m": error_m, "mask": None if mask is None else mask.name}
    inputs = [path] if mask is None else [path, mask]
    with ExitStack() as stack:
        # GDAL's own cache grows with the map.
        stack.enter_context(rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES))
        source = stack.enter_context(open_map(path, error_m=error_m, max_gsd_m=MAX_GSD_M))
        excluded = None
        if mask is not None:
            excluded = MaskedCells(mask, stack.enter_context(open_raster(mask)), source.heights.dataset)
            require_mask(mask, excluded.mask)
        plan = {"product": "trees", **settings, "tile_px": tile_px}
        with hold_work(out, plan, inputs=inputs, overwrite=overwrite) as work:
            names = list(_save_tiles(work, source, options, excluded, tile_px, report))
            about = provenance("trees", {"map": source}, settings)
            _publish(work, names, about, source)
            return _summary(work, names, source)


def find_trees(
    heights_m: Floats,
    core: tuple[slice, slice],
    cell_m: float,
    options: TreeOptions,
    ends_m: tuple[Floats, Floats] | None = None,
) -> "Trees":
    """Return the trees whose tops lie in the core of an array.

    Args:
        heights_m: (H, W) float32 metres, NaN where unknown: the core with its halo, see `halo`.
        core: Rows and columns of the core.
        cell_m: Side of a cell, metres.
        options: Where one tree ends and the next begins.
        ends_m: Lower and upper ends of the 90 % intervals, each (H, W) metres; None without.
    """
    cut = _cut(options, cell_m)
    crowns = find_crowns(smooth(heights_m, options.smooth_m / cell_m), options.window, cut, cell_m)
    tops, owner = _inside(crowns, core)
    owner = keep_pieces_of_tops(owner, tops)
    highest = _highest_nearby(heights_m, tops)
    rim_m, touches = _rims(owner, crowns.surface_m, heights_m, tops.size)
    top_m = crowns.surface_m.ravel()[tops]
    low, high = (None, None) if ends_m is None else (end.ravel()[highest] for end in ends_m)
    with np.errstate(invalid="ignore", divide="ignore"):
        confidence = np.clip((1 - rim_m / top_m) / (1 - options.crown_share), 0, 1)
    return Trees(tops, owner, heights_m.ravel()[highest], low, high, confidence, touches)


def halo(options: TreeOptions, cell_m: float) -> int:
    """Return the context around a tile from which its trees follow exactly, cells."""
    return halo_px(_cut(options, cell_m), options.window, options.smooth_m / cell_m, cell_m)


@dataclass(frozen=True)
class Trees:
    """Trees of an array."""

    tops: Cells
    """(N,) flat indices of the tops."""
    owner: Cells
    """(H, W) number of the tree of each cell, `NO_TREE` where there is none."""
    height_m: Floats
    """(N,) highest cell of the top and its 8 neighbours, metres."""
    low_m: Floats | None
    """(N,) lower end of that cell's interval, metres; None without intervals."""
    high_m: Floats | None
    """(N,) upper end."""
    confidence: Floats
    """(N,) drop from the top to the highest cell of the crown's rim, as a share of the drop at which a crown is cut in
    any case: 1 for a tree that stands alone, near 0 for a bump of a closed canopy."""
    touches_unknown: NDArray[np.bool_]
    """(N,) whether unknown cells, or the edge of the map, cut the crown."""


def _cut(options: TreeOptions, cell_m: float) -> Cut:
    # A canopy that begins at 0 would make trees of bare ground.
    return Cut(max(options.lowest_m, 1e-3), options.crown_share, options.max_radius_m / cell_m)


def _inside(crowns: Crowns, core: tuple[slice, slice]) -> tuple[Cells, Cells]:
    """Return the tops in the core, and the owners of cells with those tops' numbers alone."""
    rows, cols = np.divmod(crowns.tops, crowns.owner.shape[1])
    inside = (rows >= core[0].start) & (rows < core[0].stop) & (cols >= core[1].start) & (cols < core[1].stop)
    # The last entry is that of NO_TREE, which is -1.
    numbers = np.full(crowns.tops.size + 1, NO_TREE, np.int32)
    numbers[:-1][inside] = np.arange(int(inside.sum()), dtype=np.int32)
    return crowns.tops[inside], numbers[crowns.owner]


def _highest_nearby(heights_m: Floats, tops: Cells) -> Cells:
    """Return the highest known cell among each top and its 8 neighbours: smoothing moves and lowers tops."""
    width = heights_m.shape[1]
    steps = np.array([down * width + right for down in (-1, 0, 1) for right in (-1, 0, 1)], np.int32)
    around = tops[:, None] + steps
    values = np.nan_to_num(heights_m.ravel()[around], nan=-np.inf)
    return np.asarray(around[np.arange(tops.size), values.argmax(axis=1)], np.int32)


def _rims(owner: Cells, surface_m: Floats, heights_m: Floats, count: int) -> tuple[Floats, NDArray[np.bool_]]:
    """Return the highest pass over each crown's rim, metres, and whether an unknown cell touches the crown."""
    rim_m, touches = np.zeros(count, np.float32), np.zeros(count, bool)
    unknown = np.isnan(heights_m)
    for first, second in (
        (np.s_[:, :-1], np.s_[:, 1:]),
        (np.s_[:-1], np.s_[1:]),
    ):
        differs = owner[first] != owner[second]
        passes = np.minimum(surface_m[first][differs], surface_m[second][differs])
        for side, other in ((first, second), (second, first)):
            number = owner[side][differs]
            is_tree = number != NO_TREE
            np.maximum.at(rim_m, number[is_tree], passes[is_tree])
            touches[number[is_tree & unknown[other][differs]]] = True
    return rim_m, touches


@dataclass(frozen=True)
class MaskedCells:
    """A mask over the cells of a map."""

    path: Path
    """File of the mask, for messages."""
    mask: DatasetReader
    """Open mask; any value but 0, nodata and NaN excludes."""
    target: DatasetReader
    """Raster whose cells are excluded."""

    def read(self, window: PixelWindow) -> NDArray[np.bool_]:
        """Return which cells of a window are excluded, (H, W)."""
        return mask_on(self.path, self.mask, self.target, window)


def _save_tiles(
    work: Work,
    source: ProductMap,
    options: TreeOptions,
    excluded: MaskedCells | None,
    tile_px: int,
    report: Report,
) -> Iterator[str]:
    """Save the trees of each tile that has none yet, and yield the names of all tiles in order."""
    windows = cut_windows(source.shape, tile_px)
    resumed = sum(work.has_table(part_name(window)) for window in windows)
    done = 0
    for number, window in enumerate(windows, 1):
        name = part_name(window)
        if not work.has_table(name):
            work.save_table(name, tile_trees(source, window, options, excluded))
            done += 1
        report(Progress(resumed + done, len(windows), "tiles", f"tile {number}/{len(windows)}", resumed))
        yield name


def tile_trees(
    source: ProductMap, window: PixelWindow, options: TreeOptions, excluded: MaskedCells | None = None
) -> pa.Table:
    """Return the trees whose tops lie in a window of a map, as rows of the product.

    Args:
        source: Map.
        window: Window of its cells.
        options: Where one tree ends and the next begins.
        excluded: Cells that count as unknown.
    """
    east_m, north_m = source.cell_m
    cell_m = float(np.sqrt(east_m * north_m))
    outer = window.pad(halo(options, cell_m))
    heights_m = source.read(outer)
    if excluded is not None:
        heights_m[excluded.read(outer)] = np.nan
    core = window.slices_in(outer)
    with np.errstate(invalid="ignore"):
        if not (heights_m[core] >= options.lowest_m).any():
            return _COLUMNS.empty_table()
    trees = find_trees(heights_m, core, cell_m, options, source.read_interval(outer))
    transform = source.transform @ Affine.translation(outer.col0, outer.row0)
    return _table(trees, transform, east_m * north_m)


def _table(trees: Trees, transform: Affine, cell_m2: float) -> pa.Table:
    rows, cols = np.divmod(trees.tops.astype(np.int64), trees.owner.shape[1])
    x, y = transform.c + transform.a * (cols + 0.5), transform.f + transform.e * (rows + 0.5)
    crowns = outlines(trees.owner, transform)
    scale_m2 = cell_m2 / abs(transform.determinant)
    area_m2 = shapely.area(crowns) * scale_m2
    columns = [
        _names(x / transform.a, -y / transform.e), trees.height_m, trees.low_m, trees.high_m, area_m2,
        2 * np.sqrt(area_m2 / np.pi), trees.confidence, trees.touches_unknown, x, y, shapely.to_wkb(crowns),
    ]  # fmt: skip
    arrays = [_column(values, kind, trees.tops.size) for values, kind in zip(columns, _COLUMNS, strict=True)]
    return pa.table(arrays, schema=_COLUMNS)


def _names(east_px: NDArray[np.float64], north_px: NDArray[np.float64]) -> pa.Array:
    """Return the names of trees: the number of the top's cell on the lattice of the CRS, whatever map it is seen in."""
    numbers = (pa.array(np.floor(axis).astype(np.int64)).cast(pa.string()) for axis in (east_px, north_px))
    # A letter first, so that no spreadsheet takes a name for a number or a formula.
    east, north = numbers
    return pc.binary_join_element_wise(pc.binary_join_element_wise("t", east, ""), north, "_")


def _column(values: NDArray[Any] | pa.Array | None, kind: pa.Field, count: int) -> pa.Array:
    """Return a column; null where there are no values, and where they are not finite."""
    if values is None:
        return pa.nulls(count, kind.type)
    return (values if isinstance(values, pa.Array) else pa.array(values, from_pandas=True)).cast(kind.type)


def _publish(work: Work, names: Sequence[str], about: dict[str, Any], source: ProductMap) -> None:
    crowns = TableSpec("crowns", "Crowns of trees", _COLUMNS, "Polygon", source.crs, crowns_qml())
    tops = TableSpec("tops", "Treetops", _COLUMNS, "Point", source.crs)
    tables = (work.load_table(name) for name in names)
    points = (_as_tops(work.load_table(name)) for name in names)
    suffix = work.out.suffix.lower()
    if suffix in CSV:
        publish_table(work, tops, points, about, source)
    elif suffix in PARQUET:
        publish_table(work, crowns, tables, about, source)
    else:
        publish_table(work, crowns, tables, about, source, more=[(tops, points)])


def _as_tops(table: pa.Table) -> pa.Table:
    """Return the rows with the tops as their geometry."""
    points = shapely.to_wkb(shapely.points(table.column("top_x").to_numpy(), table.column("top_y").to_numpy()))
    return table.set_column(table.schema.get_field_index(GEOMETRY), GEOMETRY, pa.array(points, pa.binary()))


def _summary(work: Work, names: Sequence[str], source: ProductMap) -> TreeSummary:
    counts = np.zeros(10 * 1000, np.int64)
    for name in names:
        heights_m = work.load_table(name).column("height_m").to_numpy()
        counts += np.bincount((10 * heights_m).astype(np.int64).clip(0, counts.size - 1), minlength=counts.size)
    total = int(counts.sum())
    median_m = (int(np.searchsorted(np.cumsum(counts), total / 2)) + 0.5) / 10 if total else None
    return TreeSummary(work.out, total, median_m, source.has_intervals)
