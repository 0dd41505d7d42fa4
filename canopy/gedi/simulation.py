"""Shots as GEDI would take them over a canopy height model, written in the layout of L2A V002.

The waveform is that of the Gaussian footprint's height distribution, widened by the pulse: so RH metrics over bare
ground are not 0, and geolocation errs by track and by shot. On a terrain model, heights count from the mean ground of
the footprint, so slopes widen the waveform as they do in orbit. After Hancock et al. (2019), much simplified: there is
no understorey and no noise but that of RH.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from affine import Affine
from numpy.typing import NDArray
from pyproj import CRS, Transformer
from rasterio.coords import BoundingBox
from scipy.special import erf

from canopy.errors import LidarError, OutputError, one_line
from canopy.gedi.footprints import COVER_HEIGHT_M, FOOTPRINT_SIGMA_M
from tiles.files import replacing
from tiles.heights import HeightRaster, elevation_unit_m, open_heights, open_raster, readable

Floats = NDArray[np.float64]

BEAMS = ("BEAM0000", "BEAM0001", "BEAM0010", "BEAM0011", "BEAM0101", "BEAM0110", "BEAM1000", "BEAM1011")
POWER_BEAMS = BEAMS[4:]
ALONG_M, ACROSS_M = 60.0, 600.0
PULSE_SIGMA_M = 0.98
"""15.6 ns at half maximum, in metres of height."""
BIN_M = 0.15
HEIGHTS_M = np.arange(-20, 100, BIN_M)
REACH_M = 18.0

_LEVELS = np.clip(np.arange(101) / 100, 0.005, 0.995)
_PULSE_M = np.arange(-30, 31) * BIN_M
_PULSE_EDGES_M = np.append(_PULSE_M - BIN_M / 2, _PULSE_M[-1] + BIN_M / 2)
_PULSE = np.diff(0.5 * (1 + erf(_PULSE_EDGES_M / (PULSE_SIGMA_M * np.sqrt(2)))))


@dataclass(frozen=True)
class Orbit:
    """How shots lie and err."""

    passes: int = 4
    """Overflights, of eight tracks each."""
    across_m: float = ACROSS_M
    """Distance between tracks, metres; 600 in orbit."""
    along_m: float = ALONG_M
    """Distance between shots, metres; 60 in orbit."""
    heading_deg: float = 40.0
    """Heading of the tracks from north, degrees; mirrored in every second pass."""
    track_error_m: float = 10.0
    """Standard deviation of a track's shift, east and north together, metres."""
    shot_error_m: float = 2.0
    """Standard deviation of a shot's shift about that of its track, east and north together, metres."""
    height_error_m: float = 0.5
    """Standard deviation of noise on all of a shot's heights, metres."""


@dataclass(frozen=True)
class BeamShots:
    """Shots of one beam."""

    shot_number: NDArray[np.uint64]
    """(n,) numbers as the products number their shots."""
    x: Floats
    """(n,) recorded first coordinate, units of the CRS."""
    y: Floats
    """(n,) recorded second coordinate."""
    rh_m: Floats
    """(n, 101) relative heights, metres."""
    cover: Floats
    """(n,) canopy cover in [0, 1]."""
    delta_time: Floats
    """(n,) seconds since the products' epoch."""

    def taken(self, rows: NDArray[np.bool_]) -> "BeamShots":
        """Return some of the shots."""
        return BeamShots(*(column[rows] for column in vars(self).values()))

    @classmethod
    def joined(cls, parts: Sequence["BeamShots"]) -> "BeamShots":
        """Return the shots of all parts, in order."""
        return cls(*(np.concatenate(columns) for columns in zip(*(vars(part).values() for part in parts), strict=True)))


