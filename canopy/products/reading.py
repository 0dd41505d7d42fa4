"""Height maps as products read them: heights, their 90 % intervals, their dates, and what their grid is on the ground.

What no product can work with is refused here, in one line, before anything is written.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from affine import Affine
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from odc.geo.geom import Geometry

from canopy.errors import ProductError
from canopy.evaluation.map_pairs import MapDates, read_dates
from canopy.evaluation.prediction_intervals import HIGH_BAND, LOW_BAND
from tiles.aoi import to_crs, utm_crs
from tiles.errors import AOIError
from tiles.ground import TRUE_SCALE, metres_per_unit, scale_error, true_gsd_m, unit_m
from tiles.heights import HeightRaster, Heights, open_heights
from tiles.windows import PixelWindow, cut_windows

NORMAL_90 = 1.6448536269514722
"""Half the width of a 90 % interval of a normal distribution, in standard deviations."""
_SEARCH_PX = 1024


@dataclass(frozen=True)
class ProductMap:
    """An open height map."""

    heights: HeightRaster
    """Heights."""
    low: HeightRaster | None
    """Lower ends of the 90 % intervals; None where the map has none."""
    high: HeightRaster | None
    """Upper ends."""
    error_m: float | None
    """Standard error of a cell's height that the user states, metres; None where none is stated."""
    crs: CRS
    """CRS, projected, in metres."""
    gsd_m: float
    """Longer side of the centre cell, true ground metres."""
    dates: MapDates
    """Acquisition of the imagery or of the flight."""

    @property
    def path(self) -> Path:
        """File, as the user named it."""
        return self.heights.path

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        rows, cols = self.heights.dataset.shape
        return rows, cols

    @property
    def transform(self) -> Affine:
        """Columns and rows to coordinates of the CRS, north up."""
        transform: Affine = self.heights.dataset.transform
        return transform

    @property
    def whole(self) -> PixelWindow:
        """All of its cells."""
        return self.heights.whole

    @property
    def has_intervals(self) -> bool:
        """Whether cells have a 90 % interval: of the map's own bands, or of the error that the user states."""
        return self.error_m is not None or self.low is not None

    @cached_property
    def cell_m(self) -> tuple[float, float]:
        """Sides of a cell, east and north, true ground metres; the CRS's own where it keeps distances.

        A map in web mercator is measured at its centre: the scale of its CRS changes with latitude.
        """
        x, y = self.transform @ (self.shape[1] / 2, self.shape[0] / 2)
        scale = (1.0, 1.0) if scale_error(self.crs.proj, x, y) <= TRUE_SCALE else metres_per_unit(self.crs.proj, x, y)
        return self.transform.a * scale[0], -self.transform.e * scale[1]

    @property
    def scale_m(self) -> float:
        """Metres in a unit of the CRS, the mean of east and north; 1 where the CRS keeps distances."""
        east_m, north_m = self.cell_m[0] / self.transform.a, self.cell_m[1] / -self.transform.e
        return (east_m + north_m) / 2

    def geobox(self, window: PixelWindow | None = None) -> GeoBox:
        """Return the georeference of a window; of all cells for None."""
        window = window or self.whole
        return GeoBox(window.shape, self.transform @ Affine.translation(window.col0, window.row0), self.crs)

    def read(self, window: PixelWindow) -> Heights:
        """Return heights over a window, which may leave the map: (H, W) float32 metres, NaN where unknown."""
        return self.heights.read(window)

    def read_interval(self, window: PixelWindow) -> tuple[Heights, Heights] | None:
        """Return the ends of the 90 % intervals over a window; None where the map has none and none is stated.

        Returns:
            Lower and upper ends, each (H, W) float32 metres, NaN where unknown.
        """
        # What the user states of a map is meant to replace what the map says of itself.
        if self.error_m is not None:
            heights_m, half = self.read(window), np.float32(NORMAL_90 * self.error_m)
            return heights_m - half, heights_m + half
        if self.low is None or self.high is None:
            return None
        return self.low.read(window), self.high.read(window)


