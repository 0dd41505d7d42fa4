"""Publications: whole, in order, finished after a kill at any step, and never mixed with files of others."""

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox

import tiles.publish as publishing
from tiles.aoi import to_crs
from tiles.cog import BANDS, write_tile
from tiles.errors import OutputError, RasterError
from tiles.publish import MANIFEST, MapRecord, finish_publication, pending_publication, publish, publish_map
from tiles.validation import validate

RECORD = MapRecord("m", "0" * 64, ("a.tif", "b.tif"), "2020-06-01", "1.2", {"kind": "linear", "sha256": "ab"}, "0..255")
GEOBOX = GeoBox((20, 30), rasterio.Affine(0.5, 0, 500000, 0, -0.5, 4900000), CRS("EPSG:32612"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


def publish_heights(path: Path, folder: Path, height_m: float = 5.0) -> None:
    write_tile(folder / "tile.tif", np.full((1, 20, 30), height_m, np.float32), GEOBOX, plan="p")
    publish_map([(folder / "tile.tif", 0, 0)], path, GEOBOX, BANDS, RECORD, folder)


def test_a_map_is_published_with_style_item_and_record(tmp_path: Path, folder: Path) -> None:
    publish_heights(tmp_path / "map.tif", folder)
    assert validate(tmp_path / "map.tif") == ()
    item = json.loads((tmp_path / "map.json").read_text())
    assert item["id"] == "map"
    assert item["assets"]["canopy_height"]["href"] == "./map.tif"
    assert item["assets"]["style"]["href"] == "./map.qml"
    assert item["properties"]["canopy:calibration_kind"] == "linear"
    with rasterio.open(tmp_path / "map.tif") as opened:
        tags = opened.tags()
    assert tags["CANOPY_IMAGERY"] == "a.tif, b.tif"
    assert tags["CANOPY_IMAGERY_SCALE"] == "0..255"
    assert MapRecord.from_tags(tags, RECORD.calibration) == RECORD
    assert not (folder / MANIFEST).exists()


def test_the_area_of_a_map_is_read_back(tmp_path: Path, folder: Path) -> None:
    publish_heights(tmp_path / "map.tif", folder)
    area = publishing.published_area(tmp_path / "map.tif")
    assert area is not None
    # 20 x 30 cells of half a metre, east of the central meridian (111 degrees west).
    assert area.boundingbox.left == pytest.approx(-111, abs=1e-6)
    assert to_crs(area, GEOBOX.crs).area == pytest.approx(10 * 15, rel=0.01)
    assert publishing.published_area(tmp_path / "other.tif") is None
    (tmp_path / "map.json").write_text('{"geometry": null}')
    assert publishing.published_area(tmp_path / "map.tif") is None


def test_an_unknown_origin_is_said_and_read_back() -> None:
    record = MapRecord("m", "0" * 64, (), None, "1")
    assert record.tags()["CANOPY_ACQUISITION_DATETIME"] == "unknown"
    assert MapRecord.from_tags(record.tags()) == record


@pytest.mark.parametrize("step", range(3))
def test_a_publication_killed_at_any_step_is_finished(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    (tmp_path / "map.json").write_text("the item of an older map")
    renames: list[Path] = []
    rename = publishing.rename

    def die(draft: Path, path: Path) -> None:
        if len(renames) == step:
            raise KeyboardInterrupt
        renames.append(path)
        rename(draft, path)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(publishing, "rename", die)
        publish_heights(tmp_path / "map.tif", folder)
    assert not (tmp_path / "map.json").exists()
    names = tuple(tmp_path / name for name in ("map.tif", "map.qml", "map.json"))
    assert pending_publication(folder) == names
    assert finish_publication(folder) == names
    assert validate(tmp_path / "map.tif") == ()
    assert json.loads((tmp_path / "map.json").read_text())["id"] == "map"
    assert finish_publication(folder) == ()


def test_a_file_changed_during_a_publication_is_not_passed_off_as_published(tmp_path: Path, folder: Path) -> None:
    for name in ("one", "two"):
        (folder / name).write_text(name)
    publish([(folder / "one", tmp_path / "one"), (folder / "two", tmp_path / "two")], folder)
    manifest = {"draft": "one", "path": str(tmp_path / "one"), "sha256": "0" * 64}
    (folder / MANIFEST).write_text(json.dumps({"files": [manifest]}))
    with pytest.raises(OutputError, match="was changed while it was being published"):
        finish_publication(folder)


def test_a_torn_manifest_is_no_publication(folder: Path) -> None:
    (folder / MANIFEST).write_text('{"files": [{"dr')
    assert pending_publication(folder) == ()
    assert finish_publication(folder) == ()


def test_files_that_describe_the_replaced_map_go_with_it(tmp_path: Path, folder: Path) -> None:
    for suffix in (".ovr", ".msk", ".aux.xml"):
        (tmp_path / f"map.tif{suffix}").write_text("of the old map")
    publish_heights(tmp_path / "map.tif", folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["map.json", "map.qml", "map.tif", "work"]


def test_an_implausible_map_is_not_published(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "map.tif").write_text("the old map")
    with pytest.raises(RasterError, match="not valid and was not published"):
        publish_heights(tmp_path / "map.tif", folder, height_m=400.0)
    assert (tmp_path / "map.tif").read_text() == "the old map"


def test_a_name_that_cannot_be_given_is_one_line(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "map.qml").mkdir()
    with pytest.raises(OutputError, match=r"cannot write .*map\.qml"):
        publish_heights(tmp_path / "map.tif", folder)
    assert pending_publication(folder)
