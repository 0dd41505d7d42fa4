"""NEON's airborne survey of a site as training scenes: imagery and lidar heights of one flight, and their dataset.yaml.

A scene is a folder of one tile: rgb.tif (camera mosaic, 0.1 m), chm.tif (canopy height model, 1 m) and cloud.laz
(classified returns). Labels come before images, so that a folder with an image is a whole scene whenever a run ends.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from odc.geo.crs import CRS
from odc.geo.geom import Geometry, box

from canopy.config import dump_config
from canopy.credentials import require_secret
from canopy.dataset.config import DatasetConfig, SourceConfig
from canopy.errors import ConfigError, SourceError
from canopy.fetch.collection import NOTHING, Collected, Item, Manifest, collect, sizes
from canopy.fetch.neon_files import (
    API,
    PRODUCTS,
    TILE_M,
    NeonApi,
    Tile,
    Visit,
    choose_visit,
    flight_site,
)
from canopy.fetch.neon_parts import Part, remote_file
from canopy.fetch.options import Box, Years, area_identity, bounds_in, crs_name
from canopy.fetch.remote import RemoteRaster
from canopy.fetch.summary import Summary
from canopy.fetch.terms import Terms, write_terms
from canopy.fetch.windows import require_corner
from canopy.http import HttpClient
from canopy.progress import Report, ignore
from tiles.aoi import to_crs
from tiles.files import replacing, reported

TERMS = Terms(
    title="National Ecological Observatory Network (NEON), Airborne Observation Platform",
    licence="CC-BY-4.0",
    licence_url="https://www.neonscience.org/data-samples/guidelines-policies",
    citation="NEON (National Ecological Observatory Network). High-resolution orthorectified camera imagery mosaic "
    "(DP3.30010.001), Ecosystem structure (DP3.30015.001), Discrete return LiDAR point cloud (DP1.30003.001). "
    "https://data.neonscience.org",
)
FLOOR_M = 2.0
"""Height below which NEON's canopy height models are set to 0 with its older sensors (0.67 m with newer ones)."""
NAMES = {"image": "rgb.tif", "chm": "chm.tif", "clouds": "cloud.laz"}
"""Name of each part in the folder of its scene."""
TOKEN, HOST = "NEON_TOKEN", "data.neonscience.org"
_REACH_KM = 60.0
_NEAREST = 3
_WHOLE_SHARE = 0.9
"""Share of a tile from which on the whole file is downloaded: it has a checksum."""


@dataclass(frozen=True)
class NeonRequest:
    """What is asked for."""

    site: str | None = None
    """Four letters of a site; the nearest sites to the area if None."""
    aoi: Geometry | None = None
    """Area, to whose box the tiles are cut; whole tiles without one."""
    years: Years = field(default_factory=Years)
    """Years whose visits are looked at; the newest whole visit is taken."""
    tiles: int = 4
    """Number of tiles, spread over the site, where there is no area; all if 0."""
    clouds: bool = True
    """Whether to bring the classified point clouds."""
    labels: Literal["chm", "clouds"] = "chm"
    """Part that the dataset takes its heights from."""

    def __post_init__(self) -> None:
        """Refuse a request of no ground, or one whose labels are left out."""
        if self.site is None and self.aoi is None:
            raise ConfigError("no area: give --site with the four letters of a NEON site, or --aoi, or both")
        if self.labels == "clouds" and not self.clouds:
            raise ConfigError("--labels clouds needs the clouds: leave --no-clouds out")

    @property
    def kinds(self) -> tuple[str, ...]:
        """Parts that are brought, labels first."""
        return ("chm", "clouds", "image") if self.clouds else ("chm", "image")

    def to_json(self) -> dict[str, Any]:
        """Return what a folder is recognised by."""
        return {
            "service": "neon", "site": self.site, "aoi": area_identity(self.aoi), "years": list(self.years.years),
            "tiles": self.tiles, "clouds": self.clouds, "labels": self.labels,
        }  # fmt: skip


@dataclass(frozen=True)
class _Scenes:
    """The visit, the tiles of it, and their part in the area."""

    site: str
    visit: Visit
    crs: CRS
    bounds: Mapping[Tile, Box]

    def folder(self, tile: Tile) -> str:
        """Return the name of a scene."""
        return f"{self.visit.name}_{tile[0]}_{tile[1]}"


