"""Shots of GEDI L2A and L2B granules, V001 and V002, whole or clipped, as a table of points.

Fields that a file lacks are null, never invented. Heights are metres above the ground that the waveform shows.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from canopy.errors import LidarError, OutputError, one_line
from canopy.gedi.filters import ShotFilter, Step, apply_filter
from canopy.progress import Progress, Report, ignore
from canopy.version import __version__
from tiles.files import replacing

if TYPE_CHECKING:
    from geopandas import GeoDataFrame
    from odc.geo.geom import Geometry

Columns = dict[str, NDArray[Any]]

EPOCH = np.datetime64("2018-01-01T00:00:00", "ns")
"""Of delta_time, seconds."""
RH = (25, 50, 75, 90, 95, 98, 100)
SLICE = 50_000
META_KEY = b"canopy:gedi"
_FILL = -9990.0
"""Numbers at or below mean "no value" in every field of the products."""

_L2A = {
    "quality": "quality_flag",
    "degrade": "degrade_flag",
    "surface_flag": "surface_flag",
    "sensitivity": "sensitivity",
    "sensitivity_a2": "geolocation/sensitivity_a2",
    "elevation_m": "elev_lowestmode",
    "dem_m": "digital_elevation_model",
    "solar_elevation": "solar_elevation",
    "tree_cover_percent": "land_cover_data/landsat_treecover",
    "leaf_off": "land_cover_data/leaf_off_flag",
    "water_percent": "land_cover_data/landsat_water_persistence",
    "urban_percent": "land_cover_data/urban_proportion",
}
_L2B = {
    **_L2A,
    "quality": "l2b_quality_flag",
    "sensitivity_a2": "",
    "degrade": "geolocation/degrade_flag",
    "elevation_m": "geolocation/elev_lowestmode",
    "dem_m": "geolocation/digital_elevation_model",
    "solar_elevation": "geolocation/solar_elevation",
    "cover": "cover",
    "pai": "pai",
}
_PLACES = {"GEDI_L2A": "", "GEDI_L2B": "geolocation/"}
NUMBERS = tuple(dict.fromkeys([*(f"rh{n}" for n in RH), *_L2A, "cover", "pai"]))


@dataclass(frozen=True)
class Reading:
    """What was read.

    Attributes:
        shots: Points in EPSG:4326, one row a shot that passed.
        read: Shots in the files.
        duplicates: Shots that came twice, in overlapping clips or as L2B beside L2A, and were kept once.
        unplaced: Shots without finite coordinates.
        outside: Shots outside the AOI or the dates.
        funnel: Rules and what they dropped.
        failures: Files that could not be read, each with its reason in one line.
    """

    shots: "GeoDataFrame"
    read: int
    duplicates: int
    unplaced: int
    outside: int
    funnel: tuple[Step, ...]
    failures: tuple[str, ...]


def read_granules(
    files: Sequence[Path],
    rules: ShotFilter | None = None,
    *,
    aoi: "Geometry | None" = None,
    start: datetime | None = None,
    end: datetime | None = None,
    report: Report = ignore,
) -> Reading:
    """Read and filter granules; a file that cannot be read is named and the others go on.

    Args:
        files: L2A and L2B, HDF5. An L2B beside its L2A gives the shots their cover.
        rules: Filter; the default one if None.
        aoi: Keep shots inside.
        start: Keep shots from then on (UTC).
        end: Keep shots before (UTC).
        report: Called after each file.

    Raises:
        LidarError: None of the files could be read.
    """
    tables, failures, read = [], [], 0
    for number, path in enumerate(files, 1):
        try:
            made = _granule(path)
            read += len(made)
            tables.append(made)
        except LidarError as error:
            failures.append(str(error))
        report(Progress(number, len(files), "granules", f"granule {number}/{len(files)}"))
    if not tables:
        raise LidarError("; ".join(failures) or "no files given")
    merged = _merged(tables)
    placed = merged[np.isfinite(merged["lon"]) & (merged["lat"].abs() <= 90) & (merged["lon"].abs() <= 180)]
    inside = _clipped(placed, aoi, start, end)
    kept, funnel = apply_filter(inside, rules or ShotFilter())
    counts = (len(merged) - len(placed), len(placed) - len(inside))
    return Reading(_points(kept), read, read - len(merged), *counts, tuple(funnel), tuple(failures))


def _granule(path: Path) -> pd.DataFrame:
    """All shots of a file.

    Raises:
        LidarError: Damaged, or another product.
    """
    try:
        with h5py.File(path) as opened:
            product = _product(path, opened)
            beams = [_beam(opened[name], name, product) for name in sorted(opened) if name.startswith("BEAM")]
            version = _version(path, opened)
    except (OSError, KeyError, RuntimeError, ValueError) as error:
        raise LidarError(f"{path}: damaged or not HDF5: {one_line(error, 200)}") from error
    made = [pd.DataFrame(part) for part in beams if part]
    if not made:
        raise LidarError(f"{path}: no beam with shots and coordinates; GEDI L2A or L2B expected")
    return pd.concat(made, ignore_index=True).assign(granule=path.name, product=product[5:], version=version)


def _product(path: Path, opened: h5py.File) -> str:
    name = opened.attrs.get("short_name", b"")
    name = name[0] if isinstance(name, np.ndarray) else name
    product = name.decode() if isinstance(name, bytes) else str(name)
    if product not in _PLACES:
        raise LidarError(f"{path}: product {product or 'unknown'!r}; GEDI_L2A or GEDI_L2B expected")
    return product


def _version(path: Path, opened: h5py.File) -> str:
    """V001 or V002, as the file says or as its fields betray."""
    if "_V002" in path.name:
        return "V002"
    later = any("leaf_off_flag" in opened[beam].get("land_cover_data", {}) for beam in opened if beam[:4] == "BEAM")
    return "V002" if later else "V001"


def _beam(group: h5py.Group, name: str, product: str) -> Columns:
    """Columns of a beam; none where it holds no placed shots."""
    place = _PLACES[product]
    lat, lon = f"{place}lat_lowestmode", f"{place}lon_lowestmode"
    if "shot_number" not in group or lat not in group:
        return {}
    count = len(group["shot_number"])
    text = group.attrs.get("description", b"")
    text = text[0] if isinstance(text, np.ndarray) else text
    full = "full power" in (text.decode() if isinstance(text, bytes) else str(text)).lower()
    fields = _L2A if product == "GEDI_L2A" else _L2B
    time = "delta_time" if "delta_time" in group else f"{place}delta_time"
    columns: Columns = {
        "shot_number": group["shot_number"][()].astype(np.uint64),
        "beam": np.full(count, name),
        "power": np.full(count, full),
        "time": EPOCH + np.round(group[time][()] * 1e9).astype("timedelta64[ns]"),
        "lat": group[lat][()].astype(np.float64),
        "lon": group[lon][()].astype(np.float64),
    }
    for column in NUMBERS:
        columns[column] = np.full(count, np.nan, np.float32)
    columns |= {c: _numbers(group[field]) for c, field in fields.items() if field and field in group}
    return columns | _heights(group, product)


def _heights(group: h5py.Group, product: str) -> Columns:
    """Relative heights in metres: all of L2A's, RH100 of L2B, which is stored in centimetres."""
    if product == "GEDI_L2B":
        given = group["rh100"]
        return {"rh100": _numbers(given) * np.float32(0.01 if given.dtype.kind in "iu" else 1)}
    rh = group["rh"]
    parts = [rh[first : first + SLICE][:, list(RH)] for first in range(0, len(rh), SLICE)]
    heights = np.concatenate(parts).astype(np.float32)
    heights[heights <= _FILL] = np.nan
    return {f"rh{n}": heights[:, k] for k, n in enumerate(RH)}


