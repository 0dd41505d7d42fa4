"""Allometries fitted to the biomass of GEDI L4A shots on the map itself, scored with blocks of ground left out."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import shapely
from numpy.typing import NDArray
from odc.geo.crs import CRS

from canopy.errors import LidarError, ProductError, one_line
from canopy.products.allometry import Figures
from canopy.products.cells import OpeningRule
from canopy.products.measuring import measure_zones
from canopy.products.reading import ProductMap
from canopy.products.stand_intervals import FEWEST_BLOCKS, LEVEL, block_quantile
from canopy.products.zones import Zones, areas_m2
from canopy.progress import Progress, Report, ignore

FOOTPRINT_M = 12.5
"""Radius of a footprint, metres."""
MIN_SHOTS = 50
_MIN_KNOWN = 0.95
_FILL = -9990.0
_MAX_SHOTS = 4_000_000
_FOLDS = 10
_FIELDS = ("agbd", "agbd_se", "lat_lowestmode", "lon_lowestmode", "l4_quality_flag", "degrade_flag")
_HDF5_ERRORS = (AttributeError, LookupError, MemoryError, OSError, RuntimeError, TypeError, ValueError)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class BiomassShots:
    """Shots with a biomass of good quality."""

    lon: Floats
    """(N,) longitude of the centre, degrees."""
    lat: Floats
    """(N,) latitude."""
    agbd: Floats
    """(N,) aboveground biomass density of L4A, megagrams a hectare."""
    agbd_se: Floats
    """(N,) its standard error of prediction as L4A states it."""


@dataclass(frozen=True)
class FittedAllometry:
    """sqrt(biomass) = intercept + slope sqrt(mean height), with a correction of the bias of squaring."""

    intercept: float
    """Intercept, square root of megagrams a hectare."""
    slope: float
    """Slope, the same for a square root of a metre."""
    ratio: float
    """Sum of the shots' biomass over that of the squared line (Snowdon 1991)."""
    error_quantile: float
    """Half-width of the 90 % interval of a cell: absolute errors of shots in blocks left out, relative to the
    biomass plus 10 Mg/ha."""
    rmse: float
    """Root mean square error in blocks left out, megagrams a hectare."""
    bias: float
    """Mean of prediction less shot in blocks left out."""
    r2: float
    """Share of the variance of the shots that is explained in blocks left out."""
    shots: int
    """Number of shots."""
    blocks: int
    """Number of blocks."""

    def __call__(self, figures: Figures) -> Floats:
        """Return the biomass of cells, megagrams a hectare."""
        root = self.intercept + self.slope * np.sqrt(np.maximum(figures["mean"], 0))
        return self.ratio * np.maximum(root, 0) ** 2

    def to_json(self) -> dict[str, Any]:
        """Return the fit as JSON."""
        return {"form": "sqrt(agbd) = intercept + slope * sqrt(mean)", **asdict(self)}


ERROR_FLOOR = 10.0
"""Megagrams a hectare that are added to a biomass before errors are relative to it: bare ground has errors too."""


def read_biomass_shots(paths: Sequence[Path]) -> BiomassShots:
    """Read the shots of L4A granules whose biomass is of good quality (`l4_quality_flag` 1, `degrade_flag` 0).

    Raises:
        LidarError: A file is missing, damaged or another product, or no shot is of good quality.
    """
    parts = [part for path in paths for part in _read_granule(path)]
    columns = [np.concatenate([part[n] for part in parts]) if parts else np.zeros(0) for n in range(4)]
    if not len(columns[0]):
        raise LidarError(f"{', '.join(map(str, paths[:3]))}: no shot with a biomass of good quality; others expected")
    return BiomassShots(*columns)


def _read_granule(path: Path) -> list[tuple[Floats, Floats, Floats, Floats]]:
    """Return longitude, latitude, biomass and its standard error of the shots of each beam."""
    if not path.is_file():
        raise LidarError(f"{path}: no such file; a GEDI L4A granule expected")
    try:
        with h5py.File(path) as granule:
            beams = [granule[name] for name in sorted(granule) if name.startswith("BEAM")]
            if not any("agbd" in beam for beam in beams):
                raise LidarError(f"{path}: has no biomass (agbd); a GEDI L4A granule expected")
            return [_read_beam(beam) for beam in beams if all(name in beam for name in _FIELDS)]
    except _HDF5_ERRORS as error:
        raise LidarError(f"{path}: damaged or not HDF5: {one_line(error, 200)}; a GEDI L4A granule expected") from error


def _read_beam(beam: Any) -> tuple[Floats, Floats, Floats, Floats]:
    sizes = {beam[name].shape for name in _FIELDS}
    if len(sizes) != 1 or len(shape := sizes.pop()) != 1 or shape[0] > _MAX_SHOTS:
        raise ValueError(f"fields of {len(sizes) + 1} shapes in a beam; one value for each shot expected")
    agbd, error, lat, lon, quality, degrade = (np.asarray(beam[name][...], dtype=np.float64) for name in _FIELDS)
    valid = (quality == 1) & (degrade == 0) & (agbd > _FILL) & (error > _FILL) & (np.abs(lat) <= 90)
    valid &= np.isfinite(agbd) & np.isfinite(error) & np.isfinite(lon)
    return lon[valid], lat[valid], np.maximum(agbd[valid], 0), np.maximum(error[valid], 0)


