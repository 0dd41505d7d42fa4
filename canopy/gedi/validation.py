"""`canopy gedi validate`: a height map against shots, by height, cover, beam and sensitivity."""

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from canopy.errors import EvaluationError
from canopy.gedi.footprints import footprint_statistics
from canopy.gedi.shots import read_shots, shots_metadata
from canopy.progress import Progress, Report, ignore

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

Floats = NDArray[np.float64]

RADIUS_M = 12.0
"""Of the disc whose 98th percentile is compared, as in CHMv2's validation."""
HEIGHTS_M = (0, 3, 5, 10, 15, 20, 25, 30, 40, np.inf)
COVERS = (0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.01)
SENSITIVITIES = (0, 0.95, 0.97, 0.98, 0.99, 1.01)
REPLICATES = 1000
FEWEST_BLOCKS = 10
AIMED_BLOCKS = 100
SHIFTS_M = (-16.0, -8.0, 0.0, 8.0, 16.0)
FEWEST_OF_TRACK = 20


@dataclass(frozen=True)
class Validation:
    """A map against shots.

    Attributes:
        pred: The map.
        shots: The file of shots.
        points: One row a compared shot: map_m, lidar_m, x, y (metres), and the shot's own columns.
        result: Counts, metrics with intervals, tables by class.
        radius_m: Of the disc.
    """

    pred: Path
    shots: Path
    points: pd.DataFrame
    result: dict[str, Any]
    radius_m: float


def validate_map(
    pred: Path,
    shots: Path,
    *,
    radius_m: float = RADIUS_M,
    keep_edges: bool = True,
    shift_search: bool = False,
    report: Report = ignore,
) -> Validation:
    """Compare the map's 98th percentile around each shot with RH98.

    Args:
        pred: Height map.
        shots: GeoParquet of `canopy gedi read`.
        radius_m: Of the disc, metres; larger than the footprint where geolocation errs.
        keep_edges: Keep shots whose disc holds a tree edge; without them misplaced shots do less harm, but open
            woodland drops out.
        shift_search: Look for each track's shift within 16 m and report what it gains on shots that did not choose it.
        report: Called as footprints are read.

    Raises:
        EvaluationError: No shot lies on known cells.
        CanopyError: Map or shots cannot be read.
    """
    given = read_shots(shots)
    found = footprint_statistics(pred, given, radius_m=radius_m, report=report)
    known = found["on_map"] & (found["unknown_share"] == 0) & given["rh98"].notna()
    taken = known & (keep_edges | ~found["edge"])
    if not taken.any():
        raise EvaluationError(
            f"none of {len(given)} shots lies on known cells of {pred}: do map and shots cover the same ground?"
        )
    held = given[taken]
    points = pd.DataFrame(held.drop(columns="geometry")).assign(
        map_m=found["p98"][taken], map_cover=found["cover"][taken], lidar_m=held["rh98"].astype(float)
    )
    metric = held.to_crs(held.estimate_utm_crs()).geometry
    points["x"], points["y"] = metric.x, metric.y
    counts = {
        "n": int(taken.sum()),
        "off_map": int((~found["on_map"]).sum()),
        "unknown": int((found["on_map"] & (found["unknown_share"] > 0)).sum()),
        "edges": int((known & found["edge"]).sum()),
        "edges_kept": keep_edges,
    }
    result = {**counts, **_scores(points), **_tables(points)}
    if shift_search:
        result["shift_search"] = _shift_search(pred, held, points, radius_m, report)
    return Validation(pred, shots, points, result, radius_m)


def metrics(map_m: Floats, lidar_m: Floats) -> dict[str, float | None]:
    """MAE, RMSE, bias (map less lidar) and R2 of heights, metres."""
    apart = map_m - lidar_m
    spread = float(np.sum((lidar_m - lidar_m.mean()) ** 2))
    return {
        "mae_m": float(np.abs(apart).mean()),
        "rmse_m": float(np.sqrt((apart**2).mean())),
        "bias_m": float(apart.mean()),
        "r2": 1 - float((apart**2).sum()) / spread if spread > 0 else None,
    }


