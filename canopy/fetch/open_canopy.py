"""Open-Canopy's lidar heights of France: 1.5 m rasters of single flights, listed by one VRT a year.

The VRT is read for its list alone: GDAL takes a missing member for nodata without a word. The unit of the stored
numbers is believed where the file states it, judged by their size where it does not, and asked for where that says
nothing.
"""

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from functools import lru_cache
from posixpath import dirname, join, normpath
from urllib.parse import quote

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from odc.geo.crs import CRS
from rasterio.windows import Window

from canopy.errors import ConfigError, SourceError, one_line
from canopy.fetch.options import Years
from canopy.fetch.published import Source, Values, days_since_1970
from canopy.fetch.remote import Ranges, RemoteRaster, open_ranges
from canopy.fetch.terms import Terms
from canopy.http import HttpClient
from tiles.windows import PixelWindow

ADDRESS = "https://huggingface.co/datasets/AI4Forest/Open-Canopy/resolve/main/canopy_height"
YEARS = (2021, 2022, 2023)
UNITS_M = {"m": 1.0, "dm": 0.1, "cm": 0.01}
TALLEST_M = 120.0
"""No tree is taller: larger numbers are of a smaller unit."""
_TERMS = Terms(
    "Open-Canopy: lidar canopy heights of France (lidar of IGN)",
    "etalab-2.0",
    "https://www.etalab.gouv.fr/licence-ouverte-open-licence/",
    "Fogel, F. et al. (2025). Open-Canopy: Towards Very High Resolution Forest Monitoring. CVPR. Lidar: IGN.",
)
_DATE = re.compile(r"_(\d{4})(\d\d)(\d\d)\d*\.tif$")
_VRT_BYTES = 16 * 2**20
_QUANTILE = 99.9
_LOOK_PX = 512


@dataclass(frozen=True)
class Flight:
    """A raster of one flight."""

    url: str
    """Address."""
    window: PixelWindow
    """Pixels of the lattice that it covers."""
    days: int
    """Day of the flight since 1970-01-01; 0 where its name says none."""

    @property
    def name(self) -> str:
        """Name of the file."""
        return self.url.rpartition("/")[2]


@dataclass
class OpenCanopyMap:
    """The lidar heights, read by ranges."""

    client: HttpClient
    """Client that sends the requests."""
    address: str
    """Folder with a folder of each year."""
    unit: str | None
    """Unit of the stored numbers, in place of what the files say."""
    years: Years
    """Years that are looked at."""
    units: set[str] = field(default_factory=set)
    """What was believed of the units, for the remarks."""
    name: str = "open-canopy"
    """Name on the command line."""
    terms: Terms = _TERMS
    """Licence and citation."""

    def __post_init__(self) -> None:
        """List the flights of all years.

        Raises:
            ConfigError: No such unit.
            SourceError: No year is published, or a list cannot be read.
        """
        if self.unit is not None and self.unit not in UNITS_M:
            raise ConfigError(f"--unit {self.unit}: {', '.join(UNITS_M)} expected")
        self._source = lru_cache(maxsize=4096)(self._look_up)
        self._units_m: dict[str, float] = {}
        lists = []
        for year in YEARS:
            if year in self.years:
                answer = self.client.get(f"{self.address}/{year}/lidar.vrt", accept=(404,), limit_bytes=_VRT_BYTES)
                if answer.status == 200:
                    lists.append(_parse(answer.content, f"{self.address}/{year}", answer.url))
        if not lists:
            raise SourceError(f"open-canopy has no heights of {str(self.years) or 'any year'}; it has 2021 to 2023")
        self.crs, self.transform = lists[-1].crs, lists[-1].transform
        self.flights: list[Flight] = []
        for listed in lists:
            self.flights += _on_lattice(listed, self.crs, self.transform)
        # Newer flights are read later, over what they overlap.
        self.flights.sort(key=lambda flight: flight.days)

    def sources(self, window: PixelWindow) -> list[Source]:
        """Return the flights that cover a part of a window."""
        return [self._source(flight.url) for flight in self.flights if flight.window.intersect(window)]

    def read(self, window: PixelWindow) -> Values:
        """Read a block."""
        height_m = np.full(window.shape, np.nan, np.float32)
        days = np.zeros(window.shape, np.uint16)
        for flight in self.flights:
            common = flight.window.intersect(window)
            if common is None:
                continue
            part = self._read_flight(flight, common)
            rows, cols = common.slices_in(window)
            valid = ~np.isnan(part)
            height_m[rows, cols][valid] = part[valid]
            days[rows, cols][valid] = flight.days
        return Values(height_m, days, np.full(window.shape, 255, np.uint8))

    def remarks(self) -> list[str]:
        """Return what a user must know of what was read."""
        return ["heights measured by airborne lidar, not by a model", *sorted(self.units)]

    def _read_flight(self, flight: Flight, common: PixelWindow) -> NDArray[np.float32]:
        with RemoteRaster(open_ranges(Ranges(self.client, flight.url), flight.url)) as raster:
            source = raster.dataset
            # Members may lie a fraction of a pixel off the lattice: the nearest pixel is taken.
            row, col = common.row0 - flight.window.row0, common.col0 - flight.window.col0
            height, width = min(common.height, source.height - row), min(common.width, source.width - col)
            part = np.full(common.shape, np.nan, np.float32)
            stored = raster.read(Window(col, row, width, height), [1])[0].astype(np.float64)
            if source.nodata is not None:
                stored[stored == source.nodata] = np.nan
            else:
                self.units.add("no nodata is declared: a 0 may be ground that was never flown over")
            if flight.url not in self._units_m:
                self._units_m[flight.url] = self._unit_m(raster)
            part[:height, :width] = stored * self._units_m[flight.url]
            return part

    def _unit_m(self, raster: RemoteRaster) -> float:
        source = raster.dataset
        stated = (source.units[0] or "").lower()
        if self.unit is not None:
            unit = self.unit
        elif source.scales[0] != 1:
            return float(source.scales[0])
        elif stated in UNITS_M or stated in ("metre", "meter", "metres", "meters"):
            unit = stated if stated in UNITS_M else "m"
        elif np.dtype(source.dtypes[0]).kind == "f":
            unit = "m"
        else:
            unit = _judge_unit(raster)
            self.units.add(f"stored numbers are taken for {unit}, by their size: --unit says otherwise")
        return UNITS_M[unit]

    def _look_up(self, url: str) -> Source:
        answer = self.client.head(url)
        etag = answer.etag or answer.headers.get("last-modified", "")
        return Source(url.rpartition("/")[2], answer.total_bytes or 0, etag)


