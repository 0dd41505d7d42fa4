"""The collection: one picture of all tiles, published at once, checked before."""

import json
from pathlib import Path

import numpy as np
import pystac
import pytest
import rasterio
from batches import copy_of, heights_of, keys, mosaic, plan_batch
from odc.geo.crs import CRS
from rasters import make_raster
from tiny_models import save_tiny_model

from canopy.batch.collection import collect_batch
from canopy.batch.executors import InlinePool
from canopy.batch.imagery import ImageryOptions
from canopy.batch.mosaic import Blocks, MosaicMember, low_zoom, mosaic_vrt
from canopy.batch.plan import Plan, marker_key
from canopy.batch.run import run_tiles
from canopy.errors import OutputError
from tiles.grid import Lattice
from tiles.windows import PixelWindow


def test_the_collection_is_stac_whose_links_lead_to_files(finished: tuple[Path, Plan]) -> None:
    folder, plan = finished
    collection = pystac.Collection.from_file(str(folder / "collection.json"))
    items = list(collection.get_items())
    assert sorted(item.id for item in items) == sorted(plan.km2)
    assert {"mosaic-32612", "overview", "coverage", "acquisition", "items"} <= collection.assets.keys()
    for asset in [*collection.assets.values(), *(asset for item in items for asset in item.assets.values())]:
        assert Path(asset.get_absolute_href() or "").is_file()
    assert items[0].properties["canopy:plan"] == plan.id


def test_the_table_of_items_is_stac_geoparquet(finished: tuple[Path, Plan]) -> None:
    import geopandas

    folder, plan = finished
    (path,) = folder.glob("mosaic-*/items.parquet")
    table = geopandas.read_parquet(path)
    assert sorted(table.id) == sorted(plan.km2)
    href = table.assets[0]["canopy_height"]["href"]
    assert (path.parent / href).is_file()


def test_the_mosaic_names_its_members_relative_to_itself(finished: tuple[Path, Plan], tmp_path: Path) -> None:
    folder, _ = finished
    copy_of(folder, tmp_path / "moved")
    np.testing.assert_array_equal(mosaic(tmp_path / "moved"), mosaic(folder))
    (path,) = folder.glob("mosaic-*/32612.vrt")
    assert str(folder) not in path.read_text()
    assert path.with_suffix(".qml").is_file()


def test_low_zoom_layers_agree_with_the_tiles(finished: tuple[Path, Plan]) -> None:
    folder, _ = finished
    (height,), (coverage,), (date,) = (
        mosaic(folder, f"{name}.tif") for name in ("overview", "coverage", "acquisition")
    )
    whole = mosaic(folder)[0]
    valid = ~np.isnan(whole)
    cells = coverage / 100 * 64**2
    assert cells.sum() == pytest.approx(valid.sum(), rel=0.05)
    assert np.nansum(height * cells) / cells.sum() == pytest.approx(np.nanmean(whole), rel=0.02)
    assert (np.isnan(height) == (coverage == 0)).all()
    assert (date == 0).all()


def test_a_collection_is_published_once(finished: tuple[Path, Plan], tmp_path: Path) -> None:
    folder, plan = finished
    store = copy_of(folder, tmp_path / "copy")
    before = (tmp_path / "copy" / "collection.json").read_bytes()
    assert collect_batch(store, plan) == f"{tmp_path / 'copy'}/collection.json"
    assert (tmp_path / "copy" / "collection.json").read_bytes() == before


