"""The STAC item of a height map: what it is, where, of when, made by which model, and the hash of its bytes.

Extensions: projection, raster, file and processing; eo only for the names of bands, by which odc-stac finds them.
The machine-learning-model extension (mlm) describes *models*: its schema demands the model's inputs, outputs and
weights in the item. A map has none, so it names its model in `canopy:model_*` and `processing:lineage` instead.
"""

import functools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path, PureWindowsPath
from typing import Any
from urllib.parse import quote

import numpy as np
import odc.geo
import rasterio
import shapely
import shapely.geometry
from numpy.typing import NDArray
from odc.geo.geom import Geometry
from pyproj import CRS, Transformer
from pyproj.exceptions import CRSError
from rasterio.windows import Window
from shapely.geometry.base import BaseGeometry

from tiles.aoi import flatten, keep_polygons, to_crs
from tiles.cog import CACHE_BYTES, UNIT, may_have_data
from tiles.errors import RasterError
from tiles.files import file_sha256
from tiles.ground import true_gsd_m
from tiles.pyramid import BLOCK_PX

UNKNOWN = "unknown"
EARLIEST = datetime(1900, 1, 1, tzinfo=UTC)
"""Start of the interval when the acquisition is unknown: no imagery to map canopies from is older."""

_EXTENSIONS = (
    "https://stac-extensions.github.io/projection/v2.0.0/schema.json",
    "https://stac-extensions.github.io/raster/v2.0.0/schema.json",
    "https://stac-extensions.github.io/file/v2.1.0/schema.json",
    "https://stac-extensions.github.io/processing/v1.2.0/schema.json",
    "https://stac-extensions.github.io/eo/v1.1.0/schema.json",
)
_COG_TYPE = "image/tiff; application=geotiff; profile=cloud-optimized"
_BAND = {"data_type": "float32", "nodata": "nan", "unit": UNIT, "raster:sampling": "area"}
_STYLE_TYPE = "application/xml"
_POINTS_PER_SIDE = 21
_MAX_CORNERS = 2000
"""Most corners of an area in an item; one with more is drawn more coarsely."""
_DIGITS = 7
"""Decimals of longitudes and latitudes: a centimetre."""
_DAY = timedelta(days=1)
_SECOND = timedelta(seconds=1)
_LONLAT = odc.geo.CRS("EPSG:4326")
_STRIP_PX = 2**13
"""Longest side of what is read at once for statistics, pixels."""


def height_item(
    path: Path,
    *,
    acquisition: str | None,
    created: datetime,
    model: Mapping[str, str],
    imagery: Sequence[str],
    bands: Sequence[str],
    version: str,
    calibration: Mapping[str, str] | None = None,
    terms: Mapping[str, str | None] | None = None,
    geometry: Mapping[str, Any] | None = None,
    name: str | None = None,
) -> dict[str, Any]:
    """Describe a height map as a STAC 1.1 item.

    An item must carry a time. An instant becomes `datetime`; a day becomes its first second and the interval;
    a longer span becomes the interval, with `datetime` null; an unknown time becomes the one interval that is
    certainly true, 1900 to `created`, and `canopy:acquisition_datetime` says "unknown".

    Args:
        path: The map; the item lies in the same folder, so its hrefs are relative.
        acquisition: Acquisition of the imagery, ISO 8601: year, month, day, instant (UTC where it names no offset), or
            two of these as "a/b". None or "unknown" where unknown.
        created: Time at which the map was made.
        model: "name", "sha256" and what else identifies the model; each becomes `canopy:model_<key>`.
        imagery: Identifiers of the imagery; written out, so without secrets. Of local files the item has the name
            alone: their folders are no concern of whoever gets the map.
        bands: Band names in order.
        version: Version of Canopy.
        calibration: Kind and sha256 of the calibration, if any; each key becomes `canopy:calibration_<key>`.
        terms: What the imagery's provider asks, by "licence" and "attribution"; what is there becomes
            `canopy:imagery_<key>`.
        geometry: GeoJSON of the mapped area in longitude and latitude; the outline of the raster by default.
        name: File name that a draft is going to have; that of `path` by default.

    Returns:
        A plain JSON object.

    Raises:
        RasterError: The map cannot be read, or the acquisition cannot be understood.
    """
    projection, outline, statistics = _georeference(path)
    name = name or path.name
    imagery = [public_name(uri) for uri in imagery]
    area = outline if geometry is None else shapely.geometry.shape(dict(geometry))
    item = {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": list(_EXTENSIONS),
        "id": Path(name).stem,
        "geometry": shapely.geometry.mapping(area),
        "bbox": _bbox(area),
        "properties": {
            **acquisition_times(acquisition, created),
            "created": _rfc3339(created),
            "canopy:acquisition_datetime": acquisition or UNKNOWN,
            "canopy:imagery": imagery,
            **{f"canopy:model_{key}": value for key, value in model.items()},
            **{f"canopy:calibration_{key}": value for key, value in (calibration or {}).items()},
            **{f"canopy:imagery_{key}": value for key, value in (terms or {}).items() if value},
            **projection,
            **_processing(model, imagery, version),
        },
        "links": [],
        "assets": _assets(path, name, bands, statistics),
    }
    plain: dict[str, Any] = json.loads(json.dumps(item, allow_nan=False))
    return plain


