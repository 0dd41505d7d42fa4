"""Headers that ask for more than their file has."""

import struct
from pathlib import Path

import laspy
import numpy as np
import pytest
from forest import make_forest, write_laz
from laz import header

from canopy.errors import LidarError
from canopy.lidar.clouds import open_cloud, read_returns
from canopy.lidar.headers import check_header


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cloud of some hundred returns."""
    return write_laz(make_forest(16, seed=1, buildings=0), tmp_path_factory.mktemp("h") / "s.laz", density=3)


@pytest.fixture(scope="module")
def plain(small: Path) -> Path:
    """The same cloud without compression."""
    path = small.with_suffix(".las")
    laspy.read(small).write(path)
    return path


def with_bytes(path: Path, out: Path, changes: dict[int, bytes]) -> Path:
    """Write a copy of a file with some bytes replaced."""
    raw = bytearray(path.read_bytes())
    for position, content in changes.items():
        raw[position : position + len(content)] = content
    out.write_bytes(raw)
    return out


def laszip_at(path: Path) -> int:
    """Return where the record of LASzip begins."""
    raw = path.read_bytes()
    return raw.index(b"laszip encoded") - 2 + 54


@pytest.mark.parametrize("version", ["1.2", "1.3", "1.4"])
def test_whole_files_pass(small: Path, tmp_path: Path, version: str) -> None:
    las = laspy.convert(laspy.read(small), point_format_id=6 if version == "1.4" else 1, file_version=version)
    for name in ("a.las", "a.laz"):
        las.write(tmp_path / name)
        check_header(tmp_path / name)


def test_extra_dimensions_pass(small: Path, tmp_path: Path) -> None:
    las = laspy.read(small)
    las.add_extra_dim(laspy.ExtraBytesParams("reflectance", "f8"))
    las.write(tmp_path / "e.laz")
    check_header(tmp_path / "e.laz")


@pytest.mark.parametrize(
    ("position", "content", "reason"),
    [
        (94, struct.pack("<H", 60_000), "header of 60000 bytes"),
        (96, struct.pack("<I", 2**31), "points from byte 2,147,483,648"),
        (100, struct.pack("<I", 2**32 - 1), "4,294,967,295 records"),
        (104, bytes([0x80 | 33]), "point format 33"),
        (105, struct.pack("<H", 53_000), "points of 53,000 bytes"),
        (105, struct.pack("<H", 4), "points of 4 bytes"),
        (105, struct.pack("<H", 40), "compressed points of 30 bytes, 40 expected"),
        (235, struct.pack("<QI", 10, 4_000_000_000), "4,000,000,000 extended records"),
    ],
)
def test_numbers_that_do_not_fit_the_file_are_refused(
    small: Path, tmp_path: Path, position: int, content: bytes, reason: str
) -> None:
    path = with_bytes(small, tmp_path / "x.laz", {position: content})
    for check in (check_header, open_cloud):
        with pytest.raises(LidarError, match=reason):
            check(path)


@pytest.mark.parametrize(
    ("offset", "content", "reason"),
    [
        (12, struct.pack("<I", 2**30), "chunks of 1,073,741,824 points"),
        (12, struct.pack("<I", 0), "chunks of 0 points"),
        (32, struct.pack("<H", 60_000), "too short for 60000 items"),
    ],
)
def test_records_of_laszip_are_checked(small: Path, tmp_path: Path, offset: int, content: bytes, reason: str) -> None:
    path = with_bytes(small, tmp_path / "x.laz", {laszip_at(small) + offset: content})
    with pytest.raises(LidarError, match=reason):
        check_header(path)


@pytest.mark.parametrize("table", [-2, 5, 2**40])
def test_a_chunk_table_elsewhere_is_refused(small: Path, tmp_path: Path, table: int) -> None:
    points = header(small).offset_to_point_data
    path = with_bytes(small, tmp_path / "x.laz", {points: struct.pack("<q", table)})
    with pytest.raises(LidarError, match="a chunk table at byte"):
        check_header(path)


def test_a_table_of_more_chunks_than_points_is_refused(small: Path, tmp_path: Path) -> None:
    raw, points = small.read_bytes(), header(small).offset_to_point_data
    table = struct.unpack_from("<q", raw, points)[0]
    path = with_bytes(small, tmp_path / "x.laz", {table + 4: struct.pack("<I", 3_300_000_000)})
    with pytest.raises(LidarError, match="3,300,000,000 chunks"):
        check_header(path)


def test_layers_larger_than_their_chunk_are_refused(small: Path, tmp_path: Path) -> None:
    """Each layer is allocated as large as it says, before a byte of it is read."""
    first = header(small).offset_to_point_data + 8 + 30 + 4
    path = with_bytes(small, tmp_path / "x.laz", {first: struct.pack("<I", 4_261_412_864)})
    with pytest.raises(LidarError, match=r"a chunk of .* bytes asks for 4,26"):
        check_header(path)


def test_a_record_that_reaches_into_the_points_is_refused(small: Path, tmp_path: Path) -> None:
    size = header(small).offset_to_point_data
    first = struct.unpack_from("<H", small.read_bytes(), 94)[0]
    path = with_bytes(small, tmp_path / "x.laz", {first + 20: struct.pack("<H", min(size, 65_535))})
    with pytest.raises(LidarError, match="reaches into the points"):
        check_header(path)


def test_an_extended_record_beyond_the_end_is_refused(small: Path, tmp_path: Path) -> None:
    raw = small.read_bytes()
    path = tmp_path / "x.laz"
    path.write_bytes(raw + b"\0" * 60)
    with_bytes(path, path, {235: struct.pack("<QI", len(raw), 1), len(raw) + 20: struct.pack("<Q", 53 * 10**9)})
    with pytest.raises(LidarError, match="beyond the end"):
        check_header(path)


def test_a_file_that_ends_early_says_how_many_points_it_has(plain: Path, tmp_path: Path) -> None:
    raw = plain.read_bytes()
    (tmp_path / "half.las").write_bytes(raw[: len(raw) - 45])
    count = header(plain).point_count
    with pytest.raises(LidarError, match=f"ends after {count - 2:,} of {count:,} points"):
        check_header(tmp_path / "half.las")


def test_compressed_points_need_a_record_of_laszip(small: Path, tmp_path: Path) -> None:
    path = with_bytes(small, tmp_path / "x.laz", {laszip_at(small) - 52: b"another program "})
    with pytest.raises(LidarError, match="without a record of LASzip"):
        check_header(path)


@pytest.mark.parametrize("name", ["small", "plain"])
def test_damaged_bytes_never_end_in_a_traceback(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    source: Path = request.getfixturevalue(name)
    raw, generator = source.read_bytes(), np.random.default_rng(4)
    until = header(source).offset_to_point_data + 16
    path = tmp_path / f"d{source.suffix}"
    for trial in range(60):
        damaged = bytearray(raw)
        for position in generator.integers(0, until if trial % 2 else len(raw), generator.integers(1, 8)):
            damaged[position] = generator.integers(0, 256)
        path.write_bytes(damaged)
        try:
            cloud = open_cloud(path)
            for _ in read_returns(cloud, cloud.crs):
                pass
        except LidarError as error:
            assert "\n" not in str(error)
            assert "PROJCRS" not in str(error)
