"""Chip stores of synthetic forests."""

from functools import cache
from pathlib import Path
from typing import Any

from forest import Forest, make_forest, write_pair

from canopy.dataset.build import Summary, build
from canopy.dataset.config import DatasetConfig


@cache
def forest(side_m: int, seed: int, origin: tuple[int, int]) -> Forest:
    return make_forest(side_m, seed=seed, origin=origin)


def write_forests(root: Path) -> Path:
    """Two large scenes that overlap, two small ones apart, of two sites."""
    grounds = {
        "a_1": (200, 1, (320_000, 4_100_000)),
        "a_2": (200, 2, (320_150, 4_100_000)),
        "b_1": (24, 3, (330_000, 4_100_000)),
        "b_2": (30, 4, (330_400, 4_100_000)),
    }
    for name, ground in grounds.items():
        write_pair(forest(*ground), root / "pairs" / name)
    return root


def forest_config(root: Path, **changes: Any) -> DatasetConfig:
    """A small configuration over `write_forests`."""
    common = {"heights": "chm_cm.tif", "height_unit_m": 0.01, "licence": "CC0-1.0", "credit": "nobody"}
    values: dict[str, Any] = {
        "name": "forests", "root": root, "chip_px": 64, "stride_px": 48, "unlabelled_px": 64,
        "sources": {
            "a": {"images": "pairs/a_*/rgb.tif", "site": "a", "image_date": "2020", "height_date": "2021"} | common,
            "b": {"images": "pairs/b_*/rgb.tif", "site": "b"} | common,
        },
        "splits": {"test_sites": ["b"], "block_m": 100, "test_share": 0.25},
    }  # fmt: skip
    return DatasetConfig(**{**values, **changes})


def build_forests(folder: Path, **changes: Any) -> Summary:
    """Build a store of `write_forests`."""
    root = write_forests(folder / "data")
    return build(forest_config(root, **changes), folder / "store")
