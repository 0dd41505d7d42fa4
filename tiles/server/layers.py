"""Layers: what the server says of a raster, read from its file, its tags and its companions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyproj
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.enums import ColorInterp
from rasterio.warp import transform_bounds

from tiles.cog import RASTER_ERRORS, UNCERTAINTY_BANDS, UNIT
from tiles.errors import RasterError, one_line
from tiles.ground import true_gsd_m
from tiles.heights import HeightRaster, rasterio_window
from tiles.stac import UNKNOWN, acquisition_times
from tiles.windows import PixelWindow
from tiles.zonal import INTERVAL_LEVEL

INTERVAL_WIDTH = "interval_width"
"""Name of the derived band: upper less lower bound."""
PRODUCT_TAG = "CANOPY_PRODUCT"
"""Tag of rasters that were derived from heights and are none: cover, biomass, change. Each has a ramp of its own."""
DRIVERS = ("GTiff", "VRT")
TILE_PX = 512
MAX_ZOOM = 24
_EQUATOR_M = 2 * math.pi * 6_378_137
_SMALLEST_PX = 64
"""A layer is offered down to the zoom at which its longer side has about this many pixels."""
_SAMPLE_PX = 512
_TITLES = {
    "canopy_height": "Canopy height",
    "canopy_height_p05": "Canopy height, 5th percentile",
    "canopy_height_p95": "Canopy height, 95th percentile",
    INTERVAL_WIDTH: "Width of the 90 % interval",
}

Signature = tuple[int, int, int]
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Acquired:
    """Acquisition date of a layer or of one of its cells."""

    text: str
    """Date as recorded, or "unknown"."""
    start: str | None = None
    """First second, RFC 3339; None where unknown."""
    end: str | None = None
    """Last second."""

    def to_json(self) -> dict[str, str | None]:
        """Return the JSON object."""
        return {"text": self.text, "start": self.start, "end": self.end}


@dataclass(frozen=True)
class Range:
    """Values of a band, from a sample of its cells."""

    low: float
    """Lowest value."""
    p02: float
    """2nd percentile."""
    p98: float
    """98th percentile."""
    high: float
    """Highest value."""

    def to_json(self) -> dict[str, float]:
        """Return the JSON object."""
        return {"min": self.low, "p02": self.p02, "p98": self.p98, "max": self.high}


@dataclass(frozen=True)
class Band:
    """A band of a layer."""

    name: str
    """Name in requests: the description of the band where it has one."""
    title: str
    """Name for people."""
    indexes: tuple[int, ...]
    """Numbers of the raster's bands from 1: one, or (upper, lower) where their difference is meant."""
    range: Range | None
    """Values; None where none is known."""

    @property
    def is_derived(self) -> bool:
        """Whether the band is a difference of two bands of the file."""
        return len(self.indexes) == 2


