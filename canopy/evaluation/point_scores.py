"""Height maps against trees: whether trees stand out of the ground, and whether ground without trees is low.

Where no lidar flew, an image with every tree marked says much of a map: trees should be tall, ground far from any tree
low, and bare ground, which near-infrared shows, at zero. Stems measured in the field judge heights.
"""

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from odc.geo.geom import Geometry
from rasterio.io import DatasetReader
from scipy import ndimage

from canopy.errors import EvaluationError
from canopy.evaluation.colour_bands import ColourBands, PixelGrid, open_colours, open_infrared
from canopy.evaluation.rasters import require_north_up, square_side_m
from canopy.evaluation.tree_points import TreePoints, read_tree_points
from canopy.evaluation.weak_ground import BARE, FAR, LEAFY, Cells, ImagePoints, label_ground, point_cells, points_inside
from canopy.progress import Progress, Report, ignore
from tiles.aoi import read_aoi, to_crs
from tiles.grid import rasterize
from tiles.heights import HeightRaster, open_heights, open_raster
from tiles.windows import PixelWindow, cut_windows

TREE_M = 2.0
"""Height above which a pixel is a tree's."""
CROWN_M = 1.5
"""Distance from a tree's point, and from a pixel of other ground, within which the highest pixel is looked for."""
STEM_M = 2.5
"""Distance from a measured stem within which its highest pixel is looked for: crowns lean."""
WINDOW_PX = 1024
_LOG = logging.getLogger(__name__)
_STEPS = 15_001
"""Steps of 1 cm in the histograms of heights."""


@dataclass(frozen=True)
class PointSums:
    """What is added up of a map: pixels and trees by their heights, and the errors of stems."""

    trees: NDArray[np.int64]
    """(_STEPS,) trees by the height of their highest pixel, in centimetres."""
    ground: NDArray[np.int64]
    """(_STEPS,) pixels of other ground by the highest pixel as near to them as a tree's to its point."""
    leafy: NDArray[np.int64]
    """(_STEPS,) those of them that may be under leaves."""
    far_px: int
    """Pixels of ground far from every tree that is not bare."""
    far_tall_px: int
    """Those of them higher than `TREE_M`."""
    open_px: int | None
    """Pixels of far ground that is surely not under leaves; None where no near-infrared shows it."""
    open_tall_px: int
    """Those of them higher than `TREE_M`."""
    bare_px: int | None
    """Pixels of bare ground; None where no near-infrared shows it."""
    bare_tall_px: int
    """Those of them higher than `TREE_M`."""
    stems_m: NDArray[np.float64]
    """(n, 2) heights of stems: predicted and measured, metres."""

    def __add__(self, other: "PointSums") -> "PointSums":
        return PointSums(
            trees=self.trees + other.trees,
            ground=self.ground + other.ground,
            leafy=self.leafy + other.leafy,
            far_px=self.far_px + other.far_px,
            far_tall_px=self.far_tall_px + other.far_tall_px,
            open_px=_sum_known(self.open_px, other.open_px),
            open_tall_px=self.open_tall_px + other.open_tall_px,
            bare_px=_sum_known(self.bare_px, other.bare_px),
            bare_tall_px=self.bare_tall_px + other.bare_tall_px,
            stems_m=np.concatenate([self.stems_m, other.stems_m]),
        )

    def scores(self) -> "PointScores":
        """Return the scores of the sums."""
        errors_m = self.stems_m[:, 0] - self.stems_m[:, 1]
        trees, ground, clear = int(self.trees.sum()), int(self.ground.sum()), self.ground - self.leafy
        return PointScores(
            trees=trees,
            auc=_auc(self.trees, self.ground) if trees and ground else None,
            open_auc=_auc(self.trees, clear) if self.open_px is not None and trees and clear.any() else None,
            trees_tall=_share(int(self.trees[round(100 * TREE_M) + 1 :].sum()), trees),
            far_px=self.far_px,
            far_tall=_share(self.far_tall_px, self.far_px),
            open_px=self.open_px,
            open_tall=_share(self.open_tall_px, self.open_px or 0),
            bare_px=self.bare_px,
            bare_tall=_share(self.bare_tall_px, self.bare_px or 0),
            stems=len(errors_m),
            stem_mae_m=float(np.abs(errors_m).mean()) if len(errors_m) else None,
            stem_bias_m=float(errors_m.mean()) if len(errors_m) else None,
        )


