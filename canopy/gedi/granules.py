"""One GEDI granule: the layouts of L2A and L2B, V001 and V002, whole or clipped, as a table of shots.

Fields that a file lacks are null, never invented. Heights are metres above the ground that the waveform shows.
"""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from canopy.errors import LidarError, one_line

Columns = dict[str, NDArray[Any]]

EPOCH = np.datetime64("2018-01-01T00:00:00", "ns")
"""Zero of delta_time, which counts seconds."""
RH_PERCENTS = (25, 50, 75, 90, 95, 98, 100)
"""Relative heights that are read: rh98 is the height below which 98 % of the energy returns."""
_SLICE_SHOTS = 50_000
_FILL = -9990.0
"""Numbers at or below mean "no value" in every field of the products."""

# Column of the table: dataset of a beam.
_L2A = {
    "quality": "quality_flag",
    "degrade": "degrade_flag",
    "surface_flag": "surface_flag",
    "sensitivity": "sensitivity",
    "sensitivity_a2": "geolocation/sensitivity_a2",
    "elevation_m": "elev_lowestmode",
    "dem_m": "digital_elevation_model",
    "solar_elevation": "solar_elevation",
    "tree_cover_percent": "land_cover_data/landsat_treecover",
    "leaf_off": "land_cover_data/leaf_off_flag",
    "water_percent": "land_cover_data/landsat_water_persistence",
    "urban_percent": "land_cover_data/urban_proportion",
}
_L2B = {
    **_L2A,
    "quality": "l2b_quality_flag",
    "sensitivity_a2": "",
    "degrade": "geolocation/degrade_flag",
    "elevation_m": "geolocation/elev_lowestmode",
    "dem_m": "geolocation/digital_elevation_model",
    "solar_elevation": "geolocation/solar_elevation",
    "cover": "cover",
    "pai": "pai",
}
_COORDINATE_GROUPS = {"GEDI_L2A": "", "GEDI_L2B": "geolocation/"}
NUMBERS = tuple(dict.fromkeys([*(f"rh{n}" for n in RH_PERCENTS), *_L2A, "cover", "pai"]))
"""Columns of numbers, null where a file lacks them."""


def read_granule(path: Path) -> pd.DataFrame:
    """Return all shots of a file.

    Raises:
        LidarError: The file is damaged, or is another product.
    """
    try:
        with h5py.File(path) as opened:
            product = _product(path, opened)
            beams = [_beam(opened[name], name, product) for name in sorted(opened) if name.startswith("BEAM")]
            version = _version(path, opened)
    except (OSError, KeyError, RuntimeError, ValueError) as error:
        raise LidarError(f"{path}: damaged or not HDF5: {one_line(error, 200)}") from error
    tables = [pd.DataFrame(columns) for columns in beams if columns]
    if not tables:
        raise LidarError(f"{path}: no beam with shots and coordinates; GEDI L2A or L2B expected")
    return pd.concat(tables, ignore_index=True).assign(granule=path.name, product=product[5:], version=version)


def _product(path: Path, opened: h5py.File) -> str:
    """Return the product's short name."""
    name = opened.attrs.get("short_name", b"")
    name = name[0] if isinstance(name, np.ndarray) else name
    product = name.decode() if isinstance(name, bytes) else str(name)
    if product not in _COORDINATE_GROUPS:
        raise LidarError(f"{path}: product {product or 'unknown'!r}; GEDI_L2A or GEDI_L2B expected")
    return product


def _version(path: Path, opened: h5py.File) -> str:
    """Return V001 or V002, by the file's name or by the fields that only V002 has."""
    if "_V002" in path.name:
        return "V002"
    later = any("leaf_off_flag" in opened[beam].get("land_cover_data", {}) for beam in opened if beam[:4] == "BEAM")
    return "V002" if later else "V001"


def _beam(group: h5py.Group, name: str, product: str) -> Columns:
    """Return the columns of a beam; none where it has no shots with coordinates."""
    prefix = _COORDINATE_GROUPS[product]
    lat, lon = f"{prefix}lat_lowestmode", f"{prefix}lon_lowestmode"
    if "shot_number" not in group or lat not in group:
        return {}
    count = len(group["shot_number"])
    text = group.attrs.get("description", b"")
    text = text[0] if isinstance(text, np.ndarray) else text
    full = "full power" in (text.decode() if isinstance(text, bytes) else str(text)).lower()
    fields = _L2A if product == "GEDI_L2A" else _L2B
    time = "delta_time" if "delta_time" in group else f"{prefix}delta_time"
    columns: Columns = {
        "shot_number": group["shot_number"][()].astype(np.uint64),
        "beam": np.full(count, name),
        "power": np.full(count, full),
        "time": EPOCH + np.round(group[time][()] * 1e9).astype("timedelta64[ns]"),
        "lat": group[lat][()].astype(np.float64),
        "lon": group[lon][()].astype(np.float64),
    }
    for column in NUMBERS:
        columns[column] = np.full(count, np.nan, np.float32)
    columns |= {c: _numbers(group[field]) for c, field in fields.items() if field and field in group}
    return columns | _heights(group, product)


def _heights(group: h5py.Group, product: str) -> Columns:
    """Return relative heights in metres: all of L2A's, RH100 of L2B, which is stored in centimetres."""
    if product == "GEDI_L2B":
        rh100 = group["rh100"]
        return {"rh100": _numbers(rh100) * np.float32(0.01 if rh100.dtype.kind in "iu" else 1)}
    rh = group["rh"]
    # In slices: h5py reads single columns of a large dataset many times slower than rows.
    parts = [rh[first : first + _SLICE_SHOTS][:, list(RH_PERCENTS)] for first in range(0, len(rh), _SLICE_SHOTS)]
    heights = np.concatenate(parts).astype(np.float32)
    heights[heights <= _FILL] = np.nan
    return {f"rh{n}": heights[:, k] for k, n in enumerate(RH_PERCENTS)}


def _numbers(dataset: h5py.Dataset) -> NDArray[np.float32]:
    """Return the values of a dataset, NaN where it has none."""
    values: NDArray[np.float32] = np.asarray(dataset[()], np.float32).copy()
    values[values <= _FILL] = np.nan
    return values
