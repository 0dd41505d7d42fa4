"""The change of each stand: areas of loss, of gain and of what is not known, and the mean difference of height."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import shapely
from numpy.typing import NDArray
from odc.geo.crs import CRS
from rasterio.io import DatasetReader
from rasterio.windows import Window

from canopy.products.work import Work
from canopy.products.writing import GEOMETRY, Draft, TableSpec, draft_table
from canopy.products.zones import Zones
from canopy.progress import Progress, Report, ignore
from tiles.heights import open_raster
from tiles.zonal import ZoneGrid, coverage, zone_strips

BATCH = 500
"""Stands whose rows are saved at once."""
_AREAS = ("loss_m2", "gain_m2", "unchanged_m2", "unknown_m2")
_DIFFERENCES = ("height_difference_m", "height_difference_p05_m", "height_difference_p95_m")
_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("area_m2", pa.float64()),
        *((name, pa.float64()) for name in _AREAS),
        *((name, pa.float64()) for name in _DIFFERENCES),
        (GEOMETRY, pa.binary()),
    ]
)


def draft_change_of_stands(
    work: Work, change: Path, zones: Zones, out: Path, *, crs: CRS, about: Mapping[str, Any], report: Report = ignore
) -> Draft:
    """Write the change of stands as the draft of a table; the stands that an interrupted run has measured are kept.

    Args:
        work: Folder of unfinished work of the change.
        change: Raster of the change.
        zones: Stands in its CRS.
        out: Name of the table.
        crs: CRS of the raster.
        about: Origin, see `provenance`.
        report: Called after each batch of stands.

    Raises:
        OutputError: The table cannot be written.
    """
    names = list(_save_batches(work, change, zones, report))
    spec = TableSpec("change", "Change of stands", _SCHEMA, "MultiPolygon", crs)
    return draft_table(work, out, spec, (work.load_table(name) for name in names), about)


def _save_batches(work: Work, change: Path, zones: Zones, report: Report) -> Iterator[str]:
    resumed = 0
    with open_raster(change) as raster:
        grid = ZoneGrid.of(raster.transform, raster.shape, CRS(raster.crs.to_wkt()))
        for start in range(0, len(zones), BATCH):
            name, numbers = f"stands_{start:09d}", np.arange(start, min(start + BATCH, len(zones)))
            if work.has_table(name):
                resumed += numbers.size
            else:
                rows = [_row(raster, grid, zones, number) for number in numbers.tolist()]
                work.save_table(name, pa.Table.from_pylist(rows, schema=_SCHEMA))
            done = int(numbers[-1]) + 1
            report(Progress(done, len(zones), "stands", f"stand {done:,}/{len(zones):,}", resumed))
            yield name


def _row(raster: DatasetReader, grid: ZoneGrid, zones: Zones, number: int) -> dict[str, Any]:
    polygon, area_m2 = zones.polygons[number], float(zones.areas_m2[number])
    cells, difference = np.zeros(3), np.zeros((3, 2))
    window = grid.window(polygon)
    for strip in zone_strips(window) if window is not None else ():
        _add(raster, strip, coverage(polygon, grid.bounds(strip), (strip.height, strip.width)), cells, difference)
    cell_m2 = area_m2 * grid.cell_area / polygon.area
    loss_m2, gain_m2, unchanged_m2 = (cells * cell_m2).tolist()
    unknown_m2 = max(0.0, area_m2 - float(cells.sum()) * cell_m2)
    areas = dict(zip(_AREAS, (loss_m2, gain_m2, unchanged_m2, unknown_m2), strict=True))
    means = {
        name: float(total / count) if count else None
        for name, (count, total) in zip(_DIFFERENCES, difference.tolist(), strict=True)
    }
    shape = shapely.to_wkb(shapely.MultiPolygon(list(shapely.get_parts(polygon))))
    return {"id": zones.ids[number], "area_m2": area_m2, **areas, **means, GEOMETRY: shape}


def _add(
    raster: DatasetReader,
    strip: Window,
    shares: NDArray[np.float64],
    cells: NDArray[np.float64],
    difference: NDArray[np.float64],
) -> None:
    """Add the cells of a strip to the cells of each class, and to count and sum of the three differences."""
    change, *differences = raster.read(window=strip)
    for number, code in enumerate((-1, 1, 0)):
        cells[number] += shares[change == code].sum()
    for number, values in enumerate(differences):
        valid = np.isfinite(values)
        difference[number] += shares[valid].sum(), (shares[valid] * values[valid]).sum()
