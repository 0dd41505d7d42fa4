"""Imagery sources: several files read as one image."""

import hashlib
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from contextvars import copy_context
from dataclasses import replace
from functools import lru_cache
from typing import Any, Protocol, TypeVar

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from odc.geo.geom import Geometry, unary_union
from pyproj import CRS
from rasterio.io import DatasetReader

from canopy.imagery.acquisition import span
from canopy.imagery.calendar import UNKNOWN_DAY, constant_days, day_of
from canopy.imagery.collar import Collar, find_collars
from canopy.imagery.colours import Values
from canopy.imagery.datasets import gdal, open_dataset
from canopy.imagery.files import shown
from canopy.imagery.identity import check_unchanged
from canopy.imagery.licences import Licence
from canopy.imagery.longitudes import wrapped
from canopy.imagery.placement import transformer
from canopy.imagery.remote import DIRECT, Access
from canopy.imagery.resample import PixelGrid, Resampler, Rgb, locate, read_aligned, warp_block, warp_overview
from canopy.imagery.rescale import Rescale
from canopy.imagery.scene import RasterScene, fill_candidates
from canopy.imagery.selection import Skipped
from tiles.windows import PixelWindow

Result = TypeVar("Result")
_BANDS = ("red", "green", "blue")
_OPEN_FILES = 16
_NEAR_MARGIN = 0.05
COARSEST_GSD_RATIO = 2.0
"""Imagery whose pixels are longer than those that are to be read by more than this factor is refused."""
GSD_TOLERANCE = 0.01
"""Pixels longer by this share are as good: a pixel of 1 m in UTM is up to .04 % longer on the ground."""


def is_too_coarse(source_gsd_m: float, gsd_m: float) -> bool:
    """Return whether imagery is too coarse for pixels of a given side, metres."""
    return source_gsd_m > COARSEST_GSD_RATIO * gsd_m * (1 + GSD_TOLERANCE)


class ImagerySource(Protocol):
    """Imagery that fills any GeoBox."""

    uris: tuple[str, ...]
    """Its files; where scenes overlap, the first with a valid pixel wins."""
    footprint: Geometry
    """Outline of the files, WGS84."""
    gsd_m: float
    """Pixel size in true ground metres at the scene centre, along its coarser axis, of the coarsest file."""
    datetime: str | None
    """Acquisition time or "start/end", ISO 8601; None where unknown."""
    rescale: Rescale
    """How values become reflectance; `rescale.scale_option` repeats it on other imagery."""
    skipped: tuple[Skipped, ...]
    """Rasters of the user's folders that are not read."""
    licence: Licence | None
    """What the provider permits; None where that is not on record."""

    def describe(self) -> str:
        """Describe the imagery in one line: files, size, GSD, CRS, bands and rescale."""
        ...

    def fingerprint(self) -> str:
        """Return a sha256 that changes when the imagery, its bands or its rescale do."""
        ...

    def read(self, geobox: GeoBox) -> xr.DataArray:
        """Fill a GeoBox.

        Returns:
            image: (band=3, y, x) float32, display reflectance in [0, 1], NaN in all bands where unknown.

        Raises:
            ImageryError: A file cannot be read, or is not the file that was opened.
        """
        ...

    def dates(self, geobox: GeoBox) -> NDArray[np.uint16]:
        """Return the day of acquisition at each pixel of a GeoBox.

        Returns:
            days: (y, x) uint16, days since 1970-01-01; 0 where unknown. What it says of pixels without imagery means
                nothing.

        Raises:
            ImageryError: A file cannot be read, or is not the file that was opened.
        """
        ...


