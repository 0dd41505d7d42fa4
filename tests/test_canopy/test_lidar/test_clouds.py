"""Headers and returns of point clouds, good and bad."""

import datetime as dt
from pathlib import Path

import laspy
import numpy as np
import pytest
from forest import FLOWN, Forest, make_forest, write_laz
from laz import built, edited, header, heights

from canopy.errors import LidarError
from canopy.lidar import build_chm
from canopy.lidar.clouds import open_cloud


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
