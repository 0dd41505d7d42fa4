"""`canopy gedi validate`: height maps against shots, by height, cover, beam, sensitivity and site."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from canopy.errors import EvaluationError
from canopy.evaluation.prediction_intervals import HIGH_BAND, LEVEL, LOW_BAND, IntervalScores, score_intervals
from canopy.evaluation.residuals import ResidualIntervals, Residuals, residual_intervals, residual_metrics
from canopy.evaluation.sites import read_sites, site_names
from canopy.gedi.footprints import footprint_statistics
from canopy.gedi.shots import utm_of
from canopy.gedi.storage import read_shots
from canopy.progress import Progress, Report, ignore
from tiles.heights import open_heights

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

Floats = NDArray[np.float64]

VALIDATION_RADIUS_M = 12.0
"""Radius of the disc whose 98th percentile is compared, as in CHMv2's validation."""
HEIGHTS_M = (0, 3, 5, 10, 15, 20, 25, 30, 40, np.inf)
COVERS = (0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.01)
SENSITIVITIES = (0, 0.95, 0.97, 0.98, 0.99, 1.01)
AIMED_BLOCKS = 100
SHORTEST_BLOCK_M = 200.0
SHIFTS_M = (-16.0, -8.0, 0.0, 8.0, 16.0)
FEWEST_OF_TRACK = 20
OUTSIDE = "outside all sites"


@dataclass(frozen=True)
class ClassScore:
    """Residuals of the shots of one class."""

    n: int
    """Number of shots."""
    residuals: Residuals
    """Residuals of the shots."""
    interval: IntervalScores | None = None
    """Scores of the map's interval at the shots; None where the map has none."""


@dataclass(frozen=True)
class TrackShift:
    """Shift that fits a track best."""

    east_m: float
    """Metres by which the shots move east."""
    north_m: float
    """Metres by which the shots move north."""
    n: int
    """Number of shots of the track."""


@dataclass(frozen=True)
class ShiftSearch:
    """Shifts of tracks, and the error they take off the shots that did not choose them."""

    tracks: Mapping[str, TrackShift]
    """Shift of each track with enough shots, by orbit and beam."""
    mae_before_m: float | None
    """MAE of the shots where they are recorded, metres; None without such tracks."""
    mae_after_m: float | None
    """MAE of the same shots after the shift that the other half of their track chose, metres."""


@dataclass(frozen=True)
class Validation:
    """A map against shots."""

    pairs: tuple[tuple[Path, Path], ...]
    """Height maps, each with its file of shots."""
    radius_m: float
    """Radius of the disc, metres."""
    points: pd.DataFrame
    """One row a compared shot: map_m, lidar_m, x, y (metres), site, block, and the shot's own columns; low_m and high_m
    where the map has an interval."""
    n: int
    """Number of compared shots."""
    off_map: int
    """Shots off the map."""
    unknown: int
    """Shots whose disc has unknown cells."""
    edges: int
    """Shots on known cells whose disc has a tree edge."""
    edges_kept: bool
    """Whether shots with a tree edge are compared."""
    residuals: Residuals
    """Residuals (map less RH98) of all compared shots."""
    block_m: float
    """Side of the blocks of ground that the bootstrap draws, metres."""
    blocks: int
    """Number of blocks with shots."""
    intervals: ResidualIntervals
    """95 % intervals of the residuals."""
    cover_of: Literal["gedi", "map"]
    """Source of the cover by which shots are classed: GEDI's where all shots have it, else the map's."""
    by_height: Mapping[str, ClassScore]
    """Scores by class of RH98."""
    by_cover: Mapping[str, ClassScore]
    """Scores by class of cover."""
    by_beam: Mapping[str, ClassScore]
    """Scores by beam."""
    by_sensitivity: Mapping[str, ClassScore]
    """Scores by class of sensitivity."""
    by_site: Mapping[str, ClassScore]
    """Scores by site; empty with one map and without polygons of sites."""
    interval: IntervalScores | None
    """Scores of the maps' intervals at all compared shots; None where a map has none."""
    shift_search: ShiftSearch | None = None
    """Shifts of the tracks, where they were searched."""

    def to_json(self) -> dict[str, Any]:
        """Return counts, metrics with intervals and tables as one JSON object."""
        names = ("by_height", "by_cover", "by_beam", "by_sensitivity", *(("by_site",) if self.by_site else ()))
        tables = {name: {label: _flat(score) for label, score in getattr(self, name).items()} for name in names}
        intervals = {name: list(ends) if ends else None for name, ends in asdict(self.intervals).items()}
        counts = {name: getattr(self, name) for name in ("n", "off_map", "unknown", "edges", "edges_kept")}
        result = {
            **counts,
            **asdict(self.residuals),
            "block_m": self.block_m,
            "blocks": self.blocks,
            "ci": intervals,
            "cover_of": self.cover_of,
            **tables,
        }
        if self.interval is not None:
            result["interval"] = {"level": LEVEL, **_interval_figures(self.interval)}
        return result if self.shift_search is None else {**result, "shift_search": asdict(self.shift_search)}


