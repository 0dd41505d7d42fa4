from pathlib import Path
from typing import Any

import numpy as np
import pytest
from imagery_reading import SHAPE, X, Y, grid, read, stored
from rasters import make_raster

from canopy.errors import ImageryError
from canopy.imagery import open_imagery

# One scene in many containers.


@pytest.fixture(scope="module")
def scene() -> np.ndarray:
    """A scene of bytes (3, h, w), darker than half of their range."""
    return np.random.default_rng(0).integers(1, 121, (3, *SHAPE)).astype("uint8")


def with_few(values: np.ndarray, *, high: float, low: float) -> np.ndarray:
    """The same values but for a few beyond both ends, as cubic resampling leaves them."""
    few = values.copy()
    few[:, 3, 5], few[:, 40, 7] = high, low
    return few


CONTAINERS = {
    "uint16": ("uint16", lambda v: v.astype("uint16")),
    "int32": ("int32", lambda v: v.astype("int32")),
    "times 257": ("uint16", lambda v: v.astype("uint16") * 257),
    "times 256": ("uint16", lambda v: v.astype("uint16") * 256),
    "times 257, float": ("float32", lambda v: v.astype("float32") * 257),
    "float 0..255": ("float32", lambda v: v.astype("float32")),
    "float64 0..255": ("float64", lambda v: v.astype("float64")),
    "float 0..1": ("float32", lambda v: v.astype("float32") / np.float32(255)),
    "float 0..1, few beyond": ("float32", lambda v: with_few(v / np.float32(255), high=1.02, low=-0.01)),
    "float 0..255, few beyond": ("float32", lambda v: with_few(v.astype("float32"), high=260, low=-3)),
}


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("brightness", [1, 2])
def test_the_container_does_not_decide_the_picture(
    tmp_path: Path, scene: np.ndarray, container: str, brightness: int
) -> None:
    dtype, contain = CONTAINERS[container]
    values = scene * np.uint8(brightness)
    image = read(make_raster(tmp_path / "a.tif", dtype=dtype, values=contain(values)))
    same = np.ones(SHAPE, bool)
    same[3, 5] = same[40, 7] = "beyond" not in container
    np.testing.assert_allclose(image[:, same], (values / 255)[:, same], atol=1e-6)
    assert np.isfinite(image).all()


@pytest.mark.parametrize(
    "options",
    [
        {"alpha": np.indices(SHAPE)[1] > 30, "photometric": "RGB"},
        {"nodata": 0, "hole": 0},
        {"nodata": 7, "hole": 7},
        {"mask": np.indices(SHAPE)[1] > 30},
        {"near_infrared": True},
    ],
    ids=["alpha", "nodata 0", "nodata 7", "mask", "near-infrared"],
)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_alpha_nodata_and_infrared_do_not_change_the_picture(
    tmp_path: Path, scene: np.ndarray, dtype: str, options: dict[str, Any]
) -> None:
    options = dict(options)
    values = np.maximum(scene, 8)
    hole = np.zeros(SHAPE, bool)
    if "hole" in options:
        hole = np.indices(SHAPE)[1] <= 30
        values = np.where(hole, options.pop("hole"), values)
    elif "near_infrared" not in options:
        hole = np.indices(SHAPE)[1] <= 30
    if options.pop("near_infrared", False):
        values = np.concatenate([values, np.random.default_rng(1).integers(0, 255, (1, *SHAPE))])
        options = {"colorinterp": ["red", "green", "blue", "undefined"]}
    image = read(make_raster(tmp_path / "a.tif", dtype=dtype, values=values, **options))
    np.testing.assert_array_equal(np.isnan(image[0]), hole)
    np.testing.assert_allclose(image[:, ~hole], values[:3, ~hole] / 255, atol=1e-6)


def test_jpeg_gives_the_picture_within_its_own_loss(tmp_path: Path) -> None:
    path = make_raster(tmp_path / "png.tif", pattern="world")
    lossy = make_raster(tmp_path / "a.tif", pattern="world", compress="JPEG", photometric="YCBCR", JPEG_QUALITY=95)
    assert np.abs(read(lossy) - read(path)).mean() < 2 / 255


FILLS = [
    ("uint16", 65_535),
    *(("int16", fill) for fill in (-9999, -32_768, 32_767)),
    *((dtype, fill) for dtype in ("int32", "float32") for fill in (-9999, -32_768, 32_767, 65_535)),
]


@pytest.mark.parametrize(("dtype", "fill"), FILLS)
@pytest.mark.parametrize("factor", [1, 8])
def test_an_undeclared_fill_sets_no_range_and_is_unknown(tmp_path: Path, dtype: str, fill: int, factor: int) -> None:
    noise = np.random.default_rng(0).integers(1, 255, (3, *SHAPE)) * factor
    whole = open_imagery(make_raster(tmp_path / "whole.tif", dtype=dtype, values=noise))
    holed = noise.copy()
    holed[:, 30:50, 40:80] = fill
    source = open_imagery(make_raster(tmp_path / "a.tif", dtype=dtype, values=holed))
    assert source.rescale.low == pytest.approx(whole.rescale.low, abs=20 * (factor - 1))
    assert source.rescale.high == pytest.approx(whole.rescale.high, rel=0.01)
    unknown = np.isnan(source.read(grid()).values)
    assert unknown[:, 30:50, 40:80].all() and unknown.sum() == 3 * 20 * 40