class _Handle:
    """A file that one thread has open.

    rasterio keeps what it knows of remote files in the context in which they were opened, and a handle may be dropped
    in another: by a thread that ends, or by the garbage collector. So opening, reading and closing share a context.
    """

    def __init__(self, path: str, access: Access, overview: int | None = None) -> None:
        self._context = copy_context()
        self.dataset = self._context.run(open_dataset, path, access, overview)

    def run(self, function: Callable[..., Result], *arguments: object) -> Result:
        """Call a function with the file and more arguments, in the file's context."""
        return self._context.run(function, self.dataset, *arguments)

    def close(self) -> None:
        """Close the file."""
        self._context.run(self.dataset.close)

    def __del__(self) -> None:
        # At the end of the interpreter, what closing needs may be gone already.
        with suppress(Exception):
            self.close()


class _Handles:
    """A few open files per thread; GDAL handles must not be shared between threads."""

    def __init__(self) -> None:
        self._local = threading.local()

    def __reduce__(self) -> tuple[type["_Handles"], tuple[()]]:
        return _Handles, ()

    def get(self, path: str, access: Access = DIRECT, overview: int | None = None) -> _Handle:
        """Return the calling thread's handle on a file, or on one of its overviews."""
        handles: OrderedDict[tuple[str, int | None], _Handle] = self._local.__dict__.setdefault(
            "handles", OrderedDict()
        )
        key = path, overview
        if key in handles:
            handles.move_to_end(key)
            return handles[key]
        if len(handles) >= _OPEN_FILES:
            handles.popitem(last=False)[1].close()
        handles[key] = _Handle(path, access, overview)
        return handles[key]


