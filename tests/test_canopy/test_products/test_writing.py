"""Products become files of every format, whole, with their origin, and go on where a run was killed."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyogrio
import pytest
import rasterio
import shapely
from odc.geo.crs import CRS
from product_maps import UTM, X, Y, height_map, read_rows

from canopy.errors import OutputError
from canopy.products.reading import open_map
from canopy.products.work import hold_work, part_name
from canopy.products.writing import (
    GEOMETRY,
    RasterSpec,
    TableSpec,
    provenance,
    publish_raster,
    publish_table,
    require_suffix,
)
from tiles.files import rename
from tiles.windows import cut_windows

SCHEMA = pa.schema([("id", pa.string()), ("height_m", pa.float64()), (GEOMETRY, pa.binary())])
SPEC = TableSpec("stands", "Stands", SCHEMA, "Polygon", CRS(UTM))


@pytest.fixture(scope="module")
def map_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return height_map(tmp_path_factory.mktemp("writing") / "map.tif", np.arange(30.0).reshape(5, 6))


def table(ids: list[str], heights_m: list[float | None]) -> pa.Table:
    squares = [shapely.to_wkb(shapely.box(X + n, Y - 2, X + n + 2, Y)) for n in range(len(ids))]
    return pa.table([ids, heights_m, squares], schema=SCHEMA)


def publish(map_path: Path, out: Path, tables: list[pa.Table], **options: Any) -> Path:
    with open_map(map_path) as source, hold_work(out, {"product": "stands"}, inputs=[map_path], **options) as work:
        return publish_table(work, SPEC, tables, provenance("stands", {"map": source}, {"grid_ha": 1}), source)


@pytest.mark.parametrize("suffix", [".gpkg", ".parquet", ".csv"])
def test_a_table_is_written_in_batches_and_read_as_it_was(map_path: Path, tmp_path: Path, suffix: str) -> None:
    out = publish(map_path, tmp_path / f"stands{suffix}", [table(["a", "=b"], [1.5, None]), table(["c"], [3.0])])
    rows = read_rows(out)
    assert list(tmp_path.iterdir()) == [out]
    assert rows["height_m"].isna().tolist() == [False, True, False]
    assert rows["height_m"].tolist()[::2] == [1.5, 3.0]
    if suffix == ".csv":
        assert rows["id"].tolist() == ["a", "'=b", "c"]  # no spreadsheet runs it
        np.testing.assert_allclose(rows[["x", "y"]], [[X + 1, Y - 1], [X + 2, Y - 1], [X + 1, Y - 1]])
        return
    assert rows.crs == UTM
    assert rows["id"].tolist() == ["a", "=b", "c"]
    assert rows.geometry.iloc[1].equals(shapely.box(X + 1, Y - 2, X + 3, Y))
    if suffix == ".parquet":
        about = json.loads(pq.read_schema(out).metadata[b"canopy"])
    else:
        about = json.loads(pyogrio.read_info(out)["layer_metadata"]["canopy"])
    assert about["maps"]["map"]["name"] == "map.tif"
    assert about["options"] == {"grid_ha": 1}


def test_a_table_without_rows_is_a_table(map_path: Path, tmp_path: Path) -> None:
    for suffix in (".gpkg", ".parquet", ".csv"):
        assert len(read_rows(publish(map_path, tmp_path / f"none{suffix}", []))) == 0


def test_a_raster_is_a_cog_of_its_parts(map_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "cover.tif"
    with open_map(map_path) as source, hold_work(out, {"product": "cover"}, inputs=[map_path]) as work:
        members = []
        for window in cut_windows(source.shape, 4):
            work.save_raster(part_name(window), source.read(window)[None] / 30, source.geobox(window))
            assert work.has_raster(part_name(window))
            members.append((work.raster(part_name(window)), window.row0, window.col0))
        spec = RasterSpec("cover", "Cover", ("cover",), ("",), style="<qgis/>")
        publish_raster(work, spec, members, source.geobox(), provenance("cover", {"map": source}, {}), source)
    with rasterio.open(out) as cover:
        np.testing.assert_allclose(cover.read(1), np.arange(30.0).reshape(5, 6) / 30, rtol=1e-6)
        assert cover.descriptions == ("cover",)
        assert json.loads(cover.tags()["CANOPY_PROVENANCE"])["product"] == "cover"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cover.qml", "cover.tif"]


def test_a_run_goes_on_with_the_parts_of_a_killed_one(map_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "stands.gpkg"

    def run(settings: dict[str, Any], overwrite: bool = False, fails: bool = False) -> bool:
        with hold_work(out, settings, inputs=[map_path], overwrite=overwrite) as work:
            was_done = work.has_table("r0")
            work.save_table("r0", table(["a"], [1]))
            if fails:
                raise KeyboardInterrupt
            assert work.load_table("r0").num_rows == 1
        return was_done

    with pytest.raises(KeyboardInterrupt):
        run({"grid": 1}, fails=True)
    with pytest.raises(OutputError, match="work of other maps or options: pass --overwrite"):
        run({"grid": 2})
    assert run({"grid": 1})
    with pytest.raises(KeyboardInterrupt):
        run({"grid": 1}, fails=True)
    assert not run({"grid": 2}, overwrite=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("renames", [0, 1])
def test_a_product_killed_between_its_names_is_finished_by_the_same_run(
    map_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renames: int
) -> None:
    """Style and raster get their names and the map's item lists the raster, whenever the run was killed."""
    scene = shutil.copy(map_path, tmp_path / "map.tif")
    item = tmp_path / "map.json"
    item.write_text(json.dumps({"type": "Feature", "assets": {}}))
    out, names = tmp_path / "cover.tif", []

    def run(settings: dict[str, Any]) -> None:
        with open_map(scene) as source, hold_work(out, settings, inputs=[scene]) as work:
            if not work.has_raster("r0"):
                work.save_raster("r0", source.read(source.whole)[None], source.geobox())
            spec = RasterSpec("cover", "Cover", ("cover",), ("",), style="<qgis/>")
            about = provenance("cover", {"map": source}, {})
            publish_raster(work, spec, [(work.raster("r0"), 0, 0)], source.geobox(), about, source)

    def rename_some(draft: Path, path: Path) -> None:
        if len(names) == renames:
            raise KeyboardInterrupt
        rename(draft, path)
        names.append(path)

    with monkeypatch.context() as killing, pytest.raises(KeyboardInterrupt):
        killing.setattr("tiles.publish.rename", rename_some)
        run({"cell_m": 20})
    run({"cell_m": 20})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cover.qml", "cover.tif", "map.json", "map.tif"]
    asset = json.loads(item.read_text())["assets"]["cover:cover.tif"]
    assert asset["file:size"] == out.stat().st_size
    with pytest.raises(OutputError, match="exists"):
        run({"cell_m": 20})


