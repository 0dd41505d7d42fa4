"""One GEDI granule: the layouts of L2A and L2B, V001 to V003, whole or clipped, as a table of shots.

A file from outside is believed as little as possible: fields are known by any of their names, fill values are those
that a dataset declares, shapes and sizes are checked before a value is read, and a beam that cannot be used is named
while the others are read. Fields that a file lacks are null, never invented. Heights are metres above the ground that
the waveform shows.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
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
POWER_BEAMS = ("BEAM0101", "BEAM0110", "BEAM1000", "BEAM1011")
"""Full-power beams. The name decides: not every file describes its beams."""
MAX_SHOTS = 4_000_000
"""Most shots of a beam; a whole granule has some 200,000."""
MAX_EXPANSION = 2_000
"""Largest ratio of values to the bytes that store them: deflate reaches 1,032."""

_RH_LEVELS = 101
_SLICE_SHOTS = 50_000
_SMALL_BYTES = 16 * 2**20
_MAX_CHUNK_BYTES = 256 * 2**20
_FILL = -9990.0
"""Numbers at or below mean "no value" in every field of the products."""
_LATEST_S = 4e9
"""Times beyond are no times."""

# Column of the table: names of its dataset in a beam, the newest first. V003 has most of L2B's `geolocation` one group
# higher, and its root `quality_flag`, where there is one, is another flag.
_QUALITY: dict[str, tuple[str, ...]] = {
    "L2A": ("l2a_quality_flag_rel3", "quality_flag"),
    "L2B": ("l2b_quality_flag_rel3", "l2b_quality_flag"),
}
_FIELDS: dict[str, tuple[str, ...]] = {
    "degrade": ("degrade_flag", "geolocation/degrade_flag"),
    "surface_flag": ("surface_flag",),
    "sensitivity": ("sensitivity",),
    "sensitivity_a2": ("geolocation/sensitivity_a2",),
    "elevation_m": ("elev_lowestmode", "geolocation/elev_lowestmode"),
    "dem_m": ("digital_elevation_model", "geolocation/digital_elevation_model"),
    "solar_elevation": ("solar_elevation", "geolocation/solar_elevation"),
    "tree_cover_percent": ("land_cover_data/landsat_treecover",),
    "leaf_off": ("land_cover_data/leaf_off_flag",),
    "water_percent": ("land_cover_data/landsat_water_persistence",),
    "urban_percent": ("land_cover_data/urban_proportion",),
    "pft": ("land_cover_data/pft_class",),
}
_L2B_FIELDS: dict[str, tuple[str, ...]] = {"cover": ("cover",), "pai": ("pai",)}
_COORDINATES = {name: (f"{name}_lowestmode", f"geolocation/{name}_lowestmode") for name in ("lat", "lon")}
_MARKS = {
    "L1B": ("rxwaveform",), "L4A": ("agbd",), "L4C": ("wsci",), "L2A": ("rh",), "L2B": ("cover", "rh100"),
}  # fmt: skip
"""Fields that only one product has, those of foreign ones first."""
_TIMES = ("delta_time", "geolocation/delta_time")
NUMBERS = tuple(dict.fromkeys([*(f"rh{n}" for n in RH_PERCENTS), "quality", *_FIELDS, *_L2B_FIELDS]))
"""Columns of numbers, null where a file lacks them."""
_HDF5_ERRORS = (ArithmeticError, AttributeError, LookupError, MemoryError, OSError, RuntimeError, TypeError, ValueError)
"""Whatever h5py raises on a damaged file."""


@dataclass(frozen=True)
class Granule:
    """Shots of one file."""

    shots: pd.DataFrame
    """One row a shot."""
    faults: tuple[str, ...]
    """Parts of the file that could not be used, each with its reason in one line."""


def read_granule(path: Path) -> Granule:
    """Return all shots of a file.

    Raises:
        LidarError: The file is missing or damaged, another product, or has no beam that can be used.
    """
    if not path.is_file():
        raise LidarError(f"{path}: no such file; a GEDI L2A or L2B granule expected")
    tables: list[pd.DataFrame] = []
    faults: list[str] = []
    try:
        with h5py.File(path) as opened:
            product = _product(path, opened)
            version = _version(path, opened)
            for name in sorted(key for key in opened if key.startswith("BEAM")):
                try:
                    columns = _Beam(opened[name], name, product, path.stat().st_size).columns(faults)
                except _FaultError as error:
                    faults.append(f"{path}, {name}: {error}")
                except _HDF5_ERRORS as error:
                    faults.append(f"{path}, {name}: damaged: {one_line(error, 200)}")
                else:
                    tables.append(pd.DataFrame(columns))
    except _HDF5_ERRORS as error:
        raise LidarError(f"{path}: damaged or not HDF5: {one_line(error, 200)}") from error
    shots = [table for table in tables if len(table)]
    if not shots:
        reason = f" ({faults[0]})" if faults else ""
        raise LidarError(f"{path}: no beam with shots and coordinates{reason}; GEDI L2A or L2B expected")
    table = pd.concat(shots, ignore_index=True).assign(granule=path.name, product=product, version=version)
    return Granule(table, tuple(faults))


def quality_names(product: str) -> tuple[str, ...]:
    """Return the names of a product's quality flag."""
    return _QUALITY[product]


