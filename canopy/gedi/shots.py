"""Shots of many granules as one table of points: read, merged, clipped, filtered."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyproj
from numpy.typing import NDArray

from canopy.errors import LidarError
from canopy.gedi.filters import ShotFilter, Step, apply_filter
from canopy.gedi.granules import quality_names, read_granule
from canopy.progress import Progress, Report, ignore
from tiles.files import expand_patterns

if TYPE_CHECKING:
    from geopandas import GeoDataFrame
    from odc.geo.geom import Geometry

_SAME_SHOT_S, _SAME_SHOT_DEG = 2e-3, 1e-3
"""A beam fires every 8 ms and moves 60 m in that time; versions place a shot some 10 m apart."""


@dataclass(frozen=True)
class Reading:
    """What was read of a set of granules."""

    shots: "GeoDataFrame"
    """Points in EPSG:4326, one row a shot that passed."""
    read: int
    """Shots in the files."""
    duplicates: int
    """Shots that came twice, in overlapping clips, as L2A and L2B, or in two versions, and count once."""
    unplaced: int
    """Shots without finite coordinates."""
    outside: int
    """Shots outside the AOI or the dates."""
    funnel: tuple[Step, ...]
    """Rules and what they dropped."""
    failures: tuple[str, ...]
    """Files and parts of files that could not be read, each with its reason in one line."""


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
        files: L2A and L2B granules, HDF5, or patterns of their names. An L2B gives the shots of its L2A their cover; of
            a shot in several versions the newest is read.
        rules: Rules of the filter; the default ones if None. With the rule `quality`, a file without any quality flag
            counts as one that cannot be read.
        aoi: Area inside which shots are taken.
        start: First moment from which shots are taken (UTC).
        end: Moment before which shots are taken (UTC).
        report: Called after each file.

    Raises:
        LidarError: None of the files could be read.
    """
    rules = rules or ShotFilter()
    paths, unmatched = expand_patterns(files)
    failures = [f"{pattern}: no file matches; GEDI L2A or L2B granules expected" for pattern in unmatched]
    tables: list[pd.DataFrame] = []
    for number, path in enumerate(paths, 1):
        try:
            granule = read_granule(path)
            failures.extend(granule.faults)
            tables.append(_with_quality(path, granule.shots) if rules.quality else granule.shots)
        except LidarError as error:
            failures.append(str(error))
        report(Progress(number, len(paths), "granules", f"granule {number}/{len(paths)}"))
    if not tables:
        raise LidarError("; ".join(failures) or "no files were named: GEDI L2A or L2B granules expected")
    read = sum(map(len, tables))
    # Merged before it is filtered: an L2B, or another version, may have what a rule judges by.
    merged = _merged(tables)
    merged["lon"] = _wrapped(merged["lon"].to_numpy(np.float64))
    placed = merged[np.isfinite(merged["lon"]) & (merged["lat"].abs() <= 90)]
    inside = _clipped(placed, aoi, start, end)
    passed, funnel = apply_filter(inside, rules)
    counts = (len(merged) - len(placed), len(placed) - len(inside))
    return Reading(_points(passed), read, read - len(merged), *counts, tuple(funnel), tuple(failures))


def _with_quality(path: Path, shots: pd.DataFrame) -> pd.DataFrame:
    """Return the shots of a file that has a quality flag; without one every shot would pass unjudged."""
    if shots["quality"].notna().any():
        return shots
    names = " or ".join(quality_names(str(shots["product"].iloc[0])))
    raise LidarError(
        f"{path}: no quality flag: {names} expected; --set quality=false reads the file without judging quality"
    )


def _wrapped(lon: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return longitudes from -180 to 180, those of 0 to 360 included; NaN where they are none."""
    turned = np.where(np.abs(lon) > 180, (lon + 180) % 360 - 180, lon)
    return np.where(np.abs(lon) <= 360, turned, np.nan)


def _merged(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """Return one row a shot: L2A before L2B, the newest version first, nulls filled from the others."""
    together = pd.concat(tables, ignore_index=True)
    ranked = together.sort_values("version", ascending=False, kind="stable").sort_values("product", kind="stable")
    shot = _shot_of(ranked)
    if not shot.duplicated().any():
        return together
    # The first value that is not null, column by column: what the best row lacks comes from the next.
    merged: pd.DataFrame = ranked.groupby(shot.to_numpy(), sort=False).first()
    return merged.sort_values(["granule", "shot_number"], kind="stable", ignore_index=True)


def _shot_of(shots: pd.DataFrame) -> "pd.Series[int]":
    """Return for each row the number of its shot, the same for rows of one shot.

    A shot keeps its number within a version. Across versions numbers changed: there, rows of one beam at one moment and
    place are one shot.
    """
    number = pd.Series(pd.factorize(shots["shot_number"])[0], index=shots.index)
    if shots["version"].nunique() < 2:
        return number
    by_time = shots.sort_values(["beam", "time"], kind="stable")
    step = by_time[["lat", "lon"]].diff().abs().max(axis=1) < _SAME_SHOT_DEG
    step &= by_time["time"].diff().dt.total_seconds().abs() < _SAME_SHOT_S
    step &= (by_time["beam"] == by_time["beam"].shift()) & (by_time["version"] != by_time["version"].shift())
    # Runs of rows that follow each other within the tolerance are one shot, whatever their numbers.
    run = pd.Series((~step).cumsum().to_numpy(), index=by_time.index)
    # Both ways of being the same shot are joined: by moment and place across versions, by number within one.
    lowest = number.groupby(run.reindex(shots.index)).transform("min")
    return lowest.groupby(number).transform("min")


def _clipped(shots: pd.DataFrame, aoi: "Geometry | None", start: datetime | None, end: datetime | None) -> pd.DataFrame:
    """Return the shots inside the area and the dates."""
    inside = np.ones(len(shots), bool)
    if aoi is not None:
        import shapely
        from odc.geo.crs import CRS

        from tiles.aoi import to_crs

        area = to_crs(aoi, CRS("EPSG:4326")).geom
        shapely.prepare(area)
        # The area's longitudes are continuous and may pass 180; those of the shots do not.
        turns = [shapely.contains_xy(area, shots["lon"] + turn, shots["lat"]) for turn in (0, 360, -360)]
        inside &= np.any(turns, axis=0)
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


def utm_of(points: "GeoDataFrame") -> pyproj.CRS:
    """Return the UTM zone of the middle of points in EPSG:4326, whichever side of the antimeridian they lie on."""
    lon, lat = points.geometry.x.to_numpy(np.float64), points.geometry.y.to_numpy(np.float64)
    if np.ptp(lon) > 180:
        lon = lon % 360
    middle = (lon.min() + lon.max()) / 2
    zone = int((middle + 180) % 360 // 6) + 1
    return pyproj.CRS.from_epsg((32600 if lat.min() + lat.max() >= 0 else 32700) + zone)


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
