"""What is checked before torch is imported, and every form in which an area is given."""

import json
import subprocess
import sys
from pathlib import Path

import geopandas as gpd
import pytest
import shapely
from height_models import CARD, MeanOfGreen
from odc.geo.geom import Geometry
from rasters import make_raster

from canopy.errors import AOIError, ModelError, OutputError
from canopy.prediction.entry import predict
from tiles.files import rename

BOX = shapely.box(500_010, 4_999_970, 500_050, 4_999_990)
UTM = "EPSG:32631"
FAULTS = {
    "no aoi": ["--aoi", "none.geojson"],
    "long aoi": ["--aoi", "x" * 300],
    "no imagery": ["--imagery", "none.tif"],
    "no model": ["--model", "canopy-huge"],
    "no device": ["--device", "abacus!"],
    "no backend": ["--backend", "abacus"],
    "one limit": ["--scale", "0"],
    "two bands": ["--bands", "1,2"],
    "no crs": ["--crs", "EPSG:99999999"],
    "no resolution": ["--resolution", "0"],
    "a folder": ["--out", ".", "--overwrite"],
    "a folder named as a map": ["--out", "folder.tif", "--overwrite"],
    "no folder": ["--out", "nowhere/o.tif"],
    "no calibration": ["--calibration", "none.json"],
    "no date": ["--imagery-datetime", "yesterday"],
    "imagery elsewhere": ["--aoi", "10,10,10.001,10.001"],
    "imagery too coarse": ["--imagery", "coarse.tif"],
    "an existing output": ["--out", "scene.tif"],
    "an unknown option": ["--resolutoin", "1"],
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    make_raster(tmp_path / "scene.tif")
    make_raster(tmp_path / "coarse.tif", resolution=10)
    (tmp_path / "folder.tif").mkdir()
    gpd.GeoDataFrame(geometry=[BOX], crs=UTM).to_file(tmp_path / "aoi.gpkg")
    return tmp_path


def test_faults_are_said_before_torch_is_imported(folder: Path) -> None:
    """One process, because each would import GDAL; none of them imports torch."""
    code = """
import json, sys
from canopy.cli import main
good = {"--aoi": "aoi.gpkg", "--imagery": "scene.tif", "--out": "o.tif"}
codes = {}
for name, words in json.loads(sys.argv[1]).items():
    given = {key: value for key, value in good.items() if key not in words}
    sys.argv = ["canopy", "predict", *words, *(word for pair in given.items() for word in pair)]
    try:
        main()
    except SystemExit as end:
        codes[name] = [end.code, "torch" in sys.modules]
print(json.dumps(codes))
"""
    command = [sys.executable, "-c", code, json.dumps(FAULTS)]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    expected = {name: [2 if name == "an unknown option" else 1, False] for name in FAULTS}
    assert json.loads(ended.stdout.splitlines()[-1]) == expected
    lines = [line for line in ended.stderr.splitlines() if line.startswith("canopy: ")]
    assert len(lines) == len(FAULTS) - 1
    assert "Traceback" not in ended.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["aoi.gpkg", "coarse.tif", "folder.tif", "scene.tif"]


def areas() -> dict[str, object]:
    frame = gpd.GeoDataFrame(geometry=[BOX], crs=UTM)
    lonlat = frame.to_crs(4326)
    return {
        "geopandas frame": frame,
        "geopandas series": frame.geometry,
        "frame in degrees": lonlat,
        "odc-geo": Geometry(BOX, UTM),
        "geojson feature collection": json.loads(lonlat.to_json()),
        "geojson geometry": shapely.geometry.mapping(lonlat.geometry[0]),
        "bounds as numbers": tuple(lonlat.total_bounds),
        "bounds as text": ",".join(map(repr, map(float, lonlat.total_bounds))),
    }


@pytest.mark.parametrize("name", areas())
def test_an_area_is_given_in_any_form(folder: Path, name: str) -> None:
    area = areas()[name]
    predict(area, folder / "scene.tif", MeanOfGreen(), folder / "map.tif", crs=UTM)
    predict(folder / "aoi.gpkg", folder / "scene.tif", MeanOfGreen(), folder / "reference.tif", crs=UTM)
    map_cells, reference = (prediction_cells(folder / f"{stem}.tif") for stem in ("map", "reference"))
    # Bounds in degrees are a little larger than the box that they are the bounds of.
    assert reference <= map_cells <= reference * (1.1 if "bounds" in name else 1.001)


def prediction_cells(path: Path) -> int:
    import numpy as np
    import rasterio

    with rasterio.open(path) as opened:
        return int(np.isfinite(opened.read(1)).sum())


def test_a_shapely_geometry_needs_its_crs(folder: Path) -> None:
    with pytest.raises(AOIError, match="aoi_crs="):
        predict(BOX, folder / "scene.tif", MeanOfGreen(), folder / "map.tif")
    for crs in (UTM, 32631):
        result = predict(BOX, folder / "scene.tif", MeanOfGreen(), folder / "map.tif", aoi_crs=crs, overwrite=True)
        assert result.coverage == pytest.approx(1)


def test_a_map_of_an_object_is_named_aoi(folder: Path) -> None:
    assert predict(Geometry(BOX, UTM), "scene.tif", MeanOfGreen()).path == Path("aoi_canopy_height.tif")


def test_layer_chooses_among_several(folder: Path) -> None:
    for layer, shape in (("stand", BOX), ("other", shapely.box(500_000, 4_999_990, 500_005, 4_999_995))):
        gpd.GeoDataFrame(geometry=[shape], crs=UTM).to_file(folder / "two.gpkg", layer=layer)
    with pytest.raises(AOIError, match="expected one of stand, other, name it with --layer"):
        predict("two.gpkg", "scene.tif", MeanOfGreen())
    predict("two.gpkg", "scene.tif", MeanOfGreen(), "map.tif", layer="stand")
    assert prediction_cells(folder / "map.tif") == 80 * 40


def test_a_qgis_project_is_written_and_never_replaced_unasked(folder: Path) -> None:
    arguments = {"imagery": "scene.tif", "model": MeanOfGreen(), "out": "m.tif", "qgis": True}
    result = predict("aoi.gpkg", **arguments)
    assert result.project == Path("m.qgz")
    assert {path.name for path in folder.glob("m*")} == {"m.tif", "m.qml", "m.json", "m.qgz", "m_area.gpkg"}
    for path in (folder / "m.tif", folder / "m.qml", folder / "m.json"):
        path.unlink()
    with pytest.raises(OutputError, match=r"m_area\.gpkg exists"):
        predict("aoi.gpkg", **arguments)
    assert predict("aoi.gpkg", **arguments | {"qgis": False}).project is None


class Killed(BaseException):
    """Stands for the end of the process: no handler of the code catches it."""


@pytest.mark.parametrize("renames", [0, 2, 4])
def test_a_publication_killed_before_its_project_is_finished_with_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, renames: int
) -> None:
    """Map, area, project, style and item are one publication: none is missing after the same command."""
    arguments = {"imagery": "scene.tif", "model": MeanOfGreen(), "out": "m.tif", "qgis": True}
    names: list[Path] = []

    def rename_some(draft: Path, path: Path) -> None:
        if len(names) == renames:
            raise Killed
        rename(draft, path)
        names.append(path)

    with monkeypatch.context() as killing:
        killing.setattr("tiles.publish.rename", rename_some)
        with pytest.raises(Killed):
            predict("aoi.gpkg", **arguments)
    assert predict("aoi.gpkg", **arguments).project == Path("m.qgz")
    assert {path.name for path in folder.glob("m*")} == {"m.tif", "m.qml", "m.json", "m.qgz", "m_area.gpkg"}


def test_a_model_of_chips_that_cannot_overlap_is_refused_before_a_file_is_written(folder: Path) -> None:
    model = MeanOfGreen()
    model.card = CARD.model_copy(update={"chip_px": 32})
    with pytest.raises(ModelError, match="mean-of-green maps chips of 32 px, which overlap by 32 px: train it with"):
        predict("aoi.gpkg", imagery="scene.tif", model=model, out="o.tif")
    assert not list(folder.glob("o.*"))
