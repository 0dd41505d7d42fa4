"""What a user asks for: an area, years, and a folder."""

import hashlib
import math
import re
from dataclasses import dataclass

import shapely
from odc.geo.crs import CRS
from odc.geo.geom import Geometry

from canopy.errors import ConfigError
from tiles.aoi import to_crs

Box = tuple[float, float, float, float]
"""West, south, east, north."""
_DEGREES = CRS("EPSG:4326")
_STEP_DEG = 1e-5
"""Services round boxes to five decimals: about a metre."""
_FIRST_YEAR, _LAST_YEAR = 1970, 2100


@dataclass(frozen=True)
class Years:
    """Years whose data are asked for."""

    years: tuple[int, ...] = ()
    """Years in ascending order; all years if empty."""

    @classmethod
    def parse(cls, text: str | None) -> "Years":
        """Return the years of a text such as ``2018,2020-2022``.

        Raises:
            ConfigError: The text is something else.
        """
        years: set[int] = set()
        for part in (text or "").split(",") if text else []:
            match = re.fullmatch(r"\s*(\d{4})\s*(?:-\s*(\d{4})\s*)?", part)
            first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
            if not _FIRST_YEAR <= first <= last <= _LAST_YEAR:
                raise ConfigError(f"--years {text!r}: years and ranges expected, such as 2018,2020-2022")
            years.update(range(first, last + 1))
        return cls(tuple(sorted(years)))

    def __contains__(self, year: int) -> bool:
        return not self.years or year in self.years

    def ranges(self) -> list[tuple[int, int]]:
        """Return the first and last year of each run of years; none where all years are asked for."""
        runs: list[tuple[int, int]] = []
        for year in self.years:
            runs[-1:] = [(runs[-1][0], year)] if runs and runs[-1][1] == year - 1 else [*runs[-1:], (year, year)]
        return runs

    def __str__(self) -> str:
        return ", ".join(f"{first}" if first == last else f"{first} to {last}" for first, last in self.ranges())


def lonlat_boxes(aoi: Geometry) -> list[Box]:
    """Return the boxes of an area in degrees between -180 and 180: two where it crosses the antimeridian."""
    west, south, east, north = to_crs(aoi, _DEGREES).boundingbox
    west, south = (math.floor(round(value / _STEP_DEG, 3)) * _STEP_DEG for value in (west, south))
    east, north = (math.ceil(round(value / _STEP_DEG, 3)) * _STEP_DEG for value in (east, north))
    south, north = max(south, -90.0), min(north, 90.0)
    if east - west >= 360:
        return [(-180.0, round(south, 5), 180.0, round(north, 5))]
    turns = math.floor((west + 180) / 360) * 360
    west, east = west - turns, east - turns
    parts = [(west, east)] if east <= 180 else [(west, 180.0), (-180.0, east - 360)]
    return [(round(w, 5), round(south, 5), round(e, 5), round(north, 5)) for w, e in parts]


def bounds_in(aoi: Geometry, crs: CRS) -> Box:
    """Return the box of an area in a CRS."""
    west, south, east, north = to_crs(aoi, crs).boundingbox
    return west, south, east, north


def area_identity(aoi: Geometry | None) -> str | None:
    """Return a digest of an area, by which a later run recognises it; None without an area."""
    if aoi is None:
        return None
    content = shapely.to_wkb(shapely.normalize(aoi.geom)) + str(aoi.crs).encode()
    return hashlib.sha256(content).hexdigest()[:16]


def crs_name(crs: CRS) -> str:
    """Return the shortest name of a CRS: its EPSG code where it has one."""
    code = crs.to_epsg()
    return f"EPSG:{code}" if code else str(crs)
