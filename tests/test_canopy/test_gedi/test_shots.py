"""Shots of many granules: merged, clipped, stored and read back."""

import json
from datetime import datetime
from pathlib import Path

import h5py
import numpy as np
import pytest
from gedi_granules import BEAMS, FIRST, beam_fields, write_granule
from gedi_shots import EVERYTHING, L1B, L2B, LARGE, SMALL, UTM, points
from odc.geo.geom import box

from canopy.errors import LidarError
from canopy.gedi.filters import ShotFilter
from canopy.gedi.shots import Reading, funnel_lines, read_granules, utm_of
from canopy.gedi.storage import read_shots
from tiles.aoi import read_aoi


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


def test_the_newest_version_of_a_shot_counts_whatever_the_order_of_files(tmp_path: Path) -> None:
    """V001 numbers a shot differently; V003 lacks a field that the older one has."""
    renumbered = FIRST + 5 * 10**9 + np.arange(6, dtype=np.uint64)
    old = write_granule(
        tmp_path / "old.h5", version="V001", beams=BEAMS[1:],
        changes={
            "shot_number": renumbered, "rh": np.full((6, 101), 3.0), "geolocation/sensitivity_a2": np.full(6, 0.99),
        },
    )  # fmt: skip
    new = write_granule(
        tmp_path / "new.h5", version="V003", beams=BEAMS[1:],
        changes={
            "shot_number": beam_fields("L2A", "V003", 1, 6)["shot_number"],
            "delta_time": beam_fields("L2A", "V001", 0, 6)["delta_time"] + 2e-4,
            "lat_lowestmode": 44.0001 + 0.00054 * np.arange(6),
        },
    )  # fmt: skip
    for files in ([old, new], [new, old]):
        reading = read_granules(files, EVERYTHING)
        assert (reading.read, reading.duplicates, len(reading.shots)) == (12, 6, 6)
        assert (reading.shots["version"] == "V003").all()
        np.testing.assert_allclose(reading.shots["rh98"].iloc[:3], [10, 11, 12], rtol=1e-6)
        assert (reading.shots["sensitivity_a2"] == np.float32(0.99)).all()
        assert reading.shots["shot_number"].iloc[0] == FIRST + 10**11
        assert reading.shots.geometry.y.iloc[0] == 44.0001


def test_l2b_alone_never_displaces_the_heights_of_an_older_l2a(tmp_path: Path) -> None:
    a = write_granule(tmp_path / "a.h5", version="V002")
    b = write_granule(tmp_path / "b.h5", product="L2B", version="V003")
    shots = read_granules([b, a], EVERYTHING).shots
    assert len(shots) == 12
    assert (shots["product"] == "L2A").all()
    assert shots[["rh98", "cover", "pai"]].notna().all().all()


def test_neighbouring_shots_of_two_versions_stay_two(tmp_path: Path) -> None:
    fields = beam_fields("L2A", "V001", 0, 6)
    old = write_granule(tmp_path / "old.h5", version="V001", beams=BEAMS[1:])
    later = write_granule(
        tmp_path / "new.h5", version="V002", beams=BEAMS[1:],
        changes={"shot_number": fields["shot_number"] + np.uint64(100), "delta_time": fields["delta_time"] + 0.004},
    )  # fmt: skip
    assert len(read_granules([old, later], EVERYTHING).shots) == 12


def test_a_file_without_any_quality_flag_is_an_error_unless_quality_is_not_asked_for(tmp_path: Path, canopy) -> None:
    path = write_granule(tmp_path / "g.h5", version="V003", changes={"l2a_quality_flag_rel3": None})
    code, _, err = canopy("gedi", "read", path, "--out", tmp_path / "s.parquet")
    assert code == 1
    assert "no quality flag: l2a_quality_flag_rel3 or quality_flag expected" in err
    assert not (tmp_path / "s.parquet").exists()
    code, _, err = canopy("gedi", "read", path, "--out", tmp_path / "s.parquet", "--set", "quality=false")
    assert code == 0, err
    assert len(read_shots(tmp_path / "s.parquet")) == 6


def test_flags_of_release_3_are_judged(tmp_path: Path) -> None:
    flag = np.array([1, 0, 1, 0, 1, 1], np.uint8)
    path = write_granule(tmp_path / "g.h5", version="V003", changes={"l2a_quality_flag_rel3": flag})
    reading = read_granules([path], ShotFilter(power_beams=False))
    assert next(step for step in reading.funnel if step.rule == "quality").dropped == 4
    assert len(reading.shots) == 8


