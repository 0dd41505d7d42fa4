"""Days of acquisition by place: what a map's band of dates contains."""

from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np
import rasterio.features
import shapely
from numpy.typing import NDArray
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from odc.geo.geom import Geometry
from shapely.geometry.base import BaseGeometry

from tiles.aoi import to_crs

UNKNOWN_DAY = 0
"""Day of a pixel whose acquisition is not known: 1970-01-01 itself is before all imagery."""
_EPOCH = date(1970, 1, 1)
_LAST = int(np.iinfo(np.uint16).max)


def day_number(moment: str) -> int:
    """Return the days from 1970-01-01 to a moment in ISO 8601; 0 where that is no day, or out of range."""
    try:
        days = (date.fromisoformat(moment.strip()[:10]) - _EPOCH).days
    except ValueError:
        return UNKNOWN_DAY
    return days if 0 < days <= _LAST else UNKNOWN_DAY


def day_of(datetime: str | None) -> int:
    """Return the day of a source's "moment" or "start/end"; 0 where it is unknown or the two are different days."""
    if datetime is None:
        return UNKNOWN_DAY
    first, _, last = datetime.partition("/")
    return day_number(first) if not last or day_number(first) == day_number(last) else UNKNOWN_DAY


def iso_day(days: int) -> str:
    """Return the date of a day number."""
    return (_EPOCH + timedelta(days=days)).isoformat()


@dataclass(frozen=True)
class Calendar:
    """Footprints with the day of their imagery; the first on a place counts."""

    footprints: tuple[BaseGeometry, ...]
    """Outlines in WGS84 degrees, the topmost first."""
    days: tuple[int, ...]
    """Day of each, counted from 1970-01-01."""

    @property
    def span(self) -> str | None:
        """First and last day as "start/end", ISO 8601; one date where they are the same, None without any."""
        dated = [day for day in self.days if day != UNKNOWN_DAY]
        if not dated:
            return None
        first, last = iso_day(min(dated)), iso_day(max(dated))
        return first if first == last else f"{first}/{last}"

    def on(self, geobox: GeoBox) -> NDArray[np.uint16]:
        """Return the day at each pixel centre of a GeoBox, (y, x) uint16, 0 where unknown."""
        out = np.full(geobox.shape, UNKNOWN_DAY, np.uint16)
        if geobox.crs is None:
            return out
        west, south, east, north = to_crs(geobox.extent, CRS("EPSG:4326")).boundingbox.bbox
        margin = 0.1 * max(east - west, north - south)
        # Clipped first: a footprint may reach far beyond the area of the GeoBox's CRS.
        near = shapely.box(west, south, east, north).buffer(margin)
        clipped = [(outline.intersection(near), day) for outline, day in zip(self.footprints, self.days, strict=True)]
        shapes = [
            (to_crs(Geometry(outline, "EPSG:4326"), geobox.crs).geom, day)
            for outline, day in clipped
            if day != UNKNOWN_DAY and outline.area > 0
        ]
        if shapes:
            # Later shapes are burnt over earlier ones, so the topmost comes last.
            rasterio.features.rasterize(reversed(shapes), out=out, transform=geobox.affine)
        return out


def constant_days(geobox: GeoBox, day: int) -> NDArray[np.uint16]:
    """Return one day for all pixels of a GeoBox."""
    return np.full(geobox.shape, day, np.uint16)
