"""Brings a map, or a model and its imagery, and lidar shots together in their footprints."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from odc.geo import CRS as OdcCrs  # noqa: N811 - a class named like a constant
from pyproj import CRS, Transformer

from canopy.calibration.matched_shots import FLOOR_M, UNKNOWN_SHARE, Cells, MatchedShots, number_blocks
from canopy.calibration.point_samples import beam_offsets, pixels_around, sample_nearest
from canopy.calibration.terrain import MAX_SLOPE_DEG, level_rh98_m, slopes_deg
from canopy.errors import CalibrationError, ImageryError
from canopy.gedi.footprints import FOOTPRINT_SIGMA_M, footprint_statistics
from canopy.gedi.shots import utm_of
from canopy.progress import Progress, Report, ignore
from tiles.cog import UNCERTAINTY_BANDS
from tiles.heights import HeightRaster, open_heights

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

    from canopy.imagery import ImagerySource
    from canopy.models.model import CanopyModel

Floats = NDArray[np.float64]

AIMED_BLOCKS = 25
SHORTEST_BLOCK_M = 200.0
FEATURE_BATCH = 4
CELLS = 64
"""Cells of the map that are sampled in each footprint, for its cover."""


@dataclass(frozen=True)
class Slopes:
    """What the slope of the ground does to shots."""

    dem: Path
    """Terrain model that the slopes were measured on."""
    max_deg: float
    """Steepest ground of which shots are used, degrees."""
    steep: int
    """Shots dropped because their ground is steeper."""
    unknown: int
    """Shots dropped because the terrain model does not cover them."""
    taken_off_m: float
    """Mean of what was taken off RH98 of the other shots, metres."""


@dataclass(frozen=True)
class Gathered:
    """Shots on known cells of a map."""

    shots: MatchedShots
    """What map and lidar say of them."""
    points: "GeoDataFrame"
    """The same shots as points, in the same order."""
    block_m: float
    """Side of the blocks of ground that are held out together, metres."""
    slopes: Slopes | None
    """What slopes did to shots; None where they were not judged, for want of a terrain model."""


def gather(
    path: Path,
    points: "GeoDataFrame",
    *,
    block_m: float | None = None,
    dem: Path | None = None,
    max_slope_deg: float = MAX_SLOPE_DEG,
    report: Report = ignore,
) -> Gathered:
    """Match shots with a map where its cells are known.

    Args:
        path: Height map.
        points: Shots of `read_shots`, filtered.
        block_m: Side of the blocks that are held out together; None for about 25 of them over the shots.
        dem: Terrain model; None leaves slopes unjudged.
        max_slope_deg: Steepest ground of which shots are used, degrees.
        report: Called as shots are done.

    Raises:
        CalibrationError: No shot lies on known cells of the map, or on ground flat enough.
        RasterError: The map or the terrain model cannot be read.
    """
    # Weighted by the beam, as the waveform is: the tallest tree at the rim of a footprint hardly moves RH98.
    statistics = footprint_statistics(path, points, weighting="gaussian", report=report)
    usable = (statistics["unknown_share"].to_numpy() <= UNKNOWN_SHARE) & np.isfinite(points["rh98"].to_numpy())
    usable &= statistics["on_map"].to_numpy()
    if not usable.any():
        raise CalibrationError(
            f"none of {len(points)} shots lies on known cells of {path}: do map and shots cover the same ground?"
        )
    points, map_m = points[usable], statistics["p98"].to_numpy(np.float64)[usable]
    slope_deg = None if dem is None else slopes_deg(dem, points.geometry.x.to_numpy(), points.geometry.y.to_numpy())
    slopes, lidar_m = None, points["rh98"].to_numpy(np.float64)
    if dem is not None and slope_deg is not None:
        # NaN is not flat: shots off the terrain model are dropped, and counted by themselves.
        flat = slope_deg <= max_slope_deg
        if not flat.any():
            raise CalibrationError(f"none of {len(points)} shots lies on ground flatter than {max_slope_deg:g} degrees")
        unknown = int(np.isnan(slope_deg).sum())
        points, map_m = points[flat], map_m[flat]
        rh98_m, rh50_m = (points[name].to_numpy(np.float64) for name in ("rh98", "rh50"))
        lidar_m = level_rh98_m(rh98_m, rh50_m, slope_deg[flat])
        slopes = Slopes(dem, max_slope_deg, int((~flat).sum()) - unknown, unknown, float((rh98_m - lidar_m).mean()))
    taken_off_m = points["rh98"].to_numpy(np.float64) - lidar_m
    crs, x, y = _metric_coordinates(path, points)
    side_m = block_m or max(SHORTEST_BLOCK_M, float(np.sqrt(np.ptp(x) * np.ptp(y) / AIMED_BLOCKS)))
    lower_m, upper_m = _interval(path, points)
    shots = MatchedShots(
        map_m=map_m,
        lidar_m=lidar_m,
        x=x,
        y=y,
        crs=crs,
        block=number_blocks(x, y, side_m),
        lower_m=lower_m,
        upper_m=upper_m,
        cover=lidar_cover(points, FLOOR_M + taken_off_m),
        cells=_cells(path, points),
    )
    return Gathered(shots, points, side_m, slopes)


def lidar_cover(points: "GeoDataFrame", from_m: Floats) -> Floats:
    """Return the canopy cover that shots say, (n,) in [0, 1], NaN where they say none.

    L2B measures it. Where a shot has none, the share of the waveform's energy above a height stands for it, between the
    percentiles of RH that the shots carry; less than the lowest percentile counts as all.

    Args:
        points: Shots of `read_shots`.
        from_m: (n,) height from which energy comes from the canopy, metres.
    """
    percents = sorted(int(name[2:]) for name in points.columns if name.startswith("rh") and name[2:].isdigit())
    rh_m = points[[f"rh{percent}" for percent in percents]].to_numpy(np.float64)
    shares = (
        1 - np.array([np.interp(height_m, row, percents) for height_m, row in zip(from_m, rh_m, strict=True)]) / 100
    )
    # Beyond the profile's ends: nothing above the highest percentile, everything above the lowest.
    shares = np.where(from_m >= rh_m[:, -1], 0.0, np.where(from_m <= rh_m[:, 0], 1.0, shares))
    shares[np.isnan(rh_m).any(axis=1)] = np.nan
    measured = points["cover"].to_numpy(np.float64) if "cover" in points else np.full(len(points), np.nan)
    return np.asarray(np.where(np.isfinite(measured), measured, shares), np.float64)


def _interval(path: Path, points: "GeoDataFrame") -> tuple[Floats | None, Floats | None]:
    """Return the 98th percentiles of the ends of the map's interval in each footprint; None without an interval."""
    with open_heights(path) as raster:
        if any(raster.named(name) is None for name in UNCERTAINTY_BANDS):
            return None, None
    low, high = (footprint_statistics(path, points, weighting="gaussian", band=name) for name in UNCERTAINTY_BANDS[1:])
    return low["p98"].to_numpy(np.float64), high["p98"].to_numpy(np.float64)


