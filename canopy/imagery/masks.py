"""Masks that a user names: places whose heights are not wanted, such as clouds, water or buildings.

A mask is a raster, the rasters of a catalogue over the area, or an asset of the very images that are mapped.
"""

import hashlib
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from odc.geo.geom import Geometry
from rasterio.io import DatasetReader
from rasterio.windows import Window

from canopy.errors import ImageryError
from canopy.imagery.datasets import gdal, open_dataset, opened, quiet
from canopy.imagery.files import shown
from canopy.imagery.identity import Stamp, check_unchanged
from canopy.imagery.placement import Placement, outline, read_placement, transformer
from canopy.imagery.references import Reach
from canopy.imagery.remote import DIRECT, Access, is_remote_file
from canopy.imagery.resample import same_crs
from canopy.imagery.search import Search
from canopy.imagery.source import ImagerySource, RasterImagery
from canopy.imagery.stac import find_files, is_catalogue, parse_uri
from tiles.aoi import to_crs

_NAMED = re.compile(r"([A-Za-z][\w -]{0,39})=(.+)", re.DOTALL)
_OF_IMAGES = "asset:"
"""What a mask begins with that is an asset of the images."""
_MOST_PX = 2**27
"""Pixels of a mask read at once."""
UNKNOWN, CLEAR, MASKED = 0, 1, 2
"""What a mask says of a pixel."""

_LOG = logging.getLogger(__name__)


class Mask(Protocol):
    """What covers pixels that are not wanted."""

    @property
    def name(self) -> str:
        """What it masks, for people."""
        ...

    @property
    def facts(self) -> tuple[object, ...]:
        """All that decides what it covers, in a form whose repr is the same in every process."""
        ...

    @property
    def files(self) -> tuple[str, ...]:
        """Files that are read."""
        ...

    def covers(self, geobox: GeoBox) -> NDArray[np.bool_]:
        """Return which pixels of a GeoBox are masked, (y, x)."""
        ...


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

    access: Access = DIRECT
    """How the raster is asked for where it is remote."""

    @property
    def facts(self) -> tuple[object, ...]:
        """All that decides what it covers, in a form whose repr is the same in every process."""
        return self.name, self.stamps, self.placement.crs, self.placement.shape, tuple(self.placement.transform or ())

    @property
    def files(self) -> tuple[str, ...]:
        """Files that are read."""
        return (self.path,)

    def covers(self, geobox: GeoBox) -> NDArray[np.bool_]:
        """Return which pixels of a GeoBox are masked, (y, x); where the mask does not reach, none is."""
        return np.asarray(self.states(geobox) == MASKED)

    def states(self, geobox: GeoBox) -> NDArray[np.uint8]:
        """Return what the mask says of each pixel of a GeoBox, (y, x): by its own pixel under their centre.

        So it does not depend on the window. A pixel is unknown where the mask has nodata or does not reach.

        Raises:
            ImageryError: The mask cannot be read, is not the file that was opened, or is far finer than the GeoBox.
        """
        out = np.full(geobox.shape, UNKNOWN, np.uint8)
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
        check_unchanged(self.path, self.stamps, self.access)
        with self._dataset() as dataset:
            values = dataset.read(1, window=Window(col0, row0, col1 - col0, row1 - row0), masked=True)
        valid = ~np.ma.getmaskarray(values) & ~np.isnan(values.data)
        states = np.where(valid, np.where(values.data != 0, MASKED, CLEAR), UNKNOWN).astype(np.uint8)
        out[inside] = states[rows[inside].astype(np.intp) - row0, cols[inside].astype(np.intp) - col0]
        return out

    @contextmanager
    def _dataset(self) -> Iterator[DatasetReader]:
        """Open the raster; a remote one without asking for its head again."""
        if is_remote_file(self.path):
            with quiet(), gdal(self.path), open_dataset(self.path, self.access) as dataset:
                yield dataset
        else:
            with opened(self.path, self.reach) as file:
                yield file.dataset

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


@dataclass(frozen=True, eq=False)
class MaskStack:
    """Rasters of a catalogue: of several over a pixel the first that knows it decides."""

    name: str
    rasters: tuple[MaskRaster, ...]
    """Rasters in order, the first on top."""

    @property
    def facts(self) -> tuple[object, ...]:
        """All that decides what it covers."""
        return self.name, *(raster.facts for raster in self.rasters)

    @property
    def files(self) -> tuple[str, ...]:
        """Files that are read."""
        return tuple(raster.path for raster in self.rasters)

    def covers(self, geobox: GeoBox) -> NDArray[np.bool_]:
        """Return which pixels of a GeoBox are masked, (y, x)."""
        states = np.full(geobox.shape, UNKNOWN, np.uint8)
        for raster in self.rasters:
            undecided = states == UNKNOWN
            if not undecided.any():
                break
            states[undecided] = raster.states(geobox)[undecided]
        return np.asarray(states == MASKED)