def footprint(area: Geometry) -> dict[str, Any]:
    """Return an area as GeoJSON: longitude and latitude, cut at the antimeridian, of at most 2,000 corners or so.

    Args:
        area: Area of interest, in any CRS.
    """
    lonlat = to_crs(area, _LONLAT).geom
    tolerance = 10.0**-_DIGITS
    while shapely.get_num_coordinates(lonlat) > _MAX_CORNERS and tolerance < 1:
        tolerance *= 4
        lonlat = shapely.simplify(lonlat, tolerance)
    parts = [part for polygon in keep_polygons(flatten(lonlat)) for part in _turned_parts(polygon)]
    document: dict[str, Any] = shapely.geometry.mapping(_joined(parts))
    return document


def public_name(uri: str) -> str:
    """Return how an item names imagery: an address as it is, a local file by its name."""
    scheme, separator, rest = uri.partition("://")
    if separator and scheme != "file":
        return uri
    return PureWindowsPath(rest if separator else uri).name or uri


def _rfc3339(moment: datetime) -> str:
    utc = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    return utc.replace(microsecond=0, tzinfo=None).isoformat() + "Z"


def acquisition_times(acquisition: str | None, created: datetime) -> dict[str, str | None]:
    """STAC's time properties of an acquisition date or ``start/end`` range.

    Raises:
        RasterError: The text is not ISO 8601, or the end comes first.
    """
    if acquisition is None or acquisition == UNKNOWN:
        return {"datetime": None, "start_datetime": _rfc3339(EARLIEST), "end_datetime": _rfc3339(created)}
    first, _, second = acquisition.partition("/")
    start, end = _span(first)[0], _span(second or first)[1]
    if end < start:
        raise RasterError(f"acquisition is {acquisition!r}, expected the earlier time first; swap the two")
    if start == end:
        return {"datetime": _rfc3339(start)}
    nominal = _rfc3339(start) if end - start < _DAY else None
    return {"datetime": nominal, "start_datetime": _rfc3339(start), "end_datetime": _rfc3339(end)}


def _span(text: str) -> tuple[datetime, datetime]:
    """First and last second of a year, a month, a day or an instant, in UTC."""
    text = text.strip()
    try:
        if re.fullmatch(r"\d{4}", text):
            start = datetime(int(text), 1, 1, tzinfo=UTC)
            return start, start.replace(month=12, day=31) + _DAY - _SECOND
        if re.fullmatch(r"\d{4}-\d{2}", text):
            start = datetime(int(text[:4]), int(text[5:]), 1, tzinfo=UTC)
            return start, (start + 31 * _DAY).replace(day=1) - _SECOND
        start = datetime.fromisoformat(text)
    except ValueError as error:
        raise RasterError(
            f"acquisition is {text!r}, expected ISO 8601 such as 2020-06-01 or 2019/2021, or 'unknown'; correct it"
        ) from error
    start = start.replace(tzinfo=UTC) if start.tzinfo is None else start.astimezone(UTC)
    is_day = len(text) <= len("2020-06-01")
    return start, start + _DAY - _SECOND if is_day else start


def _georeference(path: Path) -> tuple[dict[str, Any], BaseGeometry, list[dict[str, float]]]:
    """The projection fields of a map, its outline in longitude and latitude, and the statistics of its bands."""
    try:
        with rasterio.open(path) as src:
            crs = CRS.from_user_input(src.crs or "")
            shape, transform, bounds = src.shape, src.transform, src.bounds
            statistics = _statistics(src)
    except (OSError, CRSError) as error:
        raise RasterError(
            f"{path}: cannot read its georeference ({error}), expected a height map with a CRS"
        ) from error
    authority = crs.to_authority()
    fields: dict[str, Any] = {
        "proj:code": ":".join(authority) if authority else None,
        "proj:shape": list(shape),
        "proj:transform": list(transform)[:6],
        "proj:bbox": list(bounds),
    }
    if not authority:
        fields["proj:wkt2"] = crs.to_wkt()
    # To the millimetre: the projection's scale is no property of the map.
    fields["gsd"] = round(true_gsd_m(transform, shape, crs), 3)
    return fields, _outline(crs, *bounds), statistics


def _outline(crs: CRS, left: float, bottom: float, right: float, top: float) -> BaseGeometry:
    """The rectangle in longitude and latitude, sides densified, cut at the antimeridian (RFC 7946, 3.1.9)."""
    ahead = np.linspace(0, 1, _POINTS_PER_SIDE)[:-1]
    back = 1 - ahead
    x = left + (right - left) * np.concatenate([ahead, ahead * 0 + 1, back, ahead * 0])
    y = bottom + (top - bottom) * np.concatenate([ahead * 0, ahead, ahead * 0 + 1, back])
    lon, lat = Transformer.from_crs(crs, 4326, always_xy=True).transform(x, y)
    turns = np.unwrap([*lon, lon[0]], period=360)
    if round((turns[-1] - turns[0]) / 360):
        south, north = (float(lat.min()), 90.0) if lat.mean() > 0 else (-90.0, float(lat.max()))
        return shapely.box(-180, south, 180, north)
    ring = shapely.Polygon(np.column_stack([turns[:-1], lat]))
    return _joined(list(_turned_parts(ring)))


