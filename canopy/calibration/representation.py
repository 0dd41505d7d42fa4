"""Whether shots represent a map: spread over it, as tall as it, and lying where they say.

A calibration changes all of the map, so shots from a corner of it, or of its low trees alone, or 40 m from where they
say, prove nothing of the rest.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pyproj import CRS
from scipy.stats import norm, spearmanr

from canopy.calibration.matched_shots import UNKNOWN_SHARE, MatchedShots
from canopy.calibration.point_samples import beam_offsets, pixels_around, sample_nearest
from canopy.errors import CalibrationError
from canopy.evaluation.bootstrap import draw_blocks
from canopy.gedi.footprints import FOOTPRINT_SIGMA_M, footprint_statistics
from tiles.heights import open_heights

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

Floats = NDArray[np.float64]

PARTS = 5
"""Parts along a side of the map, by which the spread of shots is judged."""
LEAST_PLACE, LEAST_HEIGHT, LEAST_CORRELATION = 0.5, 0.8, 0.3
"""Least share of the map's parts with shots, least share of the map whose heights shots have, least correlation."""
FARTHEST_M = 25.0
"""Farthest that all shots together may seem moved: GEDI's own error is about 10 m, and differs by track."""
SURE = 0.99
SAMPLE = 1000
FEWEST_IN_CLASS = 5
CLASSES_M = (3.0, 10.0, 20.0, 30.0)
SHIFT_STEP_M, SHIFTS = 15.0, 3
SHIFTED_SHOTS = 600
CELLS, PERCENTILE = 64, 98
"""Cells that are sampled in a footprint, and the percentile of theirs that is compared with RH98."""
LEAST_KNOWN = 0.5
"""Share of shots that a shift must leave on known cells."""


@dataclass(frozen=True)
class Representation:
    """How far shots represent a map."""

    place_share: float
    """Share of the map's parts, a fifth of its width and height each, in which shots lie."""
    height_share: float
    """Share of the map's footprints whose class of height has at least five shots."""
    correlation: float
    """Rank correlation of the map's heights with RH98."""
    shift_m: tuple[float, float]
    """Metres east and north by which all shots would agree best with the map; (0, 0) where that is not sure."""

    def objections(self) -> list[str]:
        """Return what speaks against a calibration with these shots, each in a few words."""
        faults = []
        if self.place_share < LEAST_PLACE:
            faults.append(f"shots lie in {self.place_share:.0%} of the map's parts, {LEAST_PLACE:.0%} expected")
        if self.height_share < LEAST_HEIGHT:
            faults.append(f"shots have the heights of {self.height_share:.0%} of the map, {LEAST_HEIGHT:.0%} expected")
        if not self.correlation >= LEAST_CORRELATION:
            faults.append(f"map and shots correlate by {self.correlation:.2f}, {LEAST_CORRELATION:g} expected")
        if np.hypot(*self.shift_m) > FARTHEST_M:
            east_m, north_m = self.shift_m
            faults.append(f"shots agree best {east_m:+.0f} m east and {north_m:+.0f} m north of where they say")
        return faults

    def require(self, force: bool) -> None:
        """Refuse shots that do not represent the map.

        Args:
            force: Accept them.

        Raises:
            CalibrationError: They do not, and `force` is False.
        """
        faults = self.objections()
        if faults and not force:
            raise CalibrationError(
                f"the shots do not represent the map: {'; '.join(faults)}; read more granules, cut the map to where "
                "they lie, check its georeference, or pass --force"
            )


def represent(path: Path, shots: MatchedShots, points: "GeoDataFrame", seed: int = 0) -> Representation:
    """Measure how far shots represent a map.

    Args:
        path: Height map.
        shots: Shots matched with it.
        points: The same shots as points, in the same order.
        seed: Seed of the sample of the map.
    """
    sample = sample_points(path, seed)
    statistics = footprint_statistics(path, sample, weighting="gaussian")
    valid = (statistics["on_map"] & (statistics["unknown_share"] <= UNKNOWN_SHARE)).to_numpy()
    place_share = _place_share(sample[valid], points, path)
    height_share = _height_share(statistics["p98"].to_numpy(np.float64)[valid], shots.map_m)
    # Ranks, because a map may be far too low and still know which trees are tall.
    correlation = float(spearmanr(shots.map_m, shots.lidar_m).statistic) if np.ptp(shots.map_m) > 0 else float("nan")
    return Representation(place_share, height_share, correlation, _shift_m(path, shots, points, seed))


def sample_points(path: Path, seed: int = 0) -> "GeoDataFrame":
    """Return random points of a raster, EPSG:4326."""
    import geopandas as gpd

    generator = np.random.default_rng(seed)
    with open_heights(path) as raster:
        transform, (height, width) = raster.dataset.transform, raster.dataset.shape
        crs = raster.dataset.crs.to_wkt()
    col, row = generator.uniform(0, width, SAMPLE), generator.uniform(0, height, SAMPLE)
    x, y = transform.a * col + transform.b * row + transform.c, transform.d * col + transform.e * row + transform.f
    return gpd.GeoDataFrame(geometry=gpd.points_from_xy(x, y, crs=crs)).to_crs(4326)


