"""Small granules in the layouts of NASA's versions, for what a file may lack or get wrong."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

BEAMS = ("BEAM0000", "BEAM0101")
FIRST = 10_000_000_100_000_000


def beam_fields(product: str, version: str, number: int, count: int) -> dict[str, Any]:
    """Datasets of a beam: shots 60 m apart along a meridian in Oregon, RH98 of 10, 11, 12, ... m."""
    ones = np.ones(count, np.uint8)
    rh = np.linspace(0, 1, 101)[None] * (10 + np.arange(count))[:, None] * 100 / 98
    upper = "" if version == "V003" else "geolocation/"
    quality = {"L2A": "quality_flag", "L2B": "l2b_quality_flag"}[product]
    common = {
        "shot_number": np.uint64(FIRST + number * 10**11) + np.arange(count, dtype=np.uint64),
        "delta_time": 5e7 + number * 100 + np.arange(count) * 0.00827,
        "sensitivity": np.full(count, 0.97, np.float32),
        "surface_flag": ones,
        f"{product.lower()}_quality_flag_rel3" if version == "V003" else quality: ones,
        "land_cover_data/pft_class": ones,
    }
    placed = {
        "lat_lowestmode": 44 + 0.00054 * np.arange(count),
        "lon_lowestmode": np.full(count, -122.0 + number),
        "elev_lowestmode": np.full(count, 500, np.float32),
        "digital_elevation_model": np.full(count, 505, np.float32),
    }
    flags = {"degrade_flag": 0 * ones, "solar_elevation": np.full(count, -20, np.float32)}
    if product == "L2A":
        extra = {"land_cover_data/leaf_off_flag": 0 * ones} if version != "V001" else {}
        return {**common, **placed, **flags, "rh": rh.astype(np.float32), **extra}
    cover = {"cover": np.linspace(0.1, 0.9, count).astype(np.float32), "rh100": (rh[:, 100] * 100).astype(np.int16)}
    return {
        **common,
        **{f"{upper}{name}": values for name, values in placed.items()},
        **{f"geolocation/{name}": values for name, values in flags.items()},
        **cover,
        "pai": cover["cover"] * 3,
    }


def write_granule(
    path: Path,
    *,
    product: str = "L2A",
    version: str = "V002",
    count: int = 6,
    beams: tuple[str, ...] = BEAMS,
    changes: Mapping[str, Any] | None = None,
    short_name: str | None = "product",
    describe: bool = True,
) -> Path:
    """Write a granule.

    Args:
        path: File.
        product: L2A or L2B.
        version: V001, V002 or V003, whose layout it gets.
        count: Shots of a beam.
        beams: Names of the beams.
        changes: Datasets that replace others, by name (of all beams) or `BEAM0101/name`; None removes one. An array or
            (array, fill value).
        short_name: Attribute of the file; `product` for that of the product, None for none.
        describe: Whether beams have a description.
    """
    with h5py.File(path, "w") as file:
        if short_name is not None:
            file.attrs["short_name"] = f"GEDI_{product}" if short_name == "product" else short_name
        for number, name in enumerate(beams):
            group = file.create_group(name)
            if describe:
                group.attrs["description"] = "Full power beam" if name == "BEAM0101" else "Coverage beam"
            fields = beam_fields(product, version, number, count)
            for key, values in (changes or {}).items():
                beam, _, field = key.partition("/") if key.startswith("BEAM") else (name, "", key)
                if beam == name:
                    fields[field] = values
            for field, values in fields.items():
                if values is not None:
                    array, fill = values if isinstance(values, tuple) else (values, None)
                    dataset = group.create_dataset(field, data=array)
                    if fill is not None:
                        dataset.attrs["_FillValue"] = fill
    return path
