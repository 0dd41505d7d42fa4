"""Airborne lidar of the US 3D Elevation Program (3DEP) over an area, as LAZ that `canopy chm` reads."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import laspy
import shapely
import shapely.geometry
from odc.geo.crs import CRS
from odc.geo.geom import Geometry

from canopy.errors import ConfigError, SourceError
from canopy.fetch.clouds_remote import NODE_POINT_BYTES, Cloud, Piece, open_cloud
from canopy.fetch.collection import NOTHING, Collected, Item, Manifest, Meter, collect, sizes
from canopy.fetch.options import Years, area_identity
from canopy.fetch.point_files import merge, vertical_unit_m
from canopy.fetch.summary import Summary
from canopy.fetch.terms import Terms, write_terms
from canopy.http import HttpClient, redacted
from canopy.imagery.search import Search
from canopy.imagery.stac import find_items, parse_uri
from canopy.imagery.stac.items import Item as StacItem
from canopy.imagery.stac.items import choose_asset
from canopy.imagery.stac.mosaic import coverage
from canopy.progress import Report, ignore
from tiles.aoi import to_crs

INDEX = "https://raw.githubusercontent.com/hobuinc/usgs-lidar/master/boundaries/resources.geojson"
COPC_CATALOGUE = (
    "stac+https://planetarycomputer.microsoft.com/api/stac/v1?collection=3dep-lidar-copc&asset=data"
    "&signing=https://planetarycomputer.microsoft.com/api/sas/v1/token"
)
"""COPC files of projects up to 2022, in their own CRS, at the Planetary Computer."""
TERMS = Terms(
    "USGS 3D Elevation Program lidar point clouds",
    "public domain (US government work)",
    "https://www.usgs.gov/3d-elevation-program/what-3dep",
    "U.S. Geological Survey, 3D Elevation Program. Lidar point clouds. https://registry.opendata.aws/usgs-lidar",
)
_YEAR = re.compile(r"(?<!\d)(?:19|20)\d\d(?!\d)")
_WHOLE = 0.99
"""Share of the area from which on a project covers it."""


@dataclass(frozen=True)
class LidarRequest:
    """What is asked for."""

    aoi: Geometry
    """Area; its box is fetched."""
    years: Years = field(default_factory=Years)
    """Years that the name of a project may have."""
    sources: tuple[str, ...] = ()
    """Addresses of EPTs or COPC files; the project that covers the area best if empty."""
    copc: bool = False
    """Whether that project is one of the catalogue of COPC files, not one of point tiles."""

    def to_json(self) -> dict[str, Any]:
        """Return what a folder is recognised by."""
        return {
            "service": "lidar3dep", "aoi": area_identity(self.aoi), "years": list(self.years.years),
            "sources": [redacted(source) for source in self.sources], **({"copc": True} if self.copc else {}),
        }  # fmt: skip


@dataclass(frozen=True)
class Project:
    """A project over the area."""

    name: str
    """Name."""
    addresses: tuple[str, ...]
    """Address of its EPT, or of its COPC files over the area."""
    year: int
    """Last year of its flights, or of its name; 0 where neither says."""
    share: float
    """Share of the area that it covers."""


def fetch_lidar(
    out: Path,
    request: LidarRequest,
    *,
    index: str | None = None,
    client: HttpClient | None = None,
    dry_run: bool = False,
    jobs: int = 4,
    report: Report = ignore,
) -> Summary:
    """Bring the returns over an area, one LAZ a project.

    Args:
        out: Folder; a run that was killed goes on in it.
        request: Area, years, sources.
        index: Address of another list of projects: their outlines, or a catalogue of COPC files.
        client: Client that sends the requests.
        dry_run: Whether to only look what there is, and how large.
        jobs: Files that are fetched at a time.
        report: Called with megabytes done.

    Raises:
        SourceError: No project covers the area, or a service does not answer as it should.
        OutputError: The folder cannot be written, or belongs to another request.
    """
    client = client or HttpClient()
    manifest = Manifest.open(out / "fetch.json", request.to_json())
    addresses, remarks, signing = list(request.sources), list[str](), ""
    if not addresses:
        addresses, remarks = _choose(client, request, index, manifest.choices.get("sources"))
        signing = parse_uri(index or COPC_CATALOGUE).access.signing if request.copc else ""
    clouds = [open_cloud(client, address, request.aoi, signing) for address in addresses]
    pieces = {cloud.name: cloud.pieces() for cloud in clouds}
    if len(pieces) < len(clouds):
        raise ConfigError("two sources have one name: fetch them into folders of their own")
    if not any(pieces.values()):
        raise SourceError(f"no point of {', '.join(pieces)} over the area: name another source, or none")
    items = [_item(cloud, piece) for cloud in clouds for piece in pieces[cloud.name]]
    remarks += [remark for cloud in clouds for remark in _cloud_remarks(cloud)]
    facts: dict[str, Any] = {"projects": list(pieces), "pieces": len(items)}
    if dry_run:
        return Summary(out, facts, sizes(items), None, tuple(remarks))
    manifest.choose(sources=addresses)
    write_terms(out / "CITATION.txt", TERMS, remarks)
    brought = NOTHING
    counts: dict[str, int] = {}
    for cloud in clouds:
        part = _bring(cloud, pieces[cloud.name], out, manifest, jobs, report)
        brought += part
        counts[cloud.name] = (manifest.entry(f"{cloud.name}.laz") or {}).get("points", 0)
    if not any(counts.values()) and not brought.failures:
        brought = replace(brought, failures=("no point within the area came: draw it larger",))
    following = (f"canopy chm {out}/*.laz --out chm.tif",)
    return Summary(out, {**facts, "points": counts}, sizes(items), brought, tuple(remarks), following)


def _choose(
    client: HttpClient, request: LidarRequest, index: str | None, chosen: Sequence[str] | None
) -> tuple[list[str], list[str]]:
    """Return the address of the project that covers the area best, the newest of those, and what is said of it."""
    if chosen:
        return list(chosen), []
    find = find_copc_projects if request.copc else find_projects
    projects = find(client, request, index or (COPC_CATALOGUE if request.copc else INDEX))
    if not projects:
        raise SourceError(f"no 3DEP project over the area{f' in {request.years}' if request.years.years else ''}")
    # One project only: points of two flights years apart would make one canopy of both.
    best = max(projects, key=lambda project: (min(project.share, _WHOLE), project.year, project.share))
    remarks = [f"project {best.name} covers {best.share:.0%} of the area"]
    if others := [project.name for project in projects if project is not best]:
        remarks.append(f"also over the area: {', '.join(others)} (--source, --years)")
    return list(best.addresses), remarks


def find_projects(client: HttpClient, request: LidarRequest, index: str = INDEX) -> list[Project]:
    """Return the projects of the index that cover a part of the area.

    Raises:
        SourceError: The index is no collection of outlines.
    """
    document = client.get(index).json()
    features = document.get("features") if isinstance(document, dict) else None
    if not isinstance(features, list):
        raise SourceError(f"{redacted(index)}: no collection of outlines of projects")
    area = to_crs(request.aoi, CRS("EPSG:4326")).geom
    projects = []
    for feature in features:
        properties = feature.get("properties") or {}
        name, url = properties.get("name"), properties.get("url")
        # Folders of the bucket that are no project have no outline.
        if not (name and url and feature.get("geometry")):
            continue
        outline = shapely.make_valid(shapely.geometry.shape(feature["geometry"]))
        share = outline.intersection(area).area / area.area
        years = [int(year) for year in _YEAR.findall(str(name))]
        if share > 0 and (not request.years.years or any(year in request.years for year in years)):
            projects.append(Project(str(name), (str(url),), max(years, default=0), share))
    return projects


def find_copc_projects(client: HttpClient, request: LidarRequest, catalogue: str = COPC_CATALOGUE) -> list[Project]:
    """Return the projects whose COPC files a catalogue has over the area.

    Args:
        client: Client of other requests; catalogues have their own.
        request: Area and years.
        catalogue: The catalogue, as `canopy.imagery.stac` reads it.

    Raises:
        SourceError: The catalogue does not answer.
    """
    area = to_crs(request.aoi, CRS("EPSG:4326")).geom
    groups: dict[str, list[tuple[StacItem, str]]] = {}
    uri = parse_uri(catalogue)
    for item in find_items(uri, request.aoi, Search()).items:
        asset = choose_asset(item, uri.search.assets)
        flown = range(item.start.year, item.end.year + 1) if item.start and item.end else ()
        if asset is not None and (not request.years.years or any(year in request.years for year in flown)):
            groups.setdefault(_project_of(asset.href), []).append((item, asset.href))
    projects = []
    for name, files in groups.items():
        years = [item.end.year for item, _ in files if item.end]
        share = coverage([item for item, _ in files], area)
        projects.append(Project(name, tuple(sorted(href for _, href in files)), max(years, default=0), share))
    return projects


def _project_of(href: str) -> str:
    """Return the project of a COPC file, whose folder bears its name: ``.../usgs-copc/PROJECT/copc/FILE.copc.laz``."""
    folders = urlsplit(href).path.split("/")[:-1]
    return next((folder for folder in reversed(folders) if folder != "copc"), "")


def _cloud_remarks(cloud: Cloud) -> list[str]:
    """Return what a user must know of a cloud: feet and metres occur in one CRS."""
    lines = [f"{cloud.name}: {line}" for line in cloud.remarks()]
    unit_m = vertical_unit_m(cloud.frame.crs)
    if unit_m is not None and abs(unit_m - 1) > 1e-9:
        unit = f"units of {unit_m:.6f} m (feet)"
        lines.append(f"{cloud.name}: elevations are in {unit}; canopy chm reads that off the CRS")
    return lines


def _item(cloud: Cloud, piece: Piece) -> Item:
    def write(draft: Path, meter: Meter) -> dict[str, Any]:
        count = piece.write(draft, meter)
        if not count:
            draft.touch()
        return {"points": count, **({} if count else {"absent": True})}

    size = piece.points * NODE_POINT_BYTES or 1e6
    return Item(f"pieces/{cloud.name}_{piece.name}.laz", piece.identity, write, size, False, cloud.name)


def _digest(pieces: Sequence[Piece]) -> str:
    return hashlib.sha256("\n".join(piece.identity for piece in pieces).encode()).hexdigest()


def _bring(
    cloud: Cloud, pieces: Sequence[Piece], out: Path, manifest: Manifest, jobs: int, report: Report
) -> Collected:
    """Bring the pieces of a cloud, merge them into one file, and remove them."""
    items = [_item(cloud, piece) for piece in pieces]
    merged = Item(f"{cloud.name}.laz", _digest(pieces), lambda draft, meter: {}, 0, False, "merged")
    if manifest.is_complete(merged, out):
        path = out / merged.path
        return Collected((path,), 0, path.stat().st_size)
    brought = collect(items, out, manifest, jobs=jobs, report=report)
    if brought.failures or not brought.files:
        return brought

    def write(draft: Path, meter: Meter) -> dict[str, Any]:
        count = merge(brought.files, draft, cloud.frame)
        with laspy.open(draft) as reader:
            if reader.header.point_count != count:
                raise SourceError(f"{merged.path}: {reader.header.point_count} points written, {count} expected")
        return {"points": count, "source": redacted(cloud.address)}

    result = collect([replace(merged, write=write)], out, manifest, jobs=1)
    if not result.failures:
        for piece in brought.files:
            piece.unlink(missing_ok=True)
        if not any((out / "pieces").iterdir()):
            (out / "pieces").rmdir()
    return replace(result, fetched=brought.fetched)
