"""Errors of a map in squares of ground where the truth is known, from which intervals of stands are fitted."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from odc.geo.geom import Geometry

from canopy.errors import CalibrationError
from canopy.products.cells import OpeningRule
from canopy.products.measuring import STATISTICS, Measures, measure_zones
from canopy.products.reading import ProductMap, open_map, require_overlap
from canopy.products.stand_intervals import (
    FEWEST_BLOCKS,
    StandCalibration,
    StatisticIntervals,
    fit_statistic,
    stand_scale,
)
from canopy.products.zones import Zones, areas_m2
from canopy.progress import Progress, Report, ignore
from tiles.aoi import to_crs
from tiles.vectors import Polygons

BLOCK_M = 200.0
"""Side of the blocks that are left out together."""
_HALVINGS = 3
"""Squares have the side of a block, and that side halved up to so many times."""
_MAX_BLOCKS, _MAX_SQUARES = 200, 8
"""Most blocks, and most squares of one size in a block: more would change the quantiles little."""
_MIN_KNOWN = 0.9
"""Smallest share of a square that is known on both maps."""


def calibrate_stands(
    source: ProductMap, truth: Path, *, block_m: float = BLOCK_M, rule: OpeningRule | None = None,
    report: Report = ignore,
) -> StandCalibration:  # fmt: skip
    """Fit intervals of stands from the errors of a map where a truth is known.

    Args:
        source: Map, whose training and calibration did not use this truth.
        truth: Canopy height model of lidar.
        block_m: Side of a block, metres: longer than the distance over which errors go together.
        rule: Which cells are part of an opening.
        report: Called after each group of squares.

    Raises:
        ProductError: The truth has no ground in common with the map, or a CRS that is of no use.
        CalibrationError: The common ground has too few blocks.
    """
    with open_map(truth) as reference:
        require_overlap(source, reference.geobox().extent, truth)
        squares, nominal_m2, blocks = _squares(source, reference, block_m)
        mapped = Zones(tuple(map(str, range(len(squares)))), squares, areas_m2(squares, source.crs))
        true = Zones(mapped.ids, _moved(squares, source, reference), mapped.areas_m2)
        total = 2 * len(squares)
        on_map = _measure(source, mapped, rule or OpeningRule(), 0, total, report)
        on_truth = _measure(reference, true, rule or OpeningRule(), len(squares), total, report)
    relative = source.has_intervals
    fitted: dict[str, StatisticIntervals] = {}
    for name in STATISTICS:
        rows = [_error(name, a, b, relative) for a, b in zip(on_map, on_truth, strict=True)]
        usable = np.array([row is not None for row in rows], dtype=bool)
        errors, scales = (np.array([row[n] for row in rows if row is not None]) for n in (0, 1))
        intervals = fit_statistic(name, nominal_m2[usable], blocks[usable], errors, scales) if usable.any() else None
        if intervals is not None:
            fitted[name] = intervals
    if "mean_m" not in fitted:
        raise CalibrationError(
            f"{truth} and {source.path} have {len(np.unique(blocks))} blocks of {block_m:g} m in common, of which too "
            f"few are known: at least {FEWEST_BLOCKS} expected, use a larger truth or --block-m"
        )
    return StandCalibration(
        relative=relative, block_m=block_m, map=source.path.name, truth=truth.name, statistics=fitted
    )


def _squares(
    source: ProductMap, reference: ProductMap, block_m: float
) -> tuple[Polygons, NDArray[np.float64], NDArray[np.int64]]:
    """Return squares of the common ground, their nominal areas, and the number of the block of each."""
    common = to_crs(reference.geobox().extent, source.crs).geom.intersection(source.geobox().extent.geom)
    side = block_m / source.scale_m
    west, south, east, north = common.bounds
    cols, rows = (
        np.arange(math.floor(low / side), math.ceil(high / side)) for low, high in ((west, east), (south, north))
    )
    corners = np.stack(np.meshgrid(cols, rows, indexing="ij"), axis=-1).reshape(-1, 2) * side
    meets = shapely.intersects(common, shapely.box(*corners.T, *(corners + side).T))
    generator = np.random.default_rng(0)
    chosen = corners[meets]
    if len(chosen) > _MAX_BLOCKS:
        chosen = chosen[np.sort(generator.choice(len(chosen), _MAX_BLOCKS, replace=False))]
    parts = [part for number, corner in enumerate(chosen) for part in _block(corner, side, number, generator)]
    boxes, lengths, blocks = (np.array(column) for column in zip(*parts, strict=True)) if parts else _nothing()
    return shapely.box(*boxes.T), (lengths * source.scale_m) ** 2, blocks


def _nothing() -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    return np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64)


def _block(
    corner: NDArray[np.float64], side: float, number: int, generator: np.random.Generator
) -> Iterator[tuple[list[float], float, int]]:
    """Yield the bounds and the side of squares of a block, with the block's number."""
    for halvings in range(_HALVINGS + 1):
        count, length = 2**halvings, side / 2**halvings
        cells = np.arange(count**2)
        if len(cells) > _MAX_SQUARES:
            cells = generator.choice(cells, _MAX_SQUARES, replace=False)
        for cell in cells.tolist():
            x, y = corner + np.array(divmod(cell, count)) * length
            yield [x, y, x + length, y + length], length, number


def _moved(squares: Polygons, source: ProductMap, reference: ProductMap) -> Polygons:
    """Return squares in the CRS of the truth."""
    if source.crs == reference.crs:
        return squares
    moved = [to_crs(Geometry(square, source.crs), reference.crs).geom for square in squares]
    return np.array(moved, dtype=object)


def _measure(
    source: ProductMap, zones: Zones, rule: OpeningRule, before: int, total: int, report: Report
) -> list[Measures]:
    measured: list[Measures | None] = [None] * len(zones)
    done = before
    for group, values in measure_zones(source, zones, rule, ends=False):
        for number, each in zip(group.numbers.tolist(), values, strict=True):
            measured[number] = each
        done += len(values)
        report(Progress(done, total, "squares", f"calibration, square {done:,}/{total:,}"))
    return [each for each in measured if each is not None]


def _error(name: str, mapped: Measures, truth: Measures, relative: bool) -> tuple[float, float] | None:
    """Return map less truth and its unit; None where either is unknown."""
    value, reference = mapped.surface.values[name], truth.surface.values[name]
    scale = stand_scale(name, mapped, relative)
    if value is None or reference is None or not scale or min(mapped.known_share, truth.known_share) < _MIN_KNOWN:
        return None
    return value - reference, scale