def _flat(score: ClassScore) -> dict[str, Any]:
    return {"n": score.n, **asdict(score.residuals), **_interval_figures(score.interval)}


def _interval_figures(interval: IntervalScores | None) -> dict[str, Any]:
    """Return the figures of an interval without the number of shots; none without an interval."""
    return {} if interval is None else {name: value for name, value in asdict(interval).items() if name != "n_px"}


def validate_map(
    pred: Path | Sequence[Path],
    shots: Path | Sequence[Path],
    *,
    radius_m: float = VALIDATION_RADIUS_M,
    keep_edges: bool = True,
    shift_search: bool = False,
    sites: Path | None = None,
    by: str | None = None,
    report: Report = ignore,
) -> Validation:
    """Compare the map's 98th percentile around each shot with RH98, and its interval's 98th percentiles.

    Args:
        pred: Height map, or the maps of several sites.
        shots: GeoParquet of `canopy gedi read`, or one a map, in their order.
        radius_m: Radius of the disc, metres; larger than the footprint where geolocation errs.
        keep_edges: Whether shots whose disc has a tree edge are compared. Without them misplaced shots do less harm,
            but open woodland drops out.
        shift_search: Whether to search each track's shift within 16 m, and to report what it gains on shots that did
            not choose it.
        sites: Polygons of sites to score one by one; several maps are sites already.
        by: Field of `sites` that names the site.
        report: Called as footprints are read.

    Raises:
        EvaluationError: No shot lies on known cells, or maps, shots and sites do not match.
        CanopyError: Map or shots cannot be read.
    """
    preds, files = ([value] if isinstance(value, Path) else list(value) for value in (pred, shots))
    _require_matching(preds, files, shift_search, sites, by)
    if sites is not None and by is not None:
        read_sites(sites, by, "EPSG:4326")  # refuses before the footprints, which may take hours
    parts = [_compare(*pair, radius_m, keep_edges, report) for pair in zip(preds, files, strict=True)]
    names = [path.stem if len({p.stem for p in preds}) == len(preds) else str(path) for path in preds]
    for name, part, offset in zip(names, parts, np.cumsum([0, *(part.blocks for part in parts)]), strict=False):
        part.points["site"], part.points["block"] = name, part.points["block"] + offset
    points = pd.concat([part.points for part in parts], ignore_index=len(parts) > 1)
    if sites is not None and by is not None:
        points["site"] = _sites_of(parts[0].taken, sites, by)
    map_m, lidar_m = points["map_m"].to_numpy(np.float64), points["lidar_m"].to_numpy(np.float64)
    block = points["block"].to_numpy(np.int64)
    cover_of, cover = _cover(points)
    split = len(preds) > 1 or sites is not None
    return Validation(
        pairs=tuple(zip(preds, files, strict=True)),
        radius_m=radius_m,
        points=points,
        n=len(points),
        off_map=sum(part.off_map for part in parts),
        unknown=sum(part.unknown for part in parts),
        edges=sum(part.edges for part in parts),
        edges_kept=keep_edges,
        residuals=residual_metrics(map_m, lidar_m),
        block_m=max(part.block_m for part in parts),
        blocks=int(block.max()) + 1,
        intervals=residual_intervals(map_m, lidar_m, block),
        cover_of=cover_of,
        by_height=_scores(points, _class_names(lidar_m, HEIGHTS_M, " m")),
        by_cover=_scores(points, _class_names(cover, COVERS, "")),
        by_beam=_scores(points, points["beam"].astype(str).to_numpy()),
        by_sensitivity=_scores(points, _class_names(points["sensitivity"].to_numpy(np.float64), SENSITIVITIES, "")),
        by_site=_scores(points, points["site"].to_numpy(str)) if split else {},
        interval=_interval_scores(points),
        shift_search=_shift_search(preds[0], parts[0].taken, lidar_m, radius_m, report) if shift_search else None,
    )