@dataclass(frozen=True)
class PointScores:
    """Scores of a map against trees; None where there is nothing to score."""

    trees: int
    """Number of trees where the map has heights."""
    auc: float | None
    """Probability that a tree is higher than other ground, ties counted half: 1 where every tree is higher."""
    open_auc: float | None
    """The same against the ground that is surely not under leaves; None without near-infrared."""
    trees_tall: float | None
    """Share of the trees higher than `TREE_M`."""
    far_px: int
    """Pixels of ground further than `FAR_M` from every tree that is not bare."""
    far_tall: float | None
    """Share of these higher than `TREE_M`."""
    open_px: int | None
    """Pixels of this ground that are not green and rough, as wide crowns and hedges are; None without near-infrared."""
    open_tall: float | None
    """Share of these higher than `TREE_M`."""
    bare_px: int | None
    """Pixels of bare ground; None where no near-infrared shows it."""
    bare_tall: float | None
    """Share of these higher than `TREE_M`."""
    stems: int
    """Number of trees of known height."""
    stem_mae_m: float | None
    """Mean absolute error of their heights, metres."""
    stem_bias_m: float | None
    """Mean of predicted less measured height, metres."""


@dataclass(frozen=True)
class PointEvaluation:
    """Maps scored against trees."""

    maps: dict[str, PointScores]
    """Scores of each map, by its path."""
    pooled: PointScores
    """Scores of all maps together."""

    def to_json(self) -> dict[str, Any]:
        """Return the scores as JSON: of the one map, or of all together with those of each."""
        document = {"points": asdict(self.pooled)}
        if len(self.maps) > 1:
            document["maps"] = {path: asdict(scores) for path, scores in self.maps.items()}
        return document


def evaluate_points(
    maps: Sequence[Path],
    points: Path,
    *,
    images: Sequence[Path] = (),
    nirs: Sequence[Path] = (),
    area: Path | str | None = None,
    report: Report = ignore,
) -> PointEvaluation:
    """Score height maps against trees.

    Args:
        maps: Rasters of heights, north-up.
        points: Trees, as `read_tree_points` reads them; all trees of the ground that is mapped.
        images: None, or one a map: uint8 RGB imagery; a fourth band that is no alpha is near-infrared.
        nirs: None, or one a map: uint8 rasters whose last band is near-infrared.
        area: Area in which all trees are points, as `read_aoi` reads it; all of each map if None.
        report: Called after each window.

    Raises:
        EvaluationError: Numbers that do not match, points that cannot be read, or nothing to score.
        RasterError: A raster is damaged.
        AOIError: The area cannot be read.
    """
    for name, others in (("--image", images), ("--nir", nirs)):
        if len(others) not in (0, len(maps)):
            raise EvaluationError(f"{len(others)} of {name} for {len(maps)} maps: none or one a map expected")
    if nirs and not images:
        raise EvaluationError("--nir needs --image: bare ground is found from red and near-infrared together")
    trees, bounds = read_tree_points(points), read_aoi(area) if area is not None else None
    sums: dict[str, PointSums] = {}
    empty: list[Path] = []
    with rasterio.Env(GDAL_CACHEMAX=256):
        for number, path in enumerate(maps):
            image, nir = (others[number] if others else None for others in (images, nirs))
            sums[str(path)], trees_inside = _score_map(path, trees, image, nir, bounds)
            if not trees_inside:
                empty.append(path)
            report(Progress(number + 1, len(maps), "maps", path.name))
    if len(empty) == len(maps):
        raise EvaluationError(
            f"no tree of {points} lies in {empty[0]}{' nor in the other maps' * (len(maps) > 1)}: check the CRS of the "
            "points, or the images that the table names"
        )
    if empty:
        _LOG.warning("no tree of %s lies in %d of %d maps (%s): all of their ground is far from trees", points,
                     len(empty), len(maps), ", ".join(map(str, empty[:3])))  # fmt: skip
    total = reduce(PointSums.__add__, sums.values())
    scores = total.scores()
    if not (scores.trees or scores.far_px or scores.bare_px or scores.stems):
        raise EvaluationError(
            f"nothing to score: no tree of {points} and no ground far from them has heights in the maps"
            + (f" and lies in {area}" if area is not None else "")
        )
    return PointEvaluation({path: each.scores() for path, each in sums.items()}, scores)