def test_a_run_that_fails_before_its_first_part_leaves_nothing(map_path: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="first"), hold_work(tmp_path / "a.csv", {}, inputs=[map_path]):
        raise ValueError("first")
    assert list(tmp_path.iterdir()) == []


def test_outputs_that_cannot_be_are_refused(map_path: Path, tmp_path: Path) -> None:
    existing = tmp_path / "a.csv"
    existing.write_text("x")
    for out, words in (
        (map_path, "is read, and would be replaced"),
        (tmp_path, "is a folder"),
        (tmp_path / "none" / "a.csv", "there is no folder"),
        (existing, "exists: name another output or pass --overwrite"),
    ):
        with pytest.raises(OutputError, match=words), hold_work(out, {}, inputs=[map_path]):
            pass
    with pytest.raises(OutputError, match=r"ending in \.gpkg, \.csv expected"):
        require_suffix(tmp_path / "a.shp", (".gpkg", ".csv"))
    publish(map_path, existing, [table(["a"], [1])], overwrite=True)
    assert len(read_rows(existing)) == 1


def test_a_product_is_an_asset_of_the_maps_item(map_path: Path, tmp_path: Path) -> None:
    path = height_map(tmp_path / "map.tif", np.ones((5, 6)))
    item = path.with_suffix(".json")
    item.write_text(json.dumps({"type": "Feature", "assets": {"canopy_height": {"href": "./map.tif"}}}))
    (tmp_path / "sub").mkdir()
    for name in ("stands.gpkg", "sub/stands.csv", "stands.gpkg"):
        publish(path, tmp_path / name, [table(["a"], [1])], overwrite=True)
    assets = json.loads(item.read_text())["assets"]
    assert list(assets) == ["canopy_height", "stands:stands.gpkg", "stands:stands.csv"]
    assert assets["stands:stands.csv"]["href"] == "./sub/stands.csv"
    assert assets["stands:stands.gpkg"]["type"] == "application/geopackage+sqlite3"
