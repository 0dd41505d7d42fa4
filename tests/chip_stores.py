"""Chip stores of synthetic forests."""

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from forest import Forest, make_forest, write_pair
from numpy.typing import NDArray
from PIL import Image
from rasters import make_raster

from canopy.dataset.build import BuildSummary, build
from canopy.dataset.config import DatasetConfig


@cache
def forest(side_m: int, seed: int, origin: tuple[int, int]) -> Forest:
    return make_forest(side_m, seed=seed, origin=origin)


def write_forests(root: Path) -> Path:
    """Two large scenes that overlap, two small ones far from them, of two sites."""
    grounds = {
        "a_1": (200, 1, (320_000, 4_100_000)),
        "a_2": (200, 2, (320_150, 4_100_000)),
        "b_1": (24, 3, (330_000, 4_100_000)),
        "b_2": (30, 4, (330_400, 4_100_000)),
    }
    for name, ground in grounds.items():
        write_pair(forest(*ground), root / "pairs" / name)
    return root


def write_small_forests(root: Path) -> Path:
    """Three scenes of a few chips each, for tests of the build itself."""
    for name, ground in {
        "a_1": (64, 1, (320_000, 4_100_000)),
        "a_2": (48, 2, (320_150, 4_100_000)),
        "b_1": (24, 3, (330_000, 4_100_000)),
    }.items():
        write_pair(forest(*ground), root / "pairs" / name)
    return root


def forest_config(root: Path, **changes: Any) -> DatasetConfig:
    """A small configuration over `write_forests` or `write_small_forests`."""
    common = {"heights": "chm_cm.tif", "height_unit_m": 0.01, "licence": "CC0-1.0", "credit": "synthetic forest"}
    values: dict[str, Any] = {
        "name": "forests", "root": root, "chip_px": 64, "stride_px": 48, "unlabelled_px": 64,
        "sources": {
            "a": {"images": "pairs/a_*/rgb.tif", "site": "a", "image_date": "2020", "height_date": "2021"} | common,
            "b": {"images": "pairs/b_*/rgb.tif", "site": "b"} | common,
        },
        "splits": {"test_sites": ["b"], "block_m": 100, "test_share": 0.25},
    }  # fmt: skip
    return DatasetConfig(**{**values, **changes})


def one_scene(root: Path, **raster: Any) -> DatasetConfig:
    """A scene whose heights are a raster of 10 m, or what `rasters.make_raster` makes of the arguments."""
    write_pair(forest(64, 7, (320_000, 4_100_000)), root / "pairs" / "a_1")
    options = {"origin": (320_000, 4_100_000), "crs": "EPSG:32611", "resolution": 1.0, "dtype": "float32",
               "values": np.full((1, 64, 64), 10.0), "nodata": -9999.0}  # fmt: skip
    make_raster(root / "pairs" / "a_1" / "chm.tif", **{**options, **raster})
    source = {"images": "pairs/*/rgb.tif", "heights": "chm.tif", "site": "a", "licence": "CC0-1.0"}
    return DatasetConfig(name="one", root=root, sources={"a": source}, chip_px=64)


def imagery_config(root: Path, images: str, side_px: int = 128, **source: Any) -> DatasetConfig:
    """A source of imagery without heights."""
    values = {"images": images, "site": "s", "licence": "none", **source}
    return DatasetConfig(name="imagery", root=root, sources={"i": values}, unlabelled_px=side_px)


def build_forests(folder: Path, **changes: Any) -> BuildSummary:
    """Build a store of `write_forests`."""
    root = write_forests(folder / "data")
    return build(forest_config(root, **changes), folder / "store")


def picture(seed: int, side: int = 256) -> NDArray[np.uint8]:
    """An image (side, side, 3) of coloured squares and noise."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(40, 200, (side // 16, side // 16, 3))
    return (np.kron(coarse, np.ones((16, 16, 1))) + generator.integers(0, 30, (side, side, 3))).astype(np.uint8)


def save_picture(image: NDArray[np.uint8], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def digests(folder: Path) -> dict[str, str]:
    """Relative path of every file below a folder -> sha256."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