@dataclass(frozen=True)
class _Compared:
    """Shots of one file compared with one map."""

    taken: "GeoDataFrame"
    """The compared shots."""
    points: pd.DataFrame
    """The same with the map's heights."""
    off_map: int
    unknown: int
    edges: int
    block_m: float
    blocks: int


def _require_matching(
    preds: Sequence[Path], files: Sequence[Path], shift_search: bool, sites: Path | None, by: str | None
) -> None:
    """Refuse maps, files of shots and sites that do not belong together."""
    if len(preds) != len(files):
        raise EvaluationError(f"{len(preds)} maps for {len(files)} files of shots: one a map expected, in their order")
    if (sites is None) != (by is None):
        raise EvaluationError("--sites and --by belong together: the file of polygons, and the field that names them")
    if len(preds) > 1 and (shift_search or sites is not None):
        raise EvaluationError("--shift-search and --sites take one map: with several, each is a site")


def _compare(pred: Path, shots: Path, radius_m: float, keep_edges: bool, report: Report) -> _Compared:
    """Compare one map with its shots."""
    table = read_shots(shots)
    statistics = footprint_statistics(pred, table, radius_m=radius_m, report=report)
    whole = statistics["on_map"] & (statistics["unknown_share"] == 0) & table["rh98"].notna()
    compared = whole & (keep_edges | ~statistics["edge"])
    if not compared.any():
        raise EvaluationError(
            f"none of {len(table)} shots lies on known cells of {pred}: do map and shots cover the same ground?"
        )
    taken = table[compared]
    points = _points(taken, statistics[compared])
    for column, band in (("low_m", LOW_BAND), ("high_m", HIGH_BAND)):
        if _has_interval(pred):
            points[column] = footprint_statistics(pred, taken, radius_m=radius_m, band=band)["p98"]
    points["block"], block_m = _blocks(points["x"].to_numpy(), points["y"].to_numpy())
    off_map = int((~statistics["on_map"]).sum())
    unknown = int((statistics["on_map"] & (statistics["unknown_share"] > 0)).sum())
    edges = int((whole & statistics["edge"]).sum())
    return _Compared(taken, points, off_map, unknown, edges, block_m, int(points["block"].max()) + 1)


def _has_interval(pred: Path) -> bool:
    """Return whether a map has the ends of its interval."""
    with open_heights(pred) as raster:
        return raster.named(LOW_BAND) is not None and raster.named(HIGH_BAND) is not None


def _sites_of(shots: "GeoDataFrame", sites: Path, by: str) -> NDArray[np.object_]:
    """Return the site of each shot, (n,) text; shots outside all have a name that says so."""
    utm = utm_of(shots)
    names = site_names(shots.to_crs(utm).geometry, read_sites(sites, by, utm))
    return np.where(names == "", OUTSIDE, names)


def _interval_scores(points: pd.DataFrame) -> IntervalScores | None:
    """Return the scores of the maps' intervals at shots; None where a map has none."""
    if "low_m" not in points or points["low_m"].isna().any():
        return None
    low_m, high_m, lidar_m = (points[name].to_numpy(np.float64) for name in ("low_m", "high_m", "lidar_m"))
    return score_intervals(low_m, high_m, lidar_m)


def _points(shots: "GeoDataFrame", statistics: pd.DataFrame) -> pd.DataFrame:
    """Return the compared shots with the map's heights and their own, placed in metres."""
    points = pd.DataFrame(shots.drop(columns="geometry")).assign(
        map_m=statistics["p98"], map_cover=statistics["cover"], lidar_m=shots["rh98"].astype(float)
    )
    metric = shots.to_crs(utm_of(shots)).geometry
    points["x"], points["y"] = metric.x, metric.y
    return points


def _blocks(x: Floats, y: Floats) -> tuple[NDArray[np.int64], float]:
    """Return (n,) the number of each shot's block of ground, and the side of the blocks in metres."""
    block_m = max(SHORTEST_BLOCK_M, float(np.sqrt(max(np.ptp(x), 1) * max(np.ptp(y), 1) / AIMED_BLOCKS)))
    cells = np.stack([np.floor(x / block_m), np.floor(y / block_m)], axis=1)
    return np.unique(cells, axis=0, return_inverse=True)[1].reshape(-1), block_m