def _scores(points: pd.DataFrame) -> dict[str, Any]:
    """Metrics of all shots and their 95 % intervals by a bootstrap over blocks of ground."""
    map_m, lidar_m = points["map_m"].to_numpy(np.float64), points["lidar_m"].to_numpy(np.float64)
    x, y = points["x"].to_numpy(), points["y"].to_numpy()
    side = max(200.0, float(np.sqrt(max(np.ptp(x), 1) * max(np.ptp(y), 1) / AIMED_BLOCKS)))
    cells = np.stack([np.floor(x / side), np.floor(y / side)], axis=1)
    block = np.unique(cells, axis=0, return_inverse=True)[1].reshape(-1)
    return {
        **metrics(map_m, lidar_m),
        "block_m": side,
        "blocks": int(block.max()) + 1,
        "ci": _intervals(map_m, lidar_m, block),
    }


def _intervals(map_m: Floats, lidar_m: Floats, block: NDArray[np.int64]) -> dict[str, list[float] | None]:
    count = int(block.max()) + 1
    names = ("mae_m", "rmse_m", "bias_m", "r2")
    if count < FEWEST_BLOCKS:
        return dict.fromkeys(names)
    apart = map_m - lidar_m
    columns = (np.ones_like(apart), np.abs(apart), apart, apart**2, lidar_m, lidar_m**2)
    sums = np.stack([np.bincount(block, column) for column in columns])
    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), REPLICATES).astype(float)
    n, absolute, total, squared, lidar, lidar2 = sums @ drawn.T
    with np.errstate(invalid="ignore", divide="ignore"):
        r2 = 1 - squared / (lidar2 - lidar**2 / n)
    values = (absolute / n, np.sqrt(squared / n), total / n, r2)
    return {
        name: [float(edge) for edge in np.nanquantile(value, (0.025, 0.975))]
        for name, value in zip(names, values, strict=True)
    }


def _tables(points: pd.DataFrame) -> dict[str, Any]:
    """Metrics by class: of RH98, cover (GEDI's where the shots carry it, else the map's), beam and sensitivity."""
    cover = points["cover"].astype(float)
    covered = cover if cover.notna().all() else points["map_cover"]
    groups = {
        "by_height": _classed(points["lidar_m"].to_numpy(), HEIGHTS_M, " m"),
        "by_cover": _classed(np.asarray(covered, np.float64), COVERS, ""),
        "by_beam": points["beam"].astype(str).to_numpy(),
        "by_sensitivity": _classed(points["sensitivity"].to_numpy(np.float64), SENSITIVITIES, ""),
    }
    tables: dict[str, Any] = {"cover_of": "gedi" if cover.notna().all() else "map"}
    for name, labels in groups.items():
        order = dict.fromkeys(sorted(set(labels), key=lambda label: (_first_number(label), label)))
        tables[name] = {label: _class(points[labels == label]) for label in order}
    return tables


def _class(points: pd.DataFrame) -> dict[str, Any]:
    return {"n": len(points), **metrics(points["map_m"].to_numpy(np.float64), points["lidar_m"].to_numpy(np.float64))}


def _classed(values: Floats, edges: tuple[float, ...], unit: str) -> NDArray[Any]:
    names = [f"{low:g}-{high:g}{unit}" for low, high in itertools.pairwise(edges)]
    names[-1] = f">{edges[-2]:g}{unit}"
    return np.array(names)[np.digitize(values, edges[1:-1])]


def _first_number(label: str) -> float:
    head = label.lstrip(">").split("-")[0].split(" ")[0]
    try:
        return float(head)
    except ValueError:
        return 0.0


