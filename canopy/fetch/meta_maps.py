"""Canopy height maps of Meta and WRI, versions 1 and 2: tiles by quadkey, with footprints of their imagery.

Both are uint8 metres in web mercator on one lattice of pixels. No nodata is declared: unimaged ground is 0, and 255 is
no height. What the 1-bit mask of version 2 means is stated in different ways, so it is kept as a layer and decides
nothing.
"""

import json
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
import shapely
import shapely.geometry
from affine import Affine
from numpy.typing import NDArray
from odc.geo.crs import CRS
from pyproj import Transformer
from rasterio.features import rasterize
from rasterio.windows import Window

from canopy.dataset.tile_trees import from_quadkey
from canopy.errors import SourceError, one_line
from canopy.fetch.published import Source, Values, days_since_1970
from canopy.fetch.remote import Ranges, RemoteRaster, open_ranges
from canopy.fetch.terms import Terms
from canopy.http import HttpClient
from tiles.windows import PixelWindow

_HALF_M = 20_037_508.342789244
_LATTICE_ZOOM = 25
"""Base-2 logarithm of the pixels along the whole map's side: 1.194 mercator metres each."""
_NO_HEIGHT = 255
_ABSENT = (403, 404)
"""Answers of the store for a tile that there is none of; 403 where names may not be listed."""
_METADATA_BYTES = 128 * 2**20
_MERCATOR = CRS("EPSG:3857")

V1_TERMS = Terms(
    "High Resolution 1 m Global Canopy Height Maps (Meta and World Resources Institute, version 1)",
    "CC-BY-4.0",
    "https://creativecommons.org/licenses/by/4.0/",
    "Tolan, J. et al. (2024). Very high resolution canopy height maps from RGB imagery using self-supervised vision "
    "transformer and convolutional decoder trained on aerial lidar. Remote Sensing of Environment 300, 113888.",
)
V2_TERMS = Terms(
    "Version 2 High Resolution Canopy Height Maps (Meta and World Resources Institute, CHMv2)",
    "CC-BY-4.0",
    "https://creativecommons.org/licenses/by/4.0/",
    "Meta and World Resources Institute (2026). Version 2 High Resolution Canopy Height Maps (CHMv2). Source imagery "
    "for CHM (c) 2016 Vantor.",
)


@dataclass(frozen=True)
class MetaProduct:
    """Where a version lies."""

    name: str
    """Name on the command line."""
    address: str
    """Folder of the version."""
    zoom: int
    """Digits of a quadkey."""
    terms: Terms
    """Licence and citation."""
    own_mask: bool
    """Whether the mask is part of the tile; else it is a file of its own."""

    @property
    def tile_px(self) -> int:
        """Side of a tile, pixels."""
        return int(2 ** (_LATTICE_ZOOM - self.zoom))


BUCKET = "https://dataforgood-fb-data.s3.amazonaws.com"
PRODUCTS = {
    "meta-v1": MetaProduct("meta-v1", f"{BUCKET}/forests/v1/alsgedi_global_v6_float", 9, V1_TERMS, False),
    "meta-v2": MetaProduct("meta-v2", f"{BUCKET}/forests/v2/global/dinov3_global_chm_v2_ml3", 10, V2_TERMS, True),
}


@dataclass(frozen=True)
class Footprints:
    """Outlines of the imagery of a tile."""

    outlines: NDArray[np.object_]
    """(n,) polygons in web mercator, the oldest first."""
    days: NDArray[np.uint16]
    """(n,) day of each since 1970-01-01, 0 where unknown."""