class RasterImagery:
    """Raster files read as one image."""

    def __init__(
        self,
        scenes: Sequence[RasterScene],
        rescale: Rescale,
        datetime: str | None = None,
        skipped: Sequence[Skipped] = (),
        licence: Licence | None = None,
    ) -> None:
        """Join scenes; earlier ones lie on top."""
        self.uris = tuple(shown(scene.path) for scene in scenes)
        self.footprint = unary_union(scene.outline for scene in scenes) or scenes[0].outline
        self.gsd_m = max(scene.gsd_m for scene in scenes)
        self._stated = datetime is not None
        self.datetime = datetime or span([scene.acquired for scene in scenes])
        self.rescale = rescale
        self.skipped = tuple(skipped)
        self.licence = licence
        self._scenes = tuple(replace(scene, fills=fills_of(scene, rescale)) for scene in scenes)
        self._bounds = np.array([scene.outline.boundingbox.bbox for scene in scenes])
        self._handles = _Handles()
        self._collars: dict[str, tuple[Collar, ...]] = {}

    @property
    def scenes(self) -> tuple[RasterScene, ...]:
        """Files with their facts; earlier ones lie on top."""
        return self._scenes

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.describe()}>"

    def describe(self) -> str:
        """Describe the imagery in one line: files, size, GSD, CRS, bands and rescale."""
        sizes = [scene.placement.shape for scene in self._scenes]
        pixels = sum(height * width for height, width in sizes)
        size = f"{sizes[0][1]} x {sizes[0][0]} px" if len(sizes) == 1 else f"{pixels / 1e6:.1f} Mpx"
        crs = _listed([_crs_name(scene.placement.crs) for scene in self._scenes])
        bands = _listed([scene.bands.note for scene in self._scenes])
        files = "1 file" if len(sizes) == 1 else f"{len(sizes)} files"
        return f"{files}, {size}, GSD {self.gsd_m:.3g} m, {crs}, {bands}, values {self.rescale}"

    def fingerprint(self) -> str:
        """Return a sha256 over all that decides a pixel: each file and its members, how they are read, the rescale."""
        parts = [scene.facts for scene in self._scenes]
        return hashlib.sha256(repr((parts, self.rescale)).encode()).hexdigest()

    def read(self, geobox: GeoBox) -> xr.DataArray:
        """Fill a GeoBox; see `ImagerySource.read`."""
        return labelled(self._layers(geobox)[0], geobox)

    def dates(self, geobox: GeoBox) -> NDArray[np.uint16]:
        """Return the day of acquisition at each pixel; see `ImagerySource.dates`."""
        near = self._near(geobox)
        days = {scene.path: day_of(span([scene.acquired])) for scene in near}
        # The user's own date is that of all files; one date of all needs no look at which file is on top.
        if self._stated or len(set(days.values())) <= 1:
            return constant_days(geobox, day_of(self.datetime) if self._stated else next(iter(days.values()), 0))
        index = self._layers(geobox)[1]
        return np.array([UNKNOWN_DAY, *days.values()], np.uint16)[index]

    def top(self, geobox: GeoBox) -> tuple[list[RasterScene], NDArray[np.uint16]]:
        """Return the scenes that may meet a GeoBox, and which of them is on top, (y, x), counted from 1; 0 for none.

        Where one scene alone is near it is the one throughout, without a look at its pixels.
        """
        near = self._near(geobox)
        if len(near) <= 1:
            return near, np.full(geobox.shape, len(near), np.uint16)
        return near, self._layers(geobox)[1]

    def _layers(self, geobox: GeoBox) -> tuple[Rgb, NDArray[np.uint16]]:
        """Read the image (3, y, x) and which of the near scenes is on top, (y, x), counted from 1; 0 for none."""
        grid, region = locate(geobox)
        out = np.full((3, region.height, region.width), np.nan, np.float32)
        index = np.zeros(out.shape[1:], np.uint16)
        # Top first, and no file below is opened once all is known.
        for number, scene in enumerate(self._near(geobox), 1):
            check_unchanged(scene.path, scene.stamps, scene.access)
            with gdal(scene.path, network=not scene.vrt):
                handle = self._handles.get(scene.path, scene.access)
                handle.run(self._fill, out, _resampler(scene, grid), region)
            valid = ~np.isnan(out[0])
            index[valid & (index == 0)] = number
            if valid.all():
                break
        return out, index

    def _near(self, geobox: GeoBox) -> list[RasterScene]:
        """Return the scenes that may meet a GeoBox, top first."""
        left, bottom, right, top = _lonlat_bounds(geobox)
        west, south, east, north = self._bounds.T
        near = (west <= right) & (east >= left) & (south <= top) & (north >= bottom)
        return [self._scenes[i] for i in np.flatnonzero(near)]

    def _fill(self, dataset: DatasetReader, out: Rgb, resampler: Resampler, region: PixelWindow) -> None:
        """Fill the unknown pixels of (3, height, width) from one scene."""
        scene = resampler.scene
        # Found on first use: most files of a large folder are never read. Two threads find the same.
        if scene.path not in self._collars:
            self._collars[scene.path] = find_collars(dataset, scene, white_of(scene, self.rescale))
        collars = self._collars[scene.path]
        if resampler.offset is not None:
            if aligned := read_aligned(dataset, resampler, region, collars):
                part, values, valid = aligned
                rows, cols = part.slices_in(region)
                _paste(out[:, rows, cols], self._display(scene, values), valid)
            return
        for block in resampler.blocks(region):
            part = block.intersect(region) or block
            rows, cols = part.slices_in(region)
            target = out[:, rows, cols]
            # An earlier scene has filled this block: a warp is the dearest step.
            if not np.isnan(target[0]).any():
                continue
            warped = self._warp_overview(resampler, block) if not collars else None
            if warped is None:
                warped = warp_block(dataset, resampler, block, collars)
            if warped is not None:
                rows, cols = part.slices_in(block)
                _paste(target, self._display(scene, warped[:, rows, cols]), None)

    def _warp_overview(self, resampler: Resampler, block: PixelWindow) -> Rgb | None:
        """Resample the overview that fits the grid to a block; None where the file itself is to be read."""
        if resampler.overview is None:
            return None
        handle = self._handles.get(resampler.scene.path, resampler.scene.access, resampler.overview)
        return handle.run(warp_overview, resampler, block)

    def _display(self, scene: RasterScene, values: Values) -> Rgb:
        """Return the reflectance of values; of a scene whose 0 is white, its negative."""
        reflectance = self.rescale.apply(values)
        return np.subtract(1, reflectance, out=reflectance) if scene.negative else reflectance


