"""`canopy derive score`: trees against trees that people mapped, as points of stems or tops or as crowns.

Each tree is matched with at most one of the truth, and each of the truth with at most one tree: the nearest pairs
first. A pair of a point is near within a distance; a pair of a crown is one where the top lies in the crown.
"""

import itertools
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import numpy as np
import pyarrow as pa
import shapely
from numpy.typing import NDArray
from odc.geo.crs import CRS
from scipy.spatial import cKDTree
from shapely.geometry.base import BaseGeometry

from canopy.errors import ProductError
from canopy.products.writing import GEOPACKAGE, PARQUET
from tiles.aoi import read_aoi, to_crs
from tiles.errors import one_line
from tiles.vectors import read_vector

if TYPE_CHECKING:
    from rich.console import Console

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

HEIGHT_CLASSES_M = (2.0, 5.0, 10.0, 15.0, 20.0, 30.0, np.inf)
WITHIN_M = 3.0


@dataclass(frozen=True)
class ClassScores:
    """Scores of a class of height, or of all; None where there is nothing to count or to measure."""

    truth: int
    """Trees of the truth, by their own height."""
    recall: float | None
    """Share of them that have a tree."""
    trees: int
    """Trees, by the height that the map gives them."""
    precision: float | None
    """Share of them that have one of the truth."""
    bias_m: float | None
    """Mean height of matched trees less that of the truth, metres, by the height of the truth."""
    mae_m: float | None
    """Mean absolute difference, metres."""

    @property
    def f1(self) -> float | None:
        """Harmonic mean of recall and precision."""
        if self.recall is None or self.precision is None:
            return None
        return 2 * self.recall * self.precision / (self.recall + self.precision) if self.recall else 0.0


