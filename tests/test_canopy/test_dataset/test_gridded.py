"""A scene on one grid: its heights, its mask, its image, read in any windows."""

from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from chip_stores import forest, one_scene, picture, save_picture
from forest import write_pair
from numpy.typing import NDArray
from rasters import make_raster

from canopy.dataset import gridded
from canopy.dataset.build import build
from canopy.dataset.config import DatasetConfig
from canopy.dataset.gridded import GriddedScene, open_labelled, open_unlabelled, open_weak
from canopy.dataset.scene_files import SceneFiles, list_scenes
from canopy.dataset.store import ChipStore
from canopy.dataset.tile_trees import locate_tile
from canopy.errors import CanopyError, DatasetError
from tiles.windows import PixelWindow

ORIGIN = (320_000, 4_100_000)


def scene_of(config: DatasetConfig) -> SceneFiles:
    name, source = next(iter(config.sources.items()))
    return list_scenes(name, source, config.root)[0]


def opened(config: DatasetConfig, stack: ExitStack, **values: Any) -> GriddedScene:
    (source,) = config.sources.values()
    options = {"unit": source.height_unit_m, "gsd_m": 0.5, "height_cell_m": 1.0, "search_m": 6.0, **values}
    return stack.enter_context(open_labelled(scene_of(config), **options))


@pytest.mark.parametrize(
    ("raster", "message"),
    [
        ({"values": np.full((1, 64, 64), 190.0)}, "heights up to 190 m.*feet.*height_unit_m"),
        ({"values": np.full((1, 64, 64), -9999.0)}, "all heights are unknown"),
        ({"origin": (390_000, 4_100_000)}, "lie on different ground"),
        ({"resolution": 2.0}, "cells of 2 x 2 m"),
        ({"resolution": (1.0, -1.0)}, "north up expected"),
        ({"crs": "EPSG:4326", "origin": (-117.0, 37.0), "resolution": 1e-5}, "projected one in metres"),
        ({"crs": "EPSG:2994"}, "projected one in metres"),
        ({"crs": None}, "has no CRS"),
        ({"bands": 3, "values": None, "shape": (64, 64)}, "has 3 bands"),
    ],
)
def test_heights_that_cannot_be_right_are_named(tmp_path: Path, raster: dict[str, Any], message: str) -> None:
    with ExitStack() as stack, pytest.raises(CanopyError, match=message):
        opened(one_scene(tmp_path, **raster), stack)


@pytest.mark.parametrize(("gsd_m", "fine"), [(1.0, True), (1.1, False), (2.0, False)])
def test_imagery_too_coarse_for_the_chips_is_refused(tmp_path: Path, gsd_m: float, fine: bool) -> None:
    """Chips of 0.5 m made of pixels of 2 m show nothing of what their labels say."""
    config = one_scene(tmp_path)
    values = picture(3, 64)[:60, :60].transpose(2, 0, 1)
    make_raster(tmp_path / "pairs/a_1/rgb.tif", values=values, crs="EPSG:32611", resolution=gsd_m, origin=ORIGIN)
    scene = scene_of(config)
    message = rf"imagery of {gsd_m:g} m is too coarse for chips of 0\.5 m: 1 m or finer expected"
    with nullcontext() if fine else pytest.raises(DatasetError, match=message), ExitStack() as stack:
        opened(config, stack)
    with nullcontext() if fine else pytest.raises(DatasetError, match=message):
        open_weak(scene, measured=False, gsd_m=0.5, cell_px=2)
    assert open_unlabelled(scene).gsd_m == pytest.approx(gsd_m, rel=1e-3), "without labels, of any size"