def _score_map(
    path: Path, points: TreePoints, image: Path | None, nir: Path | None, area: Geometry | None
) -> tuple[PointSums, int]:
    """Return the sums of a map, and the number of trees inside its bounds."""
    with ExitStack() as files:
        raster = files.enter_context(open_heights(path))
        require_north_up(path, raster.dataset)
        bands = _Bands.open(files, raster.dataset, image, nir)
        scene = _Scene.of(raster, points, image, area)
        parts = [_add_window(raster, scene, bands, window) for window in cut_windows(raster.dataset.shape, WINDOW_PX)]
    rows, cols = scene.geobox.shape
    whole = Cells(0, 0, (int(rows), int(cols)), (int(rows), int(cols)), scene.pixel_m)
    return reduce(PointSums.__add__, parts), int(points_inside(scene.points, whole).sum())


@dataclass(frozen=True)
class _Scene:
    """A map with the trees that stand in it."""

    points: ImagePoints
    """Trees in pixels of the map."""
    pixel_m: float
    """Side of a pixel, metres."""
    geobox: GeoBox
    """Pixels of the map."""
    area: Geometry | None
    """Area in which all trees are points, in the map's CRS; None for all of the map."""

    @classmethod
    def of(cls, raster: HeightRaster, points: TreePoints, image: Path | None, area: Geometry | None) -> "_Scene":
        """Bring trees and area to a map."""
        dataset = raster.dataset
        crs = CRS(dataset.crs.to_wkt())
        if points.image is not None:
            points = _on_ground(points, raster.path, image)
        own = points.on_image(raster.path, dataset.transform, dataset.crs.to_wkt())
        pixel_m = square_side_m(raster.path, dataset.transform, dataset.shape, dataset.crs.to_wkt())
        geobox = GeoBox(dataset.shape, dataset.transform, crs)
        return cls(own, pixel_m, geobox, None if area is None else to_crs(area, crs))


def _on_ground(points: TreePoints, path: Path, image: Path | None) -> TreePoints:
    """Return the trees of an image with coordinates on the ground.

    Raises:
        EvaluationError: No image says where the pixels lie.
    """
    if image is None:
        raise EvaluationError(f"the trees of {path} are pixels of an image: name it with --image")
    with open_raster(image) as opened:
        if opened.crs is None:
            raise EvaluationError(f"{image} has no CRS: a georeferenced raster expected (rio edit-info --crs EPSG:n)")
        own = points.on_image(image, opened.transform, "")
        x, y = opened.transform @ (own.col, own.row)
        return TreePoints(np.asarray(x), np.asarray(y), own.height_m, opened.crs.to_wkt())


