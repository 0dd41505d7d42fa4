"""NASA's granules, clips of them, and what is none."""

from pathlib import Path

import h5py
import numpy as np
import pytest
from gedi_granules import BEAMS, write_granule
from gedi_shots import EVERYTHING, L1B, LARGE, SMALL

from canopy.errors import LidarError
from canopy.gedi.granules import NUMBERS, read_granule
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
    clip = read_granule(shared_data / "gedi" / LARGE).shots
    assert clip[["sensitivity_a2", "tree_cover_percent", "leaf_off", "cover"]].isna().all().all()
    whole = read_granule(shared_data / "gedi" / SMALL).shots
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


@pytest.mark.parametrize("version", ["V001", "V002", "V003"])
@pytest.mark.parametrize("product", ["L2A", "L2B"])
def test_every_version_has_its_fields(tmp_path: Path, product: str, version: str) -> None:
    """V003 renamed the quality flags, and moved L2B's coordinates and elevations one group higher."""
    shots = read_granule(write_granule(tmp_path / "g.h5", product=product, version=version)).shots
    assert (shots["version"] == (version if product == "L2A" or version == "V003" else "V001")).all()
    assert shots["lat"].iloc[1] == 44.00054
    assert shots["lon"].tolist() == [-122.0] * 6 + [-121.0] * 6
    for column, value in (("quality", 1), ("degrade", 0), ("elevation_m", 500), ("dem_m", 505), ("pft", 1)):
        assert (shots[column] == value).all(), column
    assert shots["solar_elevation"].eq(-20).all()
    if product == "L2A":
        np.testing.assert_allclose(shots["rh98"].iloc[:3], [10, 11, 12], rtol=1e-6)
    else:
        np.testing.assert_allclose(shots["rh100"].iloc[:2], [10.20, 11.22], atol=0.01)
        assert shots["cover"].iloc[5] == np.float32(0.9)


def test_the_name_of_a_file_says_its_version(tmp_path: Path) -> None:
    path = write_granule(tmp_path / "GEDI02_A_2020001000000_O00077_03_T00099_02_003_02_V003.h5", version="V002")
    assert (read_granule(path).shots["version"] == "V003").all()


def test_flags_of_release_3_come_before_an_older_flag(tmp_path: Path) -> None:
    path = write_granule(tmp_path / "g.h5", version="V003", changes={"quality_flag": np.zeros(6, np.uint8)})
    assert (read_granule(path).shots["quality"] == 1).all()


def test_beams_have_full_power_by_their_names(tmp_path: Path) -> None:
    names = ("BEAM0000", "BEAM0001", "BEAM0010", "BEAM0011", "BEAM0101", "BEAM0110", "BEAM1000", "BEAM1011")
    shots = read_granule(write_granule(tmp_path / "g.h5", beams=names, describe=False)).shots
    assert sorted(shots.loc[shots["power"], "beam"].unique()) == list(names[4:])


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"BEAM0000/rh": None}, "rh is absent"),
        ({"BEAM0000/rh": np.zeros(6)}, r"rh is \(6,\); \(6, 101\) expected"),
        ({"BEAM0000/rh": np.zeros((6, 100))}, r"rh is \(6, 100\)"),
        ({"BEAM0000/rh": np.zeros((101, 6))}, r"rh is \(101, 6\)"),
        ({"BEAM0000/rh": np.zeros((5, 101))}, r"rh is \(5, 101\)"),
        ({"BEAM0000/rh": np.full((6, 101), b"x")}, "numbers expected"),
        ({"BEAM0000/lat_lowestmode": None}, "lat_lowestmode is absent"),
        ({"BEAM0000/lat_lowestmode": np.zeros(4)}, "lat_lowestmode is"),
        ({"BEAM0000/shot_number": np.arange(6.0)}, "whole numbers expected"),
    ],
)
def test_a_beam_that_cannot_be_used_is_named_and_the_other_is_read(
    tmp_path: Path, changes: dict[str, object], fault: str
) -> None:
    granule = read_granule(write_granule(tmp_path / "g.h5", changes=changes))
    assert granule.shots["beam"].tolist() == ["BEAM0101"] * 6
    assert len(granule.faults) == 1
    with pytest.raises(LidarError, match=fault):
        raise LidarError(granule.faults[0])
    assert "BEAM0000" in granule.faults[0]


def test_a_beam_without_shots_is_no_fault(tmp_path: Path) -> None:
    path = write_granule(tmp_path / "g.h5")
    with h5py.File(path, "a") as file:
        for name in [name for name, item in file["BEAM0000"].items() if isinstance(item, h5py.Dataset)]:
            del file["BEAM0000"][name]
        file["BEAM0000/shot_number"] = np.zeros(0, np.uint64)
        file.create_group("BEAM0110")
    granule = read_granule(path)
    assert (set(granule.shots["beam"]), granule.faults) == ({"BEAM0101"}, ())


def test_a_column_of_another_shape_is_absent_and_said(tmp_path: Path) -> None:
    granule = read_granule(write_granule(tmp_path / "g.h5", changes={"sensitivity": np.zeros(3)}))
    assert granule.shots["sensitivity"].isna().all()
    assert len(granule.faults) == 2 and all("sensitivity is (3,)" in fault for fault in granule.faults)


