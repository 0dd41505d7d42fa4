"""From an area, imagery and a model to a plan; torch is not imported."""

import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import shapely
from odc.geo.crs import CRS
from odc.geo.geom import Geometry

from canopy.batch.extras import ExtrasRequest, pin_extras
from canopy.batch.imagery import ImageryOptions, local_path, near, pin
from canopy.batch.plan import (
    FORMAT,
    PLAN,
    Estimate,
    Plan,
    PlannedModel,
    geo_metadata,
    plan_id,
    read_plan,
    square_km,
    write_object,
    zones_table,
)
from canopy.batch.store import Store
from canopy.batch.zones import BLOCK_PX, ZoneTiles, divide, tiles_of
from canopy.calibration import read_calibration
from canopy.errors import AOIError, CalibrationError, CoverageError, ModelError, OutputError
from canopy.imagery import ImagerySource
from canopy.imagery.acquisition import span
from canopy.imagery.configured import configured_imagery
from canopy.imagery.search import Search
from canopy.imagery.source import RasterImagery
from canopy.models.bundle import BUNDLED, Decode, find_bundle
from canopy.models.options import check_backend, check_decode, check_device, no_interval
from canopy.prediction.request import check_footprint, check_gsd, check_pixel_options, read_model_card
from canopy.progress import Progress, Report, ignore
from canopy.tables import table_bytes
from canopy.version import __version__
from tiles.aoi import aoi_stem, read_aoi, to_crs
from tiles.files import file_sha256
from tiles.ground import metres_per_unit
from tiles.stac import acquisition_times

TILE_PX = 8192
"""At 0.5 m a square of 4 km: 6 % of the chips are computed for two tiles, and a CPU core takes minutes for it."""
MPX_PER_S = 0.12
"""Speed of canopy-small on one core of a common server; --speed replaces it by a measured one."""
BYTES_PER_PX = 1.6
"""Size of a pixel of canopy height in a compressed tile, overviews included."""
OVERLAP_PX = 32
"""Overlap of neighbouring chips, as the engine has it; that module imports torch."""
_SCENE_COLUMNS = (
    ("path", pa.string()), ("digest", pa.string()), ("size", pa.int64()), ("changed", pa.string()),
    ("signing", pa.string()), ("acquired", pa.string()), ("gsd_m", pa.float64()), ("bands", pa.string()),
)  # fmt: skip
_MASK_COLUMNS = (
    ("mask", pa.int32()), ("image", pa.string()), ("path", pa.string()), ("digest", pa.string()),
    ("signing", pa.string()), *((name, pa.float64()) for name in ("west", "south", "east", "north")),
)  # fmt: skip

NO_OPTIONS = ImageryOptions()
NO_EXTRAS = ExtrasRequest()


@dataclass(frozen=True)
class BatchRequest:
    """A batch that is requested."""

    aoi: Any
    """Area in any form that `tiles.aoi.read_aoi` reads."""
    model: str
    """Name of a bundled model, or path of a bundle."""
    imagery: tuple[str, ...] = ()
    """Files, folders, globs and addresses; configured imagery if empty."""
    layer: str | None = None
    """Layer of the area's file."""
    grid: str = "utm"
    """``utm``, ``EPSG:n`` or ``quadkey:Z``."""
    tile_px: int = TILE_PX
    """Side of a tile, pixels."""
    resolution: float | None = None
    """Cell size in units of the output's CRS; the model's GSD if None."""
    device: str = "auto"
    """Device of the model."""
    backend: str = "auto"
    """Backend of the model."""
    decode: Decode | None = None
    """How heights are read off the model's bins; as its card says if None."""
    uncertainty: bool = False
    """Whether to map the 5th and 95th percentile too."""
    calibration: Path | None = None
    """File of `canopy calibrate`."""
    options: ImageryOptions = NO_OPTIONS
    """What the user says of the imagery."""
    search: Search | None = None
    """Dates and limits of imagery that is searched for."""
    offline: bool = False
    """Whether no server is asked where no imagery is named."""
    extras: ExtrasRequest = NO_EXTRAS
    """What is mapped besides heights."""
    force: bool = False
    """Whether imagery coarser than twice the model's GSD is accepted."""
    speed_mpx_s: float = MPX_PER_S
    """Pixels that a worker computes in a second, millions."""
    price_hour: float | None = None
    """Price of a worker's hour."""