@dataclass(frozen=True)
class _Bands:
    """Red, green, blue and near-infrared on the pixels of a map."""

    rgb: ColourBands | None
    nir: ColourBands | None

    @classmethod
    def open(cls, files: ExitStack, target: DatasetReader, image: Path | None, nir: Path | None) -> "_Bands":
        """Open the rasters on the grid of a map, for as long as the stack lasts."""
        if image is None:
            return cls(None, None)
        grid = PixelGrid.of(target)
        rgb = files.enter_context(open_colours(image, grid))
        if nir is not None:
            return cls(rgb, files.enter_context(open_infrared(nir, grid)))
        return cls(rgb, rgb if rgb.infrared is not None else None)

    def read(self, window: PixelWindow) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Return RGB (3, H, W) and near-infrared (H, W), of 255, NaN where unknown; ones without an image."""
        if self.rgb is None:
            return np.ones((3, *window.shape), np.float32), None
        rgb = self.rgb.read(self.rgb.colours, window)
        return rgb, None if self.nir is None else self.nir.read_infrared(window)


def _add_window(raster: HeightRaster, scene: _Scene, bands: _Bands, window: PixelWindow) -> PointSums:
    """Return the sums of a window of a map: of its pixels, and of the trees inside it."""
    margin = int(np.ceil(STEM_M / scene.pixel_m)) + 1
    heights_m = raster.read(window.pad(margin))
    core = np.s_[margin:-margin, margin:-margin]
    inside = np.isfinite(heights_m[core])
    if scene.area is not None:
        inside &= rasterize(scene.area, scene.geobox[window.row0 : window.row1, window.col0 : window.col1])
    rows, cols = scene.geobox.shape
    cells = Cells(window.row0, window.col0, window.shape, (int(rows), int(cols)), scene.pixel_m)
    rgb, nir = bands.read(window.pad(margin))
    wide = Cells(window.row0 - margin, window.col0 - margin, heights_m.shape, cells.image_shape, scene.pixel_m)
    labels = label_ground(scene.points, wide, rgb, nir)[core]
    far, bare = inside & np.isin(labels, (FAR, LEAFY)), inside & (labels == BARE)
    # where no near-infrared is known, any of it may be under leaves
    seen_px = np.zeros(labels.shape, bool) if nir is None else np.isfinite(nir[core])
    clear = far & (labels == FAR) & seen_px
    crown_m, stem_m = (_highest(heights_m, reach / scene.pixel_m)[core] for reach in (CROWN_M, STEM_M))
    tall = heights_m[core] > TREE_M
    row, col = point_cells(scene.points, cells)
    standing = inside[row, col]
    measured_m = scene.points.height_m[points_inside(scene.points, cells)]
    stems = standing & ~np.isnan(measured_m)
    return PointSums(
        trees=_histogram(crown_m[row[standing], col[standing]]),
        ground=_histogram(crown_m[far | bare]),
        leafy=_histogram(crown_m[far & ~clear]),
        far_px=int(far.sum()),
        far_tall_px=int((far & tall).sum()),
        open_px=None if nir is None else int(clear.sum()),
        open_tall_px=int((clear & tall).sum()),
        bare_px=None if nir is None else int(bare.sum()),
        bare_tall_px=int((bare & tall).sum()),
        stems_m=np.stack([stem_m[row[stems], col[stems]], measured_m[stems]], axis=1).astype(np.float64),
    )


def _highest(heights_m: NDArray[np.float32], reach_px: float) -> NDArray[np.float32]:
    """Return the greatest height within a distance of each pixel; unknown pixels count as none."""
    # A pixel of 0.5 m in UTM is up to .04 % longer on the ground: no reason to lose a ring of pixels.
    reach_px *= 1.01
    side = int(np.floor(reach_px))
    down, right = np.mgrid[-side : side + 1, -side : side + 1]
    disc = np.hypot(down, right) <= reach_px
    filled = np.where(np.isnan(heights_m), -np.inf, heights_m)
    return np.asarray(ndimage.maximum_filter(filled, footprint=disc, mode="constant", cval=-np.inf))


def _sum_known(*counts: int | None) -> int | None:
    """Return the sum of the counts that are known, None where none is."""
    summands = [count for count in counts if count is not None]
    return sum(summands) if summands else None


def _histogram(heights_m: NDArray[np.floating[Any]]) -> NDArray[np.int64]:
    steps = np.clip(np.rint(100 * heights_m), 0, _STEPS - 1).astype(np.int64)
    return np.bincount(steps, minlength=_STEPS)


def _auc(trees: NDArray[np.int64], ground: NDArray[np.int64]) -> float:
    """Return the probability that a tree is higher than ground, ties counted half (Mann and Whitney 1947)."""
    below = np.cumsum(ground) - ground
    return float((trees * (below + ground / 2)).sum() / (trees.sum() * ground.sum()))


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
