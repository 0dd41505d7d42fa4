"""Shots of many granules as one table of points: read, merged, clipped, filtered, and stored as GeoParquet."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from canopy.errors import LidarError, OutputError, one_line
from canopy.gedi.filters import ShotFilter, Step, apply_filter
from canopy.gedi.granules import RH_PERCENTS, read_granule
from canopy.progress import Progress, Report, ignore
from canopy.version import __version__
from tiles.files import replacing

if TYPE_CHECKING:
    from geopandas import GeoDataFrame
    from odc.geo.geom import Geometry

META_KEY = b"canopy:gedi"


@dataclass(frozen=True)
class Reading:
    """What was read of a set of granules."""

    shots: "GeoDataFrame"
    """Points in EPSG:4326, one row a shot that passed."""
    read: int
    """Shots in the files."""
    duplicates: int
    """Shots that came twice, in overlapping clips or as L2B and L2A, and count once."""
    unplaced: int
    """Shots without finite coordinates."""
    outside: int
    """Shots outside the AOI or the dates."""
    funnel: tuple[Step, ...]
    """Rules and what they dropped."""
    failures: tuple[str, ...]
    """Files that could not be read, each with its reason in one line."""


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
        files: L2A and L2B granules, HDF5. An L2B gives the shots of its L2A their cover.
        rules: Rules of the filter; the default ones if None.
        aoi: Area inside which shots are taken.
        start: First moment from which shots are taken (UTC).
        end: Moment before which shots are taken (UTC).
        report: Called after each file.

    Raises:
        LidarError: None of the files could be read.
    """
    tables, failures, read = [], [], 0
    for number, path in enumerate(files, 1):
        try:
            table = read_granule(path)
            read += len(table)
            tables.append(table)
        except LidarError as error:
            failures.append(str(error))
        report(Progress(number, len(files), "granules", f"granule {number}/{len(files)}"))
    if not tables:
        raise LidarError("; ".join(failures) or "no files were named: GEDI L2A or L2B granules expected")
    merged = _merged(tables)
    placed = merged[np.isfinite(merged["lon"]) & (merged["lat"].abs() <= 90) & (merged["lon"].abs() <= 180)]
    inside = _clipped(placed, aoi, start, end)
    passed, funnel = apply_filter(inside, rules or ShotFilter())
    counts = (len(merged) - len(placed), len(placed) - len(inside))
    return Reading(_points(passed), read, read - len(merged), *counts, tuple(funnel), tuple(failures))


def _merged(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """Return one row a shot: L2A before L2B, whose cover it takes over."""
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
    """Return the shots inside the area and the dates."""
    inside = np.ones(len(shots), bool)
    if aoi is not None:
        import shapely
        from odc.geo.crs import CRS

        from tiles.aoi import to_crs

        area = to_crs(aoi, CRS("EPSG:4326")).geom
        shapely.prepare(area)
        inside &= shapely.contains_xy(area, shots["lon"], shots["lat"])
    for moment, after in ((start, True), (end, False)):
        if moment is not None:
            edge = np.datetime64(moment.replace(tzinfo=None), "ns")
            inside &= (shots["time"] >= edge) if after else (shots["time"] < edge)
    return shots[inside]


def _points(shots: pd.DataFrame) -> "GeoDataFrame":
    """Return the shots as points, their texts as categories."""
    import geopandas

    geometry = geopandas.points_from_xy(shots["lon"], shots["lat"], crs="EPSG:4326")
    columns = shots.drop(columns=["lon", "lat"]).reset_index(drop=True)
    columns["time"] = columns["time"].dt.tz_localize("UTC")
    for name in ("beam", "granule", "product", "version"):
        columns[name] = columns[name].astype("category")
    return geopandas.GeoDataFrame(columns, geometry=geometry)


def write_shots(reading: Reading, path: Path, rules: ShotFilter) -> None:
    """Write shots as GeoParquet with units, filter and funnel in its metadata, all or nothing.

    Raises:
        OutputError: The file cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq
    from geopandas.io.arrow import _geopandas_to_arrow

    table: pa.Table = _geopandas_to_arrow(reading.shots)
    about = {
        "canopy_version": __version__,
        "units": {
            **dict.fromkeys([f"rh{n}" for n in RH_PERCENTS], "m"),
            "elevation_m": "m",
            "dem_m": "m",
            "cover": "1",
        },
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
        raise OutputError(f"cannot write {path}: {error.strerror or one_line(error)}") from error


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


def read_funnel(path: Path) -> tuple[Step, ...]:
    """Read the funnel that a file of shots carries; empty where it has none."""
    return tuple(Step(**step) for step in shots_metadata(path).get("funnel", []))


def shots_metadata(path: Path) -> dict[str, Any]:
    """Read filter, funnel and granules of a file of shots, as JSON; empty where it has none."""
    import pyarrow.parquet as pq

    text = (pq.read_schema(path).metadata or {}).get(META_KEY, b"{}")
    about: dict[str, Any] = json.loads(text)
    return about


def funnel_lines(reading: Reading) -> Iterator[str]:
    """Yield the funnel as lines of text."""
    yield f"{reading.read:>9,}  shots read"
    for count, what in (
        (reading.duplicates, "came twice"),
        (reading.unplaced, "have no coordinates"),
        (reading.outside, "lie outside"),
    ):
        if count:
            yield f"{-count:>9,}  {what}"
    for step in reading.funnel:
        unknown = f"  ({step.unknown:,} not judged: field absent)" if step.unknown else ""
        yield f"{-step.dropped:>9,}  {step.rule}{unknown}"
    yield f"{len(reading.shots):>9,}  shots left"
