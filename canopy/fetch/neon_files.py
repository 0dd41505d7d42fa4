"""What NEON has of a site: visits, tiles and files, read from listings in random order with all kinds of files."""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from canopy.credentials import Secret
from canopy.errors import SourceError
from canopy.fetch.options import Years
from canopy.http import Answer, HttpClient, excerpt

API = "https://data.neonscience.org/api/v0"
PRODUCTS = {"image": "DP3.30010.001", "chm": "DP3.30015.001", "clouds": "DP1.30003.001"}
"""Product of each part of a scene: camera mosaic, canopy height model, classified point clouds."""
SHARED_FLIGHTS = {
    "BARC": "OSBS", "BIGC": "SOAP", "BLDE": "YELL", "BLWA": "DELA", "CARI": "BONA", "CHEQ": "STEI", "COMO": "NIWO",
    "CRAM": "UNDE", "DCFS": "WOOD", "FLNT": "JERC", "KING": "KONZ", "KONA": "KONZ", "LEWI": "BLAN", "MART": "WREF",
    "MAYF": "TALL", "POSE": "SCBI", "PRLA": "WOOD", "PRPO": "WOOD", "SUGG": "OSBS", "TECR": "TEAK", "TOMB": "LENO",
    "TOOK": "TOOL", "TREE": "STEI",
}  # fmt: skip
"""Sites without flights of their own, and the site under whose name the flight that covers them is published."""
TILE_M = 1000
"""Side of a tile, metres."""
_NAMES = {
    "image": re.compile(r"\d{4}_[A-Z]{4}_\d+_(\d{6})_(\d{7})_image\.tif"),
    "chm": re.compile(r"NEON_D\d\d_[A-Z]{4}_DP3_(\d{6})_(\d{7})_CHM\.tif"),
    "clouds": re.compile(r"NEON_D\d\d_[A-Z]{4}_DP1_(\d{6})_(\d{7})_classified_point_cloud(?:_colorized)?\.laz"),
}
"""File names of a tile: its south-west corner in metres of the site's UTM zone."""
_VISIT = re.compile(r"(?:^|/)(\d{4}_[A-Z]{4}_\d+)(?:/|_\d{6}_\d{7}_)")
_SITE = re.compile(r"[A-Z]{4}")
_LOG = logging.getLogger(__name__)

Tile = tuple[int, int]
"""Easting and northing of a tile's south-west corner, metres."""


@dataclass(frozen=True)
class NeonFile:
    """A file of a listing."""

    name: str
    """Name."""
    url: str = field(repr=False)
    """Address, perhaps signed and valid for some days."""
    size: int
    """Bytes."""
    crc32c: str | None
    """CRC-32C in hexadecimal digits, perhaps without leading zeros; None where the listing has none."""
    kind: str
    """Part of a scene: image, chm or clouds."""
    month: str
    """Month under which it is listed, ``2018-06``."""
    tile: Tile
    """South-west corner of its tile."""
    visit: str
    """Flight campaign, ``2018_TEAK_3``."""


@dataclass
class Visit:
    """Files of one flight campaign over a site."""

    name: str
    """Name, ``2018_TEAK_3``; the number counts the visits to the site."""
    files: dict[str, dict[Tile, NeonFile]] = field(default_factory=dict)
    """File of each tile, by part of a scene."""
    releases: set[str] = field(default_factory=set)
    """Releases that the files belong to; PROVISIONAL ones may still change."""

    def tiles(self, kinds: Iterable[str]) -> list[Tile]:
        """Return the tiles that have all parts, in ascending order."""
        parts = [set(self.files.get(kind, {})) for kind in kinds]
        return sorted(set.intersection(*parts)) if parts else []

    @property
    def month(self) -> str:
        """First month under which its files are listed."""
        return min(file.month for files in self.files.values() for file in files.values())


@dataclass(frozen=True)
class Site:
    """A field site."""

    code: str
    """Four letters."""
    name: str
    """Name in words."""
    lonlat: tuple[float, float]
    """Its tower or stream: not the outline of a flight."""


class NeonApi:
    """NEON's data service."""

    def __init__(self, client: HttpClient, token: Secret, address: str = API) -> None:
        """Name the service.

        Args:
            client: Client that sends the requests.
            token: API token.
            address: Address of the service.
        """
        self.client, self._token, self._address = client, token, address.rstrip("/")

    def sites(self) -> list[Site]:
        """Return all field sites."""
        sites = []
        for entry in self._data("sites"):
            lon, lat = entry.get("siteLongitude"), entry.get("siteLatitude")
            if lon is not None and lat is not None:
                sites.append(Site(str(entry["siteCode"]), str(entry.get("siteName", "")), (float(lon), float(lat))))
        return sites

    def months(self, site: str) -> dict[str, tuple[str, ...]]:
        """Return the months in which a site has each part of a scene."""
        products = self._data(f"sites/{site}").get("dataProducts") or []
        months = {entry.get("dataProductCode"): tuple(entry.get("availableMonths") or ()) for entry in products}
        return {kind: months.get(code, ()) for kind, code in PRODUCTS.items()}

    def files(self, kind: str, site: str, month: str) -> tuple[list[NeonFile], str]:
        """Return the files of a part that are tiles of it, and the release that they belong to."""
        data = self._data(f"data/{PRODUCTS[kind]}/{site}/{month}")
        files = [file for entry in data.get("files") or [] if (file := _tile_file(kind, month, entry))]
        return files, str(data.get("release") or "")

    def download_headers(self, url: str) -> dict[str, Secret]:
        """Return the headers of a download: the token is for NEON's own hosts, not for the store that it signs for."""
        host, own = urlsplit(url).netloc, urlsplit(self._address).netloc
        return {"X-API-TOKEN": self._token} if host == own or host.endswith(".neonscience.org") else {}

    def fresh_url(self, file: NeonFile) -> str:
        """Return a new address of a file: those of a listing expire after some days."""
        site = file.visit.split("_")[1] if _VISIT.match(f"{file.visit}/") else file.name.split("_")[2]
        files, _ = self.files(file.kind, site, file.month)
        fresh = next((one for one in files if one.name == file.name and one.visit == file.visit), None)
        if fresh is None:
            raise SourceError(f"{file.name}: no longer listed for {site} {file.month}")
        if (fresh.size, fresh.crc32c) != (file.size, file.crc32c):
            raise SourceError(f"{file.name}: replaced by its publisher during the run; run again")
        return fresh.url

    def _data(self, path: str) -> Any:
        """Return the data of an answer; what is wrong becomes one line."""
        url, headers = f"{self._address}/{path}", {"X-API-TOKEN": self._token}
        answer = self.client.get(url, headers=headers, accept=(400, 401, 403))
        if answer.status in (401, 403):
            raise SourceError(
                f"{answer.url}: NEON refuses the token (status {answer.status}); make a new one on your page of "
                "data.neonscience.org/myaccount and set NEON_TOKEN",
                answer.status,
            )
        document = _document(answer)
        if answer.status == 400:
            details = "; ".join(str(error.get("detail")) for error in document.get("errors") or [] if error)
            raise SourceError(f"{answer.url}: {excerpt((details or 'refused').encode())}", 400)
        data = document.get("data")
        if data is None:
            raise SourceError(f"{answer.url}: an answer without the key data, which was expected", answer.status)
        return data


