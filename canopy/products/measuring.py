"""What is measured of a stand on a map: heights, cover, openings, surface and strata, and the ends of its intervals."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from canopy.products.cells import Cells, OpeningRule, read_cells
from canopy.products.reading import ProductMap
from canopy.products.zones import Group, Zones, group_zones
from tiles.heights import rasterio_window
from tiles.windows import PixelWindow
from tiles.zonal import ZoneGrid, ZoneSums, coverage, zone_strips

STATISTICS = ("mean_m", "p95_m", "h100_m", "cover_2m", "cover_5m")
"""Figures of a stand that have an interval."""
COVERS_M = (2.0, 5.0)
STRATA_M = (2.0, 5.0, 10.0, 20.0, 30.0)
"""Heights between the strata of a stand."""
LAYER_SHARE = 0.1
"""Share of the known area from which a stratum above 2 m counts as a layer."""
_EDGES_M = np.array([0.0, 1000.0])


@dataclass(frozen=True)
class Surface:
    """The figures with intervals, of one surface: the heights, or one end of their intervals."""

    values: dict[str, float | None]
    """Value of each of `STATISTICS`; None where no cell is known."""


@dataclass(frozen=True)
class Measures:
    """Figures of one stand; None where no cell of it is known."""

    known_share: float
    """Share of its area with a height, 0 to 1."""
    surface: Surface
    """Figures of the heights."""
    max_m: float | None
    """Height of the highest cell of which at least half lies inside."""
    gap_share: float | None
    """Share of the known area in openings."""
    rumple: float | None
    """Area of the surface over that of the ground."""
    strata: tuple[float, ...] | None
    """Share of the known area in each stratum, from the lowest."""
    half_width_m: float | None
    """Mean of half the width of the cells' 90 % intervals."""
    low: Surface | None
    """Figures of the surface of all lower ends at once; None where not asked for, or without intervals."""
    high: Surface | None
    """Figures of the surface of all upper ends at once."""

    @property
    def layers(self) -> int | None:
        """Number of strata above 2 m with at least a tenth of the known area: a surface shows none below another."""
        return None if self.strata is None else sum(share >= LAYER_SHARE for share in self.strata[1:])


def measure_zones(
    source: ProductMap, zones: Zones, rule: OpeningRule, *, ends: bool
) -> Iterator[tuple[Group, list[Measures]]]:
    """Measure polygons group by group; memory does not grow with the map or with a polygon.

    Args:
        source: Map.
        zones: Polygons in the CRS of the map.
        rule: Which cells are part of an opening.
        ends: Whether the surfaces of the ends of the intervals are measured too.

    Yields:
        Each group, with the figures of its polygons.
    """
    grid = ZoneGrid.of(source.transform, source.shape, source.crs)
    for group in group_zones(zones, grid):
        yield group, measure_group(source, zones, group, rule, ends=ends)


def measure_group(source: ProductMap, zones: Zones, group: Group, rule: OpeningRule, *, ends: bool) -> list[Measures]:
    """Measure the polygons of a group; arguments as those of `measure_zones`."""
    grid = ZoneGrid.of(source.transform, source.shape, source.crs)
    window = group.window
    sums = [_StandSums(grid, ends and source.has_intervals) for _ in group.numbers]
    if window is not None and group.is_long:
        polygon = zones.polygons[group.numbers[0]]
        shapely.prepare(polygon)
        for strip in _strips(window):
            sums[0].add(read_cells(source, strip, rule), polygon)
    elif window is not None:
        cells = read_cells(source, window, rule)
        for each, number in zip(sums, group.numbers, strict=True):
            part = grid.window(zones.polygons[number])
            if part is not None:
                inside = PixelWindow(part.row_off, part.col_off, part.height, part.width)
                each.add(cells.part(inside), zones.polygons[number])
    return [
        each.finish(float(zones.areas_m2[number]), float(shapely.area(zones.polygons[number])))
        for each, number in zip(sums, group.numbers, strict=True)
    ]