def test_the_loser_of_a_race_leaves_nothing(
    finished: tuple[Path, Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, plan = finished
    store = copy_of(folder, tmp_path / "copy")
    winner = store.read("collection.json")
    assert winner is not None
    store.delete(["collection.json"])
    create = store.create

    def late(key: str, content: bytes) -> str | None:
        if key == "collection.json":
            create(key, winner[0])
        return create(key, content)

    monkeypatch.setattr(store, "create", late)
    collect_batch(store, plan)
    assert len(list((tmp_path / "copy").glob("mosaic-*"))) == 1
    assert (tmp_path / "copy" / "collection.json").read_bytes() == winner[0]


def test_what_killed_attempts_left_is_swept(finished: tuple[Path, Plan], tmp_path: Path) -> None:
    folder, plan = finished
    store = copy_of(folder, tmp_path / "copy")
    name = plan.names.to_pylist()[0]
    before = keys(store, "data")
    store.create(f"data/32612/{name}-000000000000.tif", b"half a tile")
    (tmp_path / "copy" / "items" / "draft.json#1").write_bytes(b"{")
    store.create("leases/aa/dead.json", b"{}")
    store.delete(["collection.json"])
    collect_batch(store, plan)
    assert keys(store, "data") == before
    assert keys(store, "leases") == []
    assert not list((tmp_path / "copy").rglob("*#*"))
    assert not (tmp_path / "copy" / ".locks").exists()


def test_a_missing_tile_and_missing_data_are_refused(finished: tuple[Path, Plan], tmp_path: Path) -> None:
    folder, plan = finished
    store = copy_of(folder, tmp_path / "copy")
    store.delete(["collection.json"])
    first, second = plan.names.to_pylist()[:2]
    data = next(path for path in (tmp_path / "copy").rglob(f"{first}-*.tif"))
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(OutputError, match="without their data"):
        collect_batch(store, plan)
    assert store.read(marker_key(first)) is None
    store.delete([marker_key(second)])
    with pytest.raises(OutputError, match=r"2 of 4 tiles are not there.*canopy batch run"):
        collect_batch(store, plan)
    assert store.read("collection.json") is None


def test_an_area_across_two_zones_has_two_mosaics_and_one_overview(tmp_path: Path) -> None:
    make_raster(
        tmp_path / "scene.tif", crs="EPSG:4326", origin=(-108.0008, 44.0012), resolution=5e-6, shape=(140, 320),
        pattern="noise",
    )  # fmt: skip
    save_tiny_model(tmp_path / "tiny.safetensors", chip_px=128)
    store, plan = plan_batch(
        tmp_path,
        tmp_path / "batch",
        aoi="-108.0005,44.0007,-107.9995,44.001",
        options=ImageryOptions(datetime="2021-06-01/2021-06-09"),
    )
    assert run_tiles(store, plan, InlinePool()).complete
    collect_batch(store, plan)
    folder = tmp_path / "batch"
    west, east = mosaic(folder, "32612.vrt"), mosaic(folder, "32613.vrt")
    assert np.isfinite(west).sum() == pytest.approx(np.isfinite(east).sum(), rel=0.02)
    assert len(heights_of(folder)) == len(plan.km2)
    (path,) = folder.glob("mosaic-*/overview.tif")
    with rasterio.open(path) as opened:
        assert opened.crs.to_epsg() == 3857
        assert np.isfinite(opened.read()).any()
    assert set(np.unique(mosaic(folder, "acquisition.tif"))) == {0, 20210609}
    document = json.loads((folder / "collection.json").read_text())
    assert document["extent"]["temporal"]["interval"] == [["2021-06-01T00:00:00Z", "2021-06-09T23:59:59Z"]]


def test_a_large_mosaic_has_fewer_cells_with_the_same_sums() -> None:
    lattice = Lattice(CRS("EPSG:32612"), 0.5)
    whole = PixelWindow(-64 * 9000, 64 * 3, 64 * 9000, 64 * 200)
    tiles = [
        Blocks(np.full((8, 8), 640.0), np.full((8, 8), 64, np.int32), (-9000 + 8 * number, 3 + number), 20200101)
        for number in range(100)
    ]
    layer = low_zoom(lattice, whole, tiles)
    assert max(layer.height_m.shape) <= 4096
    assert np.nanmean(layer.height_m) == 10
    assert layer.transform.a == 64 * 0.5 * 4


def test_opening_a_mosaic_opens_no_member(tmp_path: Path) -> None:
    """Sizes are written out; a member that is absent is noticed by collecting, not by whoever opens the mosaic."""
    lattice, window = Lattice(CRS("EPSG:32612"), 0.5), PixelWindow(0, 0, 100, 100)
    members = [MosaicMember("../data/a & b.tif", window)]
    (tmp_path / "m.vrt").write_text(mosaic_vrt(lattice, window, members, ("canopy_height",)))
    with rasterio.open(tmp_path / "m.vrt") as opened:
        assert opened.descriptions == ("canopy_height",)
        assert np.isnan(opened.nodata)
