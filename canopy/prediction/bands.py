"""Images in memory in the forms that users have them: brought to (band=3, y, x) with a CRS, or refused with advice."""

from collections.abc import Sequence
from typing import Any

import xarray as xr
from rioxarray.exceptions import RioXarrayError

from canopy.errors import ImageryError, one_line

COLOURS = ("red", "green", "blue")
_KINDS = "uif"


def as_rgb(image: Any, bands: Sequence[int] | None = None) -> xr.DataArray:
    """Return an image as (band=3, y, x).

    Args:
        image: DataArray or Dataset of xarray, with a CRS as rioxarray reads it.
        bands: 1-based numbers of the red, green and blue band.

    Raises:
        ImageryError: It is something else; the message says what to do.
    """
    if isinstance(image, xr.Dataset):
        image = _from_dataset(image, bands)
    if not isinstance(image, xr.DataArray):
        raise ImageryError(
            f"image of type {type(image).__name__}: an xarray.DataArray with a CRS expected, such as "
            "rioxarray.open_rasterio('scene.tif'); a tensor of chips goes to canopy.load_model().predict"
        )
    array = _three_dimensions(image)
    if array.dtype.kind not in _KINDS:
        raise ImageryError(f"image of type {array.dtype}: integers or floats expected")
    if 0 in array.shape:
        raise ImageryError(f"image of shape {array.shape} has no pixels")
    if array.rio.crs is None:
        raise ImageryError(f"image of shape {array.shape} without a CRS: set it with image.rio.write_crs('EPSG:n')")
    return _chosen(array, bands)


def _from_dataset(dataset: xr.Dataset, bands: Sequence[int] | None) -> xr.DataArray:
    """Return the colours of a dataset: its variables red, green and blue, or its one variable."""
    names = {str(name).lower(): name for name in dataset.data_vars}
    if bands is None and set(COLOURS) <= set(names):
        variables = [names[colour] for colour in COLOURS]
    elif len(names) == 1:
        return dataset[next(iter(names.values()))]
    elif bands is not None:
        variables = list(dataset.data_vars)
    else:
        raise ImageryError(
            f"dataset with the variables {', '.join(map(str, dataset.data_vars)) or 'none'}: red, green and blue "
            "expected; pass one with three bands (dataset['name']), or their numbers with bands=(3, 2, 1)"
        )
    array = dataset[variables].to_dataarray("band")
    crs = dataset.rio.crs
    return array if crs is None else array.rio.write_crs(crs)


def _three_dimensions(image: xr.DataArray) -> xr.DataArray:
    """Return an image with the dimensions band, y, x in that order; those of length 1 in front are dropped."""
    try:
        y, x = image.rio.y_dim, image.rio.x_dim
    except RioXarrayError as error:
        raise ImageryError(
            f"image with the dimensions {_listed(image)}: y and x expected ({one_line(error, 120)}); "
            "name them with image.rename or image.rio.set_spatial_dims"
        ) from error
    others = [name for name in image.dims if name not in (y, x)]
    long = [name for name in others if image.sizes[name] > 1]
    if len(long) > 1:
        first = others[0]
        raise ImageryError(
            f"image with the dimensions {_listed(image)}: (band, y, x) expected; take one image at a time, such as "
            f"image.isel({first}=0)"
        )
    band = long[0] if long else (others[-1] if others else None)
    if band is None:
        raise ImageryError(f"image with the dimensions {_listed(image)}: three bands (band, y, x) expected")
    single = {name: 0 for name in others if name != band}
    return image.isel(single, drop=True).transpose(band, y, x)


def _chosen(array: xr.DataArray, bands: Sequence[int] | None) -> xr.DataArray:
    """Return the three bands that are red, green and blue."""
    count = array.shape[0]
    if bands is None:
        if count != 3:
            raise ImageryError(
                f"image of {count} band(s): 3 expected, red, green and blue; say which they are with bands=(1, 2, 3)"
            )
        return array
    if not all(1 <= band <= count for band in bands):
        raise ImageryError(f"bands {tuple(bands)}: numbers from 1 to {count} expected")
    return array.isel({array.dims[0]: [band - 1 for band in bands]})


def _listed(image: xr.DataArray) -> str:
    return "(" + ", ".join(f"{name}: {size}" for name, size in image.sizes.items()) + ")"