@dataclass(frozen=True, eq=False)
class ImageMasks:
    """An asset of the images that are mapped: each masks the pixels where its own image lies on top."""

    name: str
    source: RasterImagery
    """The images."""
    rasters: Mapping[str, MaskRaster]
    """Mask of each image that has one, by the image's path."""

    @property
    def facts(self) -> tuple[object, ...]:
        """All that decides what it covers; the images are facts of the imagery."""
        return self.name, *(raster.facts for raster in self.rasters.values())

    @property
    def files(self) -> tuple[str, ...]:
        """Files that are read."""
        return tuple(raster.path for raster in self.rasters.values())

    def covers(self, geobox: GeoBox) -> NDArray[np.bool_]:
        """Return which pixels of a GeoBox are masked, (y, x)."""
        scenes, index = self.source.top(geobox)
        out = np.zeros(geobox.shape, np.bool_)
        for number, scene in enumerate(scenes, 1):
            on_top = index == number
            if scene.path in self.rasters and on_top.any():
                out |= on_top & self.rasters[scene.path].covers(geobox)
        return out


def open_masks(
    uris: Sequence[str | Path], area: Geometry, source: ImagerySource | None = None, search: Search | None = None
) -> tuple[Mask, ...]:
    """Open the masks that a user names.

    Args:
        uris: Rasters, catalogues (``stac+https://...?asset=KEY``), or assets of the images (``asset:KEY``), each as it
            is or as ``name=mask``.
        area: Area that is mapped.
        source: Imagery that is mapped, for masks that are its assets.
        search: Dates and limits of what catalogues are searched for.

    Raises:
        ImageryError: A mask cannot be read, has several bands, lies elsewhere, or two have one name; or the images
            have no such asset.
    """
    masks = tuple(_open(str(uri), area, source, search or Search()) for uri in uris)
    wgs84 = None
    for mask in masks:
        if not isinstance(mask, MaskRaster):
            continue
        wgs84 = wgs84 or to_crs(area, mask.outline.crs)  # type: ignore[arg-type]
        if not mask.outline.intersects(wgs84):
            raise ImageryError(f"{shown(mask.path)}: the mask does not meet the AOI, expected one over it; check it")
    names = [mask.name for mask in masks]
    for name in names:
        if names.count(name) > 1:
            raise ImageryError(f"two masks are named {name}: name one of them otherwise with --mask NAME=RASTER")
    return masks


def is_of_images(uri: str | Path) -> bool:
    """Return whether a mask is an asset of the images that are mapped, so that they must be opened first."""
    return split_name(str(uri))[1].startswith(_OF_IMAGES)


def split_name(uri: str) -> tuple[str | None, str]:
    """Split a mask as the user names it into its name, None where there is none, and what it is."""
    match = None if Path(uri[:4096]).exists() else _NAMED.fullmatch(uri)
    return (match[1].strip(), match[2]) if match else (None, uri)


def _open(uri: str, area: Geometry, source: ImagerySource | None, search: Search) -> Mask:
    """Open one mask."""
    name, path = split_name(uri)
    if path.startswith(_OF_IMAGES):
        key = path.removeprefix(_OF_IMAGES)
        return _of_images(name or key, key, source)
    if is_catalogue(path):
        catalogue = parse_uri(path)
        if not catalogue.search.assets:
            raise ImageryError(f"{shown(path)}: a mask of a catalogue needs the name of its file, ?asset=NAME")
        name = name or catalogue.search.assets[0]
        addresses = find_files(catalogue, area, search)
        return MaskStack(name, tuple(open_mask(name, address, catalogue.access) for address in addresses))
    return open_mask(name or Path(shown(path)).stem, path)


def _of_images(name: str, key: str, source: ImagerySource | None) -> ImageMasks:
    """Open an asset of each image."""
    if not isinstance(source, RasterImagery) or not any(scene.assets for scene in source.scenes):
        raise ImageryError(
            f"--mask asset:{key}: the imagery is of no catalogue whose images have assets; name a raster, or a "
            "catalogue with ?asset=NAME"
        )
    rasters = {
        scene.path: open_mask(name, href, scene.access)
        for scene in source.scenes
        if (href := dict(scene.assets).get(key)) is not None
    }
    if not rasters:
        keys = ", ".join(sorted({other for scene in source.scenes for other, _ in scene.assets})[:12])
        raise ImageryError(f"--mask asset:{key}: no image has such an asset, expected one of {keys}")
    if silent := len(source.scenes) - len(rasters):
        _LOG.warning("mask %s: %d of %d images have no asset %s", name, silent, len(source.scenes), key)
    return ImageMasks(name, source, rasters)


def open_mask(name: str, path: str, access: Access = DIRECT) -> MaskRaster:
    """Open one raster as a mask and read its place.

    Raises:
        ImageryError: It cannot be read, or has several bands.
    """
    reach = Reach()
    with opened(path, reach, access) as file:
        if file.dataset.count != 1:
            raise ImageryError(f"{shown(path)}: {file.dataset.count} bands, expected a mask of one; name a mask")
        placement = read_placement(file.dataset)
        return MaskRaster(name, path, file.stamps, placement, outline(shown(path), placement), reach, access)


def mask_digest(raster: MaskRaster) -> str:
    """Return the SHA-256 of all that decides what a raster covers."""
    return hashlib.sha256(repr(raster.facts).encode()).hexdigest()