def test_windows_of_a_scene_are_parts_of_the_whole(tmp_path: Path) -> None:
    """Imagery on another grid is resampled the same way whatever the window."""
    config = one_scene(tmp_path)
    image = picture(3, 160)[:150, :155].transpose(2, 0, 1)
    make_raster(tmp_path / "pairs/a_1/rgb.tif", values=image, crs="EPSG:32611", resolution=0.41,
                origin=(ORIGIN[0] - 0.13, ORIGIN[1] + 0.17))  # fmt: skip
    with ExitStack() as stack:
        scene = opened(config, stack)
        whole = scene.image.read(PixelWindow(0, 0, 128, 128))
    assert 0.8 < whole.valid.mean() < 1
    windows = [PixelWindow(5, 64, 40, 31), PixelWindow(100, 3, 28, 125), PixelWindow(0, 0, 1, 1)]
    for window in windows:
        with ExitStack() as stack:
            part = opened(config, stack).image.read(window)
        rows, cols = slice(window.row0, window.row1), slice(window.col0, window.col1)
        np.testing.assert_array_equal(part.image, whole.image[:, rows, cols])
        np.testing.assert_array_equal(part.valid, whole.valid[rows, cols])
    assert not whole.image[:, ~whole.valid].any()


def test_a_mask_lies_over_the_heights(tmp_path: Path) -> None:
    config = one_scene(tmp_path)
    mask = np.zeros((1, 64, 64))
    mask[0, :10], mask[0, 10:20] = 1, 2
    make_raster(tmp_path / "pairs/a_1/mask.tif", values=mask, dtype="uint8", crs="EPSG:32611", origin=ORIGIN,
                resolution=1.0)  # fmt: skip
    source = config.sources["a"].model_copy(update={"exclude": "mask.tif"})
    with ExitStack() as stack:
        heights = opened(config.model_copy(update={"sources": {"a": source}}), stack).heights
        assert heights is not None
        height_m, building = heights.read(PixelWindow(5, 0, 20, 4))
        compared = heights[5:25, 0:4]
    assert (height_m[:5] == 0).all() and np.isnan(height_m[5:15]).all() and (height_m[15:] == 10).all()
    assert building[:5].all() and not building[5:].any()
    assert np.isnan(compared[:15]).all() and (compared[15:] == 10).all()


def test_a_mask_of_another_shape_is_refused(tmp_path: Path) -> None:
    config = one_scene(tmp_path)
    make_raster(tmp_path / "pairs/a_1/mask.tif", shape=(60, 64), bands=1)
    source = config.sources["a"].model_copy(update={"exclude": "mask.tif"})
    with ExitStack() as stack, pytest.raises(DatasetError, match=r"\(60, 64\) cells over heights of \(64, 64\)"):
        opened(config.model_copy(update={"sources": {"a": source}}), stack)


def test_heights_are_moved_onto_the_image(tmp_path: Path) -> None:
    """The heights lie 2 m west and 3 m south of the image, and unknown is what no height is moved onto."""
    truth = forest(110, 1, ORIGIN)
    folder = write_pair(truth, tmp_path / "pairs" / "s")
    with rasterio.open(folder / "chm_cm.tif", "r+") as raster:
        raster.write(np.roll(raster.read(1), (3, -2), axis=(0, 1)), 1)
    scene = SceneFiles("a", "s", folder / "rgb.tif", folder / "chm_cm.tif")
    with open_labelled(scene, unit=0.01, gsd_m=0.5, height_cell_m=1.0, search_m=6.0) as placed:
        assert placed.shift is not None and placed.heights is not None
        assert placed.shift.accepted
        assert (placed.heights.down, placed.heights.right) == (-3, 2)
        height_m, _ = placed.heights.read(PixelWindow(0, 0, 110, 110))
    assert np.isnan(height_m[-3:]).all() and np.isnan(height_m[:, :2]).all()
    np.testing.assert_allclose(height_m[3:-3, 2:-2], truth.chm_m[3:-3, 2:-2], atol=0.006)


def test_a_scene_that_no_one_could_read_is_refused_at_once(tmp_path: Path) -> None:
    """A sparse file of a few kilobytes may claim any size."""
    with rasterio.open(
        tmp_path / "a.tif", "w", driver="GTiff", width=200_000, height=200_000, count=3, dtype="uint8", SPARSE_OK=True,
        tiled=True, blockxsize=4096, blockysize=4096, compress="deflate", crs="EPSG:32611",
        transform=rasterio.Affine(0.5, 0, *ORIGIN[:1], 0, -0.5, 4_100_000),
    ):  # fmt: skip
        pass
    with pytest.raises(DatasetError, match=r"a\.tif: 200000 x 200000 pixels to read, at most 20 Gpx expected"):
        open_unlabelled(SceneFiles("i", "a", tmp_path / "a.tif"))


