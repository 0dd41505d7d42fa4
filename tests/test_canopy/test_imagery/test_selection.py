from pathlib import Path

import numpy as np
import pytest
from imagery_reading import SHAPE, read, refused
from rasterio import Affine
from rasters import make_raster

from canopy.imagery import open_imagery

COLOURS = {0: (10, 20, 30, 255), 1: (40, 50, 60, 255)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Imagery among what else lies in folders; the mask sorts first."""
    folder = tmp_path / "d"
    for name in ("m.tif", "n.tif"):
        make_raster(folder / name, pattern="noise")
    make_raster(folder / "a_mask.tif", bands=1, values=np.full((1, *SHAPE), 255))
    make_raster(folder / "b_two.tif", bands=2, photometric="MINISBLACK")
    make_raster(folder / "c_gray_alpha.tif", bands=1, alpha=np.ones(SHAPE, bool))
    make_raster(folder / "thumbnail.tif", resolution=8, shape=(6, 8))
    make_raster(folder / "legend.png", transform=Affine.identity(), crs=None, driver="PNG")
    make_raster(folder / "map.tif", dtype="float32", bands=1, tags={"CANOPY_MODEL": "small"})
    make_raster(folder / "chm.tif", dtype="float32", bands=3, tags={"CANOPY_LIDAR": "a.laz"})
    make_raster(folder / "interval.tif", dtype="float32", descriptions=["canopy_height", "p05", "p95"])
    return folder


def test_what_is_no_imagery_is_skipped_and_listed(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = open_imagery(folder)
    assert [Path(uri).name for uri in source.uris] == ["m.tif", "n.tif"]
    assert source.gsd_m == pytest.approx(0.5, rel=1e-3)
    reasons = {Path(one.path).name: one.reason for one in source.skipped}
    assert reasons == {
        "a_mask.tif": "1 band",
        "b_two.tif": "2 bands",
        "c_gray_alpha.tif": "1 band",
        "thumbnail.tif": "GSD of 8 m, the others' is 0.5 m",
        "legend.png": "no georeference",
        "map.tif": "a height map",
        "chm.tif": "a height map",
        "interval.tif": "a height map",
    }
    assert "skipped 8 of 10 rasters" in caplog.text and "and 3 more" in caplog.text
    np.testing.assert_array_equal(read(folder), read(folder / "m.tif"))


def test_globs_are_selected_too(folder: Path) -> None:
    assert [Path(uri).name for uri in open_imagery(f"{folder}/*.tif").uris] == ["m.tif", "n.tif"]


def test_a_file_named_by_itself_is_read(folder: Path) -> None:
    assert open_imagery(folder / "a_mask.tif").skipped == ()
    assert open_imagery([folder / "m.tif", folder / "thumbnail.tif"]).gsd_m == pytest.approx(8, rel=1e-2)


def test_a_folder_without_imagery_is_an_error(tmp_path: Path) -> None:
    for name in ("a.tif", "b.tif"):
        make_raster(tmp_path / "d" / name, bands=1)
    refused(tmp_path / "d", r"no imagery among 2 rasters: .*a\.tif \(1 band\), .*name the files one by one")


def test_a_glob_may_name_panchromatic_imagery(tmp_path: Path) -> None:
    for name in ("a.tif", "b.tif"):
        make_raster(tmp_path / "d" / name, bands=1)
    assert len(open_imagery(f"{tmp_path}/d/*.tif").uris) == 2


def test_a_palette_has_colours(tmp_path: Path) -> None:
    make_raster(tmp_path / "d" / "a.tif", values=np.zeros((1, *SHAPE)), colormap=COLOURS)
    assert len(open_imagery(tmp_path / "d").uris) == 1


def test_imagery_of_similar_sizes_is_kept(tmp_path: Path) -> None:
    for number, size in enumerate((0.3, 0.5, 0.6, 1.1)):
        make_raster(tmp_path / "d" / f"{number}.tif", resolution=size)
    source = open_imagery(tmp_path / "d")
    assert len(source.uris) == 4 and source.skipped == ()


def test_a_damaged_file_is_not_skipped(folder: Path) -> None:
    (folder / "z.tif").write_bytes(b"II*\0 nothing of a raster")
    refused(folder, r"z\.tif: cannot be read")