def make_plan(request: BatchRequest, store: Store, report: Report = ignore) -> Plan:
    """Plan a batch; the same request on the same store gives the plan that is there.

    Args:
        request: Batch that is requested.
        store: Store of the batch.
        report: Called after each zone.

    Raises:
        CanopyError: Area, imagery, model or options are unusable, or the store has another plan.
    """
    check_device(request.device)
    check_backend(request.backend, request.device)
    check_decode(request.decode)
    check_pixel_options(request.options.bands, request.options.scale)
    _check_tile_px(request)
    model = _model(request.model, request.uncertainty)
    area = read_aoi(request.aoi, request.layer)
    fitted = _calibration(request)
    uris = [local_path(uri) for uri in request.imagery]
    source = _source(request, uris, area, model, report)
    imagery = pin(source, uris or source.uris, request.options, area)
    extras = pin_extras(request.extras.open(area, source, request.search), bool(imagery.scenes))
    zones = divide(area, request.grid, request.resolution, model.gsd_m)
    tile_px, zoom = _tile_side(request, zones[0].lattice.resolution)
    listed = []
    for done, zone in enumerate(zones, 1):
        listed.append(tiles_of(zone, tile_px, zoom))
        report(Progress(done, len(zones), "zones", f"zone {zone.name}: {len(listed[-1].names):,} tiles"))
    table = _table(listed, source, model)
    if not table["imagery"].to_numpy().any():
        raise CoverageError(f"no imagery over any tile of the AOI: {source.describe()} lies elsewhere")
    document: dict[str, Any] = {
        "type": "canopy-batch",
        "format": FORMAT,
        "canopy_version": __version__,
        "aoi": _describe_area(area, request.aoi),
        "grid": request.grid,
        "tile_px": tile_px,
        "device": request.device,
        "backend": request.backend,
        "decode": request.decode,
        "uncertainty": request.uncertainty,
        "extras": extras.to_json(),
        "imagery": {**imagery.to_json(), "described": source.describe()},
    }
    objects, calibration, model = _write_objects(store, request, zones, table, model, fitted)
    document |= {"model": asdict(model), "calibration": calibration, "objects": objects}
    objects["scenes"] = _write_rows(store, "scenes", _SCENE_COLUMNS, imagery.scenes)
    objects["masks"] = _write_rows(store, "masks", _MASK_COLUMNS, extras.rasters)
    estimate = _estimate(table, tile_px, zones, model, request)
    document |= {"id": plan_id(document), "created": datetime.now(UTC).isoformat(), "estimate": asdict(estimate)}
    return _commit(store, document)


def _source(
    request: BatchRequest, uris: Sequence[str], area: Geometry, model: PlannedModel, report: Report
) -> ImagerySource:
    """Open the imagery of an area, and refuse what cannot be mapped."""
    options = request.options
    if uris:
        source = options.open(uris, area, request.search)
    else:
        source = configured_imagery(
            area, search=request.search, offline=request.offline, have_right=options.have_right, report=report,
            **options.reading,
        )  # fmt: skip
    acquisition_times(source.datetime, datetime.now(UTC))
    check_footprint(source, area)
    card = read_model_card(request.model)
    if card is not None:
        check_gsd(source, card, request.force)
    return source


def _commit(store: Store, document: dict[str, Any]) -> Plan:
    """Write plan.json last; a plan that is there already must be the same."""
    text = json.dumps(document, indent=2, sort_keys=True) + "\n"
    if store.create(PLAN, text.encode()) is None:
        present = read_plan(store)
        if present.id != document["id"]:
            differing = sorted(
                key for key in document
                if key not in ("id", "created", "estimate") and present.document.get(key) != document[key]
            )  # fmt: skip
            raise OutputError(
                f"{store.url} has another plan ({', '.join(differing)} differ): name another folder, tiles of two "
                "plans must not mix"
            )
        return present
    return read_plan(store)


