"""Simulated shots: the heights of known surfaces, seeds, and the layout of the file."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import rasterio
from affine import Affine
from gedi_shots import EVERYTHING, woodland, write_map
from rasters import make_raster

from canopy.errors import LidarError
from canopy.gedi.footprints import FOOTPRINT_SIGMA_M
from canopy.gedi.shots import read_granules
from canopy.gedi.simulation import BEAMS, PULSE_SIGMA_M, BeamShots, Orbit, shot_numbers, simulate, waveforms


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


@pytest.mark.parametrize("deg", [10, 20])
def test_slopes_widen_the_waveform_and_leave_its_middle(deg: float) -> None:
    """Of a plane under the beam, RH98 lies 2.05 times the spread of pulse and ground together above its middle."""
    transform, centre = Affine(1, 0, 0, 0, -1, 100), np.array([50.0])
    rise_m = np.broadcast_to(np.tan(np.radians(deg)) * np.arange(100.0), (100, 100))
    rh_m, cover, _ = waveforms(np.zeros((100, 100)), transform, centre, centre, rise_m)
    spread_m = np.hypot(PULSE_SIGMA_M, FOOTPRINT_SIGMA_M * np.tan(np.radians(deg)))
    assert rh_m[0, 50] == pytest.approx(0, abs=0.1)
    assert rh_m[0, 98] == pytest.approx(2.05 * spread_m, rel=0.06)
    assert cover[0] == 0, "steep ground is no canopy"


def test_a_terrain_model_lies_on_the_grid_of_the_canopy(tmp_path: Path) -> None:
    chm = write_map(tmp_path / "chm.tif", woodland(120))
    flat, steep = tmp_path / "flat.h5", tmp_path / "steep.h5"
    orbit = Orbit(passes=2, across_m=20, along_m=20)
    dem = write_map(tmp_path / "dem.tif", np.tile(np.arange(120, dtype=np.float32) * 0.5, (120, 1)))
    assert simulate(chm, flat, orbit) == simulate(chm, steep, orbit, dem=dem) > 5
    assert flat.read_bytes() != steep.read_bytes()
    with pytest.raises(LidarError, match=r"the grid of .*chm.tif expected"):
        simulate(chm, tmp_path / "x.h5", orbit, dem=write_map(tmp_path / "small.tif", np.zeros((60, 60), np.float32)))


def test_shots_do_not_depend_on_how_heights_are_stored(tmp_path: Path) -> None:
    """A canopy in feet once gave shots of 80 m."""
    heights_m, orbit = np.round(woodland(120), 2), Orbit(passes=2, across_m=20, along_m=20)
    plain, feet = write_map(tmp_path / "m.tif", heights_m), write_map(tmp_path / "ft.tif", heights_m / 0.3048)
    with rasterio.open(feet, "r+") as dataset:
        dataset.units = ("ft",)
    simulate(plain, tmp_path / "m.h5", orbit)
    simulate(feet, tmp_path / "ft.h5", orbit)
    columns = [read_granules([tmp_path / name], EVERYTHING).shots["rh98"].to_numpy(float) for name in ("m.h5", "ft.h5")]
    np.testing.assert_allclose(columns[0], columns[1], atol=0.01)
