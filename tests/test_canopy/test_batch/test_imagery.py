"""Pinned imagery is opened again as it was, or not at all."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
import shapely
import yaml
from batches import plan_batch
from odc.geo.geobox import GeoBox
from rasterio import Affine
from rasters import make_raster
from servers.web import WebServer
from stac_service import StacApi, item_of

from canopy.batch.collection import collect_batch, read_items
from canopy.batch.executors import InlinePool
from canopy.batch.imagery import DigestedSource, ImageryOptions, PinnedImagery, local_path, near, pin
from canopy.batch.run import run_tiles
from canopy.errors import CoverageError, ImageryError
from canopy.imagery import ImagerySource, open_imagery
from canopy.imagery.search import Search

BOX = GeoBox((64, 64), Affine(0.5, 0, 500010, 0, -0.5, 4900090), "EPSG:32612")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two scenes of 11 bits side by side, whose range is measured on both."""
    rng = np.random.default_rng(1)
    for name, west, top in (("a.tif", 500000, 900), ("b.tif", 500050, 2000)):
        values = rng.integers(100, top, (3, 200, 100)).astype(np.uint16)
        make_raster(
            tmp_path / name, crs="EPSG:32612", origin=(west, 4900100), resolution=0.5, values=values, dtype="uint16"
        )
    return tmp_path


def pinned(folder: Path) -> tuple[ImagerySource, PinnedImagery]:
    options = ImageryOptions()
    source = options.open([str(folder)])
    return source, pin(source, [str(folder)], options)


def test_a_tile_of_one_file_reads_what_all_files_read(folder: Path) -> None:
    """The range is that of the whole source, though the tile opens one file of two."""
    source, imagery = pinned(folder)
    again = PinnedImagery.from_json(imagery.to_json(), imagery.scenes)
    assert again == imagery
    part = again.open([0])
    assert part.uris == source.uris[:1]
    np.testing.assert_array_equal(part.read(BOX).values, source.read(BOX).values)
    alone = open_imagery(folder / "a.tif")
    assert not np.array_equal(alone.read(BOX).values, source.read(BOX).values, equal_nan=True)


@pytest.mark.parametrize("change", ["time", "content"])
def test_a_file_that_was_replaced_is_refused(folder: Path, change: str) -> None:
    _, imagery = pinned(folder)
    if change == "time":
        os.utime(folder / "a.tif", (1, 1))
    else:
        shutil.copy(folder / "b.tif", folder / "a.tif")
    with pytest.raises(ImageryError, match="not the file that was planned"):
        imagery.open([0])
    assert imagery.open([1]).uris == (str(folder / "b.tif"),)


def test_a_tile_lists_the_files_that_it_may_read(folder: Path) -> None:
    source, _ = pinned(folder)
    west, south, east, north = source.footprint.boundingbox
    middle = (west + east) / 2
    tiles = np.array(
        [
            shapely.box(west, south, west + 1e-4, north),
            shapely.box(middle - 1e-4, south, middle + 1e-4, north),
            shapely.box(east + 0.01, south, east + 0.02, north),
        ]
    )
    members, covered = near(tiles, source, pad_m=5)
    assert members == [[0], [0, 1], []]
    assert covered.tolist() == [True, True, False]
    # The context of a tile reaches further than the tile.
    assert near(tiles[2:], source, pad_m=5000)[0] == [[0, 1]]


def test_what_cannot_be_pinned_is_digested(folder: Path) -> None:
    source, _ = pinned(folder)
    first, second = DigestedSource(source), DigestedSource(source)
    np.testing.assert_array_equal(first.read(BOX).values, source.read(BOX).values)
    assert first.gsd_m == source.gsd_m
    second.read(BOX)
    assert first.digest == second.digest
    second.read(BOX)
    assert first.digest != second.digest


def test_a_source_without_files_is_opened_whole_and_compared(folder: Path) -> None:
    source, imagery = pinned(folder)
    whole = PinnedImagery(imagery.uris, imagery.options, imagery.rescale, (), source.fingerprint())
    assert whole.open([]).fingerprint() == source.fingerprint()
    other = PinnedImagery(imagery.uris, imagery.options, imagery.rescale, (), "another")
    with pytest.raises(ImageryError, match="other imagery than was planned"):
        other.open([])


def test_local_files_get_their_whole_path() -> None:
    assert local_path("a/b.tif") == str(Path("a/b.tif").absolute())
    assert local_path("s3://bucket/b.tif") == "s3://bucket/b.tif"
    assert local_path("/vsicurl/https://x/b.tif") == "/vsicurl/https://x/b.tif"


def test_dates_and_licences_of_a_catalogue_reach_the_tiles(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A named source is planned under its name; a tile knows the date that the catalogue states, not the file."""
    licence = {"name": "CC-BY-4.0", "derive": True, "redistribute": True, "attribution": "(c) our office"}
    with WebServer() as server:
        server.files("/data", inputs)
        items = [item_of(inputs / "scene.tif", f"{server.url}/data/scene.tif", "2022-07-01T16:00:00Z")]
        entry = {"title": "Ours", "uri": f"{StacApi(server, items).uri}?collection=naip", "licence": licence}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump({"sources": {"ours": entry}}))
        monkeypatch.setenv("CANOPY_CONFIG", str(tmp_path / "config.yaml"))
        store, plan = plan_batch(inputs, tmp_path / "batch", imagery=("ours",), search=Search.read(date="2022"))
        assert plan.document["imagery"]["uris"] == ["ours"]
        (scene,) = plan.imagery.scenes
        assert (scene.span, scene.gsd_m) == (("2022-07-01T16:00:00Z",) * 2, pytest.approx(0.5, abs=0.01))
        assert set(plan.table["acquired"].to_pylist()) == {"2022-07-01T16:00:00Z"}
        assert run_tiles(store, plan, InlinePool()).complete
        collect_batch(store, plan)
        items_read = [tile.item for tile in read_items(store, plan)]
        with rasterio.open(next((tmp_path / "batch" / "data").rglob("*.tif"))) as tile:
            assert tile.tags()["CANOPY_IMAGERY_ATTRIBUTION"] == "(c) our office"
        with pytest.raises(CoverageError, match="no imagery over the AOI"):
            plan_batch(inputs, tmp_path / "other", imagery=("ours",), search=Search.read(date="2019"))
    for item in items_read:
        assert item["properties"]["datetime"] == "2022-07-01T16:00:00Z"
        assert item["properties"]["canopy:imagery_licence"] == "CC-BY-4.0"
    collection = json.loads((tmp_path / "batch" / "collection.json").read_text())
    assert collection["canopy:imagery_attribution"] == "(c) our office"