@contextmanager
def open_map(
    path: Path, *, error_m: float | None = None, max_gsd_m: float | None = None, needs_date: bool = False
) -> Iterator[ProductMap]:
    """Open a height map for a product.

    Args:
        path: Height map of any origin.
        error_m: Standard error of a cell's height, metres, in place of the map's own intervals.
        max_gsd_m: Longest side of a cell that the product can use, metres.
        needs_date: Whether a map without date is refused.

    Raises:
        RasterError: The file is missing, damaged or no raster of heights, or has no CRS.
        ProductError: Its grid, its CRS, its cells or its date are not of use, or no cell is known; the message says
            what is expected.
    """
    if error_m is not None and not (np.isfinite(error_m) and error_m > 0):
        raise ProductError(f"error of {error_m:g} m: a length above 0 expected")
    with open_heights(path) as heights:
        crs = _metric_crs(heights)
        transform = heights.dataset.transform
        if transform.b or transform.d or transform.a <= 0 or transform.e >= 0:
            raise ProductError(f"{path} is rotated or south-up: a north-up map expected (gdalwarp writes one)")
        gsd_m = true_gsd_m(transform, heights.dataset.shape, crs.proj)
        if max_gsd_m is not None and gsd_m > max_gsd_m * (1 + TRUE_SCALE):
            raise ProductError(f"{path} has cells of {gsd_m:.2f} m: at most {max_gsd_m:g} m expected, use a finer map")
        dates = read_dates(path)
        if needs_date and dates.first is None:
            raise ProductError(
                f"{path} has no acquisition date: one expected (rio edit-info --tag "
                f"CANOPY_ACQUISITION_DATETIME=2020-07-01 {path.name} records it)"
            )
        _require_known(heights)
        low, high = heights.named(LOW_BAND), heights.named(HIGH_BAND)
        both = low is not None and high is not None
        yield ProductMap(heights, low if both else None, high if both else None, error_m, crs, gsd_m, dates)


def require_overlap(source: ProductMap, area: Geometry, origin: object) -> None:
    """Refuse an area that has no ground in common with a map.

    Args:
        source: Map.
        area: Area in any CRS, such as that of polygons or of another map.
        origin: What messages call the area.

    Raises:
        ProductError: They have no ground in common.
    """
    try:
        meets = to_crs(area, source.crs).geom.intersects(source.geobox().extent.geom)
    except AOIError:  # the area lies where the CRS of the map has no coordinates
        meets = False
    if not meets:
        west, south, east, north = to_crs(source.geobox().extent, CRS("EPSG:4326")).boundingbox
        raise ProductError(
            f"{origin} and {source.path} have no ground in common: the map lies between {west:.4f},{south:.4f} and "
            f"{east:.4f},{north:.4f} degrees"
        )


def _require_known(heights: HeightRaster) -> None:
    """Refuse a map that knows nothing: its product would look like that of bare ground, or be empty."""
    # As a rule the first window is enough.
    if all(np.isnan(heights.read(window)).all() for window in cut_windows(heights.whole.shape, _SEARCH_PX)):
        raise ProductError(f"{heights.path} has no height: every cell is unknown")


def _metric_crs(heights: HeightRaster) -> CRS:
    """Return the CRS of a map without its vertical part; refuse degrees and feet."""
    # `open_heights` has refused a raster without CRS.
    crs = CRS(heights.dataset.crs.to_wkt())
    crs = CRS(crs.proj.to_2d()) if len(crs.proj.axis_info) > 2 else crs
    if crs.geographic or not crs.projected or unit_m(crs.proj) != 1.0:
        unit = "degrees" if crs.geographic else str(crs.proj.axis_info[0].unit_name)
        target = _utm_code(heights, crs)
        raise ProductError(
            f"{heights.path} is in {unit} ({crs.proj.name}): a projected CRS in metres expected "
            f"(gdalwarp -t_srs {target} {heights.path.name} NEW.tif)"
        )
    return crs


def _utm_code(heights: HeightRaster, crs: CRS) -> str:
    """Return the UTM zone of a raster, for messages."""
    try:
        shape, transform = heights.dataset.shape, heights.dataset.transform
        return str(utm_crs(GeoBox(shape, transform, crs).extent))
    except (AOIError, ValueError):
        return "EPSG:n"
