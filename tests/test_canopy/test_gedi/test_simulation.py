"""Simulated shots: the heights of known surfaces, seeds, and the layout of the file."""

from pathlib import Path

import h5py
import numpy as np
import pytest
from affine import Affine
from gedi_shots import EVERYTHING, write_map
from rasters import make_raster

from canopy.errors import LidarError
from canopy.gedi.shots import read_granules
from canopy.gedi.simulation import BEAMS, BeamShots, Orbit, shot_numbers, simulate, waveforms


def test_bare_ground_and_a_flat_roof_have_the_heights_of_the_pulse() -> None:
    transform = Affine(1, 0, 0, 0, -1, 100)
    bare, cover, valid = waveforms(np.zeros((100, 100)), transform, np.array([50.0, 3.0]), np.array([50.0, 50.0]))
    assert valid.tolist() == [True, False]
    assert bare[0, 98] == pytest.approx(2.05 * 0.98, abs=0.2)
    assert bare[0, 50] == pytest.approx(0, abs=0.1)
    assert cover[0] == 0
    roof, cover, _ = waveforms(np.full((100, 100), 20.0), transform, np.array([50.0]), np.array([50.0]))
    assert roof[0, 50] == pytest.approx(20, abs=0.1)
    assert cover[0] == 1


def test_a_footprint_with_an_unknown_cell_is_none() -> None:
    heights = np.zeros((100, 100))
    heights[50, 60] = np.nan
    _, _, valid = waveforms(heights, Affine(1, 0, 0, 0, -1, 100), np.array([50.0, 25.0]), np.array([50.0, 25.0]))
    assert valid.tolist() == [False, True]


def test_simulation_follows_its_seed(chm: Path, tmp_path: Path) -> None:
    orbit = Orbit(passes=2, across_m=80)
    counts = [simulate(chm, tmp_path / f"{k}.h5", orbit, seed) for k, seed in enumerate((3, 3, 4))]
    first, again, other = (read_granules([tmp_path / f"{k}.h5"], EVERYTHING).shots for k in range(3))
    assert counts[0] == counts[1] == len(first)
    assert first.drop(columns="granule").equals(again.drop(columns="granule"))
    assert not first["rh98"].reset_index(drop=True).equals(other["rh98"].reset_index(drop=True))


def test_a_granule_has_beams_with_their_power(granule: Path) -> None:
    with h5py.File(granule) as file:
        assert set(file) <= set(BEAMS)
        for name, beam in file.items():
            full = name in ("BEAM0101", "BEAM0110", "BEAM1000", "BEAM1011")
            assert (beam.attrs["description"][0] == b"Full power beam") == full
            assert beam["rh"].shape == (len(beam["shot_number"]), 101)


def test_shot_numbers_say_orbit_beam_and_index() -> None:
    numbers = shot_numbers(12, 5, 3)
    assert numbers.dtype == np.uint64
    assert numbers.tolist() == [120_500_000_000_000, 120_500_000_000_001, 120_500_000_000_002]


def test_parts_of_a_beam_are_joined_in_order() -> None:
    parts = [
        BeamShots(shot_numbers(orbit, 0, 2), *(np.full(2, float(orbit)),) * 2, np.zeros((2, 101)), *(np.zeros(2),) * 2)
        for orbit in (1, 2)
    ]
    joined = BeamShots.joined(parts)
    assert joined.x.tolist() == [1, 1, 2, 2]
    assert joined.rh_m.shape == (4, 101)
    assert joined.shot_number.tolist() == [*parts[0].shot_number.tolist(), *parts[1].shot_number.tolist()]


def test_a_model_in_degrees_or_too_small_is_refused(tmp_path: Path) -> None:
    degrees = make_raster(
        tmp_path / "d.tif", values=np.zeros((1, 50, 50)), dtype="float32", crs="EPSG:4326", origin=(10, 50),
        resolution=1e-5,
    )  # fmt: skip
    with pytest.raises(LidarError, match="projected CRS"):
        simulate(degrees, tmp_path / "d.h5")
    with pytest.raises(LidarError, match="no footprint"):
        simulate(write_map(tmp_path / "s.tif", np.zeros((20, 20), np.float32)), tmp_path / "s.h5")
    assert not list(tmp_path.glob("*.h5"))