def _strips(window: PixelWindow) -> Iterator[PixelWindow]:
    for strip in zone_strips(rasterio_window(window)):
        yield PixelWindow(strip.row_off, strip.col_off, strip.height, strip.width)


@dataclass
class _StandSums:
    """Running sums of one stand, over one part or over strips from north to south."""

    grid: ZoneGrid
    """Grid of the map."""
    ends: bool
    """Whether the ends of the intervals are surfaces of their own."""
    surfaces: list[ZoneSums] = field(init=False)
    """Sums of the heights and, where asked for, of the lower and upper ends."""
    open_cells: float = 0.0
    """Cells in openings, by share."""
    surface_sum: NDArray[np.float64] = field(default_factory=lambda: np.zeros(2))
    """Cells with a surface, and the sum of its ratios, by share."""
    width_sum: NDArray[np.float64] = field(default_factory=lambda: np.zeros(2))
    """Cells with an interval, and the sum of half their widths, by share."""

    def __post_init__(self) -> None:
        """Begin with nothing known."""
        self.surfaces = [ZoneSums(COVERS_M[0], _EDGES_M, self.grid) for _ in range(3 if self.ends else 1)]

    def add(self, cells: Cells, polygon: Any) -> None:
        """Add the cells of a window."""
        window = rasterio_window(cells.window)
        shares = coverage(polygon, self.grid.bounds(window), cells.window.shape)
        if not shares.any():
            return
        layers = [cells.heights_m, cells.low_m, cells.high_m] if self.ends else [cells.heights_m]
        for sums, values in zip(self.surfaces, layers, strict=True):
            if values is not None:
                sums.add(window, values[None].astype(np.float64), shares)
        self.open_cells += float(shares[cells.is_opening].sum())
        self.surface_sum += _weighed(cells.surface, shares)
        if cells.low_m is not None and cells.high_m is not None:
            self.width_sum += _weighed((cells.high_m - cells.low_m) / 2, shares)

    def finish(self, area_m2: float, area: float) -> Measures:
        """Return the figures.

        Args:
            area_m2: Area of the stand, square metres.
            area: The same area in units of the CRS.
        """
        heights = self.surfaces[0]
        statistics = heights.finish(area_m2, area / self.grid.cell_area)
        is_known = heights.cells > 0
        low, high = (_surface(sums) for sums in self.surfaces[1:]) if self.ends else (None, None)
        return Measures(
            known_share=statistics.known_share,
            surface=_surface(heights),
            max_m=statistics.max_m,
            gap_share=self.open_cells / heights.cells if is_known else None,
            rumple=_mean(self.surface_sum),
            strata=_strata(heights) if is_known else None,
            half_width_m=_mean(self.width_sum),
            low=low,
            high=high,
        )


def _weighed(values: NDArray[Any], shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the sum of the shares where values are known, and the sum of values by share."""
    valid = np.isfinite(values)
    weights = shares[valid]
    return np.array([weights.sum(), (values[valid] * weights).sum()])


def _mean(sums: NDArray[np.float64]) -> float | None:
    return float(sums[1] / sums[0]) if sums[0] > 0 else None


def _surface(sums: ZoneSums) -> Surface:
    statistics = sums.finish(1.0, 1.0)
    covers = [sums.share_above(height_m) for height_m in COVERS_M]
    values = (statistics.mean_m, statistics.p95_m, statistics.h100_m, *covers)
    return Surface(dict(zip(STATISTICS, values, strict=True)))


def _strata(sums: ZoneSums) -> tuple[float, ...]:
    """Return the shares of the strata between `STRATA_M`, those below the first and above the last included."""
    above = [1.0, *(sums.share_above(height_m) or 0.0 for height_m in STRATA_M), 0.0]
    return tuple(high - low for high, low in pairwise(above))


def stratum_names(edges_m: Sequence[float] = STRATA_M) -> list[str]:
    """Return the names of the columns of strata."""
    lows = [0.0, *edges_m]
    names = [f"share_{low:g}_{high:g}m" for low, high in pairwise(lows)]
    return [*names, f"share_above_{edges_m[-1]:g}m"]