def _judge_unit(raster: RemoteRaster) -> str:
    """Return the unit in which the tallest trees are no taller than trees are, read from an overview.

    Raises:
        SourceError: The numbers say nothing: they are small, or there is no overview.
    """
    source = raster.dataset
    if source.overviews(1):
        stored = raster.read_overview(_LOOK_PX)
        valid = stored[stored != source.nodata] if source.nodata is not None else stored
        tallest = float(np.percentile(valid, _QUANTILE)) if valid.size else 0.0
        for unit in ("dm", "cm"):
            if tallest > TALLEST_M and tallest * UNITS_M[unit] <= TALLEST_M:
                return unit
    raise SourceError(f"{raster.name}: does not state the unit of its heights: give --unit m, dm or cm")


@dataclass(frozen=True)
class _List:
    """Content of a VRT."""

    crs: CRS
    transform: Affine
    members: tuple[tuple[str, tuple[float, float, float, float]], ...]
    """Address, and column, row, width and height in the VRT's pixels."""


def _parse(content: bytes, folder: str, origin: str) -> _List:
    """Read the list of a VRT.

    Raises:
        SourceError: It is no VRT of files of its own folder.
    """
    try:
        if b"<!DOCTYPE" in content or b"<!ENTITY" in content:
            raise ValueError("a document type")
        root = ElementTree.fromstring(content)
        numbers = [float(part) for part in (root.findtext("GeoTransform") or "").split(",")]
        crs, transform = CRS(root.findtext("SRS") or ""), Affine.from_gdal(*numbers)
        members = []
        for source in root.iter():
            if source.tag in ("SimpleSource", "ComplexSource"):
                rect = source.find("DstRect")
                name = source.findtext("SourceFilename") or ""
                if rect is None:
                    raise ValueError(f"{name} has no DstRect")
                box = tuple(float(rect.attrib[key]) for key in ("xOff", "yOff", "xSize", "ySize"))
                members.append((_address(folder, name), (box[0], box[1], box[2], box[3])))
    except (ElementTree.ParseError, ValueError, TypeError, KeyError) as error:
        raise SourceError(f"{origin}: no VRT of rasters: {one_line(error, 100)}") from error
    return _List(crs, transform, tuple(dict.fromkeys(members)))


def _address(folder: str, name: str) -> str:
    """Return the address of a member; members elsewhere are refused."""
    path = normpath(name.replace("\\", "/"))
    if path.startswith(("/", "..")) or ":" in path:
        raise ValueError(f"{name} lies in another folder")
    return join(folder, quote(join(dirname(path), path.rpartition("/")[2])))


def _on_lattice(listed: _List, crs: CRS, transform: Affine) -> list[Flight]:
    """Return the flights of a list on the lattice of another year.

    Raises:
        SourceError: The lists differ in CRS or pixel size.
    """
    if listed.crs != crs or abs(listed.transform.a - transform.a) > 1e-6:
        raise SourceError("open-canopy's years differ in CRS or pixel size: name one year with --years")
    flights = []
    for url, (col, row, width, height) in listed.members:
        left, top = ~transform * (listed.transform * (col, row))
        match = _DATE.search(url)
        window = PixelWindow(round(top), round(left), max(1, round(height)), max(1, round(width)))
        flights.append(Flight(url, window, days_since_1970("-".join(match.groups())) if match else 0))
    return flights
