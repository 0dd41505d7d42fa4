"""The plan of a batch: everything that decides a pixel, written once, read by every worker."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import shapely
from odc.geo.crs import CRS
from odc.geo.geom import Geometry

from canopy.batch.extras import PinnedExtras, PinnedMask
from canopy.batch.imagery import PinnedImagery, PinnedScene
from canopy.batch.store import Store
from canopy.batch.zones import Zone
from canopy.errors import OutputError, one_line
from canopy.tables import parse_table
from canopy.version import __version__
from tiles.grid import Lattice
from tiles.windows import PixelWindow

PLAN = "plan.json"
FORMAT = 1
PREFIXES = tuple(f"{number:02x}" for number in range(256))
"""Folders over which markers, leases and failures are spread, so that they are listed in parallel."""


@dataclass(frozen=True)
class PlannedTile:
    """A tile to compute: small enough to be sent to a worker."""

    name: str
    """Name, unique in the plan."""
    zone: str
    """Name of its zone."""
    window: PixelWindow
    """Pixels of the tile on the zone's lattice."""
    scenes: tuple[int, ...]
    """Numbers of the files of imagery that it may read."""
    inside: bool
    """Whether all of the tile lies inside the area."""

    def to_json(self) -> dict[str, Any]:
        """Return the tile as JSON, for a process of its own."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> "PlannedTile":
        """Read a tile that `to_json` wrote."""
        window = PixelWindow(**document["window"])
        return cls(**{**document, "window": window, "scenes": tuple(document["scenes"])})


@dataclass(frozen=True)
class PlannedModel:
    """The model of a plan."""

    name: str
    """Name on its card."""
    reference: str
    """Name of a bundled model, or the path that the user named."""
    sha256: str
    """SHA-256 of its file."""
    object: str | None
    """Copy of the file in the store, for workers without it; None where every installation has the model."""
    gsd_m: float
    """GSD of the model, metres."""
    chip_px: int
    """Side of a chip, pixels."""


@dataclass(frozen=True)
class Estimate:
    """What a batch is expected to take."""

    area_km2: float
    """Area to map."""
    tiles: int
    """Tiles to map."""
    without_imagery: int
    """Tiles of the area that no imagery meets; they are not computed."""
    computed_mpx: float
    """Pixels that the model computes, those around tiles included, millions."""
    halo: float
    """Computed pixels for each pixel of the map."""
    worker_hours: float
    """Time of one worker, hours."""
    output_bytes: float
    """Size of the map."""
    money: float | None
    """Price of the workers' hours; None where no price was named."""
    formula: str
    """How hours, bytes and money were computed, with their numbers."""

    def describe(self) -> str:
        """Return the estimate in words."""
        money = "" if self.money is None else f", price {self.money:,.2f}"
        return (
            f"{self.area_km2:,.4g} km2 in {self.tiles:,} tile(s), {self.without_imagery:,} more without imagery; "
            f"{self.worker_hours:,.3g} worker hours, {self.output_bytes / 1e9:,.3g} GB{money} ({self.formula})"
        )


@dataclass(frozen=True)
class Plan:
    """A batch, decided before a pixel is read."""

    id: str
    """SHA-256 of everything that decides a pixel."""
    document: Mapping[str, Any]
    """What plan.json says."""
    zones: tuple[Zone, ...]
    """Parts of the area, each on its lattice."""
    model: PlannedModel
    """Model of the heights."""
    imagery: PinnedImagery
    """Imagery, as it was when the batch was planned."""
    extras: PinnedExtras
    """What is mapped besides heights."""
    table: pa.Table
    """Tiles, one a row."""

    @property
    def estimate(self) -> Estimate:
        """What the batch is expected to take."""
        return Estimate(**self.document["estimate"])

    @property
    def tile_px(self) -> int:
        """Side of a tile, pixels."""
        return int(self.document["tile_px"])

    @property
    def uncertainty(self) -> bool:
        """Whether the map has the 5th and 95th percentile."""
        return bool(self.document["uncertainty"])

    @cached_property
    def zone(self) -> dict[str, Zone]:
        """Zones by name."""
        return {zone.name: zone for zone in self.zones}

    @cached_property
    def computed(self) -> pa.Table:
        """Tiles that are computed: those that imagery meets; all where the reasons for missing heights are mapped."""
        return self.table if self.extras.reasons else self.table.filter(self.table["imagery"])

    @cached_property
    def names(self) -> pa.Array:
        """Names of the tiles that are computed."""
        return self.computed["name"].combine_chunks()

    @cached_property
    def km2(self) -> dict[str, float]:
        """Mapped area of each tile that is computed."""
        computed = self.computed
        return dict(zip(computed["name"].to_pylist(), computed["km2"].to_pylist(), strict=True))

    def tiles(self, names: set[str] | None = None) -> Iterator[PlannedTile]:
        """Yield the tiles that are computed, in order.

        Args:
            names: Tiles to yield; all if None.
        """
        columns = ["name", "zone", "row0", "col0", "height", "width", "scenes", "share"]
        table = self.computed.select(columns)
        if names is not None:
            table = table.filter(pc.is_in(table["name"], pa.array(sorted(names), pa.string())))
        for batch in table.to_batches(max_chunksize=4096):
            for row in batch.to_pylist():
                window = PixelWindow(row["row0"], row["col0"], row["height"], row["width"])
                yield PlannedTile(row["name"], row["zone"], window, tuple(row["scenes"]), row["share"] >= 1)