def _cells(path: Path, points: "GeoDataFrame") -> Cells:
    """Return a sample of the map's cells in each footprint."""
    lon, lat = points.geometry.x.to_numpy(), points.geometry.y.to_numpy()
    with open_heights(path) as raster:
        crs = CRS.from_wkt(raster.dataset.crs.to_wkt())
        offsets_m = beam_offsets(CELLS, FOOTPRINT_SIGMA_M)
        rows, cols = pixels_around(lon, lat, *offsets_m, raster.dataset.transform, crs)
        upper: HeightRaster | None = raster.named(UNCERTAINTY_BANDS[2])
        height_m = sample_nearest(raster.read, rows, cols)
        return Cells(height_m, None if upper is None else sample_nearest(upper.read, rows, cols))


def _metric_coordinates(path: Path, points: "GeoDataFrame") -> tuple[CRS, Floats, Floats]:
    """Return shots in a projected CRS in metres: the map's own, or the UTM zone of the shots."""
    with open_heights(path) as raster:
        crs = CRS.from_wkt(raster.dataset.crs.to_wkt()).to_2d()
    if not crs.is_projected or crs.axis_info[0].unit_name not in ("metre", "meter") or crs.to_epsg() == 3857:
        crs = utm_of(points)
    x, y = Transformer.from_crs(4326, crs, always_xy=True).transform(points.geometry.x, points.geometry.y)
    return crs, np.asarray(x, np.float64), np.asarray(y, np.float64)


def shot_features(
    source: "ImagerySource", model: "CanopyModel", points: "GeoDataFrame", report: Report = ignore
) -> tuple[Floats, NDArray[np.bool_]]:
    """Return the features of the frozen encoder in each footprint.

    Args:
        source: Imagery over the shots.
        model: Model whose encoder gives the features.
        points: Shots of `read_shots`.
        report: Called after each batch of chips.

    Returns:
        features: (n, C), and (n,) whether the imagery is known at the shot.

    Raises:
        ImageryError: No shot lies on the imagery.
    """
    import torch

    from canopy.models.features import footprint_mean
    from canopy.models.network import PATCH_PX
    from tiles.fill import fill_unknown
    from tiles.grid import Lattice
    from tiles.windows import PixelWindow

    chip, gsd_m = model.card.chip_px, model.card.gsd_m
    utm = utm_of(points)
    lattice = Lattice(OdcCrs(utm.to_wkt()), gsd_m)
    x, y = Transformer.from_crs(4326, utm, always_xy=True).transform(points.geometry.x, points.geometry.y)
    corners = [(round(-b / gsd_m) - chip // 2, round(a / gsd_m) - chip // 2) for a, b in zip(x, y, strict=True)]
    valid = np.zeros(len(corners), bool)
    rows: list[NDArray[Any]] = []
    middle = chip // PATCH_PX // 2
    for first in range(0, len(corners), FEATURE_BATCH):
        chips = []
        for number, (row, col) in enumerate(corners[first : first + FEATURE_BATCH], first):
            image = source.read(lattice.geobox(PixelWindow(row, col, chip, chip))).values
            half = chip // 2
            valid[number] = not np.isnan(image[0, half - 12 : half + 12, half - 12 : half + 12]).any()
            chips.append(torch.from_numpy(fill_unknown(image)))
        tokens = footprint_mean(model.features(torch.stack(chips)), FOOTPRINT_SIGMA_M, gsd_m)
        # The shot lies where the four patches in the middle of its chip meet.
        rows.append(tokens[:, :, middle - 1 : middle + 1, middle - 1 : middle + 1].mean(dim=(2, 3)).numpy())
        done = min(first + FEATURE_BATCH, len(corners))
        report(Progress(done, len(corners), "chips", f"chip {done}/{len(corners)}"))
    if not valid.any():
        raise ImageryError(f"{source.describe()} shows none of the {len(points)} shots")
    return np.concatenate(rows).astype(np.float64), valid
