"""Headers and returns of point clouds, good and bad."""

import datetime as dt
from pathlib import Path

import laspy
import numpy as np
import pyproj
import pytest
from forest import FLOWN, Forest, make_forest, write_laz
from laz import built, edited, header, heights

from canopy.errors import LidarError
from canopy.lidar import build_chm
from canopy.lidar.clouds import open_cloud, read_returns


def test_open_cloud_reads_only_the_header(cloud: Path) -> None:
    opened = open_cloud(cloud, None)
    assert opened.point_count == header(cloud).point_count
    assert (opened.z_unit_m, opened.file_year) == (1.0, FLOWN.year)


@pytest.mark.parametrize("name", ["old.las", "old.laz"])
def test_an_old_las_without_gps_times_is_read(forest: Forest, cloud: Path, tmp_path: Path, name: str) -> None:
    las = laspy.convert(laspy.read(cloud), point_format_id=0, file_version="1.2")
    las.write(tmp_path / name)
    chm = build_chm([tmp_path / name], tmp_path / "chm.tif", crs=forest.crs)
    assert chm.acquisition is None
    np.testing.assert_array_equal(heights(chm.path), built(cloud, tmp_path))


def bad_clouds(folder: Path, forest: Forest, cloud: Path) -> dict[str, tuple[list[Path], str]]:
    """Clouds that cannot be used, and a word of the reason."""
    whole = cloud.read_bytes()
    (folder / "half.laz").write_bytes(whole[: len(whole) // 2])
    (folder / "header.laz").write_bytes(whole[:300])
    (folder / "text.laz").write_text("not a cloud")
    (folder / "nothing.laz").write_bytes(b"")
    plain = laspy.read(cloud)
    plain.write(folder / "plain.las")
    raw = (folder / "plain.las").read_bytes()
    (folder / "half.las").write_bytes(raw[: len(raw) // 2])
    empty = laspy.LasData(plain.header)
    empty.points = plain.points[:0]
    empty.write(folder / "empty.laz")
    noise = edited(cloud, folder / "noise.laz", classification=np.full(len(plain.points), 7, np.uint8))
    no_crs = write_laz(forest, folder / "no_crs.laz", crs=None)
    other = write_laz(forest, folder / "other.laz", crs="EPSG:32610")
    degrees = write_laz(forest, folder / "degrees.laz", crs="EPSG:4326")
    absurd = write_laz(make_forest(32, origin=(32_000_000, 4_100_000)), folder / "absurd.laz")
    far = write_laz(make_forest(32, origin=(420_000, 4_300_000)), folder / "far.laz")
    return {
        "missing": ([folder / "none.laz"], "no such file"),
        "truncated": ([folder / "half.laz"], "half.laz"),
        "truncated LAS": ([folder / "half.las"], "half.las"),
        "header only": ([folder / "header.laz"], "header.laz"),
        "text": ([folder / "text.laz"], "text.laz"),
        "zero bytes": ([folder / "nothing.laz"], "nothing.laz"),
        "no points": ([folder / "empty.laz"], "no points"),
        "only noise": ([noise], "noise"),
        "no CRS": ([no_crs], "--crs"),
        "mixed CRSs": ([cloud, other], "one CRS expected"),
        "degrees": ([degrees], "not projected"),
        "absurd coordinates": ([absurd], "far outside"),
        "a span without end": ([cloud, far], "span"),
        "twice": ([cloud, cloud], "twice"),
        "none": ([], "no point clouds"),
    }


def test_bad_clouds_are_refused_in_one_line(forest: Forest, cloud: Path, tmp_path: Path) -> None:
    for name, (paths, reason) in bad_clouds(tmp_path, forest, cloud).items():
        with pytest.raises(LidarError, match=reason) as caught:
            build_chm(paths, tmp_path / "chm.tif")
        assert "\n" not in str(caught.value), name
    assert not list(tmp_path.glob("*.tif")) and not list(tmp_path.glob(".chm*"))


def test_returns_outside_the_header_are_refused(cloud: Path, tmp_path: Path) -> None:
    raw = bytearray(cloud.read_bytes())
    raw[179:187] = np.float64(header(cloud).maxs[0] - 20).tobytes()
    (tmp_path / "lies.laz").write_bytes(raw)
    with pytest.raises(LidarError, match="within its header's"):
        build_chm([tmp_path / "lies.laz"], tmp_path / "chm.tif")


def test_gps_times_give_the_day(forest: Forest, cloud: Path, tmp_path: Path) -> None:
    seconds = (dt.date(2019, 3, 2) - dt.date(1980, 1, 6)).days * 86400 + 3600 - 1e9
    count = header(cloud).point_count
    path = edited(cloud, tmp_path / "g.laz", gps_time=np.linspace(seconds, seconds + 86400, count))
    chm = build_chm([path], tmp_path / "chm.tif")
    assert chm.acquisition == (dt.date(2019, 3, 2), dt.date(2019, 3, 3))
    week = edited(cloud, tmp_path / "w.laz", gps_time=np.linspace(0, 600_000, count))
    assert build_chm([week], tmp_path / "w.tif").acquisition is None


def with_record(cloud: Path, out: Path, record: str) -> Path:
    """Write a copy of a cloud with another CRS record: raw WKT, or GeoTIFF keys as `key:value,...`."""
    las = laspy.read(cloud)
    header = laspy.LasHeader(point_format=las.header.point_format.id, version="1.4" if record[:1].isalpha() else "1.2")
    if record.startswith("keys "):
        las = laspy.convert(las, point_format_id=1, file_version="1.2")
        header = laspy.LasHeader(point_format=1, version="1.2")
    header.offsets, header.scales = las.header.offsets, las.header.scales
    if record.startswith("keys "):
        keys = [tuple(map(int, pair.split(":"))) for pair in record[5:].split(",")]
        data = np.array([1, 1, 0, len(keys), *(n for key, value in keys for n in (key, 0, 1, value))], "<u2").tobytes()
        header.vlrs.append(laspy.VLR("LASF_Projection", 34735, "", data))
    else:
        header.vlrs.append(laspy.VLR("LASF_Projection", 2112, "", record.encode()))
        header.global_encoding.wkt = True
    copy = laspy.LasData(header)
    for name in ("x", "y", "z", "classification", "gps_time"):
        setattr(copy, name, np.asarray(getattr(las, name)))
    copy.write(out)
    return out


def utm(zone: int) -> str:
    return pyproj.CRS(f"EPSG:326{zone}").to_wkt()


BROKEN = {
    "no WKT": "This is no CRS",
    "half a WKT": utm(11)[:300],
    "WKT of nobody's projection": utm(11).replace("Transverse Mercator", "Transverse Mirror").replace("9807", "9999"),
    "an engineering CRS": 'LOCAL_CS["arbitrary",UNIT["metre",1]]',
    "a CRS elsewhere": pyproj.CRS("EPSG:2056").to_wkt(),
    "user-defined keys": "keys 1024:1,3072:32767",
    "keys of no EPSG code": "keys 1024:1,3072:1234",
    "degrees for metres": "keys 1024:2,2048:4326",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_crs_record_that_cannot_be_right_is_replaced_by_the_users(
    forest: Forest, cloud: Path, tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = with_record(cloud, tmp_path / "b.laz", BROKEN[name])
    opened = open_cloud(path, crs="EPSG:32611")
    assert opened.crs.to_epsg() == 32611
    assert np.array_equal(built(path, tmp_path, crs="EPSG:32611"), built(cloud, tmp_path), equal_nan=True)
    assert "PROJCRS" not in caplog.text and "LOCAL_CS" not in caplog.text
    if name != "user-defined keys":
        assert "read in WGS 84 / UTM zone 11N" in caplog.text


@pytest.mark.parametrize("name", BROKEN)
def test_without_a_crs_of_the_users_it_is_an_error_in_one_short_line(cloud: Path, tmp_path: Path, name: str) -> None:
    path = with_record(cloud, tmp_path / "b.laz", BROKEN[name])
    with pytest.raises(LidarError, match="name its CRS with --crs EPSG:n") as caught:
        open_cloud(path)
    text = str(caught.value)
    assert len(text) < 300 and not any(word in text for word in ("PROJCRS", "PROJCS", "LOCAL_CS", "ELLIPSOID"))


def test_a_crs_of_the_users_that_cannot_be_right_either_is_refused(cloud: Path, tmp_path: Path) -> None:
    path = with_record(cloud, tmp_path / "b.laz", BROKEN["no WKT"])
    with pytest.raises(LidarError, match="and --crs EPSG:2056 is used far outside"):
        open_cloud(path, crs="EPSG:2056")
    with pytest.raises(LidarError, match="and --crs EPSG:4326 is not projected"):
        open_cloud(path, crs="EPSG:4326")


def test_a_wrong_crs_that_could_be_right_is_overridden_by_name(cloud: Path, tmp_path: Path) -> None:
    """Zone 10 instead of 11: nothing in the file says which."""
    path = with_record(cloud, tmp_path / "b.laz", utm(10))
    assert open_cloud(path, crs="EPSG:32611").crs.to_epsg() == 32610
    assert open_cloud(path, cloud_crs="EPSG:32611").crs.to_epsg() == 32611
    chm = built(path, tmp_path, cloud_crs="EPSG:32611")
    np.testing.assert_array_equal(chm, built(cloud, tmp_path))
    with pytest.raises(LidarError, match="--cloud-crs EPSG:4326 is not projected"):
        open_cloud(path, cloud_crs="EPSG:4326")
    with pytest.raises(LidarError, match="--cloud-crs 'nothing' is not a CRS"):
        open_cloud(path, cloud_crs="nothing")


def test_a_cloud_in_degrees_is_never_read_as_metres(tmp_path: Path) -> None:
    tiny = make_forest(32, origin=(-120, 40), buildings=0)
    path = write_laz(tiny, tmp_path / "d.laz", crs="EPSG:4326", unit_m=1.0)
    with pytest.raises(LidarError, match="is in degrees"):
        open_cloud(path, crs="EPSG:32611")


@pytest.mark.parametrize(("unit", "factor"), [("ft", 0.3048), ("us-ft", 1200 / 3937), ("m", 1.0)])
def test_the_unit_of_elevation_is_the_users(cloud: Path, tmp_path: Path, unit: str, factor: float) -> None:
    las = laspy.read(cloud)
    path = edited(cloud, tmp_path / "z.laz", z=np.asarray(las.z) / factor)
    assert open_cloud(path, z_unit=unit).z_unit_m == factor
    np.testing.assert_allclose(built(path, tmp_path, z_unit=unit), built(cloud, tmp_path), atol=0.003)
    with pytest.raises(LidarError, match="--z-unit cm: one of m, ft, us-ft"):
        build_chm([path], tmp_path / "x.tif", z_unit="cm")


@pytest.mark.parametrize("short_m", [0.05, 0.9])
def test_a_header_that_is_a_bit_short_is_no_damage(cloud: Path, tmp_path: Path, short_m: float) -> None:
    """On all four sides: no return moves into another cell."""
    raw, box = bytearray(cloud.read_bytes()), header(cloud)
    for axis in (0, 1):
        position = 179 + 16 * axis
        ends = np.array([box.maxs[axis] - short_m, box.mins[axis] + short_m])
        raw[position : position + 16] = ends.tobytes()
    (tmp_path / "short.laz").write_bytes(raw)
    short = build_chm([tmp_path / "short.laz"], tmp_path / "short.tif", quality=True)
    whole = build_chm([cloud], tmp_path / "whole.tif", quality=True)
    assert short.point_count == whole.point_count
    for name in ("", "_quality"):
        np.testing.assert_array_equal(heights(tmp_path / f"short{name}.tif"), heights(tmp_path / f"whole{name}.tif"))


def test_returns_know_what_is_left_out(cloud: Path, tmp_path: Path) -> None:
    las = laspy.read(cloud)
    code = np.asarray(las.classification).copy()
    code[:30] = np.repeat([7, 22, 65], 10)
    path = edited(cloud, tmp_path / "c.laz", classification=code)
    opened = open_cloud(path)
    left_out = sum(returns.left_out for returns in read_returns(opened, opened.crs))
    assert {k: int(n) for k, n in enumerate(left_out) if n} == {7: 10, 22: 10, 65: 10}
    assert sum(len(returns.x) for returns in read_returns(opened, opened.crs)) == opened.point_count - 30
