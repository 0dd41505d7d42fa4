"""Brings a map, or a model and its imagery, and lidar shots together in their footprints."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from odc.geo import CRS as OdcCrs  # noqa: N811 - a class named like a constant
from pyproj import CRS, Transformer

from canopy.calibration.fitting import FOOTPRINT_SIGMA_M, Footprints, blocks
from canopy.errors import CalibrationError, ImageryError
from canopy.gedi.footprints import footprint_statistics
from canopy.progress import Progress, Report, ignore
from tiles.cog import UNCERTAINTY_BANDS

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

    from canopy.imagery import ImagerySource
    from canopy.models.model import CanopyModel

RADIUS_M = 12.5
AIMED_BLOCKS = 25
FEWEST_M = 200.0
FEATURE_BATCH = 4


def gather(
    path: Path, shots: "GeoDataFrame", *, block_m: float | None = None, report: Report = ignore
) -> tuple[Footprints, "GeoDataFrame", float]:
    """Footprints of a map that lie on known cells.

    Args:
        path: Height map.
        shots: Of `read_shots`, filtered.
        block_m: Side of the blocks that are held out together; None for about 25 of them over the shots.
        report: Called as shots are done.

    Returns:
        The footprints, their shots in the same order, and the side of the blocks in metres.

    Raises:
        CalibrationError: No shot lies on known cells of the map.
        RasterError: The map cannot be read.
    """
    found = footprint_statistics(path, shots, radius_m=RADIUS_M, report=report)
    with rasterio.open(path) as opened:
        sure = tuple(opened.descriptions) == UNCERTAINTY_BANDS
    usable = (found["unknown_share"].to_numpy() == 0) & np.isfinite(shots["rh98"].to_numpy())
    usable &= found["on_map"].to_numpy()
    if not usable.any():
        raise CalibrationError(
            f"none of {len(shots)} shots lies on known cells of {path}: do map and shots cover the same ground?"
        )
    held = shots[usable]
    upper = footprint_statistics(path, held, radius_m=RADIUS_M, band=3)["p98"].to_numpy(np.float64) if sure else None
    crs, x, y = _metric_places(path, held)
    side = block_m or max(FEWEST_M, float(np.sqrt(np.ptp(x) * np.ptp(y) / AIMED_BLOCKS)))
    made = Footprints(
        map_m=found["p98"].to_numpy(np.float64)[usable],
        lidar_m=held["rh98"].to_numpy(np.float64),
        x=x,
        y=y,
        crs=crs,
        block=blocks(x, y, side),
        upper_m=upper,
    )
    return made, held, side


def _metric_places(path: Path, shots: "GeoDataFrame") -> tuple[CRS, NDArray[np.float64], NDArray[np.float64]]:
    """Shots in a projected CRS in metres: the map's own, or the UTM zone of the shots."""
    with rasterio.open(path) as opened:
        crs = CRS.from_wkt(opened.crs.to_wkt())
    if not crs.is_projected or crs.axis_info[0].unit_name not in ("metre", "meter") or crs.to_epsg() == 3857:
        crs = CRS.from_user_input(shots.estimate_utm_crs())
    x, y = Transformer.from_crs(4326, crs, always_xy=True).transform(shots.geometry.x, shots.geometry.y)
    return crs, np.asarray(x, np.float64), np.asarray(y, np.float64)


def shot_features(
    source: "ImagerySource", model: "CanopyModel", shots: "GeoDataFrame", report: Report = ignore
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Features of the frozen encoder in each footprint.

    Args:
        source: Imagery over the shots.
        model: Whose encoder.
        shots: Of `read_shots`.
        report: Called after each batch of chips.

    Returns:
        features: (n, C), and (n,) whether the imagery is known at the shot.

    Raises:
        ImageryError: No shot lies on the imagery.
    """
    import torch

    from tiles.fill import fill_unknown
    from canopy.models.features import PATCH_PX, pooled
    from tiles.grid import Lattice
    from tiles.windows import PixelWindow

    chip, gsd_m = model.card.chip_px, model.card.gsd_m
    utm = shots.estimate_utm_crs()
    utm = shots.estimate_utm_crs()
    lattice = Lattice(OdcCrs(utm.to_wkt()), gsd_m)
    x, y = Transformer.from_crs(4326, utm, always_xy=True).transform(shots.geometry.x, shots.geometry.y)
    corners = [(round(-b / gsd_m) - chip // 2, round(a / gsd_m) - chip // 2) for a, b in zip(x, y, strict=True)]
    known = np.zeros(len(corners), bool)
    rows: list[NDArray[Any]] = []
    middle = chip // PATCH_PX // 2
    for first in range(0, len(corners), FEATURE_BATCH):
        chips = []
        for place, (row, col) in enumerate(corners[first : first + FEATURE_BATCH], first):
            image = source.read(lattice.geobox(PixelWindow(row, col, chip, chip))).values
            half = chip // 2
            known[place] = not np.isnan(image[0, half - 12 : half + 12, half - 12 : half + 12]).any()
            chips.append(torch.from_numpy(fill_unknown(image)))
        tokens = pooled(model.features(torch.stack(chips)), FOOTPRINT_SIGMA_M, gsd_m)
        rows.append(tokens[:, :, middle - 1 : middle + 1, middle - 1 : middle + 1].mean(dim=(2, 3)).numpy())
        done = min(first + FEATURE_BATCH, len(corners))
        report(Progress(done, len(corners), "chips", f"chip {done}/{len(corners)}"))
    if not known.any():
        raise ImageryError(f"{source.describe()} shows none of the {len(shots)} shots")
    return np.concatenate(rows).astype(np.float64), known