def fit_allometry(
    source: ProductMap, shots: BiomassShots, *, block_m: float, report: Report = ignore
) -> FittedAllometry:
    """Fit the biomass of shots to the mean height of the map in their footprints.

    The form is that of GEDI's own models (Duncanson et al. 2022), with heights of the map in place of those of the
    waveform; so errors of the map at the shots, and of their positions, are part of the residuals.

    Args:
        source: Map.
        shots: Shots.
        block_m: Side of the blocks that are left out together, metres.
        report: Called after each group of footprints.

    Raises:
        ProductError: Too few shots or blocks of the map.
    """
    mean_m, x, y, agbd, agbd_se = _on_map(source, shots, report)
    side = block_m / source.scale_m
    _, blocks = np.unique(np.stack([np.floor(x / side), np.floor(y / side)]), axis=1, return_inverse=True)
    count = int(blocks.max()) + 1 if len(blocks) else 0
    if len(agbd) < MIN_SHOTS or count < FEWEST_BLOCKS:
        raise ProductError(
            f"{len(agbd)} good shots in {count} blocks of {block_m:g} m lie on known ground of {source.path}, "
            f"at least {MIN_SHOTS} in {FEWEST_BLOCKS} expected: read more granules or use --block-m"
        )
    predicted = _left_out(mean_m, agbd, blocks, count)
    residuals = predicted - agbd
    # L4A's own error is no part of its residual where map and waveform err together, so it comes on top.
    total = np.hypot(residuals, agbd_se)
    quantile = block_quantile(total / (predicted + ERROR_FLOOR), blocks, LEVEL)
    if quantile is None:
        raise ProductError(f"{count} blocks of shots are too few for an interval: more expected, use --block-m")
    intercept, slope, ratio = _line(mean_m, agbd)
    variance = float(((agbd - agbd.mean()) ** 2).sum())
    return FittedAllometry(
        intercept, slope, ratio, quantile,
        rmse=float(np.sqrt((residuals**2).mean())), bias=float(residuals.mean()),
        r2=1 - float((residuals**2).sum()) / variance if variance else 0.0, shots=len(agbd), blocks=count,
    )  # fmt: skip


def _on_map(source: ProductMap, shots: BiomassShots, report: Report) -> tuple[Floats, Floats, Floats, Floats, Floats]:
    """Return mean height, x, y, biomass and its error of the shots whose footprint is known on the map."""
    x, y = CRS("EPSG:4326").transformer_to_crs(source.crs)(shots.lon, shots.lat)
    left, bottom, right, top = source.geobox().extent.geom.bounds
    near = np.flatnonzero((x > left) & (x < right) & (y > bottom) & (y < top))
    discs = shapely.buffer(shapely.points(x[near], y[near]), FOOTPRINT_M / source.scale_m)
    zones = Zones(tuple(map(str, near)), discs, areas_m2(discs, source.crs))
    mean_m = np.full(len(near), np.nan)
    done = 0
    for group, measured in measure_zones(source, zones, OpeningRule(), ends=False):
        values = [each.surface.values["mean_m"] if each.known_share >= _MIN_KNOWN else None for each in measured]
        mean_m[group.numbers] = [np.nan if value is None else value for value in values]
        done += len(measured)
        report(Progress(done, len(near), "shots", f"shot {done:,}/{len(near):,}"))
    valid = np.isfinite(mean_m)
    chosen = near[valid]
    return mean_m[valid], x[chosen], y[chosen], shots.agbd[chosen], shots.agbd_se[chosen]


def _line(mean_m: Floats, agbd: Floats) -> tuple[float, float, float]:
    """Return intercept and slope of the square roots, and the ratio that makes sums equal."""
    slope, intercept = np.polyfit(np.sqrt(np.maximum(mean_m, 0)), np.sqrt(agbd), 1)
    squared = np.maximum(intercept + slope * np.sqrt(np.maximum(mean_m, 0)), 0) ** 2
    total = float(squared.sum())
    return float(intercept), float(slope), float(agbd.sum() / total) if total else 1.0


def _left_out(mean_m: Floats, agbd: Floats, blocks: NDArray[np.int64], count: int) -> Floats:
    """Return the biomass that lines without a shot's block predict for it, in ten folds of blocks."""
    folds = (np.random.default_rng(0).permutation(count) % min(_FOLDS, count))[blocks]
    predicted = np.zeros(len(agbd))
    for fold in range(folds.max() + 1):
        is_out = folds == fold
        intercept, slope, ratio = _line(mean_m[~is_out], agbd[~is_out])
        root = np.maximum(intercept + slope * np.sqrt(np.maximum(mean_m[is_out], 0)), 0)
        predicted[is_out] = ratio * root**2
    return predicted