def simulate(path: Path, out: Path, orbit: Orbit | None = None, seed: int = 0, dem: Path | None = None) -> int:
    """Take shots over a canopy height model and return their number.

    Args:
        path: Raster of heights, of any unit, in a projected CRS in metres.
        out: HDF5 to write, in the layout of L2A V002.
        orbit: How shots lie; `Orbit()` if None.
        seed: Seed of all randomness.
        dem: Terrain model on the grid of the canopy height model; flat ground if None.

    Raises:
        LidarError: The model's CRS is not projected, no footprint lies on it, or the terrain is on another grid.
        OutputError: `out` cannot be written.
    """
    orbit = orbit or Orbit()
    generator = np.random.default_rng(seed)
    with open_heights(path) as raster:
        crs, transform = CRS.from_wkt(raster.dataset.crs.to_wkt()), raster.dataset.transform
        if not crs.is_projected:
            raise LidarError(f"{path}: a projected CRS in metres expected, found {crs.name}")
        heights_m = raster.read().astype(np.float64)
        bounds = raster.dataset.bounds
        ground_m = np.zeros(heights_m.shape) if dem is None else _terrain_m(dem, raster)
    parts: dict[str, list[BeamShots]] = {name: [] for name in BEAMS}
    for number in range(orbit.passes):
        for track, (name, x, y) in enumerate(_tracks(bounds, orbit, number, generator)):
            rh_m, cover, valid = _measured(heights_m, ground_m, transform, x, y, orbit, generator)
            numbers = shot_numbers(1 + 100 * number + track // len(BEAMS), BEAMS.index(name), len(x))
            seconds = number * 86400.0 + track + np.arange(len(x)) * 0.008
            parts[name].append(
                BeamShots(numbers, x, y, rh_m, cover, np.asarray(1e7 + seconds, np.float64)).taken(valid)
            )
    beams = {name: BeamShots.joined(part) for name, part in parts.items() if part}
    count = sum(len(beam.x) for beam in beams.values())
    if count == 0:
        raise LidarError(f"no footprint lies whole on {path}: it is too small or unknown")
    write_l2a(out, beams, crs, generator)
    return count


def _terrain_m(dem: Path, canopy: HeightRaster) -> Floats:
    """Return the elevations of a terrain model that lies on the grid of a canopy height model, metres."""
    with open_raster(dem) as dataset:
        if dataset.shape != canopy.dataset.shape or not dataset.transform.almost_equals(canopy.dataset.transform):
            raise LidarError(f"{dem}: the grid of {canopy.path} expected (gdalwarp -te -ts resamples it)")
        with readable(dem):
            values = dataset.read(1, masked=True).astype(np.float64)
        return np.asarray(np.ma.filled(values, np.nan) * elevation_unit_m(dataset), np.float64)


def _measured(
    heights_m: Floats,
    ground_m: Floats,
    transform: Affine,
    x: Floats,
    y: Floats,
    orbit: Orbit,
    generator: np.random.Generator,
) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """Return what `waveforms` returns for one track, whose true places differ from the recorded ones."""
    shift = generator.normal(0, orbit.track_error_m / np.sqrt(2), 2)
    jitter = generator.normal(0, orbit.shot_error_m / np.sqrt(2), (len(x), 2))
    rh_m, cover, valid = waveforms(
        heights_m, transform, x + shift[0] + jitter[:, 0], y + shift[1] + jitter[:, 1], ground_m
    )
    return rh_m + generator.normal(0, orbit.height_error_m, (len(rh_m), 1)), cover, valid


def shot_numbers(orbit: int, beam: int, count: int) -> NDArray[np.uint64]:
    """Return numbers as the products have them: orbit (5 digits), beam (2), reserved (2), granule (1), index (8)."""
    return np.uint64(orbit * 10**13 + beam * 10**11) + np.arange(count, dtype=np.uint64)


def _tracks(
    bounds: BoundingBox, orbit: Orbit, number: int, generator: np.random.Generator
) -> list[tuple[str, Floats, Floats]]:
    """Return beam, x and y of the shots of a pass; as many parallel tracks as cross the ground, beams in turn."""
    middle = np.array([(bounds.left + bounds.right) / 2, (bounds.bottom + bounds.top) / 2])
    half = np.hypot(bounds.right - bounds.left, bounds.top - bounds.bottom) / 2
    heading = np.deg2rad(orbit.heading_deg * (1 if number % 2 == 0 else -1))
    along, across = np.array([np.sin(heading), np.cos(heading)]), np.array([np.cos(heading), -np.sin(heading)])
    first = -half + generator.uniform(0, orbit.across_m)
    tracks = []
    for track, offset in enumerate(np.arange(first, half, orbit.across_m)):
        distance = np.arange(-half + generator.uniform(0, orbit.along_m), half, orbit.along_m)
        x, y = (middle[:, None] + across[:, None] * offset + along[:, None] * distance).reshape(2, -1)
        inside = (x > bounds.left) & (x < bounds.right) & (y > bounds.bottom) & (y < bounds.top)
        tracks.append((BEAMS[track % len(BEAMS)], x[inside], y[inside]))
    return tracks


def waveforms(
    heights_m: Floats, transform: Affine, x: Floats, y: Floats, ground_m: Floats | None = None
) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """Return the RH metrics of Gaussian footprints.

    Args:
        heights_m: (H, W) heights, metres, NaN where unknown.
        transform: Transform of the raster, north up.
        x: (n,) first coordinate of the footprints' true centres.
        y: (n,) second coordinate of the footprints' true centres.
        ground_m: (H, W) elevations of the ground, metres; flat if None.

    Returns:
        (n, 101) RH in metres; (n,) cover, the share of energy from 2 m and more; (n,) whether the footprint lies on
        known cells.
    """
    cell_m = transform.a
    reach = int(np.ceil(REACH_M / cell_m))
    rows, cols = (transform.f - y) / cell_m, (x - transform.c) / cell_m
    valid = (rows >= reach) & (rows < heights_m.shape[0] - reach)
    valid &= (cols >= reach) & (cols < heights_m.shape[1] - reach)
    rh_m, cover = np.full((len(x), 101), np.nan), np.full(len(x), np.nan)
    steps = np.arange(-reach, reach)
    edges_m = np.concatenate([HEIGHTS_M - BIN_M / 2, HEIGHTS_M[-1:] + BIN_M / 2])
    for shot in np.flatnonzero(valid):
        top, left = int(rows[shot]), int(cols[shot])
        part = heights_m[top - reach : top + reach, left - reach : left + reach]
        ground = part * 0 if ground_m is None else ground_m[top - reach : top + reach, left - reach : left + reach]
        if np.isnan(part + ground).any():
            valid[shot] = False
            continue
        down_m, right_m = (steps + top + 0.5 - rows[shot]) * cell_m, (steps + left + 0.5 - cols[shot]) * cell_m
        weight = np.exp(-(down_m[:, None] ** 2 + right_m[None] ** 2) / (2 * FOOTPRINT_SIGMA_M**2))
        # RH counts from the ground's own return, whose middle is the mean elevation under the beam.
        above_m = part + ground - (weight * ground).sum() / weight.sum()
        energy, _ = np.histogram(above_m, edges_m, weights=weight)
        wave = np.convolve(energy, _PULSE, mode="same")
        rising = np.cumsum(wave) / wave.sum()
        rh_m[shot] = np.interp(_LEVELS, rising, HEIGHTS_M + BIN_M / 2)
        cover[shot] = weight[part >= COVER_HEIGHT_M].sum() / weight.sum()
    return rh_m, cover, valid


def write_l2a(out: Path, beams: Mapping[str, BeamShots], crs: CRS, generator: np.random.Generator) -> None:
    """Write shots in the layout of an L2A V002 granule.

    Args:
        out: HDF5 file.
        beams: Shots of each beam, by its name.
        crs: CRS of the shots' coordinates.
        generator: Generator of sensitivity and elevation.

    Raises:
        OutputError: The file cannot be written.
    """
    to_degrees = Transformer.from_crs(crs, 4326, always_xy=True)
    try:
        with replacing(out) as draft, h5py.File(draft, "w") as file:
            file.attrs["short_name"] = np.array([b"GEDI_L2A"])
            for name, shots in beams.items():
                group = file.create_group(name)
                power = name in POWER_BEAMS
                group.attrs["description"] = np.array([b"Full power beam" if power else b"Coverage beam"])
                lon, lat = to_degrees.transform(shots.x, shots.y)
                _write_beam(group, np.asarray(lon), np.asarray(lat), shots, generator)
    except OSError as error:
        raise OutputError(f"cannot write {out}: {error.strerror or one_line(error)}") from error


def _write_beam(group: h5py.Group, lon: Floats, lat: Floats, shots: BeamShots, generator: np.random.Generator) -> None:
    """Write the datasets of a beam; what a canopy height model does not say is drawn or constant."""
    count = len(lon)
    ones, zeros = np.ones(count, np.uint8), np.zeros(count, np.uint8)
    sensitivity = np.clip(generator.normal(0.975, 0.01, count), 0.9, 0.999).astype(np.float32)
    elevation = np.full(count, 500, np.float32)
    fields: dict[str, NDArray[Any]] = {
        "shot_number": shots.shot_number,
        "delta_time": shots.delta_time,
        "lat_lowestmode": lat,
        "lon_lowestmode": lon,
        "elev_lowestmode": elevation,
        "digital_elevation_model": elevation + generator.normal(0, 5, count).astype(np.float32),
        "rh": shots.rh_m.astype(np.float32),
        "quality_flag": ones,
        "degrade_flag": zeros,
        "surface_flag": ones,
        "sensitivity": sensitivity,
        "solar_elevation": np.full(count, -20, np.float32),
        "geolocation/sensitivity_a2": sensitivity,
        "land_cover_data/landsat_treecover": 100 * shots.cover,
        "land_cover_data/leaf_off_flag": zeros,
        "land_cover_data/landsat_water_persistence": zeros,
        "land_cover_data/urban_proportion": zeros,
    }
    for name, values in fields.items():
        group.create_dataset(name, data=values, compression="gzip" if count else None)
