"""The result of a batch: one STAC collection over all tiles, published at once when every tile is valid."""

import contextlib
import json
import logging
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from canopy.batch.commit import collection_id, read_blocks
from canopy.batch.leases import Lease
from canopy.batch.ledger import LISTERS, MANY, by_prefix, items_table, read_index
from canopy.batch.mosaic import Blocks, LowZoom, MosaicMember, joined, low_zoom, mosaic_vrt, plane_vrt, write_layer
from canopy.batch.plan import PREFIXES, Plan, lease_key, marker_key
from canopy.batch.store import LocalObjects, Store
from canopy.batch.zones import Zone
from canopy.errors import OutputError
from canopy.progress import Progress, Report, ignore
from tiles.cog import BANDS, UNCERTAINTY_BANDS
from tiles.stac import UNKNOWN
from tiles.style import qml
from tiles.windows import PixelWindow

COLLECTION = "collection.json"
LINKED_ITEMS = 1000
"""Most items that the collection links one by one; all of them are in its table."""

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class TileItem:
    """A committed tile, as its marker says it."""

    name: str
    """Name of the tile."""
    item: dict[str, Any]
    """STAC item."""

    @property
    def window(self) -> PixelWindow:
        """Pixels of the tile."""
        return PixelWindow(*self.item["properties"]["canopy:window"])

    @property
    def zone(self) -> str:
        """Name of the tile's zone."""
        return str(self.item["properties"]["canopy:zone"])

    @property
    def date(self) -> int:
        """Last day of acquisition, YYYYMMDD; 0 where unknown."""
        properties = self.item["properties"]
        if properties["canopy:acquisition_datetime"] == UNKNOWN:
            return 0
        last = properties.get("end_datetime") or properties["datetime"]
        return int(last[:10].replace("-", ""))

    def key(self, asset: str) -> str | None:
        """Return the key of an asset's object; None where the tile has no such asset."""
        href = self.item["assets"].get(asset, {}).get("href")
        return href.removeprefix("../../") if href else None


def collect_batch(store: Store, plan: Plan, report: Report = ignore) -> str:
    """Publish the collection of a batch; the one that is there already stays.

    Args:
        store: Store of the batch.
        plan: Plan of the batch.
        report: Called after each step.

    Returns:
        Address of the collection.

    Raises:
        OutputError: Tiles are missing, or the data of a tile are not what its marker says.
    """
    address = f"{store.url}/{COLLECTION}"
    if store.read(COLLECTION) is not None:
        return address
    tiles = read_items(store, plan)
    report(Progress(1, 4, "steps", f"{len(tiles):,} tiles read"))
    check_members(store, plan, tiles)
    report(Progress(2, 4, "steps", "members checked"))
    folder = f"mosaic-{uuid.uuid4().hex[:12]}"
    assets = _write_mosaic(store, plan, tiles, folder)
    report(Progress(3, 4, "steps", "mosaic written"))
    document = _collection(plan, tiles, assets, folder)
    if store.create(COLLECTION, (json.dumps(document, indent=1) + "\n").encode()) is None:
        # Another run published first: its collection stays, and ours leaves nothing behind.
        store.delete([entry.key for entry in store.list(folder)])
    sweep(store, plan, tiles)
    report(Progress(4, 4, "steps", "collection published"))
    return address


def read_items(store: Store, plan: Plan) -> list[TileItem]:
    """Read the markers of all tiles.

    Raises:
        OutputError: Tiles are missing.
    """
    groups = by_prefix(plan.km2)
    tables = []
    for prefix in PREFIXES if len(plan.km2) >= MANY else ():
        if len(table := read_index(store, prefix)):
            tables.append(table)
            groups.pop(prefix, None)
    tables.append(items_table(store, [name for names in groups.values() for name in names]))
    items = [
        TileItem(name, json.loads(text))
        for table in tables
        for name, text in zip(table["name"].to_pylist(), table["item"].to_pylist(), strict=True)
    ]
    missing = plan.km2.keys() - {tile.name for tile in items}
    if missing:
        raise OutputError(
            f"{len(missing):,} of {len(plan.km2):,} tiles are not there (such as {min(missing)}): "
            f"canopy batch run {store.url}, and canopy batch status for failures"
        )
    return sorted(items, key=lambda tile: tile.name)


def check_members(store: Store, plan: Plan, tiles: Iterable[TileItem]) -> None:
    """Refuse tiles whose data are gone or cut off: a mosaic would read them as unknown, in silence.

    Raises:
        OutputError: Some are; their markers are removed, so that the next run computes them again.
    """
    sizes = {entry.key: entry.size for entry in store.list("data")}
    invalid = []
    for tile in tiles:
        # The sums of heights state no size: they are read when the overview is made.
        present = all(
            (key := tile.key(name)) in sizes and sizes[key] == asset.get("file:size", sizes[key])
            for name, asset in tile.item["assets"].items()
        )
        if not present or tile.item["properties"]["canopy:plan"] != plan.id:
            invalid.append(tile.name)
    if invalid:
        store.delete([*map(marker_key, invalid), *(entry.key for entry in store.list("index"))])
        raise OutputError(
            f"{len(invalid):,} tile(s) without their data, such as {invalid[0]}: their markers were removed, "
            f"run canopy batch run {store.url} again"
        )


