"""Masks that a user names: places whose heights are not wanted, such as clouds, water or buildings."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from odc.geo.geom import Geometry
from rasterio.windows import Window

from canopy.errors import ImageryError
from canopy.imagery.datasets import opened
from canopy.imagery.files import shown
from canopy.imagery.identity import Stamp, check_unchanged
from canopy.imagery.placement import Placement, outline, read_placement, transformer
from canopy.imagery.references import Reach
from canopy.imagery.resample import same_crs
from tiles.aoi import to_crs

_NAMED = re.compile(r"([A-Za-z][\w -]{0,39})=(.+)", re.DOTALL)
_MOST_PX = 2**27
"""Pixels of a mask read at once."""


@dataclass(frozen=True, eq=False)
class MaskRaster:
    """A raster whose pixels other than 0 and nodata cover what is not wanted."""

    name: str
    """What it masks, for people: its file's name where the user gives none."""
    path: str
    stamps: tuple[Stamp, ...]
    placement: Placement
    outline: Geometry
    """Outline in WGS84."""
    reach: Reach
    """Files that it may name."""

    @property
    def facts(self) -> tuple[object, ...]:
        """All that decides what it covers, in a form whose repr is the same in every process."""
        return self.name, self.stamps, self.placement.crs, self.placement.shape, tuple(self.placement.transform or ())

    def covers(self, geobox: GeoBox) -> NDArray[np.bool_]:
        """Return which pixels of a GeoBox are masked, (y, x): by the mask's pixel under their centre.

        So it does not depend on the window; where the mask does not reach, nothing is masked.

        Raises:
            ImageryError: The mask cannot be read, is not the file that was opened, or is far finer than the GeoBox.
        """
        out = np.zeros(geobox.shape, np.bool_)
        cols, rows = self._pixels(geobox)
        height, width = self.placement.shape
        inside = (cols >= 0) & (cols < width) & (rows >= 0) & (rows < height)
        if not inside.any():
            return out
        col0, row0 = int(cols[inside].min()), int(rows[inside].min())
        col1, row1 = int(cols[inside].max()) + 1, int(rows[inside].max()) + 1
        if (col1 - col0) * (row1 - row0) > _MOST_PX:
            raise ImageryError(
                f"{shown(self.path)}: {(col1 - col0) * (row1 - row0):.0e} pixels of the mask lie on one tile of the "
                f"map, at most {_MOST_PX:.0e} expected; resample it with gdalwarp -r max"
            )
        check_unchanged(self.path, self.stamps)
        with opened(self.path, self.reach) as file:
            values = file.dataset.read(1, window=Window(col0, row0, col1 - col0, row1 - row0), masked=True)
        masked = np.asarray((values.filled(0) != 0) & ~np.isnan(values.filled(0)), np.bool_)
        out[inside] = masked[rows[inside].astype(np.intp) - row0, cols[inside].astype(np.intp) - col0]
        return out

    def _pixels(self, geobox: GeoBox) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return column and row of the mask under each pixel centre, (y, x) each, not whole where it has none."""
        affine = geobox.affine
        cols, rows = np.meshgrid(np.arange(geobox.shape[1]) + 0.5, np.arange(geobox.shape[0]) + 0.5)
        xs, ys = affine.a * cols + affine.c, affine.e * rows + affine.f
        wkt = geobox.crs.to_wkt() if geobox.crs is not None else self.placement.crs
        if not same_crs(wkt, self.placement.crs):
            xs, ys = transformer(wkt, self.placement.crs).transform(xs, ys)
        source_cols, source_rows = self.placement.to_pixel(xs.ravel(), ys.ravel())
        return np.floor(source_cols).reshape(geobox.shape), np.floor(source_rows).reshape(geobox.shape)


def open_masks(uris: Sequence[str | Path], area: Geometry) -> tuple[MaskRaster, ...]:
    """Open the masks that a user names.

    Args:
        uris: Rasters, each as it is or as ``name=raster``.
        area: Area that is mapped.

    Raises:
        ImageryError: A mask cannot be read, has several bands, lies elsewhere, or two have one name.
    """
    masks = tuple(_open(str(uri)) for uri in uris)
    wgs84 = to_crs(area, masks[0].outline.crs) if masks and masks[0].outline.crs is not None else area
    for mask in masks:
        if not mask.outline.intersects(wgs84):
            raise ImageryError(f"{shown(mask.path)}: the mask does not meet the AOI, expected one over it; check it")
    names = [mask.name for mask in masks]
    for name in names:
        if names.count(name) > 1:
            raise ImageryError(f"two masks are named {name}: name one of them otherwise with --mask NAME=RASTER")
    return masks


def _open(uri: str) -> MaskRaster:
    """Open one mask and read its place."""
    match = None if Path(uri).exists() else _NAMED.fullmatch(uri)
    path = match[2] if match else uri
    name = match[1].strip() if match else Path(shown(path)).stem
    reach = Reach()
    with opened(path, reach) as file:
        if file.dataset.count != 1:
            raise ImageryError(f"{shown(path)}: {file.dataset.count} bands, expected a mask of one; name a mask")
        placement = read_placement(file.dataset)
        return MaskRaster(name, path, file.stamps, placement, outline(shown(path), placement), reach)