@dataclass(frozen=True)
class TreeScores:
    """Result of a comparison of trees with the truth."""

    scores: ClassScores
    """Scores of all trees."""
    by_height: dict[str, ClassScores]
    """Scores by class of height, metres; of the truth's heights where it has them."""
    crown_iou: float | None
    """Mean share of the area of matched crowns that both cover; None where the truth has no crowns."""
    has_heights: bool
    """Whether the truth has heights; otherwise recall by class goes by the height of the matched tree."""

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON."""
        by_height = {name: {**asdict(each), "f1": each.f1} for name, each in self.by_height.items()}
        total = {**asdict(self.scores), "f1": self.scores.f1}
        return {**total, "crown_iou": self.crown_iou, "has_heights": self.has_heights, "by_height": by_height}


@dataclass(frozen=True)
class MappedTrees:
    """Trees of either side, in one CRS."""

    points: Floats
    """(N, 2) coordinates of tops or stems; of crowns a point inside."""
    height_m: Floats
    """(N,) heights, metres; NaN where unknown."""
    crowns: NDArray[np.object_] | None
    """(N,) crowns; None where there are points alone."""


def score_files(
    trees: Path,
    truth: Path,
    *,
    layer: str | None = None,
    height_field: str | None = None,
    area: Path | None = None,
    within_m: float = WITHIN_M,
) -> TreeScores:
    """Score the trees of a file against those of another.

    Args:
        trees: File of `canopy derive trees`, .gpkg or .parquet.
        truth: Vector file of points or polygons.
        layer: Layer of the truth; may be left out where one layer has areas, or where there is one layer.
        height_field: Field of the truth with heights, metres.
        area: Polygons in which all trees were mapped; the convex hull of the truth by default.
        within_m: Largest distance between a tree and a point of the truth, metres.

    Raises:
        ProductError: A file has no trees, or not the field, or the files have no ground in common.
        AOIError: A vector file cannot be read.
    """
    mapped, crs = _read_trees(trees)
    actual = _read_truth(truth, layer, height_field, crs)
    if area is not None:
        bounds = to_crs(read_aoi(area), CRS(crs)).geom
    elif actual.crowns is not None:
        bounds = shapely.GeometryCollection(list(actual.crowns)).convex_hull
    else:
        bounds = shapely.MultiPoint(actual.points).convex_hull
    extent = shapely.buffer(shapely.box(*shapely.MultiPoint(mapped.points).bounds), within_m)
    if not shapely.intersects(extent, bounds):
        raise ProductError(f"{area or truth} and {trees} have no ground in common: trees of one area expected")
    return score(mapped, actual, within_m=within_m, area=bounds)


def score(
    trees: MappedTrees, truth: MappedTrees, *, within_m: float = WITHIN_M, area: BaseGeometry | None = None
) -> TreeScores:
    """Score trees against the truth, both of the same ground.

    Args:
        trees: Trees.
        truth: Trees that people mapped, or of which all is known.
        within_m: Largest distance between a tree and a point of the truth, metres.
        area: Ground whose trees are counted; None for all. A match may lie off it: a top and its stem are seldom at one
            point, and would count as two errors where the edge runs between them.
    """
    tree, actual = match(trees, truth, within_m)
    counted = _inside(trees, area), _inside(truth, area)
    has_heights = bool(np.isfinite(truth.height_m).any())
    # Without heights of its own a tree of the truth counts where its match does, and in no class without one.
    truth_height_m = truth.height_m.copy()
    if not has_heights:
        truth_height_m[actual] = trees.height_m[tree]
    bounds = list(itertools.pairwise(HEIGHT_CLASSES_M))
    return TreeScores(
        _scores(trees, truth, truth_height_m, counted, tree, actual, has_heights, None),
        {
            f"{low:g}-{high:g}" if np.isfinite(high) else f"{low:g}+": _scores(
                trees, truth, truth_height_m, counted, tree, actual, has_heights, (low, high)
            )
            for low, high in bounds
        },
        _overlap(trees, truth, tree[counted[1][actual]], actual[counted[1][actual]]),
        has_heights,
    )


def print_scores(result: TreeScores, console: "Console") -> None:
    """Print recall, precision and errors of height, all trees first, then a class of height a row."""
    from rich.table import Table

    table = Table(title="Trees against trees that people mapped", box=None)
    for name in ("height m", "mapped", "recall", "trees", "precision", "F1", "bias m", "MAE m"):
        table.add_column(name, justify="right")
    for name, row in {"all": result.scores, **result.by_height}.items():
        shares = (f"{row.truth:,}", _text(row.recall), f"{row.trees:,}", _text(row.precision), _text(row.f1))
        table.add_row(name, *shares, _text(row.bias_m), _text(row.mae_m))
    console.print(table)
    if result.crown_iou is not None:
        console.print(f"matched crowns share {result.crown_iou:.2f} of their area")


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def match(trees: MappedTrees, truth: MappedTrees, within_m: float) -> tuple[Integers, Integers]:
    """Return the numbers of matched trees, and of the truth's trees that they match."""
    if truth.crowns is None:
        pairs = cKDTree(trees.points).query_ball_point(truth.points, within_m)
        actual = np.repeat(np.arange(len(pairs)), [len(near) for near in pairs])
        tree = np.array([number for near in pairs for number in near], np.int64)
    else:
        tree, actual = shapely.STRtree(truth.crowns).query(shapely.points(trees.points), predicate="intersects")
    distance = np.hypot(*(trees.points[tree] - truth.points[actual]).T)
    # Within a crown the highest tree is meant; near a point, the nearest.
    order = np.argsort(distance if truth.crowns is None else -trees.height_m[tree], kind="stable")
    taken_trees, taken_truth, matched = set(), set(), []
    for pair in order.tolist():
        if tree[pair] not in taken_trees and actual[pair] not in taken_truth:
            taken_trees.add(tree[pair])
            taken_truth.add(actual[pair])
            matched.append(pair)
    return tree[matched], actual[matched]


def _scores(
    trees: MappedTrees,
    truth: MappedTrees,
    truth_height_m: Floats,
    counted: tuple[NDArray[np.bool_], NDArray[np.bool_]],
    tree: Integers,
    actual: Integers,
    has_heights: bool,
    bounds: tuple[float, float] | None,
) -> ClassScores:
    """Score one class of height, or all for None."""
    of_trees, of_truth = (
        inside if bounds is None else inside & (height_m >= bounds[0]) & (height_m < bounds[1])
        for inside, height_m in zip(counted, (trees.height_m, truth_height_m), strict=True)
    )
    errors = (trees.height_m[tree] - truth.height_m[actual])[of_truth[actual]]
    errors = errors[np.isfinite(errors)]
    recall_known = bounds is None or has_heights
    return ClassScores(
        truth=int(of_truth.sum()),
        recall=float(of_truth[actual].sum() / of_truth.sum()) if of_truth.any() and recall_known else None,
        trees=int(of_trees.sum()),
        precision=float(of_trees[tree].sum() / of_trees.sum()) if of_trees.any() else None,
        bias_m=float(errors.mean()) if errors.size else None,
        mae_m=float(np.abs(errors).mean()) if errors.size else None,
    )


