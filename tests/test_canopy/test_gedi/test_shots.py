"""Shots of many granules: merged, clipped, stored and read back."""

import json
from datetime import datetime
from pathlib import Path

import h5py
import numpy as np
import pytest
from gedi_shots import EVERYTHING, L1B, L2B, LARGE, SMALL, UTM, points
from odc.geo.geom import box

from canopy.errors import LidarError, OutputError
from canopy.gedi.filters import ShotFilter
from canopy.gedi.shots import (
    Reading,
    funnel_lines,
    read_funnel,
    read_granules,
    read_shots,
    shots_metadata,
    write_shots,
)


def test_overlapping_clips_are_one_set_and_l2b_gives_the_cover(shared_data: Path) -> None:
    reading = read_granules([shared_data / "gedi" / name for name in (L2B, LARGE, SMALL)], EVERYTHING)
    assert reading.read > 688 + 946
    assert reading.read - reading.duplicates == len(reading.shots) == reading.shots["shot_number"].nunique()
    with h5py.File(shared_data / "gedi" / L2B) as opened:
        number, cover = opened["BEAM1000/shot_number"][3], opened["BEAM1000/cover"][3]
    row = reading.shots[reading.shots["shot_number"] == number].iloc[0]
    assert row["product"] == "L2A"
    assert row["cover"] == cover
    assert np.isfinite(row["rh98"])


def test_foreign_and_damaged_files_are_named_and_the_others_go_on(shared_data: Path, tmp_path: Path, canopy) -> None:
    cut = tmp_path / "cut.h5"
    cut.write_bytes((shared_data / "gedi" / SMALL).read_bytes()[:200_000])
    files = [shared_data / "gedi" / L1B, cut, shared_data / "gedi" / SMALL]
    code, out, err = canopy("gedi", "read", *files, "--out", tmp_path / "s.parquet")
    assert code == 1
    assert "GEDI_L1B" in err
    assert f"{cut}: damaged" in err
    assert "Traceback" not in err
    assert "688" in err
    assert len(read_shots(tmp_path / "s.parquet")) > 200
    assert out.strip() == str(tmp_path / "s.parquet")


def test_nothing_readable_is_an_error_in_one_line(tmp_path: Path, canopy) -> None:
    (tmp_path / "no.h5").write_text("not HDF5")
    code, out, err = canopy("gedi", "read", tmp_path / "no.h5", "--out", tmp_path / "s.parquet")
    assert (code, out) == (1, "")
    assert "damaged or not HDF5" in err
    assert not (tmp_path / "s.parquet").exists()


def test_no_files_are_an_error() -> None:
    with pytest.raises(LidarError, match="no files"):
        read_granules([])


def test_shots_are_clipped_to_area_and_dates(granule: Path, reading: Reading) -> None:
    shots = reading.shots
    half = box(500_000, 3_999_600, 500_200, 4_000_000, UTM)
    west = read_granules([granule], EVERYTHING, aoi=half)
    x = shots.to_crs(UTM).geometry.x
    assert len(west.shots) == (x < 500_200).sum()
    assert west.outside == len(shots) - len(west.shots)
    second = sorted(shots["time"].dt.floor("D").unique())[1].to_pydatetime().replace(tzinfo=None)
    before = read_granules([granule], EVERYTHING, end=second).shots
    after = read_granules([granule], EVERYTHING, start=second).shots
    assert len(before) + len(after) == len(shots)
    assert 0 < len(before) < len(shots)
    assert after["time"].min().to_pydatetime().replace(tzinfo=None) >= second
    assert read_granules([granule], EVERYTHING, start=datetime(2030, 1, 1)).shots.empty


def test_parquet_keeps_numbers_units_and_the_funnel(granule: Path, tmp_path: Path) -> None:
    rules = ShotFilter(sensitivity_min=0.97)
    reading = read_granules([granule], rules)
    write_shots(reading, tmp_path / "s.parquet", rules)
    again = read_shots(tmp_path / "s.parquet")
    assert again["shot_number"].dtype == np.uint64
    np.testing.assert_array_equal(again["shot_number"], reading.shots["shot_number"])
    np.testing.assert_array_equal(again["rh98"], reading.shots["rh98"])
    about = shots_metadata(tmp_path / "s.parquet")
    assert about["filter"]["sensitivity_min"] == 0.97
    assert about["units"]["rh98"] == "m"
    assert read_funnel(tmp_path / "s.parquet") == reading.funnel
    funnel = {step.rule: step for step in reading.funnel}
    assert funnel["sensitivity_min"].dropped > 0
    assert about["read"] - sum(step.dropped for step in reading.funnel) == len(again)


def test_another_parquet_is_refused(tmp_path: Path) -> None:
    points(np.array([500_000.0]), np.array([4_000_000.0])).to_parquet(tmp_path / "p.parquet")
    with pytest.raises(LidarError, match="lacks beam"):
        read_shots(tmp_path / "p.parquet")
    (tmp_path / "q.parquet").write_text("no parquet")
    with pytest.raises(LidarError, match="not a GeoParquet"):
        read_shots(tmp_path / "q.parquet")


def test_shots_that_cannot_be_written_are_an_error(reading: Reading, tmp_path: Path) -> None:
    (tmp_path / "folder.parquet").mkdir()
    with pytest.raises(OutputError, match="cannot write"):
        write_shots(reading, tmp_path / "folder.parquet", EVERYTHING)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.parquet"]


def test_the_funnel_is_printed_and_is_the_json(granule: Path, tmp_path: Path, canopy) -> None:
    out = tmp_path / "s.parquet"
    code, text, err = canopy("gedi", "read", granule, "--out", out, "--set", "night=false", "--json")
    assert code == 0, err
    result = json.loads(text)
    reading = read_granules([granule], ShotFilter(night=False))
    assert (result["path"], result["read"], result["shots"]) == (str(out), reading.read, len(reading.shots))
    assert [step["rule"] for step in result["funnel"]] == [step.rule for step in reading.funnel]
    lines = list(funnel_lines(reading))
    assert lines[0].split() == [f"{reading.read:,}", "shots", "read"]
    assert lines[-1].split() == [f"{len(reading.shots):,}", "shots", "left"]