@dataclass
class MetaMap:
    """A version of the map, read by ranges."""

    client: HttpClient
    """Client that sends the requests."""
    product: MetaProduct
    """Version."""
    without_footprints: set[str] = field(default_factory=set)
    """Tiles whose footprints are not published."""
    crs: CRS = _MERCATOR
    """CRS of the map."""

    def __post_init__(self) -> None:
        """Prepare what is remembered of tiles."""
        self._source = lru_cache(maxsize=4096)(self._look_up)
        # The outlines of a tile take up to 24 MB, and blocks come tile by tile.
        self._footprints = lru_cache(maxsize=2)(self._read_footprints)

    @property
    def name(self) -> str:
        """Name on the command line."""
        return self.product.name

    @property
    def terms(self) -> Terms:
        """Licence and citation."""
        return self.product.terms

    @property
    def transform(self) -> Affine:
        """Lattice of all tiles."""
        side = 2 * _HALF_M / 2**_LATTICE_ZOOM
        return Affine(side, 0, -_HALF_M, 0, -side, _HALF_M)

    def sources(self, window: PixelWindow) -> list[Source]:
        """Return the tile of a block; none where there is no tile."""
        source = self._source(self._quadkey(window))
        return [source] if source else []

    def read(self, window: PixelWindow) -> Values:
        """Read a block."""
        key = self._quadkey(window)
        if self._source(key) is None:
            return _nothing(window.shape)
        stored, mask = self._read_tile(key, window)
        footprints = self._footprints(key)
        height_m = np.where(stored == _NO_HEIGHT, np.nan, stored).astype(np.float32)
        if footprints is None:
            self.without_footprints.add(key)
            # A 0 may be ground that was never imaged.
            height_m[stored == 0] = np.nan
            return Values(height_m, np.zeros(window.shape, np.uint16), mask)
        transform = self.transform * Affine.translation(window.col0, window.row0)
        imaged, days = burn(footprints, window.shape, transform)
        height_m[~imaged] = np.nan
        return Values(height_m, days, mask)

    def remarks(self) -> list[str]:
        """Return what a user must know of what was read."""
        lines = ["unknown where no footprint of imagery lies (published as 0), and where 255 is stored"]
        if self.without_footprints:
            names = ", ".join(sorted(self.without_footprints))
            lines.append(f"tiles without published footprints: {names}; their zeros and dates are unknown")
        return lines

    def _quadkey(self, window: PixelWindow) -> str:
        """Return the tile of a block; blocks do not cross tiles."""
        shift = _LATTICE_ZOOM - self.product.zoom
        return quadkey(window.col0 >> shift, window.row0 >> shift, self.product.zoom)

    def _look_up(self, key: str) -> Source | None:
        answer = self.client.head(self._url(f"chm/{key}.tif"), accept=_ABSENT)
        if answer.status in _ABSENT:
            return None
        return Source(f"{key}.tif", answer.total_bytes or 0, answer.etag or answer.headers.get("last-modified", ""))

    def _read_tile(self, key: str, window: PixelWindow) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Return stored heights and the publisher's mask of a block."""
        side = self.product.tile_px
        part = Window(window.col0 % side, window.row0 % side, window.width, window.height)
        url = self._url(f"chm/{key}.tif")
        with RemoteRaster(open_ranges(Ranges(self.client, url), url)) as raster:
            self._require_tile(raster, key)
            stored = raster.read(part, [1])[0]
            # GDAL's answer for a raster without a mask is "all known": asked only where there is one.
            flags = {flag.name for flag in raster.dataset.mask_flag_enums[0]}
            own = self.product.own_mask and "per_dataset" in flags and "alpha" not in flags
            mask = (raster.read_mask(part) > 0).astype(np.uint8) if own else None
        if mask is None and not self.product.own_mask:
            mask = self._mask_file(key, part)
        return stored, np.full(window.shape, 255, np.uint8) if mask is None else mask

    def _mask_file(self, key: str, part: Window) -> NDArray[np.uint8] | None:
        """Return the mask of version 1, a file of its own; None where there is none."""
        url = self._url(f"msk/{key}.tif.msk")
        if self.client.head(url, accept=_ABSENT).status in _ABSENT:
            return None
        with RemoteRaster(open_ranges(Ranges(self.client, url), url)) as raster:
            return np.asarray(raster.read(part, [1])[0] > 0, np.uint8)

    def _require_tile(self, raster: RemoteRaster, key: str) -> None:
        """Refuse a tile that does not lie where its name says."""
        source, side = raster.dataset, self.product.tile_px
        col, row = from_quadkey(key)[1:]
        corner = self.transform * (col * side, row * side)
        off = max(abs(source.transform.c - corner[0]), abs(source.transform.f - corner[1]))
        if source.shape != (side, side) or source.dtypes[0] != "uint8" or off > abs(self.transform.a) / 2:
            raise SourceError(
                f"{raster.name}: {source.width} x {source.height} px of {source.dtypes[0]} at "
                f"{source.transform.c:.1f}, {source.transform.f:.1f}; {side} x {side} px of uint8 at "
                f"{corner[0]:.1f}, {corner[1]:.1f} expected"
            )

    def _read_footprints(self, key: str) -> Footprints | None:
        """Return the outlines of a tile's imagery; None where they are not published."""
        answer = self.client.get(
            self._url(f"metadata/{key}.geojson"), accept=_ABSENT, limit_bytes=_METADATA_BYTES
        )  # fmt: skip
        return None if answer.status in _ABSENT else parse_footprints(answer.content, answer.url)

    def _url(self, path: str) -> str:
        return f"{self.product.address}/{path}"