def _place_share(sample: "GeoDataFrame", points: "GeoDataFrame", path: Path) -> float:
    """Return the share of the map's parts with known ground in which shots lie."""
    with_ground, with_shots = _parts(sample, path), _parts(points, path)
    return len(with_ground & with_shots) / len(with_ground) if with_ground else 0.0


def _parts(points: "GeoDataFrame", path: Path) -> set[tuple[int, int]]:
    """Return the parts of the map in which points lie, as row and column of a grid of PARTS x PARTS."""
    with open_heights(path) as raster:
        transform, shape, crs = raster.dataset.transform, raster.dataset.shape, raster.dataset.crs.to_wkt()
    geometry = points.to_crs(crs).geometry
    x, y = geometry.x.to_numpy(), geometry.y.to_numpy()
    inverse = ~transform
    rows = (inverse.d * x + inverse.e * y + inverse.f) / shape[0] * PARTS
    cols = (inverse.a * x + inverse.b * y + inverse.c) / shape[1] * PARTS
    return set(zip(np.floor(rows).astype(int).tolist(), np.floor(cols).astype(int).tolist(), strict=True))


def _height_share(sample_m: Floats, shots_m: Floats) -> float:
    """Return the share of a sample of the map whose class of height has enough shots."""
    # Five shots say what a class of height looks like to the lidar; fewer leave its curve to the neighbours.
    count = np.bincount(np.digitize(shots_m, CLASSES_M), minlength=len(CLASSES_M) + 1)
    return float((count[np.digitize(sample_m, CLASSES_M)] >= FEWEST_IN_CLASS).mean()) if len(sample_m) else 0.0


def _shift_m(path: Path, shots: MatchedShots, points: "GeoDataFrame", seed: int) -> tuple[float, float]:
    """Return the shift of all shots that agrees best with the map, (0, 0) unless it is surely better than none.

    Shots are compared with what the map should show for them if it erred everywhere as it does on the whole, so that
    a map that is too low does not hide where they lie.
    """
    generator = np.random.default_rng(seed)
    chosen = np.sort(generator.permutation(len(shots))[:SHIFTED_SHOTS])
    part, members = shots.take(chosen), points.iloc[chosen]
    axis_m = SHIFT_STEP_M * np.arange(-SHIFTS, SHIFTS + 1)
    offsets_m = np.stack(np.meshgrid(axis_m, axis_m, indexing="ij"), axis=-1).reshape(-1, 2)
    # All shots move together: a single track's error is GEDI's, a shift of all is the map's.
    map_m = _shifted_m(path, members, offsets_m)
    still = len(offsets_m) // 2
    expected_m = np.interp(part.lidar_m, np.sort(part.lidar_m), np.sort(map_m[:, still]))
    misfit_m = np.abs(map_m - expected_m[:, None])
    known_share = np.isfinite(misfit_m).mean(axis=0)
    # Shots that a shift moves off the map do not count; a shift that leaves less than half of them cannot be judged.
    mean_m = np.nan_to_num(misfit_m).mean(axis=0) / np.maximum(known_share, LEAST_KNOWN)
    best = int(np.argmin(np.where(known_share < LEAST_KNOWN, np.inf, mean_m)))
    better_m = misfit_m[:, still] - misfit_m[:, best]
    valid = np.isfinite(better_m)
    sure = _surely_positive(better_m[valid], part.block[valid])
    return (float(offsets_m[best, 0]), float(offsets_m[best, 1])) if sure else (0.0, 0.0)


def _shifted_m(path: Path, points: "GeoDataFrame", offsets_m: Floats) -> Floats:
    """Return the map's 98th percentile around points moved by each offset, (n, k) metres, from a sample of cells."""
    east_m, north_m = beam_offsets(CELLS, FOOTPRINT_SIGMA_M)
    east_m, north_m = ((offsets_m[:, axis, None] + beam).reshape(-1) for axis, beam in enumerate((east_m, north_m)))
    lon, lat = points.geometry.x.to_numpy(), points.geometry.y.to_numpy()
    with open_heights(path) as raster:
        crs = CRS.from_wkt(raster.dataset.crs.to_wkt())
        rows, cols = pixels_around(lon, lat, east_m, north_m, raster.dataset.transform, crs)
        cells_m = sample_nearest(raster.read, rows, cols)
    return np.asarray(np.percentile(cells_m.reshape(len(lon), len(offsets_m), CELLS), PERCENTILE, axis=2), np.float64)


def _surely_positive(values: Floats, block: NDArray[np.int64]) -> bool:
    """Return whether the mean of values is above 0 in nearly all draws of blocks."""
    if not len(values):
        return False
    number = np.unique(block, return_inverse=True)[1].reshape(-1)
    sums, counts = np.bincount(number, values), np.bincount(number)
    draws = draw_blocks(len(counts))
    means = (draws @ sums) / np.maximum(draws @ counts, 1)
    return bool(values.mean() - norm.ppf(SURE) * means.std() > 0)