def _check_tile_px(request: BatchRequest) -> None:
    if request.tile_px < 4 * BLOCK_PX or request.tile_px % BLOCK_PX:
        raise AOIError(
            f"--tile-px {request.tile_px}: a multiple of {BLOCK_PX} of at least {4 * BLOCK_PX} expected, so that "
            "overviews of neighbouring tiles meet"
        )


def _tile_side(request: BatchRequest, resolution: float) -> tuple[int, int | None]:
    """Return the side of a tile in pixels, and the zoom of quadkeys."""
    match = re.fullmatch(r"quadkey:(\d{1,2})", request.grid)
    if match is None:
        return request.tile_px, None
    zoom = int(match[1])
    return round(2 * math.pi * 6_378_137.0 / 2**zoom / resolution), zoom


def _model(reference: str, uncertainty: bool) -> PlannedModel:
    """Find the model of a plan, without loading it."""
    path = find_bundle(reference)
    if path.is_dir():
        raise ModelError(f"{path} is a folder: convert it to a bundle with canopy models convert")
    card = read_model_card(reference)
    if card is None:
        raise ModelError(f"{path} is a publisher's checkpoint: convert it to a bundle with canopy models convert")
    if card.family == "encoder":
        raise ModelError(f"{path} is an encoder alone: a height model, which canopy train makes of one, is expected")
    if uncertainty and card.intervals is None:
        raise ModelError(no_interval(reference))
    bundled = path.parent.resolve() == BUNDLED.resolve()
    name = path.stem if bundled else str(path.absolute())
    return PlannedModel(card.name, name, file_sha256(path), None, card.gsd_m, card.chip_px)


def _calibration(request: BatchRequest) -> bytes | None:
    """Read a calibration and check that the batch maps what it reads."""
    if request.calibration is None:
        return None
    fitted = read_calibration(request.calibration)
    if fitted.upper > 0 and not request.uncertainty:
        raise CalibrationError("this calibration reads the upper end of the interval: plan with --uncertainty")
    return request.calibration.read_bytes()


def _table(listed: Sequence[ZoneTiles], source: ImagerySource, model: PlannedModel) -> pa.Table:
    """Return the tiles of all zones as a table, with the imagery of each."""
    parts = []
    for tiles in listed:
        lattice, (x, y) = tiles.zone.lattice, tiles.zone.area.centroid.coords[0]
        metres = math.sqrt(math.prod(metres_per_unit(lattice.crs.proj, x, y))) * lattice.resolution
        members, covered = near(tiles.footprints, source, 2 * model.chip_px * model.gsd_m)
        parts.append(
            pa.table(
                {
                    "name": tiles.names,
                    "zone": pa.array([tiles.zone.name] * len(tiles.names)).dictionary_encode(),
                    "row0": tiles.windows[:, 0], "col0": tiles.windows[:, 1],
                    "height": tiles.windows[:, 2].astype(np.int32), "width": tiles.windows[:, 3].astype(np.int32),
                    "share": tiles.shares, "km2": square_km(tiles.shares, tiles.windows, metres),
                    "imagery": covered, "scenes": pa.array(members, pa.list_(pa.int32())),
                    **_resolved(members, source),
                    "geometry": pa.array(shapely.to_wkb(tiles.footprints), pa.binary()),
                }
            )
        )  # fmt: skip
    table = pa.concat_tables(parts).unify_dictionaries()
    return table.replace_schema_metadata(geo_metadata(np.concatenate([tiles.footprints for tiles in listed])))


