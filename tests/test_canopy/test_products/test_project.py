"""A map and its products open together in QGIS."""

import json
import logging
import shutil
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import geopandas
import numpy as np
import pytest
from product_maps import UTM, height_map
from rasters import make_raster

from canopy.errors import CanopyError, OutputError, ProductError
from canopy.products.cover import derive_cover
from canopy.products.gaps import derive_gaps
from canopy.products.project import write_product_project


@pytest.fixture(scope="module")
def derived(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a map with its item, cover and gaps."""
    folder = tmp_path_factory.mktemp("derived")
    heights_m = np.full((80, 80), 12.0, np.float32)
    heights_m[30:40, 30:40] = 0.5
    path = height_map(folder / "map.tif", heights_m)
    path.with_suffix(".json").write_text(json.dumps({"type": "Feature", "assets": {}}))
    derive_cover(path, folder / "cover.tif")
    derive_gaps(path, folder / "gaps.gpkg")
    return folder


@pytest.fixture
def folder(derived: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(derived, tmp_path / "products"))


def layers_of(project: Path) -> list[tuple[str, str, bool]]:
    """Source, style and visibility of the layers of a project, the top one first."""
    with zipfile.ZipFile(project) as archive:
        root = ElementTree.fromstring(archive.read(archive.namelist()[0]))
    nodes = {node.get("id"): node.get("checked") == "Qt::Checked" for node in root.iter("layer-tree-layer")}
    found = []
    for layer in root.iter("maplayer"):
        style = next(layer.iter("rasterrenderer"), None)
        style = next(layer.iter("renderer-v2")) if style is None else style
        found.append((layer.findtext("datasource", ""), style.get("type", ""), nodes[layer.findtext("id", "")]))
    return found


def test_areas_lie_over_rasters_and_those_over_the_map(folder: Path) -> None:
    project = write_product_project(folder / "map.tif", folder / "forest.qgz")
    assert layers_of(project) == [
        ("./gaps.gpkg|layername=gaps", "singleSymbol", True),
        ("./cover.tif", "singlebandpseudocolor", False),
        ("./map.tif", "singlebandpseudocolor", True),
    ]
    assert {path.name for path in folder.iterdir()} == {
        "map.tif", "map.json", "cover.tif", "cover.qml", "gaps.gpkg", "forest.qgz",
    }  # fmt: skip


def test_a_layer_has_its_own_crs(folder: Path) -> None:
    """A product of another zone, and one of degrees, lie where they are."""
    make_raster(folder / "other.tif", crs="EPSG:32632", dtype="float32", values=np.zeros((1, 4, 4)))
    gaps = geopandas.read_file(folder / "gaps.gpkg", layer="gaps").to_crs(4326)
    gaps.to_file(folder / "degrees.gpkg", layer="gaps")
    named = [folder / name for name in ("other.tif", "degrees.gpkg", "gaps.gpkg")]
    project = write_product_project(folder / "map.tif", folder / "forest.qgz", named)
    with zipfile.ZipFile(project) as archive:
        root = ElementTree.fromstring(archive.read(archive.namelist()[0]))
    crs = {layer.findtext("datasource"): layer.findtext("srs/spatialrefsys/authid") for layer in root.iter("maplayer")}
    assert crs == {
        "./degrees.gpkg|layername=gaps": "EPSG:4326", "./gaps.gpkg|layername=gaps": UTM, "./other.tif": "EPSG:32632",
        "./map.tif": UTM,
    }  # fmt: skip
    assert root.findtext("projectCrs/spatialrefsys/authid") == UTM


def test_names_with_signs_are_names(folder: Path) -> None:
    odd = folder / ".odd #1%41?"
    odd.mkdir()
    shutil.copy(folder / "gaps.gpkg", odd / "gaps.gpkg")
    project = write_product_project(folder / "map.tif", folder / "forest.qgz", [odd / "gaps.gpkg"])
    assert layers_of(project)[0] == ("./.odd #1%41?/gaps.gpkg|layername=gaps", "singleSymbol", True)


def test_products_can_be_named(folder: Path) -> None:
    (folder / "map.json").unlink()
    project = write_product_project(folder / "map.tif", folder / "forest.qgz", [folder / "cover.tif"])
    assert [source for source, *_ in layers_of(project)] == ["./cover.tif", "./map.tif"]


@pytest.mark.parametrize("name", ["cover.csv", "absent.gpkg", "map.json"])
def test_what_is_named_must_be_a_product(folder: Path, name: str) -> None:
    with pytest.raises(CanopyError, match=name.replace(".", r"\.")):
        write_product_project(folder / "map.tif", folder / "forest.qgz", [folder / name])
    assert not (folder / "forest.qgz").exists()


def test_paths_are_relative_to_the_project(folder: Path) -> None:
    (folder / "project").mkdir()
    project = write_product_project(folder / "map.tif", folder / "project" / "forest.qgz")
    assert [source for source, *_ in layers_of(project)][1:] == ["../cover.tif", "../map.tif"]


def test_what_is_gone_or_cannot_be_drawn_is_left_out(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    derive_gaps(folder / "map.tif", folder / "gaps.csv")
    (folder / "cover.tif").unlink()
    with caplog.at_level(logging.WARNING):
        project = write_product_project(folder / "map.tif", folder / "forest.qgz")
    assert [source for source, *_ in layers_of(project)] == ["./gaps.gpkg|layername=gaps", "./map.tif"]
    assert len([line for line in caplog.messages if "is left out" in line]) == 2


def test_nothing_is_replaced_unasked(folder: Path) -> None:
    (folder / "forest.qgz").write_bytes(b"mine")
    with pytest.raises(OutputError, match="exists"):
        write_product_project(folder / "map.tif", folder / "forest.qgz")
    assert (folder / "forest.qgz").read_bytes() == b"mine"
    write_product_project(folder / "map.tif", folder / "forest.qgz", overwrite=True)
    assert zipfile.is_zipfile(folder / "forest.qgz")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "map.json").unlink(), "no STAC item .*map.json"),
        (lambda folder: (folder / "map.json").write_text("{"), "no STAC item .*map.json"),
        (lambda folder: (folder / "map.json").write_text('{"assets": {}}'), "lists no GeoPackage or raster"),
        (lambda folder: (folder / "cover.qml").write_text("<qgis>"), "cover.tif or its QGIS style cannot be read"),
        (lambda folder: (folder / "cover.qml").write_bytes(b"\xff"), "cover.tif or its QGIS style cannot be read"),
        (lambda folder: (folder / "cover.tif").write_bytes(b"II"), "cover.tif or its QGIS style cannot be read"),
        (lambda folder: (folder / "gaps.gpkg").write_bytes(b"SQLite"), "gaps.gpkg or its QGIS style cannot be read"),
    ],
)
def test_what_makes_no_project_is_one_line(folder: Path, damage, message: str) -> None:
    damage(folder)
    with pytest.raises(ProductError, match=message) as caught:
        write_product_project(folder / "map.tif", folder / "forest.qgz")
    assert "\n" not in str(caught.value)
    assert not (folder / "forest.qgz").exists()


def test_another_ending_is_refused(folder: Path) -> None:
    with pytest.raises(CanopyError, match=r"\.qgz"):
        write_product_project(folder / "map.tif", folder / "forest.qgs")
