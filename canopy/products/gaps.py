"""Gaps of the canopy as polygons without seams, and the distribution of their sizes.

A gap is an opening through the canopy down to 2 m (Brokaw 1982): cells lower than that, joined by their sides. Tiles
are searched one by one. A gap that touches the edge of a tile is carried as pieces until the tiles on the other side
are done; so one tile or many give the same gaps.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import rasterio.features
import shapely
from numpy.typing import NDArray
from scipy import ndimage

from canopy.errors import ProductError
from canopy.products.cells import MIN_OPENING_M2, OPEN_BELOW_M
from canopy.products.gap_pieces import EDGES, PIECES, Piece, join_pieces
from canopy.products.gap_sizes import GapSizes, SizeCounter
from canopy.products.reading import ProductMap, open_map
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
)
from canopy.progress import Progress, Report, ignore
from tiles.heights import Heights
from tiles.qgis import gaps_qml
from tiles.windows import PixelWindow, cut_windows

TILE_PX = 2048
MAX_GAP_M2 = 10_000.0
"""Larger openings are clearings, fields and water: they are counted, and not drawn."""
_SCHEMA = pa.schema([
    ("id", pa.string()), ("area_m2", pa.float64()), ("perimeter_m", pa.float64()), ("shape_index", pa.float64()),
    ("mean_m", pa.float64()), ("sure_share", pa.float64()), ("is_cut", pa.bool_()), (GEOMETRY, pa.binary()),
])  # fmt: skip


@dataclass(frozen=True)
class GapRule:
    """Which openings are gaps."""

    below_m: float = OPEN_BELOW_M
    """Height below which a cell is open, metres."""
    min_m2: float = MIN_OPENING_M2
    """Smallest area, square metres."""
    max_m2: float = MAX_GAP_M2
    """Largest area, square metres."""


@dataclass(frozen=True)
class Gaps:
    """A table of gaps on disk."""

    path: Path
    """File."""
    sizes: GapSizes
    """Distribution of their sizes."""


def derive_gaps(
    map_path: Path,
    out: Path,
    rule: GapRule | None = None,
    *,
    error_m: float | None = None,
    tile_px: int = TILE_PX,
    overwrite: bool = False,
    report: Report = ignore,
) -> Gaps:
    """Find the gaps of a map and write them as polygons.

    Args:
        map_path: Height map.
        out: Table: GeoPackage, GeoParquet or CSV.
        rule: Which openings are gaps.
        error_m: Standard error of a cell, metres, in place of the map's own intervals.
        tile_px: Side of a tile, pixels; it changes no gap.
        overwrite: Whether the output is replaced.
        report: Called after each tile.

    Raises:
        CanopyError: The map is of no use, or the output cannot be written.
    """
    rule = rule or GapRule()
    require_suffix(out, (*GEOPACKAGE, *PARQUET, *CSV))
    if not (0 <= rule.min_m2 < rule.max_m2 and 0 < rule.below_m < math.inf):
        raise ProductError(
            f"gaps below {rule.below_m:g} m of {rule.min_m2:g} to {rule.max_m2:g} m2: a height above 0 and areas in "
            "increasing order expected"
        )
    with open_map(map_path, error_m=error_m) as source:
        settings = {"product": "gaps", "format": out.suffix.lower(), "error_m": error_m, "tile_px": tile_px}
        options = {**asdict(rule), "error_m": error_m}
        with hold_work(out, settings | options, inputs=[map_path], overwrite=overwrite) as work:
            windows = cut_windows(source.shape, tile_px)
            _search(source, windows, rule, work, report)
            counter = SizeCounter(rule.min_m2, _known_ha(source, windows, work))
            about = provenance("gaps", {"map": source}, options)
            spec = TableSpec("gaps", "Canopy gaps", _SCHEMA, "Polygon", source.crs, gaps_qml())
            publish_table(work, spec, _rows(source, windows, rule, work, counter), about, source)
    return Gaps(out, counter.sizes())


def _search(source: ProductMap, windows: list[PixelWindow], rule: GapRule, work: Work, report: Report) -> None:
    """Find the pieces of every tile; those of tiles that are done are on the disk."""
    resumed = 0
    for number, window in enumerate(windows, 1):
        name = part_name(window)
        if work.has_table(name):
            resumed += 1
        else:
            pieces, edges = find_pieces(source, window, rule)
            work.save_table(f"{name}_edges", edges)
            # The pieces come last: a part with pieces is done.
            work.save_table(name, pieces)
        report(Progress(number, len(windows), "tiles", f"tile {number}/{len(windows)}", resumed=resumed))


def find_pieces(source: ProductMap, window: PixelWindow, rule: GapRule) -> tuple[pa.Table, pa.Table]:
    """Return the openings of a tile that are gaps, or may be part of one, and the cells by which they leave the tile.

    Returns:
        Pieces, of the schema `PIECES`, with the number of known cells in its metadata; cells at the edges of the tile,
        of the schema `EDGES`.
    """
    around = window.pad(1)
    inside = window.slices_in(around)
    heights_m = source.read(around)
    with np.errstate(invalid="ignore"):
        labels, count = ndimage.label(heights_m[inside] < rule.below_m)
    interval = source.read_interval(window)
    sums = _component_sums(labels, count, heights_m[inside], interval[1] if interval else None, rule.below_m)
    sums["is_cut"] = _touching(labels, count, ndimage.binary_dilation(np.isnan(heights_m))[inside])
    edges = _edges(labels)
    leaves = np.zeros(count + 1, bool)
    leaves[edges["label"].to_numpy()] = True
    cell_m2 = source.cell_m[0] * source.cell_m[1]
    areas_m2 = sums["cells"] * cell_m2
    # A piece that stays inside the tile is a whole opening, too small or too large to be drawn as the case may be.
    keep = leaves | ((areas_m2 >= rule.min_m2 * (1 - 1e-9)) & (sums["cells"] > 0))
    keep[0] = False
    outlines = _outlines(source, labels, window, keep & (areas_m2 <= rule.max_m2))
    chosen = np.flatnonzero(keep)
    columns = {
        "label": chosen, "leaves": leaves[chosen], "is_cut": sums["is_cut"][chosen],
        "cells": sums["cells"][chosen], "height_sum": sums["height_sum"][chosen],
        "sure_cells": sums["sure_cells"][chosen],
        "row": window.row0 + sums["first"][chosen] // window.width,
        "col": window.col0 + sums["first"][chosen] % window.width,
        GEOMETRY: [outlines.get(int(label)) for label in chosen],
    }  # fmt: skip
    known_cells = int(np.count_nonzero(~np.isnan(heights_m[inside])))
    schema = PIECES.with_metadata({"known": str(known_cells)})
    return pa.table(columns, schema=schema), edges


def _component_sums(
    labels: NDArray[np.int32], count: int, heights_m: Heights, high_m: Heights | None, below_m: float
) -> dict[str, NDArray[Any]]:
    """Return cells, sum of heights, cells that are certainly open, and the first cell of each component."""
    flat = labels.ravel()
    positions = np.flatnonzero(flat)
    numbers = flat[positions]
    first = np.zeros(count + 1, np.int64)
    # Of several positions the one written last stays: from the end to the beginning, that is the first.
    first[numbers[::-1]] = positions[::-1]
    sure = np.zeros(count + 1)
    if high_m is not None:
        sure = np.bincount(numbers, (high_m.ravel()[positions] < below_m).astype(np.float64), count + 1).astype(float)
    return {
        "cells": np.bincount(numbers, minlength=count + 1),
        "height_sum": np.bincount(numbers, heights_m.ravel()[positions].astype(np.float64), count + 1),
        "sure_cells": sure,
        "first": first,
    }


def _touching(labels: NDArray[np.int32], count: int, near_unknown: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which components have a neighbour that is unknown or beyond the map."""
    touching = np.zeros(count + 1, bool)
    touching[labels[near_unknown]] = True
    return touching


