"""Heights of an image in memory, on the image's own grid."""

from pathlib import Path

import numpy as np
import xarray as xr
from odc.geo.crs import CRS
from odc.geo.geom import box
from rasterio.io import MemoryFile

from canopy.errors import ImageryError
from canopy.imagery import open_imagery
from canopy.models.bundle import DEFAULT_MODEL
from canopy.models.model import HeightModel, load_model
from canopy.prediction.engine import OVERLAP_PX, ChipEngine
from canopy.prediction.grids import output_lattice, working_lattice
from canopy.prediction.layers import Layers
from canopy.prediction.request import check_gsd
from tiles.blend import ChipLattice
from tiles.regrid import Regridder
from tiles.windows import PixelWindow


def predict_array(
    image: xr.DataArray,
    model: str | Path | HeightModel = DEFAULT_MODEL,
    *,
    device: str = "auto",
    force: bool = False,
    scale: tuple[float, float] | None = None,
) -> xr.DataArray:
    """Predict canopy height for an image in memory, on the image's own grid.

    The image is treated as `predict` treats a file: its true GSD is measured, it is resampled to the model's GSD, and
    the heights are resampled back.

    Args:
        image: (band=3, y, x) red, green, blue with its CRS and transform (rioxarray); uint8, or float where NaN is
            unknown.
        model: Name of a bundled model, path of a bundle, or a model.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        force: Whether to accept imagery coarser than twice the model's GSD.
        scale: Values that mean black and white, where the choice from the values is wrong.

    Returns:
        (y, x) float32 metres above ground, NaN where the image is unknown.

    Raises:
        CanopyError: The image has no CRS, another shape, or is too coarse.
    """
    import rioxarray  # noqa: F401 - registers the accessor

    if image.ndim != 3 or image.shape[0] != 3 or image.rio.crs is None:
        raise ImageryError(f"array of shape {image.shape}, CRS {image.rio.crs}: (3, y, x) with a CRS expected")
    network = load_model(model, device) if isinstance(model, str | Path) else model
    with MemoryFile() as memory:
        image.rio.to_raster(memory.name, driver="GTiff")
        source = open_imagery(memory.name, scale=scale)
        crs = CRS(image.rio.crs.to_wkt())
        left, bottom, right, top = image.rio.bounds()
        area = box(left, bottom, right, top, crs)
        check_gsd(source, network.card, force)
        gsd_m = network.card.gsd_m
        work = working_lattice(area, output_lattice(area, "auto", None, gsd_m), gsd_m)
        regridder = Regridder(work, crs, image.rio.transform(recalc=True))
        window = PixelWindow(0, 0, *image.shape[1:])
        core = regridder.cover(window)
        engine = ChipEngine(Layers(network), ChipLattice(network.card.chip_px, OVERLAP_PX))
        read_window = engine.read_window(core)
        pixels = source.read(work.geobox(read_window)).values
        (heights,) = engine.heights(pixels, read_window, np.ones(core.shape, bool), core)
    cells = regridder.regrid(heights, core, window, regridder.samples(window))
    return _like(image, cells, network.card.name)


def _like(image: xr.DataArray, heights: np.ndarray, model: str) -> xr.DataArray:
    """Return heights with the coordinates of an image, and nothing of how the image's values were stored."""
    array = image.isel({image.dims[0]: 0}, drop=True).copy(data=heights).rename("canopy_height")
    array.attrs = {"units": "m", "long_name": "canopy height above ground", "model": model}
    array.encoding = {key: value for key, value in image.encoding.items() if key == "grid_mapping"}
    named: xr.DataArray = array.rio.write_nodata(np.nan)
    return named
