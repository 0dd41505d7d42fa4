"""A factory of small rasters with known content."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from pyproj import Transformer
from rasterio import Affine
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import DatasetWriter

UTM = "EPSG:32631"
ORIGIN = (500_000.0, 5_000_000.0)
LEVELS = (50.0, 100.0, 150.0)
WAVE_M = 40.0


def world(lon: NDArray[np.float64], lat: NDArray[np.float64]) -> NDArray[np.float64]:
    """A smooth function of place: degrees to (3, ...) values in 20..230, waves of about 40 ground metres."""
    metres_per_degree = 111_320.0
    k = 2 * np.pi / WAVE_M
    east, north = lon * metres_per_degree * np.cos(np.radians(45)) * k, lat * metres_per_degree * k
    return np.stack([125 + 105 * np.sin(east), 125 + 105 * np.cos(north), 125 + 50 * np.sin(east) + 50 * np.cos(north)])


def world_values(crs: str, transform: Affine, shape: tuple[int, int]) -> NDArray[np.float64]:
    """`world` at the pixel centres of a grid, (3, height, width)."""
    cols, rows = np.meshgrid(np.arange(shape[1]) + 0.5, np.arange(shape[0]) + 0.5)
    a = transform
    xs, ys = a.a * cols + a.b * rows + a.c, a.d * cols + a.e * rows + a.f
    return world(*Transformer.from_crs(crs, "OGC:CRS84", always_xy=True).transform(xs, ys))


def pattern_values(
    pattern: str, bands: int, shape: tuple[int, int], crs: str | None, transform: Affine
) -> NDArray[np.float64]:
    """A named pattern, (bands, height, width): `constant`, `gradient`, `noise` or `world`."""
    height, width = shape
    if pattern == "world":
        rgb = world_values(crs or UTM, transform, shape)
    elif pattern == "constant":
        rgb = np.broadcast_to(np.array(LEVELS)[:, None, None], (3, height, width))
    elif pattern == "gradient":
        ramp = 1 + (np.arange(height)[:, None] * width + np.arange(width)) % 250
        rgb = np.stack([ramp, ramp[:, ::-1], ramp[::-1]])
    elif pattern == "noise":
        rgb = np.random.default_rng(0).integers(1, 255, (3, height, width)).astype(float)
    else:
        raise ValueError(f"no pattern {pattern}")
    return np.concatenate([rgb, *[rgb[:1]] * max(0, bands - 3)])[:bands]


def make_raster(
    path: Path,
    *,
    crs: str | None = UTM,
    origin: tuple[float, float] = ORIGIN,
    resolution: float | tuple[float, float] = 0.5,
    transform: Affine | None = None,
    shape: tuple[int, int] = (96, 128),
    dtype: str = "uint8",
    bands: int = 3,
    pattern: str = "gradient",
    values: NDArray[Any] | None = None,
    factor: float = 1.0,
    nodata: float | None = None,
    mask: NDArray[np.bool_] | None = None,
    alpha: NDArray[np.bool_] | None = None,
    colorinterp: Sequence[str] | None = None,
    descriptions: Sequence[str] | None = None,
    colormap: dict[int, tuple[int, int, int, int]] | None = None,
    gcps: bool = False,
    scales: Sequence[float] | None = None,
    offsets: Sequence[float] | None = None,
    tags: dict[str, str] | None = None,
    **options: Any,
) -> Path:
    """Write a raster.

    Args:
        path: Name of the raster; its folder is created.
        crs: CRS; None for none.
        origin: X and y of the top left corner, in CRS units.
        resolution: Pixel size in CRS units, (x, y) where they differ; a negative y is south-up.
        transform: In place of origin and resolution; the identity for none.
        shape: Rows, columns.
        dtype: Type of the values.
        bands: Colour bands; the alpha band comes on top.
        pattern: See `pattern_values`.
        values: (bands, height, width), in place of a pattern.
        factor: Multiplies the pattern.
        nodata: Declared nodata value.
        mask: (height, width) per-dataset mask, True where valid.
        alpha: (height, width) alpha band, True where opaque.
        colorinterp: Names of `rasterio.enums.ColorInterp`, one a band.
        descriptions: Band names.
        colormap: Colour table of band 1.
        gcps: Place the raster by five ground control points and no transform.
        scales: Scale tag of each colour band.
        offsets: Offset tag of each colour band.
        tags: Dataset tags.
        options: Creation options.
    """
    x_step, y_step = resolution if isinstance(resolution, tuple) else (resolution, resolution)
    placed = transform or Affine(x_step, 0, origin[0], 0, -y_step, origin[1])
    if values is None:
        values = factor * pattern_values(pattern, bands, shape, crs, placed)
    values = values if np.dtype(dtype).kind in "fc" else np.round(values)
    height, width = values.shape[1:]
    profile = {
        "driver": "GTiff",
        "height": height,
        "width": width,
        "dtype": dtype,
        "nodata": nodata,
    } | options
    profile["count"] = len(values) + (alpha is not None)
    if not gcps:
        profile |= {"crs": crs} if placed == Affine.identity() else {"crs": crs, "transform": placed}
    path.parent.mkdir(parents=True, exist_ok=True)
    with quiet(), rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "w", **profile) as dataset:
        dataset.write(values.astype(dtype), list(range(1, len(values) + 1)))
        _describe(dataset, colorinterp, descriptions, colormap)
        if alpha is not None:
            dataset.write((alpha * 255).astype(dtype), len(values) + 1)
            dataset.colorinterp = [*dataset.colorinterp[:-1], ColorInterp.alpha]
        if mask is not None:
            dataset.write_mask(mask)
        if gcps:
            dataset.gcps = (_corner_gcps(placed, values.shape[1:]), rasterio.CRS.from_user_input(crs))
        if scales is not None:
            dataset.scales = scales
        if offsets is not None:
            dataset.offsets = offsets
        dataset.update_tags(**(tags or {}))
    return path


@contextmanager
def quiet() -> Iterator[None]:
    """Silence rasterio's warning on a raster without georeference."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


def _describe(
    dataset: DatasetWriter,
    colorinterp: Sequence[str] | None,
    descriptions: Sequence[str] | None,
    colormap: dict[int, tuple[int, int, int, int]] | None,
) -> None:
    if colorinterp is not None:
        dataset.colorinterp = [ColorInterp[name] for name in colorinterp]
    if descriptions is not None:
        dataset.descriptions = tuple(descriptions)
    if colormap is not None:
        dataset.write_colormap(1, colormap)


def _corner_gcps(transform: Affine, shape: tuple[int, ...]) -> list[GroundControlPoint]:
    height, width = shape
    pixels = [(0, 0), (0, width), (height, 0), (height, width), (height / 2, width / 2)]
    return [GroundControlPoint(row, col, *(transform @ (col, row))) for row, col in pixels]