def meta_map(name: str, client: HttpClient, address: str | None = None) -> MetaMap:
    """Return a version of the map.

    Args:
        name: meta-v1 or meta-v2.
        client: Client that sends the requests.
        address: Folder of a copy, in place of the publisher's.
    """
    product = PRODUCTS[name]
    return MetaMap(client, replace(product, address=address.rstrip("/")) if address else product)


def parse_footprints(content: bytes, origin: str) -> Footprints:
    """Read the outlines of a tile's imagery, in degrees or in web mercator, with their days.

    Raises:
        SourceError: The document is no collection of polygons.
    """
    try:
        document = json.loads(content)
        features = [feature for feature in document["features"] if feature.get("geometry")]
        outlines = np.array([shapely.geometry.shape(feature["geometry"]) for feature in features], dtype=object)
        days = [days_since_1970((feature.get("properties") or {}).get("acq_date")) for feature in features]
    except (ValueError, LookupError, TypeError, AttributeError, shapely.errors.ShapelyError) as error:
        raise SourceError(f"{origin}: no collection of polygons: {one_line(error, 100)}") from error
    bounds = shapely.total_bounds(outlines) if len(outlines) else np.zeros(4)
    if np.abs(bounds).max() <= 360:
        move = Transformer.from_crs("OGC:CRS84", "EPSG:3857", always_xy=True)
        outlines = shapely.transform(outlines, lambda xy: np.column_stack(move.transform(xy[:, 0], xy[:, 1])))
    # The newest is burnt last, over what it overlaps.
    order = np.argsort(days, kind="stable")
    return Footprints(outlines[order], np.array(days, np.uint16)[order])


def burn(
    footprints: Footprints, shape: tuple[int, int], transform: Affine
) -> tuple[NDArray[np.bool_], NDArray[np.uint16]]:
    """Return where footprints lie, and the day of the newest.

    Args:
        footprints: Outlines.
        shape: Rows and columns of the grid.
        transform: Transform of the grid.

    Returns:
        (h, w) whether a pixel's centre was imaged, and its day, 0 where unknown.
    """
    numbers = np.zeros(shape, np.int32)
    west, north = transform.c, transform.f
    grid = shapely.box(west, north + transform.e * shape[0], west + transform.a * shape[1], north)
    near = np.flatnonzero(shapely.intersects(footprints.outlines, grid).astype(bool))
    shapes: list[tuple[Any, int]] = [(footprints.outlines[number], int(number) + 1) for number in near]
    if shapes:
        rasterize(shapes, out=numbers, transform=transform)
    days = np.concatenate([[0], footprints.days]).astype(np.uint16)
    return numbers > 0, days[numbers]


def _nothing(shape: tuple[int, int]) -> Values:
    return Values(
        np.full(shape, np.nan, np.float32), np.zeros(shape, np.uint16), np.full(shape, 255, np.uint8)
    )  # fmt: skip


def quadkey(col: int, row: int, zoom: int) -> str:
    """Return the quadkey of a tile of web mercator: each digit carries one bit of column and row."""
    return "".join(str((col >> bit & 1) + 2 * (row >> bit & 1)) for bit in reversed(range(zoom)))
