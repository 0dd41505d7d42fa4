"""Images in memory in the forms that users have them."""

from typing import Any

import numpy as np
import pytest
import rioxarray  # noqa: F401 - registers the accessor
import xarray as xr

from canopy.errors import ImageryError
from canopy.prediction.bands import as_rgb


def image(bands: int = 3, crs: str | None = "EPSG:32612", dtype: str = "uint8") -> xr.DataArray:
    values = np.arange(bands * 4 * 5).reshape(bands, 4, 5).astype(dtype)
    array = xr.DataArray(values, {"y": 4900000 - 0.5 * np.arange(4), "x": 0.5 * np.arange(5)}, ("band", "y", "x"))
    return array if crs is None else array.rio.write_crs(crs)


def test_dimensions_of_length_one_in_front_are_dropped() -> None:
    stacked = image().expand_dims({"time": 1})
    assert stacked.shape == (1, 3, 4, 5)
    xr.testing.assert_identical(as_rgb(stacked).drop_vars("time", errors="ignore"), image())


def test_bands_behind_y_and_x_come_to_the_front() -> None:
    np.testing.assert_array_equal(as_rgb(image().transpose("y", "x", "band")).values, image().values)


def test_named_bands_are_taken_in_their_order() -> None:
    np.testing.assert_array_equal(as_rgb(image(4), (3, 2, 1)).values, image(4).values[[2, 1, 0]])


def test_a_dataset_has_colours_or_one_variable_with_them() -> None:
    rgb = image()
    colours = xr.Dataset({name: rgb[number].drop_vars("band", errors="ignore") for number, name in
                          ((2, "Blue"), (0, "red"), (1, "green"))})  # fmt: skip
    np.testing.assert_array_equal(as_rgb(colours).values, rgb.values)
    np.testing.assert_array_equal(as_rgb(xr.Dataset({"scene": rgb})).values, rgb.values)
    np.testing.assert_array_equal(as_rgb(colours.rename(red="a"), (2, 3, 1)).values, rgb.values)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (np.zeros((3, 4, 5)), r"ndarray.*xarray.DataArray with a CRS expected"),
        (None, "NoneType"),
        (image(crs=None), r"without a CRS: set it with image.rio.write_crs"),
        (image(1), r"1 band\(s\): 3 expected"),
        (image(4), r"4 band\(s\).*bands=\(1, 2, 3\)"),
        (image()[0], r"three bands"),
        (xr.concat([image(), image()], "time"), r"image.isel\(time=0\)"),
        (image().rename(y="row", x="column"), "y and x expected"),
        (image(dtype="complex64"), "complex64: integers or floats"),
        (image() > 3, "bool"),
        (image()[:, :0], "no pixels"),
        (xr.Dataset({"a": image()[0], "b": image()[1]}), r"variables a, b.*red, green and blue"),
        (xr.Dataset(), "variables none"),
    ],
)
def test_anything_else_is_refused_with_advice(value: Any, reason: str) -> None:
    with pytest.raises(ImageryError, match=reason):
        as_rgb(value)


@pytest.mark.parametrize("bands", [(0, 1, 2), (1, 2, 4)])
def test_bands_that_do_not_exist_are_refused(bands: tuple[int, int, int]) -> None:
    with pytest.raises(ImageryError, match="numbers from 1 to 3"):
        as_rgb(image(), bands)
