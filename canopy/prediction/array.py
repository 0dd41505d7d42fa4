"""Heights of an image in memory, on the image's own grid."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from affine import Affine
from numpy.typing import NDArray
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from odc.geo.geom import Geometry, box
from rasterio.errors import RasterioError
from rasterio.io import MemoryFile

from canopy.calibration import Calibration, apply_to_bands
from canopy.errors import ImageryError, ModelError, one_line
from canopy.imagery import ImagerySource, open_imagery
from canopy.models.bundle import DEFAULT_MODEL
from canopy.models.domain import DomainCheck, warn_outside
from canopy.models.model import HeightModel, load_model
from canopy.prediction.bands import as_rgb
from canopy.prediction.engine import OVERLAP_PX, ChipEngine, Heights
from canopy.prediction.entry import read_fitted
from canopy.prediction.grids import output_lattice, working_lattice
from canopy.prediction.layers import Layers
from canopy.prediction.request import check_gsd, check_pixel_options
from tiles.blend import ChipLattice
from tiles.cog import BANDS, UNCERTAINTY_BANDS
from tiles.grid import Lattice
from tiles.regrid import Regridder
from tiles.windows import PixelWindow

_LOG = logging.getLogger(__name__)


def predict_array(
    image: xr.DataArray | xr.Dataset,
    model: str | Path | HeightModel = DEFAULT_MODEL,
    *,
    device: str = "auto",
    backend: str = "auto",
    bands: Sequence[int] | None = None,
    uncertainty: bool = False,
    calibration: str | Path | Calibration | None = None,
    force: bool = False,
    scale: tuple[float, float] | None = None,
) -> xr.DataArray:
    """Predict canopy height for an image in memory, on the image's own grid.

    The image is treated as `predict` treats a file: its true GSD is measured, it is resampled to the model's GSD, and
    the heights are resampled back. An image of Dask stays lazy: the heights have its chunks, the same bits as those of
    the loaded image, and each chunk reads the pixels that it needs. Chunks of 1,000 pixels and more cost least.

    Args:
        image: (band=3, y, x) red, green, blue with its CRS and transform (rioxarray); integers, or floats where NaN is
            unknown. Dimensions of length 1 in front are dropped. A Dataset has the variables red, green and blue, or
            one variable with three bands.
        model: Name of a bundled model, path of a bundle, or a model.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``; for a model given by name or path.
        backend: ``auto`` or another of `canopy.models.options.BACKENDS`; for a model given by name or path.
        bands: 1-based numbers of the red, green and blue band, where the image has others too or another order.
        uncertainty: Whether the 5th and 95th percentile of height follow.
        calibration: File of `canopy calibrate`, or a calibration, applied to the heights.
        force: Whether to accept imagery coarser than twice the model's GSD.
        scale: Values that mean black and white, where the choice from the values is wrong.

    Returns:
        (y, x) float32 metres above ground, NaN where the image is unknown; with `uncertainty` (band=3, y, x): height,
        5th and 95th percentile.

    Raises:
        CanopyError: The image has no CRS, another shape, or is too coarse; or model or calibration are unusable.
    """
    check_pixel_options(bands, scale)
    rgb = as_rgb(image, bands)
    fitted = read_fitted(calibration, uncertainty)
    network = _network(model, device, backend)
    layers = Layers(network, uncertainty, fitted.features if fitted is not None else None)
    plan = ArrayMap.of(rgb, layers, fitted)
    if rgb.chunks is not None:
        from canopy.prediction.lazy import predict_lazily

        return like(rgb, predict_lazily(rgb, plan, scale, force, (model, device, backend)), plan)
    with MemoryFile() as memory:
        write_image(rgb, memory.name)
        source = open_imagery(memory.name, scale=scale)
        check_gsd(source, network.card, force)
        check = plan.domain_check()
        heights = plan.heights(source, plan.window, check)
    if check is not None:
        warn_outside(check, network.card.name)
    return like(rgb, heights, plan)


def _network(model: str | Path | HeightModel, device: str, backend: str) -> HeightModel:
    """Return the model, read where it is given by name or path."""
    if isinstance(model, str | Path):
        return load_model(model, device, backend)
    if not (hasattr(model, "predict") and hasattr(model, "card")):
        raise ModelError(f"model of type {type(model).__name__}: a name, a path or a model of load_model expected")
    return model


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


def like(rgb: xr.DataArray, heights: NDArray[np.float32] | Any, plan: ArrayMap) -> xr.DataArray:
    """Return heights (K, y, x) with the coordinates of an image, and nothing of how the image's values were stored."""
    plain = rgb.isel({rgb.dims[0]: 0}, drop=True)
    model = plan.layers.model.card.name
    attributes: dict[str, Any] = {"units": "m", "long_name": "canopy height above ground", "model": model}
    if len(plan.bands) == 1:
        array = plain.copy(data=heights[0])
    else:
        names = xr.Variable("band", list(plan.bands))
        array = xr.concat([plain.copy(data=heights[band]) for band in range(len(plan.bands))], names)
        attributes["long_name"] = plan.bands  # rioxarray names the bands of a file by it
    array = array.rename("canopy_height")
    array.attrs = attributes
    array.encoding = {key: value for key, value in rgb.encoding.items() if key == "grid_mapping"}
    named: xr.DataArray = array.rio.write_nodata(np.nan)
    return named