def dataset_names(product: str) -> tuple[str, ...]:
    """Return the names within a beam of all datasets that are read of a product, in any of its versions."""
    fields = {**_FIELDS, **(_L2B_FIELDS if product == "L2B" else {}), **_COORDINATES, "quality": _QUALITY[product]}
    heights = ("rh",) if product == "L2A" else ("rh100",)
    names = ("shot_number", "geolocation/shot_number", *_TIMES, *heights)
    return tuple(dict.fromkeys([*names, *(name for candidates in fields.values() for name in candidates)]))


def _product(path: Path, opened: h5py.File) -> str:
    """Return L2A or L2B, by the fields that the beams have.

    The file's own `short_name` is not read: clips lack it, and a damaged string of variable length makes HDF5 loop.
    """
    beams = [opened[key] for key in opened if key.startswith("BEAM") and isinstance(opened[key], h5py.Group)]
    if not beams:
        raise LidarError(f"{path}: no beams; GEDI L2A or L2B expected")
    for product, fields in _MARKS.items():
        if any(field in beam for beam in beams for field in fields):
            if product not in _QUALITY:
                raise LidarError(f"{path}: product GEDI_{product}; GEDI_L2A or GEDI_L2B expected")
            return product
    raise LidarError(f"{path}: beams without {' or '.join(_MARKS['L2A'] + _MARKS['L2B'])}; GEDI L2A or L2B expected")


def _version(path: Path, opened: h5py.File) -> str:
    """Return V001, V002, ...: by the file's name, or by the fields that came with a version."""
    if named := re.search(r"_V(\d{3})\b", path.name):
        return f"V{named[1]}"
    beams = [opened[key] for key in opened if key.startswith("BEAM") and isinstance(opened[key], h5py.Group)]
    if any(name in beam for beam in beams for name in ("l2a_quality_flag_rel3", "l2b_quality_flag_rel3")):
        return "V003"
    return "V002" if any("land_cover_data/leaf_off_flag" in beam for beam in beams) else "V001"


class _FaultError(Exception):
    """A beam cannot be used."""