def _cover(points: pd.DataFrame) -> tuple[Literal["gedi", "map"], Floats]:
    """Return the cover by which shots are classed, and its source."""
    cover: Floats = points["cover"].to_numpy(np.float64)
    if np.isfinite(cover).all():
        return "gedi", cover
    return "map", np.asarray(points["map_cover"], np.float64)


def _scores(points: pd.DataFrame, labels: NDArray[Any]) -> dict[str, ClassScore]:
    """Return the scores of each class, in the order of the numbers that the labels begin with."""
    order = dict.fromkeys(sorted(set(labels), key=lambda label: (_first_number(label), label)))
    scores = {}
    for label in order:
        rows = points[labels == label]
        map_m, lidar_m = rows["map_m"].to_numpy(np.float64), rows["lidar_m"].to_numpy(np.float64)
        scores[str(label)] = ClassScore(len(rows), residual_metrics(map_m, lidar_m), _interval_scores(rows))
    return scores


def _class_names(values: Floats, edges: tuple[float, ...], unit: str) -> NDArray[Any]:
    """Return the name of each value's class; the last class has no upper end, and null values have their own."""
    names = [f"{low:g}-{high:g}{unit}" for low, high in itertools.pairwise(edges)]
    names[-1] = f">{edges[-2]:g}{unit}"
    return np.where(np.isnan(values), "unknown", np.array(names)[np.digitize(values, edges[1:-1])])


def _first_number(label: str) -> float:
    head = label.lstrip(">").split("-")[0].split(" ")[0]
    try:
        return float(head)
    except ValueError:
        return 0.0


def _shift_search(pred: Path, shots: "GeoDataFrame", lidar_m: Floats, radius_m: float, report: Report) -> ShiftSearch:
    """Return the shift of each track, and the error that it takes off the shots that did not choose it.

    A track chooses by what the map should show for its shots if it erred everywhere as it does on the whole, so that
    a map that is too low does not hide where the shots lie.
    """
    offsets = [(east, north) for east in SHIFTS_M for north in SHIFTS_M]
    columns = []
    for number, offset in enumerate(offsets, 1):
        statistics = footprint_statistics(pred, shots, radius_m=radius_m, offset_m=offset)
        columns.append(statistics["p98"].to_numpy(np.float64))
        report(Progress(number, len(offsets), "shifts", f"shift {number}/{len(offsets)}"))
    map_m = np.stack(columns, axis=1)
    still = offsets.index((0.0, 0.0))
    # Quantile by quantile: the height that the map shows where GEDI measures one.
    expected_m = np.interp(lidar_m, np.sort(lidar_m), np.sort(map_m[:, still]))
    misfit_m = np.abs(map_m - expected_m[:, None])
    # A shift that moves a shot off the map counts as the worst, so that no track gains by leaving it.
    misfit_m = np.where(np.isnan(misfit_m), np.nanmax(misfit_m), misfit_m)
    errors_m = np.abs(map_m - lidar_m[:, None])
    names = _track_names(shots)
    tracks, before, after = {}, [], []
    for name in sorted(set(names)):
        members = np.flatnonzero(names == name)
        if len(members) < FEWEST_OF_TRACK:
            continue
        # Every second shot chooses a shift for those between, and the other way round.
        for half in (0, 1):
            chooser, other = members[half::2], members[1 - half :: 2]
            best = int(misfit_m[chooser].mean(axis=0).argmin())
            before.append(errors_m[other, still])
            after.append(np.where(np.isnan(errors_m[other, best]), errors_m[other, still], errors_m[other, best]))
        east_m, north_m = offsets[int(misfit_m[members].mean(axis=0).argmin())]
        tracks[str(name)] = TrackShift(east_m, north_m, len(members))
    means_m = [float(np.concatenate(part).mean()) if part else None for part in (before, after)]
    return ShiftSearch(tracks, means_m[0], means_m[1])


def _track_names(shots: "GeoDataFrame") -> NDArray[Any]:
    """Return (n,) orbit and beam of each shot; the orbit is the head of the shot's number."""
    orbit = (shots["shot_number"].to_numpy() // np.uint64(10**13)).astype(str)
    return np.char.add(np.char.add(orbit, " "), shots["beam"].astype(str).to_numpy().astype(str))