def fetch_neon(
    out: Path,
    request: NeonRequest,
    *,
    address: str | None = None,
    client: HttpClient | None = None,
    dry_run: bool = False,
    jobs: int = 4,
    report: Report = ignore,
) -> Summary:
    """Bring imagery and lidar heights of one visit to a site, and write the dataset.yaml that reads them.

    Args:
        out: Folder; a run that was killed goes on in it.
        request: Site or area, years, parts.
        address: Address of the service, in place of its own.
        client: Client that sends the requests.
        dry_run: Whether to only look what there is, and how large.
        jobs: Files that are fetched at a time.
        report: Called with megabytes done.

    Raises:
        ConfigError: No token.
        SourceError: The site has no such visit, or the service does not answer as it should.
        OutputError: The folder cannot be written, or belongs to another request.
    """
    token = require_secret(TOKEN, HOST, "make one on your page of data.neonscience.org/myaccount")
    api = NeonApi(client or HttpClient(), token, address or API)
    manifest = Manifest.open(out / "fetch.json", request.to_json())
    scenes = _choose(api, request, manifest.choices)
    items = {kind: [_item(api, scenes, tile, kind) for tile in scenes.bounds] for kind in request.kinds}
    listed = [item for kind in request.kinds for item in items[kind]]
    facts = {
        "site": scenes.site, "visit": scenes.visit.name, "releases": sorted(scenes.visit.releases),
        "tiles": len(scenes.bounds), "crs": crs_name(scenes.crs),
    }  # fmt: skip
    remarks = _remarks(request, scenes)
    if dry_run:
        return Summary(out, facts, sizes(listed), None, remarks)
    manifest.choose(
        site=scenes.site,
        visit=scenes.visit.name,
        tiles=[list(tile) for tile in scenes.bounds],
        crs=crs_name(scenes.crs),
    )
    write_terms(out / "CITATION.txt", TERMS, remarks)
    brought = _collect(out, scenes, items, manifest, jobs, report)
    config = _write_dataset(out, request, scenes)
    following = (f"canopy dataset build {config} --out {out / 'store'}",) if config else ()
    return Summary(config or out, {**facts, "folder": str(out)}, sizes(listed), brought, remarks, following)


def _choose(api: NeonApi, request: NeonRequest, choices: Mapping[str, Any]) -> _Scenes:
    """Choose visit and tiles, or those of the run that began."""
    candidates = _sites(api, request) if "site" not in choices else [choices["site"]]
    reasons = []
    for site in candidates:
        try:
            visit = choose_visit(api, site, request.years, request.kinds, choices.get("visit"))
            crs = _crs_of(api, visit)
            bounds = _tile_bounds(request, visit, crs, choices.get("tiles"))
        except SourceError as error:
            # A refused key is no matter of the site.
            if len(candidates) == 1 or error.status in (401, 403):
                raise
            reasons.append(str(error))
            continue
        if bounds:
            return _Scenes(site, visit, crs, bounds)
        reasons.append(f"{site}: visit {visit.name} has no tile in the area")
    raise SourceError(f"no NEON flight over the area: {'; '.join(reasons)}")


def _sites(api: NeonApi, request: NeonRequest) -> list[str]:
    """Return the sites that may cover the area, the nearest first: where a site stands is not where it was flown."""
    if request.site is not None:
        return [flight_site(request.site)]
    assert request.aoi is not None
    lon, lat = to_crs(request.aoi, CRS("EPSG:4326")).centroid.coords[0]
    distances = sorted((_distance_km((lon, lat), site.lonlat), site.code) for site in api.sites())
    if not distances:
        raise SourceError("NEON lists no sites: name one with --site")
    near = dict.fromkeys(flight_site(code) for km, code in distances if km <= _REACH_KM)
    if not near:
        raise SourceError(
            f"no NEON site within {_REACH_KM:.0f} km of the area: the nearest, {distances[0][1]}, is "
            f"{distances[0][0]:,.0f} km away"
        )
    return list(near)[:_NEAREST]


def _distance_km(one: tuple[float, float], other: tuple[float, float]) -> float:
    """Return the great-circle distance of two points in degrees, longitude first."""
    (lon0, lat0), (lon1, lat1) = np.radians(one), np.radians(other)
    # Haversine formula, radius of the sphere of equal volume.
    half = np.sin((lat1 - lat0) / 2) ** 2 + np.cos(lat0) * np.cos(lat1) * np.sin((lon1 - lon0) / 2) ** 2
    return float(2 * 6371.0 * np.arcsin(np.sqrt(half)))


def _crs_of(api: NeonApi, visit: Visit) -> CRS:
    """Return the CRS of a visit's tiles, read from one: the listing does not say the zone."""
    file = next(iter(visit.files["chm"].values()))
    with RemoteRaster(remote_file(api, file)) as raster:
        source = raster.dataset
        crs = CRS(source.crs.to_wkt()) if source.crs else None
        if crs is None:
            raise SourceError(f"{file.name}: has no CRS, a UTM zone expected")
        require_corner(tuple(source.bounds), crs, file.tile, crs, file.name)
    return crs


def _tile_bounds(
    request: NeonRequest, visit: Visit, crs: CRS, chosen: Sequence[Sequence[int]] | None
) -> dict[Tile, Box]:
    """Return the tiles to bring, each with its part in the area."""
    tiles = visit.tiles(request.kinds)
    if chosen is not None:
        tiles = [tile for tile in tiles if list(tile) in [list(one) for one in chosen]]
    if request.aoi is None:
        return {tile: _whole(tile) for tile in (tiles if chosen is not None else _spread(tiles, request.tiles))}
    # Whole metres, so that pixels of the image and cells of the heights end together.
    west, south, east, north = bounds_in(request.aoi, crs)
    area = to_crs(request.aoi, crs)
    bounds: dict[Tile, Box] = {}
    for tile in tiles:
        x, y = tile
        part = (
            max(x, math.floor(west)), max(y, math.floor(south)),
            min(x + TILE_M, math.ceil(east)), min(y + TILE_M, math.ceil(north)),
        )  # fmt: skip
        if part[0] < part[2] and part[1] < part[3] and box(*part, crs).intersects(area):
            bounds[tile] = part
    return bounds