def test_a_saturated_value_inside_the_range_is_white(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(1000, 65_535, (3, *SHAPE))
    values[:, 40:42, 40:60] = 65_535
    image = read(make_raster(tmp_path / "a.tif", dtype="uint16", values=values))
    assert (image[:, 40:42, 40:60] == 1).all() and np.isfinite(image).all()


def test_floats_that_use_half_of_the_byte_range_are_bytes(tmp_path: Path) -> None:
    values = np.random.default_rng(0).uniform(2, 250, (3, *SHAPE))
    image = read(make_raster(tmp_path / "a.tif", dtype="float32", values=values))
    np.testing.assert_allclose(image, values / 255, rtol=1e-6)


def test_16_bit_values_that_use_half_of_their_range_are_display_values(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(1000, 60_000, (3, *SHAPE))
    image = read(make_raster(tmp_path / "a.tif", dtype="uint16", values=values))
    np.testing.assert_allclose(image, values / 65_535, rtol=1e-6)


def test_a_stretch_is_repeated_by_its_option(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    for number, factor in enumerate((8, 5)):
        make_raster(
            folder / f"{number}.tif", dtype="uint16", pattern="noise", factor=factor, origin=(X + 64 * number, Y)
        )
    both, alone = open_imagery(folder), open_imagery(folder / "1.tif")
    assert both.rescale.stretched and both.rescale != alone.rescale
    low, high = (float(text) for text in both.rescale.scale_option.split(","))
    again = open_imagery(folder / "1.tif", scale=(low, high))
    geobox = grid(origin=(X + 64, Y))
    np.testing.assert_array_equal(again.read(geobox), both.read(geobox))
    assert "--scale" in both.describe()


def rule(path: Path, **options: Any) -> Any:
    return open_imagery(path, **options).rescale


def test_8_bit_values_whatever_their_type(tmp_path: Path) -> None:
    for dtype in ("uint8", "uint16", "int16", "uint32"):
        rescale = rule(make_raster(tmp_path / f"{dtype}.tif", dtype=dtype))
        assert (rescale.low, rescale.high) == (0, 255)


def test_11_bit_values_are_stretched_together(tmp_path: Path) -> None:
    path = make_raster(tmp_path / "a.tif", dtype="uint16", pattern="noise", factor=8, shape=(300, 300))
    rescale = rule(path)
    values = stored(path)
    low, high = np.percentile(values, [0.5, 99.5])
    assert (low - rescale.low) / (rescale.high - rescale.low) == pytest.approx(0.02, abs=0.005)
    assert (high - rescale.low) / (rescale.high - rescale.low) == pytest.approx(0.98, abs=0.005)
    expected = np.clip((values - rescale.low) / (rescale.high - rescale.low), 0, 1)
    np.testing.assert_allclose(read(path, grid((300, 300))), expected, atol=1e-6)


def test_float_reflectance(tmp_path: Path) -> None:
    dark = rule(make_raster(tmp_path / "a.tif", dtype="float32", pattern="noise", factor=0.1 / 255))
    assert dark.high == pytest.approx(0.1, abs=0.01)
    display = rule(make_raster(tmp_path / "b.tif", dtype="float32", pattern="noise", factor=1 / 255))
    assert (display.low, display.high) == (0, 1)


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        *((dtype, value) for dtype in ("uint16", "int16", "float32") for value in (0, 1, 300, 2047, 30_000)),
        *((dtype, -5) for dtype in ("int16", "float32")),
    ],
)
def test_a_constant_image_has_a_range(tmp_path: Path, dtype: str, value: int) -> None:
    path = make_raster(tmp_path / "a.tif", dtype=dtype, values=np.full((3, *SHAPE), value))
    assert rule(path).high > rule(path).low
    image = read(path)
    # An image all black or all white is a collar throughout.
    empty = value == 0 or (dtype == "float32" and value == 1)
    assert np.isnan(image).all() if empty else ((image >= 0) & (image <= 1)).all()


def test_water_is_not_stretched_to_noise(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(100, 131, (3, *SHAPE)) * 4
    image = read(make_raster(tmp_path / "a.tif", dtype="uint16", values=values))
    assert image.max() - image.min() < 0.5


def test_scale_is_as_asked(tmp_path: Path) -> None:
    path = make_raster(tmp_path / "a.tif", dtype="uint16", pattern="constant")
    image = read(path, scale=(50, 150))
    np.testing.assert_allclose(image[:, 0, 0], [0, 0.5, 1])
    with pytest.raises(ImageryError, match="correct --scale"):
        open_imagery(path, scale=(5, 5))
