"""Shots as GEDI would take them over a canopy height model, written in the layout of L2A V002.

The waveform is that of the Gaussian footprint's height distribution, widened by the pulse: so RH metrics over bare
ground are not 0, and geolocation errs by track and by shot. After Hancock et al. (2019), much simplified: there is no
understorey, no slope and no noise but that of RH.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import rasterio
from numpy.typing import NDArray
from pyproj import CRS, Transformer
from scipy.special import erf

from canopy.errors import LidarError, OutputError
from canopy.gedi.footprints import SIGMA_M
from tiles.files import replacing

Floats = NDArray[np.float64]

BEAMS = ("BEAM0000", "BEAM0001", "BEAM0010", "BEAM0011", "BEAM0101", "BEAM0110", "BEAM1000", "BEAM1011")
POWER = BEAMS[4:]
ALONG_M, ACROSS_M = 60.0, 600.0
PULSE_SIGMA_M = 0.98
"""15.6 ns at half maximum, in metres of height."""
HEIGHTS_M = np.arange(-5, 100, 0.15)
REACH_M = 18.0


@dataclass(frozen=True)
class Orbit:
    """How shots lie and err.

    Attributes:
        passes: Overflights, of eight tracks each.
        across_m: Between tracks; 600 in orbit.
        along_m: Between shots; 60 in orbit.
        heading_deg: Of the tracks from north; a pass in two is mirrored.
        track_error_m: Standard deviation of a track's shift, east and north together.
        shot_error_m: Of a shot about its track's, likewise.
        height_error_m: Standard deviation of noise on all of a shot's heights.
    """

    passes: int = 4
    across_m: float = ACROSS_M
    along_m: float = ALONG_M
    heading_deg: float = 40.0
    track_error_m: float = 10.0
    shot_error_m: float = 2.0
    height_error_m: float = 0.5


def simulate(path: Path, out: Path, orbit: Orbit | None = None, seed: int = 0) -> int:
    """Fly over a canopy height model.

    Args:
        path: Raster of heights in metres, in a projected CRS in metres.
        out: HDF5 to write, in the layout of L2A V002.
        orbit: How shots lie; `Orbit()` if None.
        seed: Of all randomness.

    Returns:
        Number of shots.

    Raises:
        LidarError: The model's CRS is not projected, or no footprint lies on it.
        OutputError: `out` cannot be written.
    """
    orbit = orbit or Orbit()
    generator = np.random.default_rng(seed)
    with rasterio.open(path) as opened:
        crs, transform = CRS.from_wkt(opened.crs.to_wkt()), opened.transform
        if not crs.is_projected:
            raise LidarError(f"{path}: a projected CRS in metres expected, found {crs.name}")
        heights = opened.read(1, masked=True).astype(np.float64).filled(np.nan)
        bounds = opened.bounds
    beams: dict[str, list[dict[str, Any]]] = {name: [] for name in BEAMS}
    for number in range(orbit.passes):
        for track, (name, x, y) in enumerate(_tracks(bounds, orbit, number, generator)):
            shift = generator.normal(0, orbit.track_error_m / np.sqrt(2), 2)
            jitter = generator.normal(0, orbit.shot_error_m / np.sqrt(2), (len(x), 2))
            rh, cover, keep = waveforms(heights, transform, x + shift[0] + jitter[:, 0], y + shift[1] + jitter[:, 1])
            rh = rh + generator.normal(0, orbit.height_error_m, (len(rh), 1))
            seconds = number * 86400 + track + np.arange(len(x)) * 0.008
            orbit_number = 1 + 100 * number + track // len(BEAMS)
            made: dict[str, NDArray[Any]] = {"x": x, "y": y, "rh": rh, "cover": cover, "delta_time": 1e7 + seconds}
            made["shot_number"] = _shot_numbers(orbit_number, BEAMS.index(name), len(x))
            beams[name].append({key: values[keep] for key, values in made.items()})
    joined = {name: _joined(parts) for name, parts in beams.items() if parts}
    count = sum(len(part["x"]) for part in joined.values())
    if count == 0:
        raise LidarError(f"no footprint lies whole on {path}: it is too small or unknown")
    write_l2a(out, joined, crs, generator)
    return count


def _joined(parts: list[dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def _shot_numbers(orbit: int, beam: int, count: int) -> NDArray[np.uint64]:
    """Orbit (5 digits), beam (2), reserved (2), granule (1), index (8): as the products number their shots."""
    return np.uint64(orbit * 10**13 + beam * 10**11) + np.arange(count, dtype=np.uint64)


def _tracks(bounds: Any, orbit: Orbit, number: int, generator: np.random.Generator) -> list[tuple[str, Floats, Floats]]:
    """Beam, x and y of the shots of a pass; as many parallel tracks as cross the ground, beams in turn."""
    middle = np.array([(bounds.left + bounds.right) / 2, (bounds.bottom + bounds.top) / 2])
    half = np.hypot(bounds.right - bounds.left, bounds.top - bounds.bottom) / 2
    heading = np.deg2rad(orbit.heading_deg * (1 if number % 2 == 0 else -1))
    along, across = np.array([np.sin(heading), np.cos(heading)]), np.array([np.cos(heading), -np.sin(heading)])
    first = -half + generator.uniform(0, orbit.across_m)
    made = []
    for track, offset in enumerate(np.arange(first, half, orbit.across_m)):
        place = np.arange(-half + generator.uniform(0, orbit.along_m), half, orbit.along_m)
        x, y = (middle[:, None] + across[:, None] * offset + along[:, None] * place).reshape(2, -1)
        inside = (x > bounds.left) & (x < bounds.right) & (y > bounds.bottom) & (y < bounds.top)
        made.append((BEAMS[track % len(BEAMS)], x[inside], y[inside]))
    return made


def waveforms(heights: Floats, transform: Any, x: Floats, y: Floats) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """RH metrics of Gaussian footprints.

    Args:
        heights: (H, W) metres, NaN where unknown.
        transform: Of the raster, north up.
        x: (n,) of the footprints' true centres.
        y: Likewise.

    Returns:
        rh: (n, 101) metres; cover: (n,) energy from 2 m and more; (n,) whether the footprint lies on known cells.
    """
    cell_m = transform.a
    reach = int(np.ceil(REACH_M / cell_m))
    row, col = (transform.f - y) / cell_m, (x - transform.c) / cell_m
    keep = (row >= reach) & (row < heights.shape[0] - reach) & (col >= reach) & (col < heights.shape[1] - reach)
    rh, cover = np.full((len(x), 101), np.nan), np.full(len(x), np.nan)
    steps = np.arange(-reach, reach)
    edges = np.concatenate([HEIGHTS_M - 0.075, HEIGHTS_M[-1:] + 0.075])
    for shot in np.flatnonzero(keep):
        top, left = int(row[shot]), int(col[shot])
        part = heights[top - reach : top + reach, left - reach : left + reach]
        if np.isnan(part).any():
            keep[shot] = False
            continue
        down, right = (steps + top + 0.5 - row[shot]) * cell_m, (steps + left + 0.5 - col[shot]) * cell_m
        weight = np.exp(-(down[:, None] ** 2 + right[None] ** 2) / (2 * SIGMA_M**2))
        energy, _ = np.histogram(part, edges, weights=weight)
        wave = np.convolve(energy, _PULSE, mode="same")
        rising = np.cumsum(wave) / wave.sum()
        rh[shot] = np.interp(_LEVELS, rising, HEIGHTS_M + 0.075)
        cover[shot] = energy[HEIGHTS_M >= 2].sum() / energy.sum()
    return rh, cover, keep


_LEVELS = np.clip(np.arange(101) / 100, 0.005, 0.995)
_AT = np.arange(-30, 31) * 0.15
_PULSE = np.diff(0.5 * (1 + erf(np.append(_AT - 0.075, _AT[-1] + 0.075) / (PULSE_SIGMA_M * np.sqrt(2)))))


def write_l2a(out: Path, beams: dict[str, dict[str, Any]], crs: CRS, generator: np.random.Generator) -> None:
    """Write shots in the layout of an L2A V002 granule.

    Args:
        out: HDF5 file.
        beams: By name: "shot_number", "x", "y" in `crs`, "rh" (n, 101) metres, "cover" in [0, 1], "delta_time" seconds.
        crs: Of the places.
        generator: Of sensitivity and the like.

    Raises:
        OutputError: It cannot be written.
    """
    to_degrees = Transformer.from_crs(crs, 4326, always_xy=True)
    try:
        with replacing(out) as draft, h5py.File(draft, "w") as made:
            made.attrs["short_name"] = np.array([b"GEDI_L2A"])
            for name, shots in beams.items():
                group = made.create_group(name)
                power = name in POWER
                group.attrs["description"] = np.array([b"Full power beam" if power else b"Coverage beam"])
                lon, lat = to_degrees.transform(shots["x"], shots["y"])
                _write_beam(group, np.asarray(lon), np.asarray(lat), shots, generator)
    except OSError as error:
        raise OutputError(f"cannot write {out}: {error.strerror or error}") from error


def _write_beam(
    group: h5py.Group, lon: Floats, lat: Floats, shots: dict[str, Any], generator: np.random.Generator
) -> None:
    count = len(lon)
    ones, zeros = np.ones(count, np.uint8), np.zeros(count, np.uint8)
    sensitivity = np.clip(generator.normal(0.975, 0.01, count), 0.9, 0.999).astype(np.float32)
    elevation = np.full(count, 500, np.float32)
    fields: dict[str, NDArray[Any]] = {
        "shot_number": shots["shot_number"],
        "delta_time": shots["delta_time"],
        "lat_lowestmode": lat,
        "lon_lowestmode": lon,
        "elev_lowestmode": elevation,
        "digital_elevation_model": elevation + generator.normal(0, 5, count).astype(np.float32),
        "rh": shots["rh"].astype(np.float32),
        "quality_flag": ones,
        "degrade_flag": zeros,
        "surface_flag": ones,
        "sensitivity": sensitivity,
        "solar_elevation": np.full(count, -20, np.float32),
        "geolocation/sensitivity_a2": sensitivity,
        "land_cover_data/landsat_treecover": 100 * shots["cover"],
        "land_cover_data/leaf_off_flag": zeros,
        "land_cover_data/landsat_water_persistence": zeros,
        "land_cover_data/urban_proportion": zeros,
    }
    for name, values in fields.items():
        group.create_dataset(name, data=values, compression="gzip" if count else None)