def test_the_last_window_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[PixelWindow] = []

    def load(window: PixelWindow) -> gridded.ImageWindow:
        loads.append(window)
        rows, cols = np.mgrid[window.row0 : window.row1, window.col0 : window.col1]
        image = np.stack([rows, cols, rows]).astype(np.uint8)
        return gridded.ImageWindow(image, np.ones(window.shape, bool))

    reader = gridded.ImageReader((3, 100, 100), load)
    assert reader.read(PixelWindow(10, 20, 50, 50)).image.shape == (3, 50, 50)
    inner = reader.read(PixelWindow(12, 30, 5, 5))
    assert (inner.image[0, 0, 0], inner.image[1, 0, 0]) == (12, 30)
    assert reader[0:3, 59:60, 69:70][:, 0, 0].tolist() == [59, 69, 59]
    assert loads == [PixelWindow(10, 20, 50, 50)]
    reader.read(PixelWindow(9, 20, 5, 5))
    assert len(loads) == 2


def test_a_map_tile_is_its_pixels_on_the_ground_of_its_path(tmp_path: Path) -> None:
    path = tmp_path / "17" / "20000" / "45000.png"
    save_picture(picture(1), path)
    scene = open_unlabelled(SceneFiles("i", "t", path, tile=locate_tile(path)))
    window = scene.image.read(PixelWindow(10, 20, 30, 40))
    np.testing.assert_array_equal(window.image, picture(1).transpose(2, 0, 1)[:, 10:40, 20:60])
    assert window.valid.all()
    # 156543.034 m at the equator, zoom 0, divided by 2^17 and shrunk by the cosine of the latitude; a little more,
    # for the ellipsoid's degree is longer there.
    latitude = np.degrees(np.arctan(np.sinh(np.pi * (1 - 2 * 45000.5 / 2**17))))
    assert scene.gsd_m == pytest.approx(156543.034 / 2**17 * np.cos(np.radians(latitude)), rel=3e-3)


@pytest.mark.parametrize(("content", "message"), [(b"", "cannot be read"), (None, "1 bands, red, green and blue")])
def test_a_tile_that_is_no_rgb_image_is_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "17" / "20000" / "45000.png"
    save_picture(picture(1)[..., 0], path)
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DatasetError, match=message):
        open_unlabelled(SceneFiles("i", "t", path, tile=locate_tile(path)))


def test_a_georeferenced_image_keeps_its_own_grid(tmp_path: Path) -> None:
    image = picture(5).transpose(2, 0, 1)
    path = make_raster(tmp_path / "a.tif", values=image, resolution=0.6)
    scene = open_unlabelled(SceneFiles("i", "a", path))
    assert scene.gsd_m == pytest.approx(0.6, rel=2e-3)
    assert scene.heights is None and scene.shift is None
    np.testing.assert_array_equal(scene.image.read(PixelWindow(0, 128, 256, 128)).image, image[:, :, 128:])


def stored(
    height_m: NDArray[np.floating], unit_m: float, dtype: str, *, unknown: float, offset_m: float = 0.0, **tags: Any
) -> dict[str, Any]:
    """Arguments of `make_raster` that store heights in a unit, with a value for unknown cells."""
    values = np.where(np.isnan(height_m), unknown, (height_m - offset_m) / unit_m)[None]
    return {"values": values, "dtype": dtype, "nodata": None, **tags}


CM, FEET, US_FEET = 0.01, 0.3048, 1200 / 3937

