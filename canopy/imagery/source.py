"""Imagery sources: several files read as one image."""

import hashlib
import threading
from collections import Counter, OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from odc.geo.geom import Geometry, unary_union
from pyproj import CRS
from rasterio.io import DatasetReader

from canopy.errors import ImageryError
from canopy.imagery.acquisition import span
from canopy.imagery.bands import choose_bands
from canopy.imagery.files import check_unchanged, expand, stamp
from canopy.imagery.placement import transformer
from canopy.imagery.resample import PixelGrid, Resampler, Rgb, locate, read_aligned, warp_block
from canopy.imagery.rescale import Rescale, choose_rescale
from canopy.imagery.scene import Collar, RasterScene, find_collar, gdal, inspect, open_dataset, quiet, sample
from tiles.windows import PixelWindow

_BANDS = ("red", "green", "blue")
_OPEN_FILES = 16
_SAMPLED_FILES = 32
_NEAR_MARGIN = 0.05


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
    """How stored values become reflectance."""

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


def open_imagery(
    uri: str | Path | Sequence[str | Path],
    *,
    bands: Sequence[int] | None = None,
    scale: tuple[float, float] | None = None,
    datetime: str | None = None,
) -> ImagerySource:
    """Open imagery.

    Args:
        uri: A raster, a folder (all rasters below it), a glob, an http(s):// or s3:// address, or a list.
            Overlapping scenes: the first valid pixel wins, in order of name (of the list for a list).
        bands: 1-based bands of red, green and blue; by colour interpretation, names or number by default.
        scale: Stored values that become 0 and 1; decided by `Rescale`'s rules by default.
        datetime: Acquisition time, ISO 8601; read from the files' acquisition tags by default.

    Raises:
        ImageryError: The imagery cannot be read or interpreted, or has no place on Earth.
    """
    scenes, samples = [], []
    paths = expand(uri)
    sampled = set(paths[:: -(-len(paths) // _SAMPLED_FILES)]) if scale is None else set()
    for path in paths:
        scene, values = _inspect(path, bands, path in sampled)
        scenes.append(scene)
        if values is not None:
            samples.append(values)
    if scale is None:
        _require_one_dtype(scenes)
    return RasterImagery(scenes, choose_rescale(samples, scenes[0].dtype, scale), datetime)


def _inspect(path: str, bands: Sequence[int] | None, sampled: bool) -> tuple[RasterScene, NDArray[np.generic] | None]:
    stamps = stamp(path)
    with quiet(), gdal(path), open_dataset(path) as dataset:
        if dataset.count == 0:
            raise ImageryError(f"{path}: no bands of its own, expected a raster; name one of its subdatasets")
        scene = inspect(dataset, choose_bands(dataset, bands), stamps)
        return scene, sample(dataset, scene) if sampled and scene.dtype != "uint8" else None


def _require_one_dtype(scenes: Sequence[RasterScene]) -> None:
    dtypes = sorted({scene.dtype for scene in scenes})
    if len(dtypes) > 1:
        raise ImageryError(
            f"imagery: files of types {', '.join(dtypes)}, expected one type to decide one value range; "
            "say which values are black and white with --scale LOW,HIGH, or open them apart"
        )


class _Handles:
    """A few open files per thread; GDAL handles must not be shared between threads."""

    def __init__(self) -> None:
        self._local = threading.local()

    def __reduce__(self) -> tuple[type["_Handles"], tuple[()]]:
        return _Handles, ()

    def get(self, path: str) -> DatasetReader:
        """Return the calling thread's handle on a file."""
        handles: OrderedDict[str, DatasetReader] = self._local.__dict__.setdefault("handles", OrderedDict())
        if path in handles:
            handles.move_to_end(path)
            return handles[path]
        if len(handles) >= _OPEN_FILES:
            handles.popitem(last=False)[1].close()
        handles[path] = open_dataset(path)
        return handles[path]


class RasterImagery:
    """Raster files read as one image."""

    def __init__(self, scenes: Sequence[RasterScene], rescale: Rescale, datetime: str | None = None) -> None:
        """Join scenes; earlier ones lie on top."""
        self.uris = tuple(scene.path for scene in scenes)
        self.footprint = unary_union(scene.outline for scene in scenes) or scenes[0].outline
        self.gsd_m = max(scene.gsd_m for scene in scenes)
        self.datetime = datetime or span([scene.acquired for scene in scenes])
        self.rescale = rescale
        self._scenes = tuple(scenes)
        self._bounds = np.array([scene.outline.boundingbox.bbox for scene in scenes])
        self._handles = _Handles()
        self._collars: dict[str, Collar | None] = {}

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
        """Return a sha256 over each file's path, size and modification time, its bands, and the rescale."""
        parts = [(scene.stamps, scene.bands.rgb, scene.bands.alpha) for scene in self._scenes]
        return hashlib.sha256(repr((parts, self.rescale)).encode()).hexdigest()

    def read(self, geobox: GeoBox) -> xr.DataArray:
        """Fill a GeoBox; see `ImagerySource.read`."""
        grid, region = locate(geobox)
        out = np.full((3, region.height, region.width), np.nan, np.float32)
        for scene in self._near(geobox):
            check_unchanged(scene.stamps)
            with gdal(scene.path):
                self._fill(out, _resampler(scene, grid), region)
            if not np.isnan(out[0]).any():
                break
        return _wrap(out, geobox)

    def _near(self, geobox: GeoBox) -> list[RasterScene]:
        """Return the scenes that may meet a GeoBox, top first."""
        left, bottom, right, top = _lonlat_bounds(geobox)
        west, south, east, north = self._bounds.T
        near = (west <= right) & (east >= left) & (south <= top) & (north >= bottom)
        return [self._scenes[i] for i in np.flatnonzero(near)]

    def _fill(self, out: Rgb, resampler: Resampler, region: PixelWindow) -> None:
        """Fill the unknown pixels of (3, height, width) from one scene."""
        scene = resampler.scene
        dataset = self._handles.get(scene.path)
        if scene.path not in self._collars:
            self._collars[scene.path] = find_collar(dataset, scene)
        collar = self._collars[scene.path]
        if resampler.offset is not None:
            if aligned := read_aligned(dataset, resampler, region, collar):
                part, values, valid = aligned
                rows, cols = part.slices_in(region)
                _paste(out[:, rows, cols], self.rescale.apply(values), valid)
            return
        for block in resampler.blocks(region):
            part = block.intersect(region) or block
            rows, cols = part.slices_in(region)
            target = out[:, rows, cols]
            if not np.isnan(target[0]).any():
                continue
            warped = warp_block(dataset, resampler, block, collar)
            if warped is not None:
                rows, cols = part.slices_in(block)
                _paste(target, self.rescale.apply(warped[:, rows, cols]), None)


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
    lon, lat = lon[finite], lat[finite]
    if np.ptp(lon) > 180:
        return -180.0, lat.min() - 1, 180.0, lat.max() + 1
    x, y = _NEAR_MARGIN * np.ptp(lon) + 1e-6, _NEAR_MARGIN * np.ptp(lat) + 1e-6
    return lon.min() - x, lat.min() - y, lon.max() + x, lat.max() + y


def _wrap(image: Rgb, geobox: GeoBox) -> xr.DataArray:
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