def _turned_parts(polygon: shapely.Polygon) -> Iterator[shapely.Polygon]:
    """Cut a polygon of continuous longitudes at the antimeridian, and turn each part to -180 to 180 degrees."""
    for west in (-540, -180, 180):
        clipped = shapely.clip_by_rect(polygon, west, -90, west + 360, 90)
        for part in keep_polygons(flatten(clipped)):
            corners = functools.partial(_turned, turn=west + 180)
            turned = shapely.make_valid(shapely.transform(part, corners), method="structure", keep_collapsed=False)
            yield from (shapely.geometry.polygon.orient(piece) for piece in keep_polygons(flatten(turned)))


def _turned(lonlat: NDArray[np.float64], turn: float) -> NDArray[np.float64]:
    turned: NDArray[np.float64] = (lonlat - (turn, 0)).round(_DIGITS)
    return turned


def _joined(polygons: Sequence[shapely.Polygon]) -> BaseGeometry:
    return polygons[0] if len(polygons) == 1 else shapely.MultiPolygon(list(polygons))


def _bbox(area: BaseGeometry) -> list[float]:
    """West, south, east, north; west is greater than east across the antimeridian (RFC 7946, section 5.2)."""
    west, south, east, north = shapely.total_bounds(area).tolist()
    parts = shapely.get_parts(area)
    lows, highs = shapely.bounds(parts)[:, 0], shapely.bounds(parts)[:, 2]
    if len(parts) > 1 and west == -180 and east == 180:
        west, east = float(lows[lows >= 0].min(initial=180)), float(highs[highs <= 0].max(initial=-180))
    return [west, south, east, north]


def _processing(model: Mapping[str, str], imagery: Sequence[str], version: str) -> dict[str, Any]:
    weights = f" (sha256 {model['sha256']})" if "sha256" in model else ""
    return {
        "processing:level": "L4",
        "processing:software": {"canopy": version},
        "processing:lineage": (
            f"Canopy height above ground predicted by model {model.get('name', UNKNOWN)}{weights} "
            f"from imagery {', '.join(imagery) or UNKNOWN}."
        ),
    }


def _statistics(src: Any) -> list[dict[str, float]]:
    """Compute STAC's statistics of each band over all of its cells, a strip of blocks at a time."""
    with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES):
        return [_band_statistics(src, band) for band in src.indexes]


def _band_statistics(src: Any, band: int) -> dict[str, float]:
    count, mean, squares, low, high = 0, 0.0, 0.0, math.inf, -math.inf
    for row in range(0, src.height, BLOCK_PX):
        for col in range(0, src.width, _STRIP_PX):
            window = Window(col, row, min(_STRIP_PX, src.width - col), min(BLOCK_PX, src.height - row))
            if not may_have_data(src, window):
                continue
            values = src.read(band, window=window).astype(np.float64)
            values = values[np.isfinite(values)]
            if not values.size:
                continue
            # Chan et al. (1983): means and squared deviations of parts are joined without cancellation.
            shift, total = values.mean() - mean, count + values.size
            squares += ((values - values.mean()) ** 2).sum() + shift**2 * count * values.size / total
            mean += shift * values.size / total
            count, low, high = total, min(low, values.min()), max(high, values.max())
    share = 100 * count / (src.height * src.width)
    if not count:
        return {"valid_percent": share}
    deviation = math.sqrt(squares / count)
    numbers = {"minimum": low, "maximum": high, "mean": mean, "stddev": deviation, "valid_percent": share}
    return {key: float(value) for key, value in numbers.items()}


def _assets(path: Path, name: str, bands: Sequence[str], statistics: Sequence[dict[str, float]]) -> dict[str, Any]:
    assets: dict[str, Any] = {
        "canopy_height": {
            "href": f"./{quote(name)}",
            "type": _COG_TYPE,
            "title": "Canopy height above ground",
            "roles": ["data"],
            "file:size": path.stat().st_size,
            "file:checksum": "1220" + file_sha256(path),  # multihash: sha2-256, 32 bytes
            "bands": [
                {"name": band, **_BAND, "statistics": numbers} for band, numbers in zip(bands, statistics, strict=True)
            ],
            "eo:bands": [{"name": band} for band in bands],
        }
    }
    if path.with_suffix(".qml").exists():
        style = Path(name).with_suffix(".qml").name
        assets["style"] = {
            "href": f"./{quote(style)}",
            "type": _STYLE_TYPE,
            "title": "QGIS style",
            "roles": ["style"],
        }
    return assets