def _document(answer: Answer) -> dict[str, Any]:
    document = answer.json()
    if not isinstance(document, dict):
        raise SourceError(f"{answer.url}: a list, a document with the key data expected", answer.status)
    return document


def _tile_file(kind: str, month: str, entry: Mapping[str, Any]) -> NeonFile | None:
    """Return the file of an entry; None for outlines, flight logs, checksums and whatever else is listed."""
    name, url = str(entry.get("name") or ""), str(entry.get("url") or "")
    match = _NAMES[kind].fullmatch(name)
    if match is None or not url:
        return None
    path = url.partition("?")[0]
    # The folder says the flight; two visits of one month differ in nothing else.
    visit = _VISIT.search(path.rpartition("/")[0] + "/") or _VISIT.search(name)
    size = entry.get("size")
    return NeonFile(
        name, url, int(size) if size else 0, entry.get("crc32c") or None, kind, month, (int(match[1]), int(match[2])),
        visit[1] if visit else month,
    )  # fmt: skip


def flight_site(site: str) -> str:
    """Return the site under whose name the flights over a site are published.

    Raises:
        SourceError: The name is no site's.
    """
    code = site.strip().upper()
    if not _SITE.fullmatch(code):
        raise SourceError(f"--site {site!r}: the four letters of a NEON site expected, such as TEAK")
    return SHARED_FLIGHTS.get(code, code)


def choose_visit(api: NeonApi, site: str, years: Years, kinds: Sequence[str], name: str | None = None) -> Visit:
    """Return the newest visit of a site that has all parts of a scene.

    Args:
        api: Service.
        site: Site under whose name the flights are published.
        years: Years that are looked at.
        kinds: Parts that are needed; all must be of one visit.
        name: Visit that an earlier run chose.

    Raises:
        SourceError: No such visit.
    """
    available = api.months(site)
    months = sorted({month for kind in kinds for month in available[kind]}, reverse=True)
    chosen = [month for month in months if int(month[:4]) in years]
    if not chosen:
        listed = ", ".join(sorted(months)) or "none"
        raise SourceError(f"{site}: no flights in {str(years) or 'any year'}; months with data: {listed}")
    visits: dict[str, Visit] = {}
    # A visit may be listed under a different month in another product, so months are added up until one is complete.
    for month in chosen:
        for kind in kinds:
            if month in available[kind]:
                _add_files(visits, *api.files(kind, site, month))
        complete = [visit for visit in visits.values() if visit.tiles(kinds) and name in (None, visit.name)]
        if complete:
            newest = max(complete, key=lambda visit: _visit_order(visit.name))
            _say_passed_over(visits, newest, kinds)
            return newest
    lacking = "; ".join(f"{visit.name} has no {_lacking(visit, kinds)}" for visit in visits.values())
    raise SourceError(f"{site}: no visit with {', '.join(kinds)} of one flight in {', '.join(chosen)}: {lacking}")


def _add_files(visits: dict[str, Visit], files: Sequence[NeonFile], release: str) -> None:
    for file in files:
        visit = visits.setdefault(file.visit, Visit(file.visit))
        visit.files.setdefault(file.kind, {})[file.tile] = file
        visit.releases.add(release)


def _visit_order(name: str) -> tuple[int, int, str]:
    """Return what sorts visits by year and number: 2019_TEAK_10 comes after 2019_TEAK_9."""
    year, _, rest = name.partition("_")
    number = rest.rpartition("_")[2]
    return int(year[:4]) if year[:4].isdigit() else 0, int(number) if number.isdigit() else 0, name


def _lacking(visit: Visit, kinds: Sequence[str]) -> str:
    lacking = [kind for kind in kinds if not visit.files.get(kind)]
    return ", ".join(f"{kind} ({PRODUCTS[kind]})" for kind in lacking) or "tile with all parts"


def _say_passed_over(visits: Mapping[str, Visit], newest: Visit, kinds: Sequence[str]) -> None:
    for visit in visits.values():
        if _visit_order(visit.name) > _visit_order(newest.name):
            _LOG.warning("visit %s has no %s: %s is taken", visit.name, _lacking(visit, kinds), newest.name)