def prefix_of(name: str) -> str:
    """Return the folder of a tile's small objects: two hexadecimal digits that spread tiles evenly."""
    return hashlib.sha256(name.encode()).hexdigest()[:2]


def marker_key(name: str) -> str:
    """Return the key of a tile's commit marker."""
    return f"items/{prefix_of(name)}/{name}.json"


def lease_key(name: str) -> str:
    """Return the key of a tile's lease."""
    return f"leases/{prefix_of(name)}/{name}.json"


def plan_id(document: Mapping[str, Any]) -> str:
    """Return the identity of a plan: a hash of all in plan.json that decides a pixel."""
    deciding = {key: value for key, value in document.items() if key not in ("id", "created", "estimate")}
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()


def read_plan(store: Store) -> Plan:
    """Read the plan of a store.

    Raises:
        OutputError: There is none, it is damaged, or another version of Canopy wrote it.
    """
    content = store.read(PLAN)
    if content is None:
        raise OutputError(f"no {PLAN} in {store.url}: `canopy batch plan --out {store.url}` writes one")
    try:
        document = json.loads(content[0])
        model = PlannedModel(**document["model"])
        objects = document["objects"]
    except (ValueError, LookupError, TypeError) as error:
        raise OutputError(f"{PLAN} in {store.url} is damaged ({one_line(error, 100)}): plan again elsewhere") from error
    if document["canopy_version"] != __version__ or document["format"] != FORMAT:
        raise OutputError(
            f"{store.url} was planned by Canopy {document['canopy_version']}, this is {__version__}: install that "
            "version, or plan again in another folder, because tiles of two versions must not mix"
        )
    if plan_id(document) != document["id"]:
        raise OutputError(f"{PLAN} in {store.url} was changed after it was written: plan again in another folder")
    zones = _read_table(store, objects["zones"])
    scenes = [PinnedScene(**row) for row in _read_table(store, objects["scenes"]).to_pylist()]
    # Plans from before there were masks have no list of them.
    rows = _read_table(store, objects["masks"]).to_pylist() if "masks" in objects else []
    extras = PinnedExtras.from_json(document.get("extras", {}), [PinnedMask(**row) for row in rows])
    return Plan(
        document["id"], document, tuple(_zone(row) for row in zones.to_pylist()), model,
        PinnedImagery.from_json(document["imagery"], scenes), extras,
        _read_table(store, objects["tiles"]),
    )  # fmt: skip


def write_object(store: Store, stem: str, content: bytes, suffix: str) -> str:
    """Write a part of a plan under a name of its content, so that two planners write the same; return the key."""
    key = f"plan/{stem}-{hashlib.sha256(content).hexdigest()[:16]}{suffix}"
    if store.create(key, content) is None:
        raise OutputError(f"{key} in {store.url} has other content than its name says: remove it and plan again")
    return key


def zones_table(zones: Sequence[Zone]) -> pa.Table:
    """Return zones as a table; areas keep every bit of their coordinates."""
    rows = [
        {
            "name": zone.name, "crs": _crs_text(zone.lattice.crs), "resolution": zone.lattice.resolution,
            "work_crs": _crs_text(zone.work.crs), "work_resolution": zone.work.resolution,
            "area": shapely.to_wkb(zone.area.geom),
        }
        for zone in zones
    ]  # fmt: skip
    return pa.Table.from_pylist(rows)


def geo_metadata(footprints: Any) -> dict[bytes, bytes]:
    """Return the metadata that makes a table with a column `geometry` GeoParquet."""
    column = {
        "encoding": "WKB",
        "geometry_types": ["Polygon"],
        "crs": CRS("OGC:CRS84").proj.to_json_dict(),
        "bbox": [float(value) for value in shapely.total_bounds(footprints)] if len(footprints) else [],
    }
    geo = {"version": "1.0.0", "primary_column": "geometry", "columns": {"geometry": column}}
    return {b"geo": json.dumps(geo).encode()}


def _read_table(store: Store, key: str) -> pa.Table:
    content = store.read(key)
    if content is None or hashlib.sha256(content[0]).hexdigest()[:16] not in key:
        raise OutputError(f"{key} in {store.url} is missing or damaged: plan again in another folder")
    return parse_table(content[0])


def _zone(row: dict[str, Any]) -> Zone:
    crs = CRS(row["crs"])
    area = Geometry(shapely.from_wkb(row["area"]), crs)
    return Zone(
        row["name"], Lattice(crs, row["resolution"]), Lattice(CRS(row["work_crs"]), row["work_resolution"]), area
    )


def _crs_text(crs: CRS) -> str:
    """Return a CRS as its code, else as WKT."""
    epsg = crs.to_epsg()
    return f"EPSG:{epsg}" if epsg else str(crs.to_wkt())


def square_km(shares: Any, windows: Any, metres: float) -> Any:
    """Return the mapped area of windows of square pixels, km2."""
    return np.asarray(shares) * windows[:, 2] * windows[:, 3] * metres**2 / 1e6
