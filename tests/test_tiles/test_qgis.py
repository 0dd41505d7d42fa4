"""QGIS projects that move with their folder, and styles in GeoPackages; QGIS itself opens them in tests/gui."""

import json
import sqlite3
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from odc.geo.crs import CRS
from odc.geo.geom import Geometry
from rasters import make_raster

from tiles.aoi import to_crs
from tiles.cog import UNCERTAINTY_BANDS
from tiles.errors import OutputError, RasterError
from tiles.qgis import ProjectFiles, add_layer_style, days_of, shots_qml, write_map_project

AREA = Geometry(shapely.box(500_000, 4_999_960, 500_030, 5_000_000), "EPSG:32631")


@pytest.fixture
def height_map(tmp_path: Path) -> Path:
    """A map with an interval of 5 m, with a hole and a name that XML must escape."""
    values = np.stack([np.full((40, 60), level, np.float32) for level in (10, 7, 12)])
    values[:, :5] = np.nan
    options = {"dtype": "float32", "nodata": np.nan, "resolution": 1.0, "descriptions": UNCERTAINTY_BANDS}
    return make_raster(tmp_path / "a & b.tif", values=values, **options)


def project_document(path: Path) -> ElementTree.Element:
    with zipfile.ZipFile(path) as archive:
        return ElementTree.fromstring(archive.read(archive.namelist()[0]))


def test_project_names_files_relative_to_itself_and_no_user(height_map: Path) -> None:
    files = write_map_project(height_map, AREA)
    assert files.project == height_map.with_suffix(".qgz")
    document = project_document(files.project)
    sources = [source.text for source in document.iter("datasource")]
    assert sources == [
        "./a & b_area.gpkg|layername=area", "./a & b.tif", "./a & b.tif", "./a & b.tif", "./a & b_interval.vrt",
    ]  # fmt: skip
    text = ElementTree.tostring(document, encoding="unicode")
    assert str(height_map.parent) not in text
    assert "saveUser" not in text
    assert document.find("projectCrs/spatialrefsys/authid").text == "EPSG:32631"
    assert {node.get("id") for node in document.iter("layer-tree-layer")} == {
        layer.findtext("id") for layer in document.iter("maplayer")
    }
    visible = [node.get("name") for node in document.iter("layer-tree-layer") if node.get("checked") == "Qt::Checked"]
    assert visible == ["Area of interest", "Canopy height"]


def test_project_of_the_same_map_is_the_same_file(height_map: Path) -> None:
    first = write_map_project(height_map, AREA).project.read_bytes()
    assert write_map_project(height_map, AREA).project.read_bytes() == first
    assert not list(height_map.parent.glob(".*.tmp*"))


def test_width_of_the_interval_is_read_through_the_map(height_map: Path) -> None:
    files = write_map_project(height_map, AREA)
    with rasterio.open(files.width) as width, rasterio.open(height_map) as src:
        values = width.read(1)
        assert (width.crs, width.transform, width.units) == (src.crs, src.transform, ("m",))
    assert np.isnan(values[:5]).all()
    np.testing.assert_array_equal(values[5:], 5)


def test_area_is_written_in_the_crs_of_the_map(height_map: Path) -> None:
    files = write_map_project(height_map, to_crs(AREA, CRS("EPSG:4326")))
    area = geopandas.read_file(files.area)
    assert area.crs.to_epsg() == 32631
    assert area.geometry[0].symmetric_difference(AREA.geom).area < 0.1


def test_map_without_interval_has_a_project_without_one(tmp_path: Path) -> None:
    path = make_raster(tmp_path / "m.tif", bands=1, dtype="float32", nodata=np.nan)
    files = write_map_project(path, AREA)
    assert files == ProjectFiles(tmp_path / "m.qgz", tmp_path / "m_area.gpkg", None)
    assert [layer.findtext("layername") for layer in project_document(files.project).iter("maplayer")] == [
        "Area of interest", "Canopy height",
    ]  # fmt: skip


def test_dates_next_to_the_map_become_a_layer(height_map: Path) -> None:
    days = np.full((1, 40, 60), 17_897, np.uint16)
    days[:, :5], days[:, 30:] = 0, 18_262
    dates = make_raster(height_map.with_name("a & b_dates.tif"), values=days, dtype="uint16", nodata=0)
    assert days_of(dates) == [17_897, 18_262]
    document = project_document(write_map_project(height_map, AREA).project)
    assert [entry.get("label") for entry in document.iter("paletteEntry")] == ["2019-01-01", "2020-01-01"]


def test_what_cannot_be_read_or_written_is_one_line(height_map: Path, tmp_path: Path) -> None:
    with pytest.raises(RasterError, match=r"none\.tif: cannot be read"):
        write_map_project(tmp_path / "none.tif", AREA)
    height_map.with_suffix(".qgz").mkdir()
    with pytest.raises(OutputError, match=r"cannot write .*a & b\.qgz"):
        write_map_project(height_map, AREA)


def test_style_lies_in_the_geopackage_where_qgis_looks_for_it(tmp_path: Path) -> None:
    path = tmp_path / "shots.gpkg"
    geopandas.GeoDataFrame({"rh98": [1.0]}, geometry=[shapely.Point(0, 0)], crs=4326).to_file(path, layer="shots")
    add_layer_style(path, "shots", "geom", "Heights", shots_qml())
    with sqlite3.connect(path) as database:
        row = database.execute("SELECT f_table_name, f_geometry_column, useAsDefault, styleQML FROM layer_styles")
        table, column, default, document = row.fetchone()
    database.close()
    assert (table, column, default) == ("shots", "geom", 1)
    assert document == shots_qml()
    assert geopandas.read_file(path, layer="shots")["rh98"].tolist() == [1.0]


def test_classes_of_shots_leave_no_gap() -> None:
    root = ElementTree.fromstring(shots_qml())
    ranges = list(root.iter("range"))
    assert [entry.get("label") for entry in ranges][:2] == ["0–2 m", "2–5 m"]
    assert ranges[-1].get("label") == "≥ 35 m"
    ends = [float(entry.get("upper")) for entry in ranges]
    assert [float(entry.get("lower")) for entry in ranges[1:]] == ends[:-1]
    assert float(ranges[0].get("lower")) < -10
    assert len(json.dumps(shots_qml())) < 60_000
