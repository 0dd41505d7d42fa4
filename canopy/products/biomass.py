"""Aboveground biomass in cells of a hectare's part, by the user's allometry or one fitted to GEDI L4A in the area.

Without either there is no biomass: no formula is true everywhere. The interval joins the error of the map (the figures
of all lower and all upper ends at once) and that of the allometry, as independent errors are joined.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from canopy.errors import ProductError
from canopy.products.allometry import Formula, parse_formula
from canopy.products.biomass_shots import ERROR_FLOOR, FittedAllometry, fit_allometry, read_biomass_shots
from canopy.products.cover import MIN_KNOWN, CoverGrid, block_sums, tile_members
from canopy.products.reading import NORMAL_90, ProductMap, open_map
from canopy.products.work import hold_work
from canopy.products.writing import RASTER, RasterSpec, provenance, publish_raster, require_suffix
from canopy.progress import Report, ignore
from tiles.heights import Heights
from tiles.windows import PixelWindow

BANDS = ("agbd", "agbd_p05", "agbd_p95")
BLOCK_M = 1000.0
"""Side of the blocks of shots that are left out together, metres."""
_COVER_ABOVE_M = 2.0
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Biomass:
    """A raster of biomass on disk."""

    path: Path
    """File."""
    fitted: FittedAllometry | None
    """Allometry that was fitted; None where the user gave one."""


def derive_biomass(
    map_path: Path,
    out: Path,
    *,
    allometry: str | None = None,
    allometry_error: float | None = None,
    shots: Sequence[Path] = (),
    cell_m: float = 25.0,
    block_m: float = BLOCK_M,
    error_m: float | None = None,
    overwrite: bool = False,
    report: Report = ignore,
) -> Biomass:
    """Map aboveground biomass with its 90 % interval.

    Args:
        map_path: Height map.
        out: GeoTIFF: biomass and the ends of its interval, megagrams a hectare.
        allometry: Formula of biomass from the figures of a cell, see `canopy.products.allometry`.
        allometry_error: Standard error of the formula, as a share of the biomass.
        shots: GEDI L4A granules to which a formula is fitted instead.
        cell_m: Side of a cell, metres; a formula is valid for the size of the plots that it comes from.
        block_m: Side of the blocks of shots that are left out together, metres.
        error_m: Standard error of a cell of the map, metres, in place of its own intervals.
        overwrite: Whether the output is replaced.
        report: Called after each group of shots, and after each tile.

    Raises:
        CanopyError: Neither formula nor shots, or an input is of no use, or the output cannot be written.
    """
    require_suffix(out, RASTER)
    if missing := [path for path in shots if not path.is_file()]:
        raise ProductError(f"{missing[0]}: no such file; a GEDI L4A granule expected")
    formula = _formula(allometry, allometry_error, shots)
    with open_map(map_path, error_m=error_m) as source:
        grid = CoverGrid.of(source, cell_m)
        if formula is not None and not source.has_intervals:
            raise ProductError(
                f"{source.path} has no intervals, and the error of biomass needs that of heights: map with "
                "--uncertainty, or state it with --error-m"
            )
        options = {
            "cell_m": cell_m, "allometry": allometry, "allometry_error": allometry_error, "error_m": error_m,
            "block_m": block_m, "shots": [path.name for path in shots],
        }  # fmt: skip
        settings = {"product": "biomass", **options}
        with hold_work(out, settings, inputs=[map_path, *shots], overwrite=overwrite) as work:
            fitted = None
            if formula is None:
                fitted = fit_allometry(source, read_biomass_shots(shots), block_m=block_m, report=report)

            def compute(window: PixelWindow) -> NDArray[np.float32]:
                return biomass_of(source, grid, window, formula or fitted, allometry_error)

            members = tile_members(source, grid, compute, work, report)
            about: dict[str, Any] = provenance("biomass", {"map": source}, options)
            about["fitted"] = fitted.to_json() if fitted is not None else None
            spec = RasterSpec("biomass", "Aboveground biomass density", BANDS, ("Mg/ha",) * 3)
            publish_raster(work, spec, members, grid.geobox(source, grid.window), about, source)
    return Biomass(out, fitted)


def _formula(allometry: str | None, error: float | None, shots: Sequence[Path]) -> Formula | None:
    """Return the user's formula; None where one is to be fitted."""
    if (allometry is None) == (not shots):
        raise ProductError(
            "biomass needs an allometry of the area: a formula (--allometry) or GEDI L4A granules to fit one to "
            "(--shots), one of the two"
        )
    if allometry is None:
        return None
    if error is None or not (math.isfinite(error) and error > 0):
        raise ProductError(
            "an allometry needs its error: --allometry-error states its standard error as a share, such as 0.3"
        )
    return parse_formula(allometry)


def biomass_of(
    source: ProductMap,
    grid: CoverGrid,
    window: PixelWindow,
    allometry: Formula | FittedAllometry | None,
    allometry_error: float | None,
) -> NDArray[np.float32]:
    """Return biomass and the ends of its interval in a window of the grid: (3, H, W) float32 megagrams a hectare."""
    assert allometry is not None
    rows, cols = grid.edges(source, window)
    row0, col0 = math.floor(rows[0]), math.floor(cols[0])
    around = PixelWindow(row0, col0, math.ceil(rows[-1]) - row0, math.ceil(cols[-1]) - col0)
    lines = rows - row0, cols - col0
    middle = allometry(_figures(source.read(around), *lines))
    if isinstance(allometry, FittedAllometry):
        # Its error was measured against shots, so the map's is part of it.
        below = above = allometry.error_quantile * (middle + ERROR_FLOOR)
    else:
        interval = source.read_interval(around)
        assert interval is not None and allometry_error is not None
        ends = [allometry(_figures(surface, *lines)) for surface in interval]
        own = NORMAL_90 * allometry_error * middle
        # Where a formula falls with height, its lower end comes from the upper surface.
        low, high = np.fmin(*ends), np.fmax(*ends)
        below, above = np.hypot(middle - np.fmin(low, middle), own), np.hypot(np.fmax(high, middle) - middle, own)
    return np.stack([middle, np.maximum(middle - below, 0), middle + above]).astype(np.float32)


def _figures(heights_m: Heights, rows: Floats, cols: Floats) -> dict[str, Floats]:
    """Return the figures of cells, NaN where less than half is known."""
    valid = ~np.isnan(heights_m)
    area = np.outer(np.diff(rows), np.diff(cols))
    known_area = block_sums(valid, rows, cols)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(known_area >= MIN_KNOWN * area * (1 - 1e-9), 1 / known_area, np.nan)
        mean = block_sums(np.where(valid, heights_m, 0), rows, cols) * share
        cover = block_sums(heights_m > _COVER_ABOVE_M, rows, cols) * share
    return {"mean": mean, "top": np.where(np.isnan(share), np.nan, _tops(heights_m, rows, cols)), "cover": cover}


def _tops(heights_m: Heights, rows: Floats, cols: Floats) -> Floats:
    """Return the highest map cell of each cell; a map cell belongs to where its middle lies."""
    counted = np.where(np.isnan(heights_m), -np.inf, heights_m).astype(np.float64)
    for axis, lines in enumerate((rows, cols)):
        starts = np.clip(np.ceil(lines - 0.5).astype(np.int64), 0, counted.shape[axis])
        padded = np.concatenate([counted, np.full_like(counted.take([0], axis=axis), -np.inf)], axis=axis)
        counted = np.maximum.reduceat(padded, starts, axis=axis).take(range(len(lines) - 1), axis=axis)
    return counted
