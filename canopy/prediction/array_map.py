"""What an image in memory is mapped with: its grid, the lattice of the model, and the way back, loaded or lazy."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import xarray as xr
from affine import Affine
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from odc.geo.geom import Geometry, box
from rasterio.errors import RasterioError

from canopy.calibration import Calibration, apply_to_bands
from canopy.errors import ImageryError, one_line
from canopy.imagery import ImagerySource
from canopy.models.domain import DomainCheck
from canopy.prediction.engine import ChipEngine, Heights
from canopy.prediction.grids import output_lattice, working_lattice
from canopy.prediction.layers import OVERLAP_PX, Layers
from tiles.blend import ChipLattice
from tiles.cog import BANDS, UNCERTAINTY_BANDS
from tiles.grid import Lattice
from tiles.regrid import Regridder
from tiles.windows import PixelWindow


def write_image(rgb: xr.DataArray, path: str) -> None:
    """Write an image as rioxarray writes it.

    Raises:
        ImageryError: Its values cannot be stored in a GeoTIFF.
    """
    try:
        rgb.rio.to_raster(path, driver="GTiff")
    except (RasterioError, TypeError, ValueError, KeyError) as error:
        raise ImageryError(
            f"image of type {rgb.dtype} cannot be stored ({one_line(error, 200)}): integers or floats expected, such "
            "as image.astype('float32')"
        ) from error


@dataclass(frozen=True, eq=False)
class ArrayMap:
    """Heights on the grid of an image, decided before a pixel is read."""

    geobox: GeoBox
    """Grid of the image."""
    layers: Layers
    """Model, and the layers that are computed with it."""
    calibration: Calibration | None
    """Calibration of the heights, if any."""

    @classmethod
    def of(cls, rgb: xr.DataArray, layers: Layers, calibration: Calibration | None) -> "ArrayMap":
        """Return the map of an image."""
        height, width = rgb.shape[1:]
        grid = GeoBox((height, width), rgb.rio.transform(recalc=True), rgb.rio.crs.to_wkt())
        return cls(grid, layers, calibration)

    @property
    def window(self) -> PixelWindow:
        """All pixels of the image."""
        return PixelWindow(0, 0, *self.geobox.shape)

    @property
    def bands(self) -> tuple[str, ...]:
        """Names of the layers in metres."""
        return UNCERTAINTY_BANDS if self.layers.uncertainty else BANDS

    @cached_property
    def work(self) -> Lattice:
        """Lattice on which the model runs."""
        gsd_m = self.layers.model.card.gsd_m
        area = _area(self.geobox)
        return working_lattice(area, output_lattice(area, "auto", None, gsd_m), gsd_m)

    @cached_property
    def regridder(self) -> Regridder:
        """Regridder from the working lattice to the image's grid."""
        assert self.geobox.crs is not None
        return Regridder(self.work, self.geobox.crs, Affine(*tuple(self.geobox.affine)[:6]))

    @cached_property
    def samples(self) -> int:
        """Samples along a side of an image's cell."""
        return self.regridder.samples(self.window)

    def engine(self) -> ChipEngine:
        """Return an engine for chips of this map."""
        return ChipEngine(self.layers, ChipLattice(self.layers.model.card.chip_px, OVERLAP_PX))

    def domain_check(self) -> DomainCheck | None:
        """Return a count of chips outside the model's domain; None where the model has none."""
        card = self.layers.model.card
        return DomainCheck(card.domain, card.chip_px) if card.domain is not None else None

    def read_window(self, window: PixelWindow) -> PixelWindow:
        """Return the pixels of the working lattice that a window of the image needs, with the halo of its chips."""
        return self.engine().read_window(self.regridder.cover(window))

    def heights(self, source: ImagerySource, window: PixelWindow, check: DomainCheck | None) -> Heights:
        """Compute the bands of a window: (K, h, w) float32 metres, the same bits through any window.

        Args:
            source: Imagery that covers the window and its halo.
            window: Pixels of the image.
            check: Count of chips outside the model's domain, which this call adds to.
        """
        engine, core = self.engine(), self.regridder.cover(window)
        read = engine.read_window(core)
        pixels = source.read(self.work.geobox(read)).values
        if check is not None:
            check.look(pixels[:, *core.slices_in(read)])
        computed = engine.heights(pixels, read, np.ones(core.shape, bool), core)
        cells = np.stack([self.regridder.regrid(layer, core, window, self.samples) for layer in computed])
        return self._calibrated(cells, window)

    def _calibrated(self, cells: Heights, window: PixelWindow) -> Heights:
        """Return the calibrated bands of layers (K, h, w)."""
        heights = cells[: self.layers.heights]
        if self.calibration is None:
            return heights
        grid = self.geobox[window.row0 : window.row1, window.col0 : window.col1]
        log_gain = cells[-1] if self.layers.gain is not None else None
        return apply_to_bands(self.calibration, heights, grid, log_gain)


def _area(geobox: GeoBox) -> Geometry:
    """Return the rectangle around an image, in its CRS."""
    rows, cols = geobox.shape
    xs, ys = zip(*(geobox.affine @ corner for corner in ((0, 0), (cols, 0), (0, rows), (cols, rows))), strict=True)
    return box(min(xs), min(ys), max(xs), max(ys), CRS(geobox.crs))
