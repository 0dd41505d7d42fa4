"""NASA's catalogue of granules (Common Metadata Repository): what GEDI measured over an area."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from canopy.errors import SourceError
from canopy.fetch.options import Box, Years
from canopy.http import HttpClient, excerpt

CMR = "https://cmr.earthdata.nasa.gov"
COLLECTIONS = {
    "L2A": {"V003": "C3974616071-LPCLOUD", "V002": "C2142771958-LPCLOUD"},
    "L2B": {"V003": "C3974616135-LPCLOUD", "V002": "C2142776747-LPCLOUD"},
    "L4A": {"V003": "C4212593885-ORNL_CLOUD"},
}
"""Collection of each product and version, the preferred version first."""
PAGE = 500
_MAX_PAGES = 200
_PASS = re.compile(r"_(\d{13}_O\d{5}_\d\d_T\d{5})_")
_UNITS = {"KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}


@dataclass(frozen=True)
class Granule:
    """A file of the archive: one product over a quarter of an orbit."""

    concept: str
    """Identifier in the catalogue."""
    name: str
    """Name of the granule."""
    version: str
    """V003 or V002."""
    bytes: int
    """Size of the whole file; 0 where the catalogue does not say."""
    url: str | None = field(default=None, repr=False)
    """Address of the whole file; None where the catalogue has none."""
    checksum: tuple[str, str] | None = None
    """Algorithm and digits that the catalogue states."""

    @property
    def overpass(self) -> str:
        """Time, orbit, segment and track: the same in all products and versions, whose names differ elsewhere."""
        match = _PASS.search(self.name)
        return match[1] if match else self.name


def search(
    client: HttpClient, collection: str, version: str, boxes: Sequence[Box], years: Years, address: str = CMR
) -> list[Granule]:
    """Return the granules of a collection whose ribbon crosses an area, each once, in the order of their names.

    Args:
        client: Client that sends the requests.
        collection: Identifier of the collection.
        version: Version of the collection.
        boxes: Area in degrees.
        years: Years of the measurements.
        address: Address of the catalogue.

    Raises:
        SourceError: The catalogue does not answer as it should, or leaves some out.
    """
    granules: dict[str, Granule] = {}
    for box in boxes:
        parameters = [
            ("collection_concept_id", collection),
            ("bounding_box", ",".join(f"{value:.5f}" for value in box)),
            *(("temporal[]", f"{first}-01-01T00:00:00Z,{last}-12-31T23:59:59Z") for first, last in years.ranges()),
            ("page_size", str(PAGE)),
        ]
        url = f"{address.rstrip('/')}/search/granules.umm_json_v1_6_6?{urlencode(parameters)}"
        granules |= {granule.concept: granule for granule in _pages(client, url, version)}
    return sorted(granules.values(), key=lambda granule: granule.name)


def _pages(client: HttpClient, url: str, version: str) -> list[Granule]:
    """Read all pages: each answer's CMR-Search-After is the next request's; the last one has none."""
    granules: list[Granule] = []
    headers: dict[str, str] = {}
    for _ in range(_MAX_PAGES):
        answer = client.get(url, headers=headers, accept=(400,))
        document = answer.json()
        if answer.status == 400:
            reasons = "; ".join(str(reason) for reason in document.get("errors") or ["bad request"])
            raise SourceError(f"{answer.url}: {excerpt(reasons.encode())}", 400)
        if not isinstance(document, dict) or not isinstance(document.get("items"), list):
            raise SourceError(f"{answer.url}: no list of items, granules in UMM-JSON expected", answer.status)
        granules += [_granule(item, version) for item in document["items"]]
        after = answer.headers.get("cmr-search-after")
        if after is None:
            break
        headers = {"CMR-Search-After": after}
    # The number of hits stays in every answer, the last one included, so a page that is left out shows.
    hits = answer.headers.get("cmr-hits", "")
    if hits.isdigit() and int(hits) != len(granules):
        raise SourceError(f"{answer.url}: {len(granules)} granules of {hits} came; run again", answer.status)
    return granules


def _granule(item: Mapping[str, Any], version: str) -> Granule:
    umm = item.get("umm") or {}
    name = str(umm.get("GranuleUR") or item["meta"]["native-id"])
    url = next((link for link in map(_data_link, umm.get("RelatedUrls") or []) if link), None)
    files = (umm.get("DataGranule") or {}).get("ArchiveAndDistributionInformation") or []
    # Of several files the data are the one that the link names; a checksum file may be listed too.
    named = [entry for entry in files if url and entry.get("Name") == url.rpartition("/")[2]]
    entry = (named or files or [{}])[0]
    checksum = entry.get("Checksum") or {}
    return Granule(
        str(item["meta"]["concept-id"]),
        name,
        version,
        _size(entry),
        url,
        (str(checksum["Algorithm"]), str(checksum["Value"])) if {"Algorithm", "Value"} <= set(checksum) else None,
    )


def _data_link(link: Mapping[str, Any]) -> str | None:
    """Return the address of the file itself: not of a landing page, a checksum, a service, or the same by S3."""
    address = str(link.get("URL") or "")
    return address if link.get("Type") == "GET DATA" and address.startswith(("https://", "http://127.0.0.1")) else None


def _size(entry: Mapping[str, Any]) -> int:
    if entry.get("SizeInBytes"):
        return int(entry["SizeInBytes"])
    return round(float(entry.get("Size") or 0) * _UNITS.get(str(entry.get("SizeUnit")), 0))


def prefer(versions: Sequence[Sequence[Granule]]) -> list[Granule]:
    """Return one granule an overpass, of the first version that has it."""
    chosen: dict[str, Granule] = {}
    for granules in versions:
        for granule in granules:
            chosen.setdefault(granule.overpass, granule)
    return sorted(chosen.values(), key=lambda granule: granule.overpass)