class _Beam:
    """A beam's datasets, each checked before it is read."""

    def __init__(self, group: Any, name: str, product: str, file_bytes: int) -> None:
        if not isinstance(group, h5py.Group):
            raise _FaultError("a dataset in place of a group")
        self._group, self._name, self._product, self._file_bytes = group, name, product, file_bytes
        numbers = self._first(("shot_number", "geolocation/shot_number"))
        self._count = 0 if numbers is None or not numbers.shape else int(numbers.shape[0])
        if self._count > MAX_SHOTS:
            raise _FaultError(f"{self._count:,} shots; at most {MAX_SHOTS:,} expected")

    def columns(self, faults: list[str]) -> Columns:
        """Return the columns of the table; empty ones where the beam has no shots.

        Args:
            faults: List to which columns are added that exist but cannot be used.
        """
        count = self._count
        columns: Columns = {name: np.full(count, np.nan, np.float32) for name in NUMBERS}
        if not count:
            return columns
        columns["shot_number"] = self._shot_numbers()
        columns["beam"], columns["power"] = np.full(count, self._name), np.full(count, self._name in POWER_BEAMS)
        for name, candidates in _COORDINATES.items():
            columns[name] = _numbers(self._required(candidates, (count,))).astype(np.float64)
        columns["time"] = self._times()
        fields = {"quality": _QUALITY[self._product], **_FIELDS, **(_L2B_FIELDS if self._product == "L2B" else {})}
        for column, names in fields.items():
            dataset = self._first(names)
            if dataset is None:
                continue
            try:
                columns[column] = _numbers(self._checked(dataset, (count,))).astype(np.float32)
            except _FaultError as error:
                faults.append(f"{self._group.file.filename}, {self._name}: {error}; read as absent")
        if self._product == "L2B":
            return columns | self._rh100()
        return columns | self._heights(self._required(("rh",), (count, _RH_LEVELS)))

    def _shot_numbers(self) -> NDArray[np.uint64]:
        dataset = self._required(("shot_number", "geolocation/shot_number"), (self._count,))
        if dataset.dtype.kind not in "iu":
            raise _FaultError(f"shot_number is {dataset.dtype}; whole numbers expected")
        return np.asarray(dataset[()], np.uint64)

    def _times(self) -> NDArray[np.datetime64]:
        """Return the moments of the shots, not a time where the file has none."""
        times = np.full(self._count, np.datetime64("NaT"), "datetime64[ns]")
        dataset = self._first(_TIMES)
        if dataset is not None:
            seconds = _numbers(self._checked(dataset, (self._count,)))
            real = np.isfinite(seconds) & (np.abs(seconds) < _LATEST_S)
            times[real] = EPOCH + np.round(seconds[real] * 1e9).astype("timedelta64[ns]")
        return times

    def _heights(self, rh: h5py.Dataset) -> Columns:
        """Return relative heights of L2A in metres."""
        # In slices: h5py reads single columns of a large dataset many times slower than rows.
        starts = range(0, self._count, _SLICE_SHOTS)
        parts = [np.asarray(rh[first : first + _SLICE_SHOTS])[:, list(RH_PERCENTS)] for first in starts]
        heights_m = _without_fill(np.concatenate(parts), rh).astype(np.float32)
        return {f"rh{n}": heights_m[:, k] for k, n in enumerate(RH_PERCENTS)}

    def _rh100(self) -> Columns:
        """Return RH100 of L2B in metres; where it is stored in whole numbers those are centimetres."""
        dataset = self._first(("rh100",))
        if dataset is None:
            return {}
        scale = 0.01 if dataset.dtype.kind in "iu" else 1.0
        return {"rh100": (_numbers(self._checked(dataset, (self._count,))) * scale).astype(np.float32)}

    def _first(self, candidates: Sequence[str]) -> h5py.Dataset | None:
        """Return the first dataset of those names; None if there is none."""
        for name in candidates:
            if name in self._group and isinstance(dataset := self._group[name], h5py.Dataset):
                return dataset
        return None

    def _required(self, candidates: Sequence[str], shape: tuple[int, ...]) -> h5py.Dataset:
        dataset = self._first(candidates)
        if dataset is None:
            raise _FaultError(f"{candidates[0]} is absent")
        return self._checked(dataset, shape)

    def _checked(self, dataset: h5py.Dataset, shape: tuple[int, ...]) -> h5py.Dataset:
        """Return a dataset that can be read: numbers of that shape, in this file, no more than its bytes can store."""
        name = dataset.name.partition(f"/{self._name}/")[2] or dataset.name
        if dataset.shape != shape:
            raise _FaultError(f"{name} is {dataset.shape}; {shape} expected")
        if dataset.dtype.kind not in "iufb":
            raise _FaultError(f"{name} is {dataset.dtype}; numbers expected")
        if dataset.is_virtual or dataset.external or dataset.file.filename != self._group.file.filename:
            raise _FaultError(f"{name} lies in another file; one whole file expected")
        stored = min(int(dataset.id.get_storage_size()), self._file_bytes)
        need = dataset.size * dataset.dtype.itemsize
        chunk = math.prod(dataset.chunks or (0,)) * dataset.dtype.itemsize
        # A chunk is decoded whole, whatever part of it is read; chunks that were never written read as fill values.
        if need > max(_SMALL_BYTES, MAX_EXPANSION * stored) or chunk > _MAX_CHUNK_BYTES:
            raise _FaultError(f"{name} asks for {max(need, chunk) / 1e6:,.0f} MB and stores {stored:,} bytes: damaged")
        return dataset


def _numbers(dataset: h5py.Dataset) -> NDArray[np.float64]:
    """Return the values of a checked dataset, NaN where it has none."""
    return _without_fill(np.asarray(dataset[()]), dataset)


def _without_fill(values: NDArray[Any], dataset: h5py.Dataset) -> NDArray[np.float64]:
    """Return values as float64, NaN where they are the fill value that the dataset declares, or no value at all."""
    numbers = values.astype(np.float64)
    # Compared before the conversion: a fill value of 64 bits is none of 32.
    if "_FillValue" in dataset.attrs and dataset.attrs.get_id("_FillValue").dtype.kind in "iufb":
        numbers[np.isin(values, dataset.attrs["_FillValue"])] = np.nan
    numbers[~np.isfinite(numbers) | (numbers <= _FILL)] = np.nan
    return numbers