@dataclass(frozen=True)
class Layer:
    """A raster that is served."""

    id: str
    """Name in requests."""
    title: str
    """Name for people."""
    kind: Literal["height", "imagery"]
    """Heights in metres, or what is shown as a picture: imagery, and products of heights."""
    path: Path
    """File; never part of an answer."""
    signature: Signature
    """Device, size and time of change of the file when it was read."""
    bounds: tuple[float, float, float, float]
    """West, south, east, north in degrees; west is greater than east across the antimeridian."""
    crs: pyproj.CRS
    """CRS of the raster."""
    transform: Affine
    """Pixel to CRS coordinates."""
    shape: tuple[int, int]
    """Rows, columns."""
    gsd_m: float
    """Side of a pixel, true ground metres."""
    zooms: tuple[int, int]
    """Lowest and highest zoom of 512 px tiles."""
    bands: tuple[Band, ...]
    """Bands; the first is the default."""
    interval: tuple[str, str] | None
    """Names of the bands of the lower and the upper bound."""
    acquired: Acquired
    """Acquisition date of the imagery."""
    model: str | None
    """Name of the model."""
    sources: tuple[str, ...]
    """Names of the imagery or point clouds."""
    version: str | None
    """Version of Canopy that made the map."""
    attribution: str | None
    """Text that a picture of the layer must carry."""
    product: str | None
    """Name of the product, such as "cover"; None for heights and for pictures."""
    unit: str | None
    """Unit of the values; "1" for a share, None for pictures and for classes."""
    dates_path: Path | None
    """Raster of acquisition dates, days since 1970-01-01, 0 where unknown."""

    @property
    def is_picture(self) -> bool:
        """Whether the bands are colours, not values."""
        return self.kind == "imagery" and self.product is None

    @property
    def content(self) -> str:
        """What the layer shows, for people: height, imagery, or the name of a product."""
        return self.product or self.kind

    def band(self, name: str | None) -> Band:
        """Return a band by its name; the first for None.

        Raises:
            KeyError: The layer has no such band.
        """
        return self.bands[0] if name is None else {band.name: band for band in self.bands}[name]

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object, without links."""
        authority = self.crs.to_authority()
        return {
            "id": self.id,
            "title": self.title,
            "kind": self.kind,
            "bounds": list(self.bounds),
            "crs": ":".join(authority) if authority else None,
            "gsd_m": self.gsd_m,
            "shape": list(self.shape),
            "minzoom": self.zooms[0],
            "maxzoom": self.zooms[1],
            "bands": [
                {
                    "name": band.name,
                    "title": band.title,
                    "unit": self.unit,
                    "derived": band.is_derived,
                    **({} if self.is_picture else {"range": band.range.to_json() if band.range else None}),
                }
                for band in self.bands
            ],
            "interval": {
                "low": self.interval[0],
                "high": self.interval[1],
                "width": INTERVAL_WIDTH,
                "level": INTERVAL_LEVEL,
            }
            if self.interval
            else None,
            "acquired": self.acquired.to_json(),
            "model": self.model,
            "sources": list(self.sources),
            "version": self.version,
            "attribution": self.attribution,
            "product": self.product,
        }


def file_signature(path: Path) -> Signature:
    """Return what changes when a file is replaced."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def read_layer(path: Path, layer_id: str, title: str, kind: Literal["height", "imagery"] | None = None) -> Layer:
    """Read a layer from a raster.

    Args:
        path: GeoTIFF or VRT.
        layer_id: Name in requests.
        title: Name for people.
        kind: Kind of the layer; None to see from the bands.

    Raises:
        RasterError: The raster cannot be read, has no place on earth, or heights of an unknown unit.
    """
    try:
        signature = file_signature(path)
        with rasterio.open(path) as src:
            crs = _require_place(src, path)
            kind = kind or ("imagery" if _is_picture(src) else "height")
            interval = UNCERTAINTY_BANDS[1:] if set(UNCERTAINTY_BANDS[1:]) <= set(src.descriptions) else None
            gsd_m = true_gsd_m(src.transform, src.shape, crs)
            bounds = transform_bounds(src.crs, "OGC:CRS84", *src.bounds, densify_pts=21)
            tags = src.tags()
            product = (tags.get(PRODUCT_TAG) or None) if kind == "imagery" else None
            unit = UNIT if kind == "height" else (src.units[0] or None) if product else None
            return Layer(
                id=layer_id,
                title=title,
                kind=kind,
                path=path,
                signature=signature,
                bounds=bounds,
                crs=crs,
                transform=src.transform,
                shape=src.shape,
                gsd_m=gsd_m,
                zooms=_zooms(gsd_m, bounds, src.shape),
                bands=_bands(path, src, kind, product),
                interval=(interval[0], interval[1]) if interval and kind == "height" else None,
                acquired=_acquired(tags.get("CANOPY_ACQUISITION_DATETIME")),
                model=tags.get("CANOPY_MODEL"),
                sources=_names(tags.get("CANOPY_IMAGERY") or tags.get("CANOPY_LIDAR")),
                version=tags.get("CANOPY_VERSION"),
                attribution=tags.get("CANOPY_IMAGERY_ATTRIBUTION"),
                product=product,
                unit=unit,
                dates_path=_dates_path(path, src),
            )
    except RASTER_ERRORS as error:
        raise RasterError(f"{path}: cannot be read ({one_line(error)}), expected a GeoTIFF or a VRT") from error


def _require_place(src: Any, path: Path) -> pyproj.CRS:
    if src.driver not in DRIVERS:
        raise RasterError(f"{path}: is a file of the format {src.driver}, expected a GeoTIFF or a VRT")
    if src.crs is None:
        raise RasterError(f"{path}: has no CRS, expected a raster with one")
    if src.transform.is_identity or src.transform.is_degenerate:
        raise RasterError(f"{path}: has no georeference, expected a transform; place the raster first")
    return pyproj.CRS(src.crs.to_wkt())


def _is_picture(src: Any) -> bool:
    """Return whether a raster looks like imagery: three colours, bytes without metres as unit, or no heights at all."""
    if PRODUCT_TAG in src.tags():
        return True
    has_colours = src.count >= 3 and src.dtypes[0] in ("uint8", "uint16")
    return has_colours or (src.dtypes[0] == "uint8" and UNIT not in src.units)


def read_values(layer: Layer, src: Any, indexes: Sequence[int], window: PixelWindow, shape: tuple[int, int]) -> Values:
    """Read bands of an open layer: heights in metres, however the file stores them, other values as they are.

    Args:
        layer: Layer.
        src: Its file, open.
        indexes: Numbers of the bands, from 1.
        window: Window inside the raster.
        shape: Rows and columns of the answer.

    Returns:
        (K, H, W) float64, NaN where unknown.
    """
    if layer.kind == "height":
        return _heights(layer.path, src, indexes, window, shape)
    return _finite(
        src.read(list(indexes), window=rasterio_window(window), out_shape=(len(indexes), *shape), masked=True)
    )


