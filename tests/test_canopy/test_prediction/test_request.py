"""Decisions before any work: names of outputs against inputs and existing files, imagery against area and model."""

from pathlib import Path

import pytest
from odc.geo.geom import box

from canopy.errors import OutputError
from canopy.prediction.request import check_outputs, output_files, output_path


def test_a_run_writes_a_map_a_style_and_an_item(tmp_path: Path) -> None:
    assert [path.name for path in output_files(tmp_path / "map.tif")] == ["map.tif", "map.qml", "map.json"]


@pytest.mark.parametrize("name", ["map.tif", "map.qml", "map.json"])
def test_an_output_that_is_an_input_is_refused_even_with_overwrite(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(OutputError, match="also an input of this run"):
        check_outputs(tmp_path / "map.tif", [tmp_path / "sub" / ".." / name], overwrite=True)


@pytest.mark.parametrize("name", ["map.tif", "map.qml", "map.json"])
def test_an_existing_file_is_replaced_only_on_request_or_to_finish_a_publication(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(OutputError, match=f"{name} exists"):
        check_outputs(tmp_path / "map.tif", [], overwrite=False)
    check_outputs(tmp_path / "map.tif", [], overwrite=True)
    check_outputs(tmp_path / "map.tif", [], overwrite=False, pending=[tmp_path / name])


def test_a_symbolic_link_to_an_input_is_that_input(tmp_path: Path) -> None:
    (tmp_path / "scene.tif").touch()
    (tmp_path / "map.tif").symlink_to(tmp_path / "scene.tif")
    with pytest.raises(OutputError, match="also an input"):
        check_outputs(tmp_path / "map.tif", [str(tmp_path / "scene.tif")], overwrite=True)


def test_an_address_of_a_server_is_no_file(tmp_path: Path) -> None:
    check_outputs(tmp_path / "map.tif", ["https://example.com/map.tif", "s3://bucket/map.tif"], overwrite=False)


@pytest.mark.parametrize(
    ("out", "message"),
    [("map.png", "ending in .tif"), ("folder.tif", "is a folder"), ("absent/map.tif", "no folder")],
)
def test_a_name_that_cannot_be_written_is_refused_before_work(tmp_path: Path, out: str, message: str) -> None:
    (tmp_path / "folder.tif").mkdir()
    with pytest.raises(OutputError, match=message):
        output_path("area.geojson", tmp_path / out)


def test_the_map_is_named_after_the_area() -> None:
    assert output_path("data/region.geojson", None) == Path("region_canopy_height.tif")
    assert output_path(box(0, 0, 1, 1, "EPSG:4326"), None) == Path("aoi_canopy_height.tif")