def test_no_shot_left_is_exit_1_and_writes_nothing(tmp_path: Path, canopy) -> None:
    path = write_granule(tmp_path / "g.h5", changes={"sensitivity": np.full(6, 0.5, np.float32)})
    code, out, err = canopy("gedi", "read", path, "--out", tmp_path / "s.parquet")
    assert (code, out) == (1, "")
    assert "none of 12 shots is left" in err and "sensitivity_min" in err
    code, out, _ = canopy("gedi", "read", path, "--out", tmp_path / "s.parquet", "--json")
    assert (code, json.loads(out)["shots"], json.loads(out)["path"]) == (1, 0, None)
    assert not (tmp_path / "s.parquet").exists()


@pytest.mark.parametrize(("west", "east"), [(179.0, -179.0), (179.0, 181.0), (-181.0, -179.0)])
def test_an_area_across_the_antimeridian_has_both_sides(tmp_path: Path, west: float, east: float) -> None:
    lon = np.array([179.5, 179.9, -179.9, -179.5, 178.0, -178.0])
    path = write_granule(tmp_path / "g.h5", beams=BEAMS[1:], changes={"lon_lowestmode": lon})
    ring = [[west, 43], [east, 43], [east, 45], [west, 45], [west, 43]]
    area = {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [ring]}}
    (tmp_path / "aoi.geojson").write_text(json.dumps(area))
    reading = read_granules([path], EVERYTHING, aoi=read_aoi(tmp_path / "aoi.geojson"))
    assert sorted(reading.shots.geometry.x) == [-179.9, -179.5, 179.5, 179.9]
    assert reading.outside == 2


def test_longitudes_from_0_to_360_are_the_same_places(tmp_path: Path) -> None:
    lon = np.array([238.0, -122.0, 359.9, 180.5, 400.0, np.nan])
    path = write_granule(tmp_path / "g.h5", beams=BEAMS[1:], changes={"lon_lowestmode": lon})
    reading = read_granules([path], EVERYTHING)
    np.testing.assert_allclose(sorted(reading.shots.geometry.x), [-179.5, -122, -122, -0.1], atol=1e-9)
    assert reading.unplaced == 2


def test_patterns_are_expanded_and_one_without_a_match_is_said(tmp_path: Path, canopy) -> None:
    write_granule(tmp_path / "GEDI02_A_1.h5")
    write_granule(tmp_path / "site[1].h5", beams=BEAMS[:1])
    assert read_granules([tmp_path / "GEDI02_A*.h5"], EVERYTHING).read == 12
    assert read_granules([tmp_path / "site[1].h5"], EVERYTHING).read == 6
    code, _, err = canopy("gedi", "read", tmp_path / "GEDI02_B*.h5", "--out", tmp_path / "s.parquet")
    assert code == 1
    assert "GEDI02_B*.h5: no file matches" in err
    reading = read_granules([tmp_path / "GEDI02_A*.h5", tmp_path / "none*.h5"], EVERYTHING)
    assert (reading.read, len(reading.failures)) == (12, 1)


def test_a_format_that_shots_have_not_is_refused_before_work(granule: Path, tmp_path: Path, canopy) -> None:
    code, _, err = canopy("gedi", "read", granule, "--out", tmp_path / "s.shp")
    assert code == 1
    assert ".parquet" in err and ".gpkg" in err and "read" not in err.split(".gpkg")[1]


@pytest.mark.parametrize(
    ("lon", "lat", "code"),
    [
        ([179.9, -179.95], [-17.0, -17.1], 32760),
        ([179.7, -179.1], [-17.0, -17.1], 32701),
        ([-122.1, -121.9], [44.0, 44.1], 32610),
        ([9.0, 11.0], [52.0, 51.0], 32632),
        ([180.0, 180.0], [0.0, 0.0], 32601),
    ],
)
def test_the_utm_zone_is_that_of_the_middle_across_the_antimeridian_too(
    lon: list[float], lat: list[float], code: int
) -> None:
    shots = points(np.array(lon), np.array(lat), "EPSG:4326")
    assert utm_of(shots).to_epsg() == code
    x = shots.to_crs(utm_of(shots)).geometry.x
    assert np.ptp(x) < 200_000 and x.between(100_000, 900_000).all()


def test_inputs_are_never_replaced(granule: Path, tmp_path: Path, canopy) -> None:
    area = {"type": "Feature", "properties": {}, "geometry": {"type": "Point", "coordinates": [0, 0]}}
    (tmp_path / "aoi.gpkg").write_text(json.dumps(area))
    code, _, err = canopy(
        "gedi", "read", granule, "--out", tmp_path / "aoi.gpkg", "--aoi", tmp_path / "aoi.gpkg", "--overwrite"
    )
    assert code == 1 and "aoi.gpkg is read, and would be replaced" in err
    copy = tmp_path / "copy.tif"
    copy.write_bytes(granule.with_name("chm.tif").read_bytes())
    code, _, err = canopy("gedi", "simulate", copy, "--out", copy, "--overwrite")
    assert code == 1 and "copy.tif is read, and would be replaced" in err
    assert copy.read_bytes() == granule.with_name("chm.tif").read_bytes()