def _edges(labels: NDArray[np.int32]) -> pa.Table:
    """Return the cells of components along the four sides of a tile: side, position along it, and component."""
    sides = (labels[0], labels[-1], labels[:, 0], labels[:, -1])
    parts = [(np.full(np.count_nonzero(line), n), np.flatnonzero(line), line[line > 0]) for n, line in enumerate(sides)]
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    return pa.table([pa.array(column).cast(pa.int64()) for column in columns], schema=EDGES)


def _outlines(
    source: ProductMap, labels: NDArray[np.int32], window: PixelWindow, drawn_labels: NDArray[np.bool_]
) -> dict[int, bytes]:
    """Return the outlines of components along the sides of their cells, as WKB, by component."""
    mask = drawn_labels[labels]
    if not mask.any():
        return {}
    transform = source.geobox(window).transform
    shapes = list(rasterio.features.shapes(labels, mask=mask, connectivity=4, transform=transform))
    polygons = [shapely.Polygon(shape["coordinates"][0], shape["coordinates"][1:]) for shape, _ in shapes]
    return {int(label): wkb for (_, label), wkb in zip(shapes, shapely.to_wkb(polygons), strict=True)}


def _known_ha(source: ProductMap, windows: list[PixelWindow], work: Work) -> float:
    """Return the known area of the map, hectares."""
    known_cells = sum(int(work.load_table(part_name(window)).schema.metadata[b"known"]) for window in windows)
    return known_cells * source.cell_m[0] * source.cell_m[1] / 1e4


def _rows(
    source: ProductMap, windows: list[PixelWindow], rule: GapRule, work: Work, counter: SizeCounter
) -> Iterator[pa.Table]:
    """Join the pieces of all tiles, count the gaps, and yield those to be drawn."""
    cell_m2 = source.cell_m[0] * source.cell_m[1]
    for gaps in join_pieces(windows, work, max_cells=rule.max_m2 / cell_m2 * (1 + 1e-9)):
        rows = []
        for gap in gaps:
            area_m2 = gap.cells * cell_m2
            if area_m2 < rule.min_m2 * (1 - 1e-9):
                continue
            counter.add(area_m2, is_cut=gap.is_cut, is_large=gap.geometry is None)
            if gap.geometry is not None:
                rows.append(_row(gap, area_m2, source))
        yield pa.Table.from_pylist(rows, schema=_SCHEMA)


def _row(gap: Piece, area_m2: float, source: ProductMap) -> dict[str, Any]:
    perimeter_m = gap.geometry.length * source.scale_m
    return {
        "id": f"r{gap.row}_c{gap.col}",
        "area_m2": area_m2,
        "perimeter_m": perimeter_m,
        # 1 for a disc; more, the more winding the outline is.
        "shape_index": perimeter_m / (2 * np.sqrt(np.pi * area_m2)),
        "mean_m": gap.height_sum / gap.cells,
        "sure_share": gap.sure_cells / gap.cells if source.has_intervals else None,
        "is_cut": gap.is_cut,
        GEOMETRY: shapely.to_wkb(gap.geometry),
    }