def _whole(tile: Tile) -> Box:
    return tile[0], tile[1], tile[0] + TILE_M, tile[1] + TILE_M


def _spread(tiles: Sequence[Tile], count: int) -> list[Tile]:
    """Return some tiles of a site, those inside it first, in an order that has nothing to do with their place."""
    if not count or count >= len(tiles):
        return list(tiles)
    listed = set(tiles)

    def rank(tile: Tile) -> tuple[int, bytes]:
        neighbours = sum(
            (tile[0] + dx, tile[1] + dy) in listed for dx in (-TILE_M, 0, TILE_M) for dy in (-TILE_M, 0, TILE_M)
        )
        return -neighbours, hashlib.sha256(repr(tile).encode()).digest()

    return sorted(sorted(tiles, key=rank)[:count])


def _item(api: NeonApi, scenes: _Scenes, tile: Tile, kind: str) -> Item:
    """Return one part of a scene: a whole file, the checked file's part in the area, or a window read by ranges."""
    file, bounds = scenes.visit.files[kind][tile], scenes.bounds[tile]
    share = (bounds[2] - bounds[0]) * (bounds[3] - bounds[1]) / TILE_M**2
    whole = kind == "clouds" or share >= _WHOLE_SHARE
    part = Part(api, scenes.crs, file, None if whole else bounds)
    by_ranges = kind == "image" and not whole
    return Item(
        path=f"{scenes.folder(tile)}/{NAMES[kind]}",
        identity=part.identity,
        write=part.write_window if by_ranges else part.write,
        bytes=file.size * share if by_ranges else file.size,
        exact=file.size > 0 and not by_ranges,
        kind=f"{kind} ({PRODUCTS[kind]})",
    )


def _collect(
    out: Path, scenes: _Scenes, items: Mapping[str, Sequence[Item]], manifest: Manifest, jobs: int, report: Report
) -> Collected:
    """Bring labels, then the images of scenes whose labels are whole."""
    labels = [item for kind, part in items.items() if kind != "image" for item in part]
    total_mb = sum(item.bytes for part in items.values() for item in part) / 1e6
    label_mb = sum(item.bytes for item in labels) / 1e6
    brought = collect(
        labels, out, manifest, jobs=jobs, report=lambda progress: report(replace(progress, total=total_mb))
    )
    images = []
    for tile, image in zip(scenes.bounds, items["image"], strict=True):
        folder = scenes.folder(tile)
        if all(manifest.is_complete(item, out) for item in labels if item.path.startswith(f"{folder}/")):
            images.append(image)
    return brought + (
        collect(
            images, out, manifest, jobs=jobs,
            report=lambda progress: report(replace(progress, done=progress.done + label_mb, total=total_mb)),
        ) if images else NOTHING
    )  # fmt: skip


def _write_dataset(out: Path, request: NeonRequest, scenes: _Scenes) -> Path | None:
    """Write the configuration of `canopy dataset build` over the whole scenes; None where there is none."""
    if not any((out / scenes.folder(tile) / NAMES["image"]).is_file() for tile in scenes.bounds):
        return None
    month = scenes.visit.month
    heights: dict[str, Any] = {"heights": NAMES["chm"], "height_unit_m": 1.0, "floor_m": FLOOR_M}
    if request.labels == "clouds":
        heights = {"clouds": f"{{scene}}/{NAMES['clouds']}"}
    source = SourceConfig(
        images=f"{scenes.visit.name}_*/{NAMES['image']}", site=scenes.site.lower(), licence=TERMS.licence,
        credit="National Ecological Observatory Network", image_date=month, height_date=month, **heights,
    )  # fmt: skip
    config = DatasetConfig(
        name=f"neon-{scenes.visit.name.lower()}", root=out.resolve(), sources={f"neon_{scenes.site.lower()}": source}
    )
    path = out / "dataset.yaml"
    with reported(path), replacing(path) as draft:
        dump_config(config, draft)
    return path


def _remarks(request: NeonRequest, scenes: _Scenes) -> tuple[str, ...]:
    """Return what a user must know of the scenes."""
    visit = scenes.visit
    lines = [
        f"site {scenes.site}, visit {visit.name} ({visit.month}), {len(scenes.bounds)} tiles in {crs_name(scenes.crs)}"
    ]
    if request.site and flight_site(request.site) != request.site.strip().upper():
        lines.append(f"{request.site.strip().upper()} is covered by the flights of {scenes.site}")
    if "PROVISIONAL" in visit.releases:
        lines.append("some files are PROVISIONAL: NEON may still change them")
    lines.append(f"heights below {FLOOR_M:g} m may be stored as 0: a 0 there is no proof of bare ground")
    return tuple(lines)