def fills_of(scene: RasterScene, rescale: Rescale) -> tuple[float, ...]:
    """Return the stored values of a scene that are no light: usual fills far outside the source's range."""
    return tuple(
        fill
        for fill in fill_candidates(scene.dtype)
        if rescale.is_far(scene.physical(np.full(3, fill, np.float64)).astype(np.float64)).all()
    )


def white_of(scene: RasterScene, rescale: Rescale) -> float | None:
    """Return the stored value of white in a scene; None where its values have no known top."""
    kind = np.dtype(scene.dtype)
    if rescale.stretched:
        return float(np.iinfo(kind).max) if kind.kind in "ui" else None
    scale, offset = scene.gains[0] if scene.gains else (1.0, 0.0)
    white = (rescale.high - offset) / scale
    return float(round(white)) if kind.kind in "ui" else white


def _paste(target: Rgb, image: Rgb, valid: NDArray[np.bool_] | None) -> None:
    """Copy valid pixels where the target is unknown."""
    unknown = np.isnan(target[0])
    if valid is not None:
        unknown &= valid
    if unknown.all():
        target[...] = image
    else:
        np.copyto(target, image, where=unknown)


@lru_cache(maxsize=1024)
def _resampler(scene: RasterScene, grid: PixelGrid) -> Resampler:
    return Resampler(scene, grid)


def _lonlat_bounds(geobox: GeoBox) -> tuple[float, float, float, float]:
    """Return generous WGS84 bounds of a GeoBox: left, bottom, right, top."""
    rows, cols = (axis.ravel() for axis in np.meshgrid(*(np.linspace(0, size, 9) for size in geobox.shape)))
    affine = geobox.affine
    to_lonlat = transformer(geobox.crs.to_wkt(), "OGC:CRS84")  # type: ignore[union-attr]
    lon, lat = to_lonlat.transform(affine.a * cols + affine.c, affine.e * rows + affine.f)
    finite = np.isfinite(lon) & np.isfinite(lat)
    if not finite.any():
        return 0.0, 0.0, -1.0, -1.0
    lon, lat = wrapped(lon[finite]), lat[finite]
    # Across the antimeridian: every scene at that latitude may be near.
    if np.ptp(lon) > 180:
        return -180.0, lat.min() - 1, 180.0, lat.max() + 1
    x, y = _NEAR_MARGIN * np.ptp(lon) + 1e-6, _NEAR_MARGIN * np.ptp(lat) + 1e-6
    return lon.min() - x, lat.min() - y, lon.max() + x, lat.max() + y


def labelled(image: Rgb, geobox: GeoBox) -> xr.DataArray:
    """Attach coordinates and CRS as rioxarray and odc-geo read them."""
    affine = geobox.affine
    wkt = geobox.crs.to_wkt()  # type: ignore[union-attr]
    geo_transform = " ".join(map(str, affine.to_gdal()))
    coords: dict[str, Any] = {
        "band": list(_BANDS),
        "y": affine.f + affine.e * (np.arange(geobox.shape[0]) + 0.5),
        "x": affine.c + affine.a * (np.arange(geobox.shape[1]) + 0.5),
        "spatial_ref": ((), 0, {"crs_wkt": wkt, "spatial_ref": wkt, "GeoTransform": geo_transform}),
    }
    array = xr.DataArray(image, coords, ("band", "y", "x"), name="imagery")
    array.encoding["grid_mapping"] = "spatial_ref"
    return array


@lru_cache(maxsize=256)
def _crs_name(wkt: str) -> str:
    crs = CRS.from_wkt(wkt)
    code = crs.to_authority()
    return ":".join(code) if code else crs.name


def _listed(names: Sequence[str]) -> str:
    """Join the distinct names, the most frequent first."""
    return " and ".join(name for name, _ in Counter(names).most_common())
