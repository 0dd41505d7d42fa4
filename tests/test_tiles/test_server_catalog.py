"""What becomes a layer: files below the root that can be read; nothing else, and nothing in silence."""

import json
import logging
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import rasterio
from map_server import SHAPE, UTM, X, Y, make_map, map_values
from rasters import make_raster

from tiles.errors import RasterError
from tiles.server import catalog
from tiles.server.catalog import open_catalog


def ids(path: Path, imagery: Path | None = None) -> list[str]:
    return [layer.id for layer in open_catalog(path, imagery)]


def write_vrt(path: Path, source: str, relative: bool = True) -> Path:
    """Write a mosaic of one raster on the grid of the maps."""
    height, width = SHAPE
    root = ElementTree.Element("VRTDataset", rasterXSize=str(width), rasterYSize=str(height))
    ElementTree.SubElement(root, "SRS").text = UTM
    ElementTree.SubElement(root, "GeoTransform").text = f"{X}, 0.5, 0, {Y}, 0, -0.5"
    band = ElementTree.SubElement(root, "VRTRasterBand", dataType="Float32", band="1")
    ElementTree.SubElement(band, "NoDataValue").text = "nan"
    simple = ElementTree.SubElement(band, "SimpleSource")
    ElementTree.SubElement(simple, "SourceFilename", relativeToVRT=str(int(relative))).text = source
    ElementTree.SubElement(simple, "SourceBand").text = "1"
    path.write_bytes(ElementTree.tostring(root))
    return path


