"""One canopy, written in every unit, type, band order and fill that files come in, reads as the same metres."""

import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasters import make_raster

from tiles.errors import RasterError
from tiles.heights import HeightRaster, open_heights
from tiles.windows import PixelWindow

HEIGHTS_M = np.array([[0.0, 0.3, 1.2, 12.34], [25.0, 61.5, 0.0, 7.0]])
UNKNOWN = np.array([[0, 0, 0, 0], [0, 0, 0, 1]], bool)


def write(path: Path, values: np.ndarray, *, tags: dict[str, Any] | None = None, **options: Any) -> Path:
    """Write bands (H, W) or (K, H, W); tags are `units`, `scales` and `offsets` of the first band."""
    bands = values if values.ndim == 3 else values[None]
    make_raster(path, values=bands, **{"dtype": "float32", "crs": "EPSG:32611", "resolution": 1.0, **options})
    with rasterio.open(path, "r+") as dataset:
        for name, value in (tags or {}).items():
            setattr(dataset, name, (value,) * dataset.count)
    return path


def read(path: Path, **options: Any) -> np.ndarray:
    with open_heights(path, **options) as raster:
        return raster.read()


def filled(factor: float, fill: float, heights_m: np.ndarray = HEIGHTS_M) -> np.ndarray:
    return np.where(UNKNOWN, fill, heights_m * factor)


STORED: dict[str, tuple[np.ndarray, dict[str, Any]]] = {
    "metres": (filled(1, np.nan), {"nodata": np.nan}),
    "centimetres": (filled(100, -1), {"dtype": "int16", "nodata": -1, "tags": {"units": "cm"}}),
    "centimetres by nodata": (filled(100, 65535), {"dtype": "uint16", "nodata": 65535}),
    "feet": (filled(1 / 0.3048, np.nan), {"tags": {"units": "ft"}}),
    "survey feet": (filled(3937 / 1200, np.nan), {"tags": {"units": "US survey foot"}}),
    "unit in brackets": (filled(1000, np.nan), {"tags": {"units": "[mm]"}}),
    "scaled integers": (filled(100, -1), {"dtype": "int32", "nodata": -1, "tags": {"scales": 0.01}}),
    "scale and offset": (filled(50, -99, HEIGHTS_M - 2), {"nodata": -99, "tags": {"scales": 0.02, "offsets": 2}}),
    "scaled feet": (filled(10 / 0.3048, -9), {"nodata": -9, "tags": {"scales": 0.1, "units": "ft"}}),
    "vertical CRS in feet": (filled(1 / 0.3048, np.nan), {"crs": "EPSG:32611+8228"}),
    "vertical CRS in metres": (filled(1, np.nan), {"crs": "EPSG:32611+5703"}),
    "a unit overrides the CRS": (filled(1, np.nan), {"crs": "EPSG:32611+8228", "tags": {"units": "m"}}),
    "undeclared -9999": (filled(1, -9999), {}),
    "undeclared -9999 in centimetres": (filled(100, -9999), {"dtype": "int16", "tags": {"units": "cm"}}),
    "undeclared 65535 in centimetres": (filled(100, 65535), {"dtype": "uint16", "tags": {"units": "cm"}}),
    "undeclared 32767 in centimetres": (filled(100, 32767), {"dtype": "int16", "tags": {"units": "cm"}}),
    "undeclared -32768 scaled": (filled(100, -32768), {"dtype": "int16", "tags": {"scales": 0.01}}),
    "undeclared 1e20": (filled(1, 1e20), {}),
    "infinite": (filled(1, np.inf), {}),
    "a mask of its own": (filled(1, 0), {"mask": ~UNKNOWN}),
    "alpha": (filled(1, 0), {"alpha": ~UNKNOWN}),
    "0 declared as nodata": (filled(1, np.nan), {"nodata": 0}),
    "0 centimetres declared as nodata": (filled(100, 65535), {"nodata": 0, "tags": {"units": "cm"}}),
    "heights second": (
        np.stack([np.full_like(HEIGHTS_M, 9), filled(1, np.nan)]),
        {"descriptions": ("quality", "Canopy Height (m)")},
    ),
    "CHM beside its layers": (
        np.stack([np.full_like(HEIGHTS_M, 9), filled(1, np.nan), np.full_like(HEIGHTS_M, 5)]),
        {"descriptions": ("height_error", "CHM", "height_p95")},
    ),
    "a map of ours": (
        np.stack([filled(1, np.nan), filled(0.5, np.nan), filled(2, np.nan)]),
        {"descriptions": ("canopy_height", "canopy_height_p05", "canopy_height_p95")},
    ),
}


