"""Masks, reasons, dates and licences of a batch are those of a map of the same area."""

import hashlib
import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import rasterio
from batches import AOI, copy_of, keys, plan_batch, request_of
from numpy.typing import NDArray
from rasters import make_raster

from canopy.batch.collection import collect_batch, read_items
from canopy.batch.executors import InlinePool
from canopy.batch.extras import ExtrasRequest, PinnedMask
from canopy.batch.plan import Plan, read_plan
from canopy.batch.run import run_tiles
from canopy.batch.store import open_store
from canopy.batch.tasks import Task
from canopy.batch.worker import run_task
from canopy.errors import OutputError
from canopy.imagery.calendar import day_number
from canopy.prediction import predict

SHORT = {"backend": "eager", "crs": "EPSG:32612"}


@pytest.fixture(scope="module")
def masks(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Clouds over a part, and water that covers all of one tile."""
    folder = tmp_path_factory.mktemp("masks")
    place = {"crs": "EPSG:32612", "origin": (500000, 4900100), "resolution": 2, "shape": (100, 100), "bands": 1}
    for name, rows, cols in (("clouds", slice(20, 60), slice(10, 40)), ("water", slice(64, 100), slice(0, 100))):
        values = np.zeros((1, 100, 100))
        values[0, rows, cols] = 1
        make_raster(folder / f"{name}.tif", values=values, **place)
    return str(folder / "clouds.tif"), f"sea={folder / 'water.tif'}"


@pytest.fixture(scope="module")
def finished_with_extras(
    inputs: Path, masks: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Plan]:
    folder = tmp_path_factory.mktemp("extras") / "batch"
    options = replace(request_of(inputs).options, datetime="2021-07-04")
    store, plan = plan_batch(inputs, folder, options=options, extras=ExtrasRequest(masks, True, True))
    assert run_tiles(store, plan, InlinePool()).complete
    collect_batch(store, plan)
    return folder, plan


def read(path: Path) -> NDArray[np.generic]:
    with rasterio.open(path) as opened:
        return opened.read(1)


def test_the_mosaics_are_the_rasters_of_predict(
    inputs: Path, masks: tuple[str, ...], finished_with_extras: tuple[Path, Plan], tmp_path: Path
) -> None:
    folder, _ = finished_with_extras
    result = predict(
        AOI, inputs / "scene.tif", inputs / "tiny.safetensors", tmp_path / "map.tif", masks=masks, reasons=True,
        dates=True, imagery_datetime="2021-07-04", **SHORT,
    )  # fmt: skip
    (mosaic,) = folder.glob("mosaic-*")
    np.testing.assert_array_equal(read(mosaic / "32612.vrt"), read(result.path))
    reasons, days = read(mosaic / "32612_reasons.vrt"), read(mosaic / "32612_dates.vrt")
    for mine, path in zip((reasons, days), result.planes, strict=True):
        np.testing.assert_array_equal(mine, read(path))
        assert mine.dtype == read(path).dtype
    # A tile without imagery says so, as do tiles that are masked throughout.
    assert set(np.unique(reasons)) == {0, 1, 2, 4, 5}
    assert set(np.unique(days)) == {0, day_number("2021-07-04")}


def test_the_mosaic_names_its_categories_as_gdal_reads_them(finished_with_extras: tuple[Path, Plan]) -> None:
    (path,) = finished_with_extras[0].glob("mosaic-*/32612_reasons.vrt")
    text = path.read_text()
    assert "<Category>masked by clouds</Category><Category>masked by sea</Category></CategoryNames>" in text
    with rasterio.open(path.with_name("32612_dates.vrt")) as opened:
        assert (opened.nodata, opened.units, opened.descriptions) == (
            0, ("days since 1970-01-01",), ("canopy_acquisition_day",)
        )  # fmt: skip


def test_items_and_collection_list_them(finished_with_extras: tuple[Path, Plan]) -> None:
    folder, plan = finished_with_extras
    store = open_store(folder)
    tiles = read_items(store, plan)
    assert len(tiles) == len(plan.table) == 6
    for tile in tiles:
        assert set(tile.item["assets"]) == {"canopy_height", "reasons", "dates", "blocks"}
        assert tile.item["assets"]["reasons"]["bands"][0]["classification:classes"][5]["description"] == "masked by sea"
    assert set(keys(store, "data")) == {tile.key(asset) for tile in tiles for asset in tile.item["assets"]}
    collection = json.loads((folder / "collection.json").read_text())
    assert {"reasons-32612", "dates-32612"} <= set(collection["assets"])


def test_a_lost_raster_is_noticed_before_a_collection(finished_with_extras: tuple[Path, Plan], tmp_path: Path) -> None:
    folder, plan = finished_with_extras
    store = copy_of(folder, tmp_path / "copy")
    (tmp_path / "copy" / "collection.json").unlink()
    (next(iter((tmp_path / "copy" / "data").rglob("*_reasons.tif")))).unlink()
    with pytest.raises(OutputError, match="without their data"):
        collect_batch(store, plan)


def test_a_mask_that_was_replaced_fails_the_tile_for_good(inputs: Path, tmp_path: Path) -> None:
    place = {"crs": "EPSG:32612", "origin": (500000, 4900100), "resolution": 2, "shape": (100, 100), "bands": 1}
    path = make_raster(tmp_path / "mask.tif", **place)
    store, plan = plan_batch(inputs, tmp_path / "batch", extras=ExtrasRequest((str(path),)))
    path.write_bytes(path.read_bytes() + b"x")
    outcome = run_task(Task(store.url, next(plan.tiles())))
    assert (outcome.state, outcome.reason, outcome.final) == ("failed", "imagery", True)


def test_another_mask_is_another_plan(inputs: Path, masks: tuple[str, ...], tmp_path: Path) -> None:
    store, plan = plan_batch(inputs, tmp_path / "batch")
    assert read_plan(store).extras.names == ()
    _, other = plan_batch(inputs, tmp_path / "other", extras=ExtrasRequest(masks[:1]))
    assert plan.id != other.id and other.extras.names == ("clouds",)


@pytest.mark.parametrize(
    ("west", "east", "meets"), [(179.9, 180.1, True), (-180.0, -179.95, True), (179.0, 179.5, False), (0, 1, False)]
)
def test_masks_are_found_across_the_antimeridian(west: float, east: float, meets: bool) -> None:
    mask = PinnedMask(0, "", "mask.tif", "", "", -180.0, 10.0, -179.92, 11.0)
    assert mask.meets((west, 10.5, east, 10.6)) is meets


def test_mosaics_have_only_what_gdal_3_6_reads(finished_with_extras: tuple[Path, Plan]) -> None:
    """Elements and attributes of the schema that comes with GDAL 3.6, which Debian's QGIS has."""
    elements = {
        "VRTDataset", "SRS", "GeoTransform", "VRTRasterBand", "Description", "UnitType", "NoDataValue", "ColorInterp",
        "CategoryNames", "Category", "SimpleSource", "SourceFilename", "SourceBand", "SourceProperties", "SrcRect",
        "DstRect",
    }  # fmt: skip
    attributes = {
        "rasterxsize", "rasterysize", "datatype", "band", "blockxsize", "blockysize", "relativetovrt", "xoff", "yoff",
        "xsize", "ysize",
    }  # fmt: skip
    for path in finished_with_extras[0].glob("mosaic-*/*.vrt"):
        tree = list(ElementTree.parse(path).iter())
        assert {element.tag for element in tree} <= elements
        assert {name.lower() for element in tree for name in element.attrib} <= attributes


def test_the_systems_own_gdal_reads_the_mosaics(finished_with_extras: tuple[Path, Plan]) -> None:
    code = (
        "import hashlib, sys; from osgeo import gdal; gdal.UseExceptions()\n"
        "for name in sys.argv[1:]:\n"
        "    mosaic = gdal.Open(name)\n"
        "    print(hashlib.sha256(mosaic.GetRasterBand(1).ReadRaster()).hexdigest())"
    )
    python = "/usr/bin/python3"
    if not Path(python).exists() or subprocess.run([python, "-c", "import osgeo"], capture_output=True).returncode:
        pytest.skip("the system has no GDAL of its own")
    paths = sorted(finished_with_extras[0].glob("mosaic-*/*.vrt"))
    environment = {name: text for name, text in os.environ.items() if not name.startswith(("GDAL", "PROJ", "PYTHON"))}
    result = subprocess.run(
        [python, "-c", code, *map(str, paths)], capture_output=True, text=True, env=environment, check=True
    )
    assert result.stdout.split() == [hashlib.sha256(read(path).tobytes()).hexdigest() for path in paths]