def test_declared_fill_values_are_null(tmp_path: Path) -> None:
    changes = {
        "sensitivity": (np.array([0.9, -1, 0.98, 0.97, -9999, np.nan], np.float32), np.float32(-1)),
        "land_cover_data/pft_class": (np.array([1, 2, 255, 4, 5, 11], np.uint8), np.uint8(255)),
        "degrade_flag": (np.zeros(6, np.int8), np.array([127], np.int8)),
        "lat_lowestmode": (np.array([44, 44.1, 44.2, 0.5, 44.3, 44.4]), 0.5),
    }
    shots = read_granule(write_granule(tmp_path / "g.h5", beams=BEAMS[1:], changes=changes)).shots
    assert shots["sensitivity"].isna().tolist() == [False, True, False, False, True, True]
    assert shots["pft"].isna().tolist() == [False, False, True, False, False, False]
    assert shots["degrade"].notna().all()
    assert shots["lat"].isna().tolist() == [False, False, False, True, False, False]


def test_times_that_are_none_are_not_invented(tmp_path: Path) -> None:
    seconds = np.array([5e7, np.nan, np.inf, 1e30, -9999, 5e7 + 1])
    shots = read_granule(write_granule(tmp_path / "g.h5", beams=BEAMS[1:], changes={"delta_time": seconds})).shots
    assert shots["time"].isna().tolist() == [False, True, True, True, True, False]
    without = write_granule(tmp_path / "n.h5", changes={"delta_time": None})
    assert read_granule(without).shots["time"].isna().all()


@pytest.mark.parametrize("product", ["L2A", "L2B"])
def test_a_file_without_its_name_is_known_by_its_fields(tmp_path: Path, product: str) -> None:
    shots = read_granule(write_granule(tmp_path / "g.h5", product=product, short_name=None)).shots
    assert (shots["product"] == product).all()


@pytest.mark.parametrize(("field", "product"), [("rxwaveform", "L1B"), ("agbd", "L4A"), ("wsci", "L4C")])
def test_a_foreign_product_is_known_by_its_fields(tmp_path: Path, field: str, product: str) -> None:
    path = write_granule(tmp_path / "g.h5", changes={field: np.zeros(6)})
    with pytest.raises(LidarError, match=f"GEDI_{product}"):
        read_granule(path)


def test_a_file_without_a_field_of_either_product_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LidarError, match="without rh or cover or rh100"):
        read_granule(write_granule(tmp_path / "b.h5", changes={"rh": None}))


@pytest.mark.parametrize("name", ["rh", "shot_number", "lat_lowestmode", "sensitivity"])
def test_a_small_file_that_asks_for_gigabytes_is_refused_before_it_is_read(tmp_path: Path, name: str) -> None:
    """Compressed zeros, never-written chunks, and chunks larger than any granule, in files of some kilobytes."""
    path = write_granule(tmp_path / "g.h5")
    count = 3_000_000
    with h5py.File(path, "a") as file:
        for beam in BEAMS:
            del file[beam][name]
            shape = (count, 101) if name == "rh" else (count,)
            file[beam].create_dataset(name, shape, "f8" if name != "shot_number" else "u8", chunks=True)
    with pytest.raises(LidarError, match="no beam with shots"):
        read_granule(path) if name != "sensitivity" else _only_faults(path)


def _only_faults(path: Path) -> None:
    """A column that nothing depends on is absent; the shots are read."""
    granule = read_granule(path)
    assert granule.shots["sensitivity"].isna().all()
    raise LidarError(f"no beam with shots: {granule.faults[0]}")


def test_chunks_larger_than_any_granule_are_refused(tmp_path: Path) -> None:
    path = write_granule(tmp_path / "g.h5")
    with h5py.File(path, "a") as file:
        for beam in BEAMS:
            del file[beam]["sensitivity"]
            file[beam].create_dataset("sensitivity", (6,), "f4", chunks=(500_000_000,), maxshape=(None,))
    granule = read_granule(path)
    assert granule.shots["sensitivity"].isna().all()
    assert "asks for 2,000 MB" in granule.faults[0]


def test_values_in_other_files_are_not_read(tmp_path: Path) -> None:
    other, path = write_granule(tmp_path / "o.h5"), write_granule(tmp_path / "g.h5")
    with h5py.File(path, "a") as file:
        del file["BEAM0000/rh"], file["BEAM0101/sensitivity"]
        file["BEAM0000/rh"] = h5py.ExternalLink(str(other), "BEAM0000/rh")
        layout = h5py.VirtualLayout((6,), "f4")
        layout[:] = h5py.VirtualSource(str(other), "BEAM0101/sensitivity", (6,))
        file["BEAM0101"].create_virtual_dataset("sensitivity", layout)
    granule = read_granule(path)
    assert granule.shots["beam"].unique().tolist() == ["BEAM0101"]
    assert granule.shots["sensitivity"].isna().all()
    assert all("lies in another file" in fault for fault in granule.faults)


def test_more_shots_than_a_beam_can_have_are_refused(tmp_path: Path) -> None:
    path = write_granule(tmp_path / "g.h5", beams=BEAMS[1:])
    with h5py.File(path, "a") as file:
        del file["BEAM0101/shot_number"]
        file["BEAM0101"].create_dataset("shot_number", (4_000_001,), "u8", compression="gzip")
    with pytest.raises(LidarError, match="4,000,001 shots"):
        read_granule(path)


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(LidarError, match="no such file"):
        read_granule(tmp_path / "none.h5")


def test_damaged_bytes_never_end_in_a_traceback(tmp_path: Path) -> None:
    raw = write_granule(tmp_path / "g.h5").read_bytes()
    generator = np.random.default_rng(1)
    for _ in range(40):
        damaged = bytearray(raw)
        for position in generator.integers(0, len(raw), generator.integers(1, 12)):
            damaged[position] = generator.integers(0, 256)
        (tmp_path / "d.h5").write_bytes(damaged)
        try:
            shots = read_granule(tmp_path / "d.h5").shots
        except LidarError as error:
            assert "\n" not in str(error)
        else:
            assert set(NUMBERS) <= set(shots.columns)