@pytest.mark.parametrize("case", STORED)
def test_one_canopy_reads_as_the_same_metres(tmp_path: Path, case: str) -> None:
    values, options = STORED[case]
    heights_m = read(write(tmp_path / "h.tif", values, **options))
    assert heights_m.dtype == np.float32
    np.testing.assert_allclose(heights_m, np.where(UNKNOWN, np.nan, HEIGHTS_M), atol=0.011)


@pytest.mark.parametrize("nodata", [None, 0, 255])
def test_whole_metres_have_255_unknown_whatever_they_declare(tmp_path: Path, nodata: float | None) -> None:
    values = np.array([[0, 7, 254, 255]])
    heights_m = read(write(tmp_path / "h.tif", values, dtype="uint8", nodata=nodata))
    np.testing.assert_array_equal(heights_m, [[0, 7, 254, np.nan]])


def test_255_decimetres_are_a_height(tmp_path: Path) -> None:
    path = write(tmp_path / "h.tif", np.array([[0, 255]]), dtype="uint8", tags={"units": "dm"})
    np.testing.assert_allclose(read(path), [[0, 25.5]], rtol=1e-6)


@pytest.mark.parametrize(("unit", "metres"), [("m", 100.0), ("cm", 1.0), ("ft", 30.48), (0.5, 50.0)])
def test_a_unit_that_is_asked_for_wins(tmp_path: Path, unit: str | float, metres: float) -> None:
    path = write(tmp_path / "h.tif", np.full((2, 2), 100), dtype="int16", tags={"units": "km", "scales": 3.0})
    np.testing.assert_allclose(read(path, unit=unit), metres, rtol=1e-6)


def test_a_nodata_that_is_asked_for_wins(tmp_path: Path) -> None:
    path = write(tmp_path / "h.tif", np.array([[0.0, 3, 7]]), nodata=3)
    np.testing.assert_array_equal(read(path, nodata=0), [[np.nan, 3, 7]])


def test_a_declared_0_and_what_is_converted_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "h.tif", HEIGHTS_M * 100, nodata=0, tags={"units": "cm"})
    with caplog.at_level(logging.WARNING), open_heights(path) as raster:
        for _ in range(3):
            raster.read(PixelWindow(0, 0, 1, 1))
        second = raster.reopen()
        second.read()
        second.dataset.close()
    assert [message.split(":")[1][:12] for message in caplog.messages] == [" heights con", " declares 0 "]


def test_windows_may_leave_the_raster(tmp_path: Path) -> None:
    path = write(tmp_path / "h.tif", HEIGHTS_M)
    with open_heights(path) as raster:
        heights_m = raster.read(PixelWindow(-1, -2, 3, 4))
        assert np.isnan(raster.read(PixelWindow(5, 5, 2, 2))).all()
    np.testing.assert_allclose(heights_m[1:, 2:], HEIGHTS_M[:, :2])
    assert np.isnan(heights_m[0]).all()
    assert np.isnan(heights_m[:, :2]).all()