def _heights(path: Path, src: Any, indexes: Sequence[int], window: PixelWindow, shape: tuple[int, int]) -> Values:
    rasters = [HeightRaster.of_band(path, src, index) for index in indexes]
    return np.stack([raster.resample(window, shape) for raster in rasters]).astype(np.float64)


def _finite(values: "np.ma.MaskedArray[Any, Any]") -> Values:
    filled = np.ma.filled(values.astype(np.float64), np.nan)
    return np.where(np.isfinite(filled), filled, np.nan)


def _bands(path: Path, src: Any, kind: str, product: str | None) -> tuple[Band, ...]:
    if product is not None:
        # Further bands are the ends of an interval.
        name = src.descriptions[0] or product
        return (Band(name, name.replace("_", " ").capitalize(), (1,), _ranges(_sample(src, [1]))[0]),)
    if kind == "imagery":
        colours = [n for n in src.indexes if src.colorinterp[n - 1] != ColorInterp.alpha][:3]
        colours = colours if len(colours) == 3 else colours[:1]
        titles = ("Red", "Green", "Blue") if len(colours) == 3 else ("Gray",)
        ranges = _ranges(_sample(src, colours)) if src.dtypes[0] != "uint8" else [None] * len(colours)
        return tuple(
            Band(title.lower(), title, (n,), values) for title, n, values in zip(titles, colours, ranges, strict=True)
        )
    numbers = [n for n in src.indexes if src.colorinterp[n - 1] != ColorInterp.alpha]
    values = _heights(path, src, numbers, PixelWindow(0, 0, *src.shape), _sample_shape(src))
    names = tuple(src.descriptions[n - 1] or f"band_{n}" for n in numbers)
    bands = [
        Band(name, _TITLES.get(name, name), (n,), limits)
        for n, name, limits in zip(numbers, names, _ranges(values), strict=True)
    ]
    if set(UNCERTAINTY_BANDS[1:]) <= set(names):
        low, high = (names.index(name) for name in UNCERTAINTY_BANDS[1:])
        (width,) = _ranges(values[high : high + 1] - values[low : low + 1])
        bands.append(Band(INTERVAL_WIDTH, _TITLES[INTERVAL_WIDTH], (numbers[high], numbers[low]), width))
    return tuple(bands)


def _sample(src: Any, indexes: Sequence[int]) -> Values:
    """Read a raster at no more than 512 px a side, unknown cells as NaN."""
    return _finite(src.read(list(indexes), out_shape=(len(indexes), *_sample_shape(src)), masked=True))


def _sample_shape(src: Any) -> tuple[int, int]:
    shrink = max(1.0, max(src.shape) / _SAMPLE_PX)
    rows, cols = (max(1, round(side / shrink)) for side in src.shape)
    return rows, cols


def _ranges(values: Values) -> list[Range | None]:
    ranges: list[Range | None] = []
    for band in values:
        finite = band[np.isfinite(band)]
        ranges.append(Range(*np.percentile(finite, [0, 2, 98, 100]).tolist()) if finite.size else None)
    return ranges


def _zooms(gsd_m: float, bounds: tuple[float, float, float, float], shape: tuple[int, int]) -> tuple[int, int]:
    """Choose the zoom at which tiles are as fine as the raster, and the one at which the raster is a stamp."""
    # A metre on the ground is longer on web mercator, by the latitude.
    step_m = gsd_m / max(0.01, math.cos(math.radians((bounds[1] + bounds[3]) / 2)))
    finest = math.ceil(math.log2(_EQUATOR_M / TILE_PX / step_m) - 0.01)
    highest = min(MAX_ZOOM, max(0, finest))
    stamp = math.floor(finest - math.log2(max(1.0, max(shape) / _SMALLEST_PX)))
    return min(highest, max(0, stamp)), highest


def _acquired(text: str | None) -> Acquired:
    if text is None or text == UNKNOWN:
        return Acquired(UNKNOWN)
    try:
        times = acquisition_times(text, datetime.now(UTC))
    except RasterError:  # a tag that others wrote: shown as it is, and no date is made of it
        return Acquired(text)
    instant = times["datetime"]
    return Acquired(text, times.get("start_datetime") or instant, times.get("end_datetime") or instant)


def _names(text: str | None) -> tuple[str, ...]:
    """Split a tag with names of files; folders are left out, so that no answer names one."""
    return tuple(Path(name).name for name in (text or "").split(", ") if name)


def _dates_path(path: Path, src: Any) -> Path | None:
    """Return the raster of acquisition dates next to a map, if it lies on the map's grid."""
    dates = path.with_name(f"{path.stem}_dates.tif")
    if not dates.is_file() or dates.is_symlink():
        return None
    try:
        with rasterio.open(dates) as days:
            same_grid = days.shape == src.shape and days.transform.almost_equals(src.transform)
            return dates if same_grid and days.crs == src.crs else None
    except RASTER_ERRORS:
        return None