def _numbers(given: h5py.Dataset) -> NDArray[np.float32]:
    values: NDArray[np.float32] = np.asarray(given[()], np.float32).copy()
    values[values <= _FILL] = np.nan
    return values


def _merged(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """One row a shot: L2A before L2B, whose cover it takes over."""
    together = pd.concat(tables, ignore_index=True)
    ordered = together.sort_values("product", kind="stable")
    repeated = ordered["shot_number"].duplicated()
    if not repeated.any():
        return together
    first = ordered[~repeated].set_index("shot_number")
    covered = ordered[repeated & ordered["cover"].notna()].drop_duplicates("shot_number").set_index("shot_number")
    for column in ("cover", "pai"):
        first[column] = first[column].fillna(covered[column].reindex(first.index))
    return first.reset_index().sort_values(["granule", "shot_number"], kind="stable", ignore_index=True)


def _clipped(shots: pd.DataFrame, aoi: "Geometry | None", start: datetime | None, end: datetime | None) -> pd.DataFrame:
    keep = np.ones(len(shots), bool)
    if aoi is not None:
        import shapely
        from odc.geo.crs import CRS

        from tiles.aoi import to_crs

        area = to_crs(aoi, CRS("EPSG:4326")).geom
        shapely.prepare(area)
        keep &= shapely.contains_xy(area, shots["lon"], shots["lat"])
    for moment, after in ((start, True), (end, False)):
        if moment is not None:
            edge = np.datetime64(moment.replace(tzinfo=None), "ns")
            keep &= (shots["time"] >= edge) if after else (shots["time"] < edge)
    return shots[keep]


def _points(shots: pd.DataFrame) -> "GeoDataFrame":
    import geopandas

    places = geopandas.points_from_xy(shots["lon"], shots["lat"], crs="EPSG:4326")
    columns = shots.drop(columns=["lon", "lat"]).reset_index(drop=True)
    columns["time"] = columns["time"].dt.tz_localize("UTC")
    for name in ("beam", "granule", "product", "version"):
        columns[name] = columns[name].astype("category")
    return geopandas.GeoDataFrame(columns, geometry=places)


def write_shots(reading: Reading, path: Path, rules: ShotFilter) -> None:
    """Write shots as GeoParquet with units, filter and funnel in its metadata, all or nothing.

    Raises:
        OutputError: It cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq
    from geopandas.io.arrow import _geopandas_to_arrow

    table: pa.Table = _geopandas_to_arrow(reading.shots)
    about = {
        "canopy_version": __version__,
        "units": {**dict.fromkeys([f"rh{n}" for n in RH], "m"), "elevation_m": "m", "dem_m": "m", "cover": "1"},
        "granules": sorted(set(reading.shots["granule"].astype(str))),
        "filter": rules.model_dump(mode="json"),
        "read": reading.read,
        "duplicates": reading.duplicates,
        "unplaced": reading.unplaced,
        "outside": reading.outside,
        "funnel": [asdict(step) for step in reading.funnel],
    }
    metadata = {**(table.schema.metadata or {}), META_KEY: json.dumps(about).encode()}
    try:
        with replacing(path) as draft:
            pq.write_table(table.replace_schema_metadata(metadata), draft, compression="zstd")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


def read_shots(path: Path) -> "GeoDataFrame":
    """Read shots that `write_shots` wrote.

    Raises:
        LidarError: No such file, or another kind of file.
    """
    import geopandas
    import pyarrow as pa

    try:
        shots = geopandas.read_parquet(path)
    except (OSError, ValueError, pa.ArrowInvalid) as error:
        raise LidarError(f"{path} is not a GeoParquet of shots: {one_line(error, 200)}") from error
    missing = {"shot_number", "beam", "rh98", "sensitivity", "geometry"} - set(shots.columns)
    if missing or shots.crs is None:
        raise LidarError(f"{path} lacks {', '.join(sorted(missing)) or 'a CRS'}: shots of canopy gedi read expected")
    return shots.to_crs("EPSG:4326")


def shots_metadata(path: Path) -> dict[str, Any]:
    """Filter, funnel and granules of a file of shots; empty where it holds none."""
    import pyarrow.parquet as pq

    text = (pq.read_schema(path).metadata or {}).get(META_KEY, b"{}")
    about: dict[str, Any] = json.loads(text)
    return about


def funnel_lines(reading: Reading) -> Iterator[str]:
    """The funnel as lines of text."""
    yield f"{reading.read:>9,}  shots read"
    for count, what in (
        (reading.duplicates, "came twice"),
        (reading.unplaced, "have no place"),
        (reading.outside, "lie outside"),
    ):
        if count:
            yield f"{-count:>9,}  {what}"
    for step in reading.funnel:
        unknown = f"  ({step.unknown:,} not judged: field absent)" if step.unknown else ""
        yield f"{-step.dropped:>9,}  {step.rule}{unknown}"
    yield f"{len(reading.shots):>9,}  shots left"