def test_another_band_is_read_by_its_name(tmp_path: Path) -> None:
    bands = np.stack([HEIGHTS_M, HEIGHTS_M * 2]) * 100
    names = ("canopy_height", "canopy_height_p95")
    with open_heights(write(tmp_path / "h.tif", bands, descriptions=names, tags={"units": "cm"})) as raster:
        upper = raster.named("canopy_height_p95")
        assert isinstance(upper, HeightRaster)
        np.testing.assert_allclose(upper.read(), 2 * HEIGHTS_M, rtol=1e-6)
        assert raster.named("canopy_height_p05") is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dtype": "int16"}, r"int16 without unit.*--units cm.*or pass --truth-unit"),
        ({"dtype": "uint16", "nodata": 0}, "unit is unknown"),
        ({"tags": {"units": "km"}}, r"'km': m, cm or ft expected.*rio edit-info"),
        ({"crs": None}, "no CRS"),
        ({"values": np.ones((2, 3, 3))}, r"2 bands, named '', ''"),
        ({"values": np.ones((2, 3, 3)), "descriptions": ("height_a", "height_b")}, "named 'height_a', 'height_b'"),
    ],
)
def test_what_no_file_says_is_refused_in_one_line(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    path = write(tmp_path / "h.tif", **{"values": np.ones((3, 3)), **options})
    with pytest.raises(RasterError, match=words) as error:
        read(path, remedy="--truth-unit")
    assert "\n" not in str(error.value)


def test_a_damaged_file_is_named_in_one_line(tmp_path: Path) -> None:
    path = write(tmp_path / "h.tif", np.random.default_rng(0).uniform(0, 9, (300, 300)))
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(RasterError, match="cannot read"):
        read(path)
    with pytest.raises(RasterError, match="cannot read"):
        read(tmp_path / "none.tif")


def test_the_remedies_that_messages_name_work(tmp_path: Path) -> None:
    from rasterio.rio.main import main_group

    path = write(tmp_path / "h.tif", np.stack([np.zeros((2, 2)), np.full((2, 2), 700)]), dtype="int16", crs=None)
    for options in (
        ["--crs", "EPSG:32611"],
        ["--bidx", "2", "--description", "canopy_height"],
        ["--bidx", "2", "--units", "cm"],
    ):
        main_group.main(["edit-info", str(path), *options], standalone_mode=False)
    np.testing.assert_allclose(read(path), 7)


OTHER_RASTERS = {
    "canopy/batch/commit.py": "tiles of our own maps, read back as they are stored",
    "canopy/batch/mosaic.py": "blocks of our own maps, and the mosaic that is written",
    "canopy/calibration/command.py": "tags of a map",
    "canopy/calibration/terrain.py": "terrain",
    "canopy/cli/description.py": "tags of a map",
    "canopy/dataset/gridded.py": "images and masks",
    "canopy/dataset/scene_folders.py": "images and masks",
    "canopy/dataset/weak.py": "images and near-infrared",
    "canopy/evaluation/colour_bands.py": "images and near-infrared",
    "canopy/evaluation/comparison.py": "masks",
    "canopy/evaluation/map_pairs.py": "days of acquisition and masks",
    "canopy/evaluation/point_scores.py": "the place of an image",
    "canopy/evaluation/report.py": "an image, and the truth's grid",
    "canopy/example/forest.py": "what it writes",
    "canopy/fetch/published.py": "tiles of our own, and the map that is written",
    "canopy/fetch/windows.py": "files of others, copied as they are stored",
    "canopy/gedi/simulation.py": "terrain",
    "canopy/imagery/remote.py": "files on servers, for every reader",
    "canopy/imagery/resample.py": "imagery",
    "canopy/imagery/scene.py": "imagery",
    "canopy/prediction/bands.py": "imagery, in a message",
    "canopy/prediction/lazy.py": "imagery",
    "canopy/products/change.py": "its own unfinished rasters",
    "canopy/products/change_stands.py": "a raster of change that it has written",
    "canopy/products/project.py": "the CRS of products",
    "canopy/products/trees.py": "masks",
    "pretrain/geotiff.py": "imagery",
    "pretrain/probe.py": "images",
    "tiles/cog.py": "blocks of our own maps, as they are stored",
    "tiles/planes.py": "reasons and dates",
    "tiles/pyramid.py": "tiles of our own maps, copied as they are stored",
    "tiles/qgis.py": "the profile of our own maps, and dates",
    "tiles/server/layers.py": "the profile of layers, imagery and dates; `HeightRaster` reads heights",
    "tiles/server/queries.py": "layers, whose heights `HeightRaster` reads, and dates",
    "tiles/stac.py": "the grid of our own maps",
    "tiles/validation.py": "the profile of our own maps",
    "tiles/zonal.py": "the grid of maps, whose heights `HeightRaster` reads",
}
"""Modules that open rasters of another kind, and what they read."""


def test_no_other_code_opens_a_raster_of_heights() -> None:
    """One file means the same metres in every command: whoever opens rasters names what else they are."""
    repository = Path(__file__).resolve().parent.parent.parent
    opening = {
        path.relative_to(repository).as_posix()
        for package in ("canopy", "pretrain", "tiles")
        for path in (repository / package).rglob("*.py")
        if re.search(r"rasterio\.open\(|\bopen_raster\(|open_rasterio|gdal\.Open", path.read_text(encoding="utf-8"))
    }
    assert opening - {"tiles/heights.py"} <= OTHER_RASTERS.keys()