def _shift_search(
    pred: Path, held: "GeoDataFrame", points: pd.DataFrame, radius_m: float, report: Report
) -> dict[str, Any]:
    """The shift of each track, and the error that it takes off the shots that did not choose it.

    A track chooses by what the map should show for its shots if it erred everywhere as it does on the whole, so that
    a map that is too low does not hide where the shots lie.
    """
    offsets = [(east, north) for east in SHIFTS_M for north in SHIFTS_M]
    lidar_m = points["lidar_m"].to_numpy(np.float64)
    shown = np.stack(
        [
            _p98(pred, held, radius_m, offset, report, Progress(k, len(offsets), "shifts", f"shift {k}/{len(offsets)}"))
            for k, offset in enumerate(offsets, 1)
        ],
        axis=1,
    )
    still = offsets.index((0.0, 0.0))
    expected_m = np.interp(lidar_m, np.sort(lidar_m), np.sort(shown[:, still]))
    apart = np.abs(shown - expected_m[:, None])
    apart = np.where(np.isnan(apart), np.nanmax(apart), apart)
    errors = np.abs(shown - lidar_m[:, None])
    orbit = (held["shot_number"].to_numpy() // np.uint64(10**13)).astype(str)
    names = np.char.add(np.char.add(orbit, " "), held["beam"].astype(str).to_numpy().astype(str))
    tracks, before, after = {}, [], []
    for name in sorted(set(names)):
        members = np.flatnonzero(names == name)
        if len(members) < FEWEST_OF_TRACK:
            continue
        for half in (0, 1):
            chooser, other = members[half::2], members[1 - half :: 2]
            best = int(apart[chooser].mean(axis=0).argmin())
            before.append(errors[other, still])
            after.append(np.where(np.isnan(errors[other, best]), errors[other, still], errors[other, best]))
        east, north = offsets[int(apart[members].mean(axis=0).argmin())]
        tracks[str(name)] = {"east_m": east, "north_m": north, "n": len(members)}
    means = [float(np.concatenate(part).mean()) if part else None for part in (before, after)]
    return {"tracks": tracks, "mae_before_m": means[0], "mae_after_m": means[1]}


def _p98(
    pred: Path, held: "GeoDataFrame", radius_m: float, offset: tuple[float, float], report: Report, done: Progress
) -> Floats:
    found = footprint_statistics(pred, held, radius_m=radius_m, offset_m=offset)
    report(done)
    return found["p98"].to_numpy(np.float64)


def print_validation(made: Validation) -> None:
    """Print metrics and tables."""
    from rich.console import Console
    from rich.table import Table

    result = made.result
    console = Console(width=110)
    head = Table(title=f"{result['n']:,} shots; 95 % intervals, {result['blocks']} blocks of {result['block_m']:.0f} m")
    for name in ("MAE m", "RMSE m", "bias m", "R²"):
        head.add_column(name, justify="right")
    head.add_row(*(_with_interval(result, key) for key in ("mae_m", "rmse_m", "bias_m", "r2")))
    console.print(head)
    for key in ("by_height", "by_cover", "by_beam", "by_sensitivity"):
        table = Table(title=key.replace("_", " "))
        for name in (key[3:], "shots", "MAE m", "bias m"):
            table.add_column(name, justify="right")
        for label, row in result[key].items():
            table.add_row(label, f"{row['n']:,}", f"{row['mae_m']:.2f}", f"{row['bias_m']:+.2f}")
        console.print(table)
    if search := result.get("shift_search"):
        if search["mae_before_m"] is None:
            console.print(f"no track of {FEWEST_OF_TRACK} shots or more: no shift was looked for")
        else:
            console.print(
                f"shifts of {len(search['tracks'])} tracks: MAE {search['mae_before_m']:.2f} m to "
                f"{search['mae_after_m']:.2f} m on shots that did not choose them"
            )


def _with_interval(result: dict[str, Any], key: str) -> str:
    if result[key] is None:
        return "–"
    interval = result["ci"][key]
    return f"{result[key]:.2f}" + (f"\n{interval[0]:.2f} to {interval[1]:.2f}" if interval else "")


def funnel_of(shots: Path) -> list[dict[str, Any]]:
    """The funnel that the shots' file carries."""
    steps: list[dict[str, Any]] = shots_metadata(shots).get("funnel", [])
    return steps
