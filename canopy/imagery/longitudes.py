"""Longitudes: imagery from 0 to 360 degrees, and imagery that crosses the antimeridian.

PROJ and GDAL return longitudes from -180 to 180. A raster beyond is moved by a whole turn; one that crosses gets a CRS
whose central meridian is its own, so that no pixel of it lies beyond.
"""

from functools import lru_cache
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from pyproj import CRS, Transformer
from pyproj.exceptions import CRSError, ProjError

Points = NDArray[np.float64]
_EDGE = 1e-9
"""Share of a turn by which a raster may reach beyond the antimeridian, as rounding does."""
_ORIGIN = "Longitude of natural origin"


@lru_cache(maxsize=256)
def turn(wkt: str) -> tuple[float, float] | None:
    """Measure a turn of the Earth in a CRS whose x is proportional to longitude; None in others.

    Returns:
        length: Units of a full turn.
        middle: The x halfway between the two ends.
    """
    try:
        crs = CRS.from_wkt(wkt)
        if crs.is_geographic:
            unit = crs.axis_info[0].unit_conversion_factor
            return 2 * np.pi / unit, 0.0
        to_crs = Transformer.from_crs("OGC:CRS84", wkt, always_xy=True)
        west, east = (np.array([lon, lon + 1, lon + 2, lon, lon + 1]) for lon in (-60.0, 30.0))
        lat = np.array([0.0, 0.0, 0.0, 50.0, 50.0])
        xs, ys = zip(*(to_crs.transform(lon, lat) for lon in (west, east)), strict=True)
    except (CRSError, ProjError):
        return None
    # Four steps along two parallels on each side of the world: equal only where x is proportional to longitude.
    steps = np.concatenate([np.diff(x)[[0, 1, 3]] for x in xs])
    flat = all(np.ptp(y[:3]) < 1e-3 and np.ptp(y[3:]) < 1e-3 for y in ys)
    if not (np.isfinite(steps).all() and steps[0] > 0 and flat and np.ptp(steps) <= 1e-6 * steps[0]):
        return None
    length = 360 * float(steps[0])
    origin = _parameter(crs.to_json_dict(), "False easting") or 0.0
    return length, origin


def recentred(wkt: str, left: float, right: float) -> tuple[str, float]:
    """Return the CRS and the shift in x with which a raster lies within one turn of its CRS.

    Args:
        wkt: The raster's CRS.
        left: Smallest x of the raster, in that CRS.
        right: Largest x.

    Returns:
        wkt: The CRS to use: its own, or one with another central meridian.
        shift: What to add to the raster's x.
    """
    measured = turn(wkt)
    if measured is None or not (np.isfinite(left) and np.isfinite(right)):
        return wkt, 0.0
    length, middle = measured
    # Whole turns bring the middle between the two ends.
    turns = float(np.floor(((left + right) / 2 - middle) / length + 0.5))
    if abs(turns) > 1:
        return wkt, 0.0
    shift = -length * turns
    # An edge may lie on the antimeridian itself, but not beyond.
    reach = max(abs(left + shift - middle), abs(right + shift - middle))
    if reach <= length * (0.5 + _EDGE):
        return wkt, shift
    centre = (left + right) / 2 + shift - middle
    moved = _moved(wkt, 360 * centre / length)
    return (wkt, shift) if moved is None else (moved, shift - centre)


def _moved(wkt: str, degrees: float) -> str | None:
    """Return a CRS whose central meridian lies further east; None where it cannot be moved."""
    try:
        document = CRS.from_wkt(wkt).to_2d().to_json_dict()
        crs = _horizontal(document)
        if crs["type"] == "GeographicCRS":
            ensemble = crs.pop("datum_ensemble", None)
            datum = crs.setdefault("datum", ensemble and _datum(ensemble))
            meridian = datum.get("prime_meridian", {}).get("longitude", 0)
            meridian = meridian["value"] if isinstance(meridian, dict) else meridian
            datum["prime_meridian"] = {"name": "middle of the imagery", "longitude": meridian + degrees}
        else:
            (origin,) = [p for p in crs["conversion"]["parameters"] if p["name"] == _ORIGIN]
            origin["value"] += degrees
        # Without its code: PROJ would look the code up and undo the change.
        crs.pop("id", None)
        crs["name"] = f"{crs['name']} around the middle of the imagery"
        return CRS.from_json_dict(document).to_wkt()
    except (CRSError, ProjError, KeyError, ValueError, TypeError):
        return None


def _horizontal(document: dict[str, Any]) -> dict[str, Any]:
    """Return the geographic or projected part of a compound or bound CRS."""
    while document["type"] in ("CompoundCRS", "BoundCRS"):
        document = document["components"][0] if document["type"] == "CompoundCRS" else document["source_crs"]
    if document["type"] not in ("GeographicCRS", "ProjectedCRS"):
        raise KeyError(document["type"])
    return document


def _datum(ensemble: dict[str, Any]) -> dict[str, Any]:
    """Return the datum of an ensemble, which has no prime meridian of its own."""
    return {"type": "GeodeticReferenceFrame", "name": ensemble["name"], "ellipsoid": ensemble["ellipsoid"]}


def _parameter(document: dict[str, Any], name: str) -> float | None:
    """Return a parameter of a projected CRS; None where it has none of this name."""
    try:
        parameters = _horizontal(document)["conversion"]["parameters"]
    except KeyError:
        return None
    values = [p["value"] for p in parameters if p["name"] == name]
    return float(values[0]) if values else None


def wrapped(lon: Points) -> Points:
    """Return longitudes from -180 to 180 degrees."""
    return (lon + 180) % 360 - 180


def polygon(lon: Points, lat: Points) -> Any:
    """Return the polygon of a ring of longitudes and latitudes, cut at the antimeridian.

    A ring around a pole becomes all longitudes from its lowest latitude to the pole.
    """
    # Steps between corners are far below half a turn, so unwrapping finds the true ring.
    ring = np.unwrap(np.append(lon, lon[0]), period=360)
    if abs(ring[-1] - ring[0]) > 180:
        south, north = (lat.min(), 90.0) if lat.mean() > 0 else (-90.0, lat.max())
        return shapely.box(-180, south, 180, north)
    ring = ring[:-1] - 360 * np.round(np.mean(ring[:-1]) / 360)
    if ring.min() >= -180 and ring.max() <= 180:
        return shapely.Polygon(np.column_stack([ring, lat]))
    # Cut into one piece for each turn that the ring reaches, and move the pieces back.
    whole = shapely.make_valid(shapely.Polygon(np.column_stack([ring, lat])))
    turns = range(int(np.floor((ring.min() + 180) / 360)), int(np.ceil((ring.max() + 180) / 360)))
    pieces = [
        shapely.transform(shapely.intersection(whole, shapely.box(k * 360 - 180, -90, k * 360 + 180, 90)), _back(k))
        for k in turns
    ]
    return shapely.unary_union(pieces)


def _back(turns: int) -> Any:
    return lambda xy: xy - [360 * turns, 0]