STORAGES: dict[str, Callable[[NDArray[np.floating]], dict[str, Any]]] = {
    "metres": lambda h: stored(h, 1, "float32", unknown=-9999, nodata=-9999),
    "centimetres by tag": lambda h: stored(h, CM, "uint16", unknown=65535, nodata=65535, units=["cm"]),
    "centimetres by nodata": lambda h: stored(h, CM, "uint16", unknown=65535, nodata=65535),
    "feet by tag": lambda h: stored(h, FEET, "float32", unknown=-9999, nodata=-9999, units=["ft"]),
    "US feet by tag": lambda h: stored(h, US_FEET, "float32", unknown=np.nan, units=["us-ft"]),
    "scaled integers": lambda h: stored(h, 0.02, "uint16", unknown=60000, nodata=60000, scales=[0.02]),
    "scaled with an offset": lambda h: stored(h, CM, "int16", unknown=-32768, nodata=-32768, scales=[CM],
                                              offsets=[-20.0], offset_m=-20.0),
    "a vertical CRS in feet": lambda h: stored(h, US_FEET, "float32", unknown=-9999, nodata=-9999,
                                               crs="EPSG:32611+6360"),
    "a vertical CRS in metres": lambda h: stored(h, 1, "float32", unknown=-9999, nodata=-9999, crs="EPSG:32611+5703"),
    "undeclared -9999": lambda h: stored(h, 1, "float32", unknown=-9999),
    "undeclared 65535": lambda h: stored(h, CM, "uint16", unknown=65535, units=["cm"]),
    "undeclared -32768": lambda h: stored(h, CM, "int16", unknown=-32768, units=["cm"]),
    "undeclared largest float": lambda h: stored(h, 1, "float32", unknown=np.finfo(np.float32).min),
    "NaN": lambda h: stored(h, 1, "float64", unknown=np.nan),
}  # fmt: skip


def chip_heights(config: DatasetConfig, out: Path) -> NDArray[np.float32]:
    build(config, out)
    return ChipStore.open(out).heights_m([0])[0]


@pytest.mark.parametrize("name", STORAGES)
def test_one_height_raster_makes_the_same_chips_however_it_is_stored(tmp_path: Path, name: str) -> None:
    truth = forest(32, 7, ORIGIN).chm_m.copy()
    truth[:6, :8] = np.nan
    arguments = STORAGES[name](truth)
    bands = {key: arguments.pop(key) for key in ("units", "scales", "offsets") if key in arguments}
    config = one_scene(tmp_path, **arguments)
    write_pair(forest(32, 7, ORIGIN), tmp_path / "pairs" / "a_1")
    with rasterio.open(tmp_path / "pairs/a_1/chm.tif", "r+") as raster:
        for key, value in bands.items():
            setattr(raster, key, value)
    heights = chip_heights(config, tmp_path / "store")[:32, :32]
    np.testing.assert_array_equal(np.isnan(heights), np.isnan(truth))
    # Centimetres in the store, and at most 2 cm of rounding in the file.
    np.testing.assert_allclose(heights, truth, atol=0.0151)


def test_two_bands_are_told_by_their_names(tmp_path: Path) -> None:
    """Heights in the second band, with something else first."""
    values = np.stack([np.full((64, 64), 3.0), np.full((64, 64), 12.0)])
    config = one_scene(tmp_path / "named", values=values, descriptions=["quality", "canopy_height"])
    heights = chip_heights(config, tmp_path / "store")
    np.testing.assert_array_equal(np.unique(heights[np.isfinite(heights)]), np.float32(12))
    with pytest.raises(DatasetError, match=r"none of 1 candidates.*chm\.tif has 2 bands"):
        build(one_scene(tmp_path / "unnamed", values=values), tmp_path / "none")


def test_integers_of_unknown_unit_are_refused_with_a_remedy_that_works(tmp_path: Path) -> None:
    """Shrubs of 1.2 m in centimetres are no trees of 120 m."""
    config = one_scene(tmp_path, values=np.full((1, 64, 64), 120.0), dtype="int16", nodata=-9999)
    with pytest.raises(DatasetError, match=r"its unit is unknown.*height_unit_m"):
        build(config, tmp_path / "none")
    source = config.sources["a"].model_copy(update={"height_unit_m": 0.01})
    heights = chip_heights(config.model_copy(update={"sources": {"a": source}}), tmp_path / "store")
    np.testing.assert_allclose(heights[np.isfinite(heights)], 1.2, atol=1e-4)


def test_a_unit_in_the_configuration_overrides_that_of_the_file(tmp_path: Path) -> None:
    config = one_scene(tmp_path, values=np.full((1, 64, 64), 100.0))
    source = config.sources["a"].model_copy(update={"height_unit_m": 0.3048})
    heights = chip_heights(config.model_copy(update={"sources": {"a": source}}), tmp_path / "store")
    np.testing.assert_allclose(heights[np.isfinite(heights)], 30.48, atol=1e-4)
