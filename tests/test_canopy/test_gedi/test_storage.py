"""Files of shots: what they keep, and what is none."""

from pathlib import Path

import geopandas
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import shapely
from gedi_shots import EVERYTHING, points

from canopy.errors import LidarError, OutputError
from canopy.gedi.filters import ShotFilter
from canopy.gedi.shots import Reading, read_granules
from canopy.gedi.storage import read_funnel, read_shots, shots_metadata, write_shots


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


@pytest.mark.parametrize("name", ["s.parquet", "s.gpkg", "s.GPKG", "s.geoparquet"])
def test_every_format_comes_back_the_same(reading: Reading, tmp_path: Path, name: str) -> None:
    write_shots(reading, tmp_path / name, EVERYTHING)
    again = read_shots(tmp_path / name)
    assert again.crs.to_epsg() == 4326
    for column in ("shot_number", "rh98", "sensitivity", "cover", "beam", "power"):
        np.testing.assert_array_equal(again[column].to_numpy(), reading.shots[column].to_numpy())
    np.testing.assert_allclose(again.geometry.x, reading.shots.geometry.x, atol=1e-12)
    assert shots_metadata(tmp_path / name)["read"] == reading.read
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_geopackage_is_one(reading: Reading, tmp_path: Path) -> None:
    write_shots(reading, tmp_path / "s.gpkg", EVERYTHING)
    assert (tmp_path / "s.gpkg").read_bytes()[:15] == b"SQLite format 3"
    assert geopandas.list_layers(tmp_path / "s.gpkg")["name"].tolist() == ["shots", "layer_styles"]


def test_another_ending_is_refused(reading: Reading, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="GeoPackage"):
        write_shots(reading, tmp_path / "s.csv", EVERYTHING)
    assert not list(tmp_path.iterdir())


def spoilt(reading: Reading) -> dict[str, tuple[geopandas.GeoDataFrame, str]]:
    """Tables that are no shots, and a word of the reason."""
    shots = reading.shots
    polygons = shots.set_geometry(geopandas.GeoSeries(shapely.buffer(shots.geometry.values, 1e-4), crs=4326))
    return {
        "text heights": (shots.assign(rh98="tall"), "damaged"),
        "text numbers": (shots.assign(shot_number="first"), "damaged"),
        "no coordinates": (shots.set_geometry(geopandas.GeoSeries([shapely.Point()] * len(shots), crs=4326)), "points"),
        "polygons": (polygons, "points expected"),
        "no rows": (shots.iloc[:0], "no shots"),
        "no CRS": (shots.set_crs(None, allow_override=True), "a CRS"),
    }


def test_tables_that_are_no_shots_are_refused_in_one_line(reading: Reading, tmp_path: Path) -> None:
    for name, (table, reason) in spoilt(reading).items():
        path = tmp_path / f"{name}.parquet"
        table.to_parquet(path)
        with pytest.raises(LidarError, match=reason) as caught:
            read_shots(path)
        assert "\n" not in str(caught.value), name


def test_columns_that_older_shots_lack_are_null(reading: Reading, tmp_path: Path) -> None:
    reading.shots.drop(columns=["cover", "pft"]).to_parquet(tmp_path / "old.parquet")
    again = read_shots(tmp_path / "old.parquet")
    assert again[["cover", "pft"]].isna().all().all()


def test_a_small_file_of_a_billion_rows_is_refused_before_it_is_read(tmp_path: Path) -> None:
    table = pd.DataFrame({"shot_number": np.zeros(30_000_000, np.uint64)})
    table.to_parquet(tmp_path / "s.parquet")
    assert (tmp_path / "s.parquet").stat().st_size < 1_000_000
    with pytest.raises(LidarError, match="30,000,000 rows"):
        read_shots(tmp_path / "s.parquet")


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(LidarError, match="no such file"):
        read_shots(tmp_path / "none.parquet")


@pytest.mark.parametrize("funnel", ['{"funnel": [{"rule": "night"}]}', '{"funnel": 3}', "[1]", "{", '{"funnel": [1]}'])
def test_damaged_metadata_are_one_line(reading: Reading, tmp_path: Path, funnel: str) -> None:
    write_shots(reading, tmp_path / "s.parquet", EVERYTHING)
    table = pq.read_table(tmp_path / "s.parquet")
    pq.write_table(
        table.replace_schema_metadata({**table.schema.metadata, b"canopy:gedi": funnel.encode()}),
        tmp_path / "d.parquet",
    )
    with pytest.raises(LidarError, match="damaged metadata"):
        read_funnel(tmp_path / "d.parquet")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # pyogrio, of GDAL's own remarks
@pytest.mark.parametrize("name", ["s.parquet", "s.gpkg"])
def test_damaged_bytes_never_end_in_a_traceback(reading: Reading, tmp_path: Path, name: str) -> None:
    write_shots(reading, tmp_path / name, EVERYTHING)
    raw, generator = (tmp_path / name).read_bytes(), np.random.default_rng(0)
    for trial in range(24):
        damaged = bytearray(raw)
        # The footer of a Parquet file, and the first pages of a GeoPackage, say what the rest is.
        low, high = (len(raw) - 12_000, len(raw)) if trial % 2 and name == "s.parquet" else (0, len(raw))
        for position in generator.integers(max(low, 0), high, generator.integers(1, 12)):
            damaged[position] = generator.integers(0, 256)
        (tmp_path / f"d{name}").write_bytes(damaged)
        for read in (read_shots, read_funnel):
            try:
                read(tmp_path / f"d{name}")
            except LidarError as error:
                assert "\n" not in str(error)