def sweep(store: Store, plan: Plan, tiles: Iterable[TileItem]) -> None:
    """Remove what killed attempts left: data without a marker, leases of the dead, drafts, locks."""
    used = {tile.key(asset) for tile in tiles for asset in tile.item["assets"]}
    for entry in list(store.list("data")):
        name = entry.key.rpartition("/")[2].rpartition("-")[0]
        if entry.key not in used and not _is_computed(store, name):
            store.delete([entry.key])
    for entry in list(store.list("leases")):
        if not _is_computed(store, entry.key.rpartition("/")[2].removesuffix(".json")):
            store.delete([entry.key])
    store.delete([entry.key for entry in list(store.list("clock"))])
    published = json.loads((store.read(COLLECTION) or (b"{}", None))[0]).get("canopy:mosaic", "")
    if isinstance(store, LocalObjects):
        _sweep_folder(store.folder, published)
        store.forget_locks()


def _is_computed(store: Store, name: str) -> bool:
    """Return whether a process may still work on a tile: its lease is there, and its holder not certainly dead."""
    content = store.read(lease_key(name))
    lease = Lease.from_bytes(content[0]) if content else None
    if content is None or lease is None or lease.holder.is_dead:
        return False
    return content[1].modified_s + lease.term_s > store.now_s()


def _sweep_folder(folder: Path, published: str) -> None:
    """Remove obstore's drafts, and mosaics of collectors that were killed."""
    for draft in folder.rglob("*#*"):
        with contextlib.suppress(OSError):
            draft.unlink()
    for other in folder.glob("mosaic-*"):
        if other.name != published:
            for path in other.iterdir():
                path.unlink(missing_ok=True)
            other.rmdir()


def _write_mosaic(store: Store, plan: Plan, tiles: list[TileItem], folder: str) -> dict[str, Any]:
    """Write mosaic, low-zoom layers and table of items; return the assets of the collection."""
    bands = UNCERTAINTY_BANDS if plan.uncertainty else BANDS
    assets: dict[str, Any] = {}
    layers = []
    for name, zones in _by_lattice(plan).items():
        lattice, whole = zones[0].lattice, _whole(zones)
        members = [tile for tile in tiles if tile.zone in {zone.name for zone in zones}]
        sources = _members(members, "canopy_height")
        store.create(f"{folder}/{name}.vrt", mosaic_vrt(lattice, whole, sources, bands).encode())
        store.create(f"{folder}/{name}.qml", qml().encode())
        for spec in plan.extras.specs:
            plane = plane_vrt(lattice, whole, _members(members, spec.name), spec)
            store.create(f"{folder}/{name}_{spec.name}.vrt", plane.encode())
            assets[f"{spec.name}-{name}"] = _asset(
                folder, f"{name}_{spec.name}.vrt", "application/xml", f"{spec.title}, {name}", "metadata"
            )
        layers.append(low_zoom(lattice, whole, _blocks(store, members)))
        assets[f"mosaic-{name}"] = _asset(
            folder, f"{name}.vrt", "application/xml", f"Mosaic of all tiles, {name}", "data"
        )
    merged = joined(layers)
    with tempfile.TemporaryDirectory(prefix="canopy-collect-") as drafts:
        for name, title, role in _write_layers(Path(drafts), merged, plan):
            store.upload(f"{folder}/{name}.tif", Path(drafts) / f"{name}.tif")
            kind = "image/tiff; application=geotiff; profile=cloud-optimized"
            assets[name] = _asset(folder, f"{name}.tif", kind, title, role)
        store.create(f"{folder}/overview.qml", qml().encode())
        table = Path(drafts) / "items.parquet"
        if _write_items(tiles, table):
            store.upload(f"{folder}/items.parquet", table)
            kind = "application/vnd.apache.parquet"
            assets["items"] = _asset(folder, "items.parquet", kind, "STAC items of all tiles", "stac-items")
    return assets


def _members(tiles: Iterable[TileItem], asset: str) -> list[MosaicMember]:
    """Return the tiles that have an asset, as members of a mosaic."""
    keys = ((tile, tile.key(asset)) for tile in tiles)
    return [MosaicMember(f"../{key}", tile.window) for tile, key in keys if key is not None]