def write_json(path: Path, document: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
    return path


def test_a_file_is_one_layer(tmp_path: Path) -> None:
    (layer,) = open_catalog(make_map(tmp_path / "höhe 1 (neu).tif"))
    assert (layer.id, layer.title, layer.kind) == ("h-he-1-neu", "höhe 1 (neu)", "height")
    make_map(tmp_path / "other.tif")
    assert len(open_catalog(tmp_path / "other.tif")) == 1


def test_names_that_collide_are_numbered(tmp_path: Path) -> None:
    for folder in ("a", "b", "c"):
        make_map(tmp_path / folder / "map.tif")
    assert ids(tmp_path, make_map(tmp_path.parent / "map.tif")) == ["map", "map-2", "map-3", "map-4"]


def test_folders_leave_out_what_is_no_map(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_map(tmp_path / "maps" / "map.tif")
    for name in ("map_dates.tif", "map_reasons.tif", ".hidden.tif", "run.partial/tile.tif", ".cache/tile.tif"):
        make_map(tmp_path / "maps" / name)
    outside = make_map(tmp_path / "outside.tif")
    (tmp_path / "maps" / "link.tif").symlink_to(outside)
    (tmp_path / "maps" / "folder").symlink_to(tmp_path)
    (tmp_path / "maps" / "broken.tif").write_bytes(b"II*\0")
    (tmp_path / "maps" / "notes.txt").write_text("no raster")
    make_map(tmp_path / "maps" / "nowhere.tif", crs=None)
    with caplog.at_level(logging.WARNING):
        assert ids(tmp_path / "maps") == ["map"]
    for name, reason in (("link.tif", "lies outside"), ("broken.tif", "cannot be read"), ("nowhere.tif", "no CRS")):
        assert any(name in line and reason in line for line in caplog.messages), name


def test_products_that_are_no_heights_have_their_own_name_and_unit(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((3, 8, 8)).astype("float32")
    names = ("cover", "cover_p05", "cover_p95")
    path = make_raster(
        tmp_path / "a.tif", values=values, dtype="float32", descriptions=names, tags={"CANOPY_PRODUCT": "cover"}
    )
    with rasterio.open(path, "r+") as raster:
        raster.units = ("1",) * 3
    (layer,) = open_catalog(tmp_path)
    assert (layer.kind, layer.product, layer.is_picture) == ("imagery", "cover", False)
    (band,) = layer.to_json()["bands"]
    assert (band["name"], band["title"], band["unit"]) == ("cover", "Cover", "1")
    assert band["range"]["max"] == pytest.approx(values[0].max())


def test_pictures_are_imagery(tmp_path: Path) -> None:
    values = np.zeros((3, 8, 8))
    place = {"crs": UTM, "origin": (X, Y), "resolution": 0.5}
    make_raster(tmp_path / "rgb.tif", dtype="uint8", values=values, **place)
    make_raster(tmp_path / "rgb16.tif", dtype="uint16", values=values + np.arange(8) * 100, **place)
    make_raster(tmp_path / "gray.tif", dtype="uint8", values=values[:1], **place)
    make_raster(tmp_path / "rgba.tif", dtype="uint8", values=values, alpha=np.ones((8, 8), bool), **place)
    layers = {layer.id: layer for layer in open_catalog(tmp_path)}
    assert {layer.kind for layer in layers.values()} == {"imagery"}
    assert [band.name for band in layers["gray"].bands] == ["gray"]
    assert [band.indexes for band in layers["rgba"].bands] == [(1,), (2,), (3,)]
    assert layers["rgb16"].bands[0].range is not None
    # What someone names as imagery is imagery, heights too.
    assert [layer.kind for layer in open_catalog(make_map(tmp_path / "h" / "a.tif"), tmp_path / "h" / "a.tif")] == [
        "height",
        "imagery",
    ]


def test_dates_count_only_on_the_grid_of_the_map(tmp_path: Path) -> None:
    path = make_map(tmp_path / "map.tif")
    days = np.ones((1, *SHAPE))
    options = {"crs": UTM, "resolution": 0.5, "dtype": "uint16", "values": days}
    make_raster(tmp_path / "map_dates.tif", origin=(X, Y), **options)
    assert next(iter(open_catalog(path))).dates_path == tmp_path / "map_dates.tif"
    make_raster(tmp_path / "map_dates.tif", origin=(X + 1, Y), **options)
    assert next(iter(open_catalog(path))).dates_path is None
    (tmp_path / "map_dates.tif").write_bytes(b"broken")
    assert next(iter(open_catalog(path))).dates_path is None


def test_mosaic_reads_as_one_layer(tmp_path: Path) -> None:
    make_map(tmp_path / "data" / "tile.tif")
    (layer,) = open_catalog(write_vrt(tmp_path / "mosaic.vrt", "data/tile.tif"))
    assert (layer.shape, layer.kind) == (SHAPE, "height")
    assert layer.bands[0].range is not None
    assert layer.bands[0].range.high == 159 / 8


@pytest.mark.parametrize(
    ("source", "relative", "message"),
    [
        ("data/none.tif", True, "no such file"),  # GDAL would read it as unknown, without a word
        ("../outside.tif", True, "lies outside"),
        ("/etc/passwd", False, "lies outside"),
        ("/vsicurl/http://127.0.0.1/a.tif", False, "files of its folder only"),
        ("http://127.0.0.1/a.tif", False, "files of its folder only"),
        ("WMTS:http://127.0.0.1/", False, "files of its folder only"),
    ],
)
def test_mosaics_of_other_places_are_refused(tmp_path: Path, source: str, relative: bool, message: str) -> None:
    make_map(tmp_path / "outside.tif")
    (tmp_path / "maps").mkdir()
    path = write_vrt(tmp_path / "maps" / "mosaic.vrt", source, relative)
    with pytest.raises(RasterError, match=message):
        open_catalog(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no xml", "expected a VRT"),
        ("<VRTDataset/>", "no sources"),
        ('<VRTDataset subClass="VRTWarpedDataset"/>', "no plain mosaic"),
        (
            '<VRTDataset><VRTRasterBand subClass="VRTDerivedRasterBand"><PixelFunctionType>os.system'
            "</PixelFunctionType></VRTRasterBand></VRTDataset>",
            "no plain mosaic",
        ),
    ],
)
def test_other_virtual_rasters_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.vrt"
    path.write_text(text)
    with pytest.raises(RasterError, match=message):
        open_catalog(path)


def test_collection_is_served_by_its_mosaics(tmp_path: Path) -> None:
    for zone in ("32632", "32633"):
        make_map(tmp_path / f"data-{zone}.tif", map_values()[:1])
        write_vrt(tmp_path / f"mosaic-{zone}.vrt", f"data-{zone}.tif")
    assets = {zone: {"href": f"./mosaic-{zone}.vrt"} for zone in ("32632", "32633")}
    assets["far"] = {"href": "https://example.org/mosaic.vrt"}
    path = write_json(tmp_path / "collection.json", {"type": "Collection", "assets": assets, "links": []})
    assert ids(path) == ["mosaic-32632", "mosaic-32633"]
    assert ids(tmp_path) == ids(path)


def test_mosaic_of_a_batch_reads_the_tiles_of_the_batch(tmp_path: Path) -> None:
    """`canopy batch collect` writes mosaics into a folder of their own, next to that of the tiles."""
    make_map(tmp_path / "data" / "tile.tif", map_values()[:1])
    (tmp_path / "mosaic-1").mkdir()
    mosaic = write_vrt(tmp_path / "mosaic-1" / "32633.vrt", "../data/tile.tif")
    with pytest.raises(RasterError, match="lies outside"):
        open_catalog(mosaic)
    assets = {"mosaic": {"href": "./mosaic-1/32633.vrt"}}
    write_json(tmp_path / "collection.json", {"type": "Collection", "assets": assets})
    assert ids(mosaic) == ids(tmp_path) == ["32633"]


def test_collection_without_mosaic_is_served_by_its_items(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    links = []
    for name in ("eins 1", "zwei"):
        make_map(tmp_path / "data" / f"{name}.tif")
        asset = {"href": f"../data/{name.replace(' ', '%20')}.tif", "roles": ["data"]}
        write_json(tmp_path / "items" / f"{name}.json", {"type": "Feature", "assets": {"canopy_height": asset}})
        links.append({"rel": "item", "href": f"./items/{name}.json"})
    links += [{"rel": "item", "href": "s3://bucket/item.json"}, {"rel": "self", "href": "./collection.json"}]
    path = write_json(tmp_path / "collection.json", {"type": "Collection", "links": links})
    with caplog.at_level(logging.WARNING):
        assert ids(path) == ["eins-1", "zwei"]
    assert "s3://bucket/item.json" in caplog.text


def test_items_cannot_lead_out_of_the_collection(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_map(tmp_path / "secret.tif")
    asset = {"href": "../../secret.tif", "roles": ["data"]}
    write_json(tmp_path / "batch" / "items" / "a.json", {"type": "Feature", "assets": {"canopy_height": asset}})
    links = [{"rel": "item", "href": "./items/a.json"}]
    path = write_json(tmp_path / "batch" / "collection.json", {"type": "Collection", "links": links})
    with pytest.raises(RasterError, match="no raster that can be served"):
        open_catalog(path)
    assert "lies outside" in caplog.text


@pytest.mark.parametrize("text", ["", "[]", '{"type": "Zebra"}', "[" * 100_000])
def test_other_documents_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "collection.json"
    path.write_text(text)
    with pytest.raises(RasterError, match="STAC document"):
        open_catalog(path)


def test_nothing_to_serve_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RasterError, match="no such file or folder"):
        open_catalog(tmp_path / "none.tif")
    with pytest.raises(RasterError, match="no raster that can be served"):
        open_catalog(tmp_path)
    (tmp_path / "a.tif").write_bytes(b"")
    with pytest.raises(RasterError, match="cannot be read"):
        open_catalog(tmp_path / "a.tif")
    with pytest.raises(RasterError, match="no such file; expected a GeoTIFF"):
        open_catalog(make_map(tmp_path / "b.tif"), tmp_path / "c.tif")


def test_too_many_layers_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "MAX_LAYERS", 1)
    make_map(tmp_path / "a.tif")
    make_map(tmp_path / "b.tif")
    with pytest.raises(RasterError, match="2 rasters, expected at most 1 layers"):
        open_catalog(tmp_path)