def _resolved(members: Sequence[Sequence[int]], source: ImagerySource) -> dict[str, pa.Array]:
    """Return what is decided of the imagery of each tile: pixel sizes and dates of its files."""
    scenes = source.scenes if isinstance(source, RasterImagery) else ()
    sizes = [[scenes[number].gsd_m for number in numbers] for numbers in members]
    dates = [[scenes[number].acquired for number in numbers] for numbers in members]
    spans = [span(times) or "" if times else "" for times in dates]
    return {
        "finest_gsd_m": pa.array([min(one, default=None) for one in sizes], pa.float64()),
        "coarsest_gsd_m": pa.array([max(one, default=None) for one in sizes], pa.float64()),
        "acquired": pa.array(spans, pa.string()).dictionary_encode(),
    }


def _write_objects(
    store: Store,
    request: BatchRequest,
    zones: Sequence[Any],
    table: pa.Table,
    model: PlannedModel,
    calibration: bytes | None,
) -> tuple[dict[str, str], dict[str, str] | None, PlannedModel]:
    """Write tiles, zones, calibration, and a model that not every installation has."""
    objects = {
        "tiles": write_object(store, "tiles", table_bytes(table), ".parquet"),
        "zones": write_object(store, "zones", table_bytes(zones_table(zones)), ".parquet"),
    }
    path = find_bundle(request.model)
    if path.parent.resolve() != BUNDLED.resolve():
        model = replace(model, object=write_object(store, "model", path.read_bytes(), path.suffix))
    if calibration is None:
        return objects, None, model
    key = write_object(store, "calibration", calibration, ".json")
    return objects, {"object": key, "sha256": hashlib.sha256(calibration).hexdigest()}, model


def _write_rows(store: Store, name: str, columns: Sequence[tuple[str, pa.DataType]], rows: Sequence[Any]) -> str:
    """Write a list of values of one class as a table; return its key."""
    table = pa.Table.from_pylist(list(map(asdict, rows)), pa.schema(columns))
    return write_object(store, name, table_bytes(table), ".parquet")


def _describe_area(area: Geometry, aoi: Any) -> dict[str, Any]:
    lonlat = to_crs(area, CRS("EPSG:4326"))
    return {
        "name": aoi_stem(aoi),
        "sha256": hashlib.sha256(shapely.to_wkb(area.geom) + str(area.crs).encode()).hexdigest(),
        "bbox": [float(value) for value in lonlat.boundingbox],
    }


def _estimate(
    table: pa.Table, tile_px: int, zones: Sequence[Any], model: PlannedModel, request: BatchRequest
) -> Estimate:
    """Estimate time, size and money by formula."""
    mapped = table.filter(table["imagery"])
    share, height, width = (mapped[name].to_numpy() for name in ("share", "height", "width"))
    output_mpx = float((share * height * width).sum()) / 1e6
    lattice, work = zones[0].lattice, zones[0].work
    x, y = zones[0].area.centroid.coords[0]
    cell_m = math.sqrt(math.prod(metres_per_unit(lattice.crs.proj, x, y))) * lattice.resolution
    work_mpx = output_mpx * (cell_m / model.gsd_m) ** 2 if lattice != work else output_mpx
    # A tile's sides cut chips, and a chip that is cut is computed for both sides.
    strides = tile_px * math.sqrt(work_mpx / max(output_mpx, 1e-9)) / (model.chip_px - OVERLAP_PX)
    halo = ((strides + 1) / strides) ** 2
    hours = work_mpx * halo / request.speed_mpx_s / 3600
    bands = 3 if request.uncertainty else 1
    size = output_mpx * 1e6 * BYTES_PER_PX * bands
    money = None if request.price_hour is None else hours * request.price_hour
    formula = (
        f"hours = {work_mpx:,.0f} Mpx x {halo:.3f} (chips at tile edges) / {request.speed_mpx_s:g} Mpx/s / 3600; "
        f"bytes = {output_mpx:,.0f} Mpx x {BYTES_PER_PX:g} x {bands} band(s)"
        + ("" if money is None else f"; money = hours x {request.price_hour:g}")
    )
    km2 = float(mapped["km2"].to_numpy().sum())
    return Estimate(km2, len(mapped), len(table) - len(mapped), work_mpx * halo, halo, hours, size, money, formula)