def _write_layers(folder: Path, layer: LowZoom, plan: Plan) -> Iterator[tuple[str, str, str]]:
    """Write the low-zoom layers; yield name, title and role of each."""
    tags = {"CANOPY_PLAN": plan.id, "CANOPY_MODEL": plan.model.name, "CANOPY_MODEL_SHA256": plan.model.sha256}
    unknown = float("nan")
    write_layer(folder / "overview.tif", layer.height_m, layer, tags, nodata=unknown, overview_resampling="AVERAGE")
    yield "overview", "Mean canopy height, low zoom", "overview"
    write_layer(folder / "coverage.tif", layer.coverage, layer, tags, overview_resampling="AVERAGE")
    yield "coverage", "Share of the cell with a height, per cent", "metadata"
    write_layer(folder / "acquisition.tif", layer.date, layer, tags, nodata=0, overview_resampling="NEAREST")
    yield "acquisition", "Last day of acquisition of the imagery, YYYYMMDD, 0 where unknown", "date"


def _write_items(tiles: list[TileItem], path: Path) -> bool:
    """Write the items as stac-geoparquet, with names relative to its folder; return whether that was possible."""
    try:
        from stac_geoparquet.arrow import parse_stac_items_to_arrow, to_parquet
    except ImportError:
        _LOG.warning("items.parquet is left out: pip install stac-geoparquet writes it")
        return False

    def relative(item: dict[str, Any]) -> dict[str, Any]:
        assets = {
            name: {**asset, "href": asset["href"].replace("../../", "../", 1)} for name, asset in item["assets"].items()
        }
        return {**item, "assets": assets, "links": []}

    to_parquet(parse_stac_items_to_arrow(relative(tile.item) for tile in tiles), path)
    return True


def _blocks(store: Store, tiles: list[TileItem]) -> Iterator[Blocks]:
    """Read the blocks of tiles, many at a time."""

    def read(tile: TileItem) -> Blocks | None:
        key = tile.key("blocks")
        content = store.read(key) if key else None
        return Blocks(*read_blocks(content[0]), tile.date) if content else None

    with ThreadPoolExecutor(LISTERS, thread_name_prefix="blocks") as pool:
        # In portions, so that a million tiles are not all in memory.
        for first in range(0, len(tiles), 1000):
            yield from (blocks for blocks in pool.map(read, tiles[first : first + 1000]) if blocks)


def _by_lattice(plan: Plan) -> dict[str, list[Zone]]:
    """Group zones by the CRS of their output."""
    groups: dict[str, list[Zone]] = {}
    for zone in plan.zones:
        epsg = zone.lattice.crs.to_epsg()
        groups.setdefault(str(epsg) if epsg else zone.name, []).append(zone)
    return groups


def _whole(zones: list[Zone]) -> PixelWindow:
    """Return the pixels of a mosaic: those of the map that one process would have made of the zones."""
    windows = [zone.lattice.window(zone.area) for zone in zones]
    row0, col0 = min(w.row0 for w in windows), min(w.col0 for w in windows)
    return PixelWindow(row0, col0, max(w.row1 for w in windows) - row0, max(w.col1 for w in windows) - col0)


def _asset(folder: str, name: str, kind: str, title: str, role: str) -> dict[str, Any]:
    return {"href": f"./{folder}/{name}", "type": kind, "title": title, "roles": [role]}


def _collection(plan: Plan, tiles: list[TileItem], assets: dict[str, Any], folder: str) -> dict[str, Any]:
    """Return the STAC collection."""
    properties = [tile.item["properties"] for tile in tiles]
    starts = [p.get("start_datetime") or p["datetime"] for p in properties]
    ends = [p.get("end_datetime") or p["datetime"] for p in properties]
    linked = tiles if len(tiles) <= LINKED_ITEMS else []
    links = [{"rel": "root", "href": "./collection.json", "type": "application/json"}]
    links += [{"rel": "item", "href": f"./{marker_key(tile.name)}", "type": "application/geo+json"} for tile in linked]
    return {
        "type": "Collection",
        "stac_version": "1.1.0",
        "stac_extensions": [],
        "id": collection_id(plan),
        "title": f"Canopy height of {plan.document['aoi']['name']}",
        "description": (
            f"Canopy height above ground, metres, predicted by model {plan.model.name} "
            f"(sha256 {plan.model.sha256}) from {plan.document['imagery']['described']}."
        ),
        "license": "other",
        **_terms(plan),
        "extent": {
            "spatial": {"bbox": [plan.document["aoi"]["bbox"]]},
            "temporal": {"interval": [[min(starts), max(ends)]]},
        },
        "summaries": {"canopy:zone": sorted({tile.zone for tile in tiles})},
        "canopy:plan": plan.id,
        "canopy:mosaic": folder,
        "canopy:tiles": len(tiles),
        "links": links,
        "assets": assets,
    }


def _terms(plan: Plan) -> dict[str, Any]:
    """Return what the imagery's provider asks of a map, where it is on record, named as in the items."""
    licence = plan.imagery.licence
    terms = {"licence": licence.name, "attribution": licence.attribution} if licence else {}
    return {f"canopy:imagery_{name}": text for name, text in terms.items() if text}
