"""NASA's granules, clips of them, and what is none."""

from pathlib import Path

import h5py
import numpy as np
import pytest
from gedi_shots import EVERYTHING, L1B, LARGE, SMALL

from canopy.errors import LidarError
from canopy.gedi.granules import read_granule
from canopy.gedi.shots import Reading, read_granules


@pytest.mark.parametrize(("name", "count"), [(SMALL, 688), (LARGE, 946)])
def test_all_shots_of_a_granule_are_read(shared_data: Path, name: str, count: int) -> None:
    path = shared_data / "gedi" / name
    shots = read_granules([path], EVERYTHING).shots
    assert len(shots) == count
    assert shots["shot_number"].dtype == np.uint64
    assert shots["beam"].nunique() == 8
    assert set(shots.loc[shots["power"], "beam"]) == {"BEAM0101", "BEAM0110", "BEAM1000", "BEAM1011"}
    assert 2 < shots["rh98"].min() < shots["rh98"].max() < 13
    with h5py.File(path) as opened:
        beam = opened["BEAM0110"]
        row = shots[shots["shot_number"] == beam["shot_number"][7]].iloc[0]
        assert row["rh98"] == np.float32(beam["rh"][7, 98])
        assert row["rh50"] == np.float32(beam["rh"][7, 50])
        assert row.geometry.x == beam["lon_lowestmode"][7]
        assert row.geometry.y == beam["lat_lowestmode"][7]
        assert row["sensitivity"] == beam["sensitivity"][7]
    assert str(row["time"])[:10] == "2019-04-18"
    assert row["version"] == "V001"


def test_a_clip_without_groups_has_nulls_there(shared_data: Path) -> None:
    clip = read_granule(shared_data / "gedi" / LARGE)
    assert clip[["sensitivity_a2", "tree_cover_percent", "leaf_off", "cover"]].isna().all().all()
    whole = read_granule(shared_data / "gedi" / SMALL)
    assert whole[["sensitivity_a2", "tree_cover_percent"]].notna().all().all()


def test_our_own_granule_is_read_like_nasas(reading: Reading) -> None:
    shots = reading.shots
    assert (shots["version"] == "V002").all()
    assert shots["beam"].nunique() > 4
    assert shots["sensitivity_a2"].notna().all()
    assert (shots["rh100"] >= shots["rh98"]).all()
    assert (shots["rh98"] >= shots["rh50"]).all()
    assert shots["shot_number"].is_unique


def test_another_product_is_refused(shared_data: Path) -> None:
    with pytest.raises(LidarError, match="GEDI_L1B"):
        read_granule(shared_data / "gedi" / L1B)


def test_what_is_no_hdf5_is_refused(tmp_path: Path) -> None:
    (tmp_path / "no.h5").write_text("not HDF5")
    with pytest.raises(LidarError, match="damaged or not HDF5"):
        read_granule(tmp_path / "no.h5")


def test_a_file_without_beams_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "e.h5", "w") as file:
        file.attrs["short_name"] = "GEDI_L2A"
    with pytest.raises(LidarError, match="no beam"):
        read_granule(tmp_path / "e.h5")