def _overlap(trees: MappedTrees, truth: MappedTrees, tree: Integers, actual: Integers) -> float | None:
    if trees.crowns is None or truth.crowns is None or not tree.size:
        return None
    first, second = trees.crowns[tree], truth.crowns[actual]
    return float(
        np.mean(shapely.area(shapely.intersection(first, second)) / shapely.area(shapely.union(first, second)))
    )


def _read_trees(path: Path) -> tuple[MappedTrees, str]:
    """Read the file of a run of `derive_trees`, and the CRS of its coordinates."""
    if path.suffix.lower() not in (*GEOPACKAGE, *PARQUET):
        raise ProductError(f"{path}: trees in .gpkg or .parquet expected, which record their CRS")
    try:
        frame = gpd.read_parquet(path) if path.suffix.lower() in PARQUET else gpd.read_file(path, layer="crowns")
        points = frame[["top_x", "top_y"]].to_numpy(np.float64)
        height_m = frame["height_m"].to_numpy(np.float64)
    except (RuntimeError, ValueError, OSError, KeyError, pa.ArrowException) as error:
        raise ProductError(
            f"{path}: cannot be read ({one_line(error, 200)}); a file of canopy derive trees expected"
        ) from error
    if not len(frame):
        raise ProductError(f"{path} has no trees: nothing can be scored")
    return MappedTrees(points, height_m, np.asarray(frame.geometry.to_numpy(), object)), frame.crs.to_wkt()


def _read_truth(path: Path, layer: str | None, height_field: str | None, crs: str) -> MappedTrees:
    # The reader of areas refuses what points elsewhere before GDAL opens it.
    geometries, own_crs = read_vector(path, layer)
    shapes = gpd.GeoSeries(geometries, crs=own_crs.to_wkt()).to_crs(crs).to_numpy()
    height_m = np.full(len(shapes), np.nan) if height_field is None else _field(path, layer, height_field)
    usable = ~(shapely.is_missing(shapes) | shapely.is_empty(shapes))
    shapes, height_m = shapes[usable], height_m[usable]
    if not shapes.size:
        raise ProductError(f"{path} has no features: points or polygons of trees expected")
    if (shapely.get_dimensions(shapes) == 2).all():
        return MappedTrees(shapely.get_coordinates(shapely.point_on_surface(shapes)), height_m, shapes)
    if (shapely.get_dimensions(shapes) == 0).all():
        return MappedTrees(shapely.get_coordinates(shapely.centroid(shapes)), height_m, None)
    raise ProductError(f"{path} has lines, or points and polygons: points or polygons of trees expected")


def _field(path: Path, layer: str | None, name: str) -> Floats:
    try:
        if path.suffix.lower() in PARQUET:
            frame = gpd.read_parquet(path)
        else:
            # The layer that `read_vector` has chosen, where it was left to choose.
            layers = gpd.list_layers(path)
            areas = layers["name"][layers["geometry_type"].str.contains("Polygon", na=False)].tolist()
            frame = gpd.read_file(
                path, layer=layer or (areas[0] if len(layers) > 1 and areas else layers["name"].iloc[0])
            )
        return np.asarray(frame[name].to_numpy(), np.float64)
    except KeyError as error:
        names = ", ".join(column for column in frame.columns if column != frame.geometry.name)
        raise ProductError(f"{path} has no field {name!r}: one of {names} expected") from error
    except (TypeError, ValueError) as error:
        raise ProductError(f"{path}: field {name!r} is no number: heights in metres expected") from error


def _inside(trees: MappedTrees, area: BaseGeometry | None) -> NDArray[np.bool_]:
    """Return which trees have their points in an area."""
    if area is None:
        return np.ones(len(trees.points), bool)
    shapely.prepare(area)
    return np.asarray(shapely.intersects_xy(area, *trees.points.T))
