"""A chip store with weak labels: small forests with lidar heights, and two towns with tree points and stems."""

from pathlib import Path
from typing import Any

import numpy as np
from chip_stores import forest_config, write_small_forests
from rasters import make_raster

from canopy.dataset.build import build
from canopy.dataset.config import DatasetConfig

SITES = {"t": (400_000, 4_100_000), "u": (500_000, 4_100_000)}


def write_town(root: Path) -> DatasetConfig:
    """Small forests with heights, two towns of 40 m at 0.4 m with a tree each, and two stems in the first."""
    write_small_forests(root)
    (root / "town").mkdir()
    rows = ["crop,col,row", "t,50,50", "u,10.5,20.5"]
    (root / "town" / "trees.csv").write_text("\n".join(rows) + "\n")
    (root / "town" / "stems.csv").write_text("image,col,row,height_m\nt,20,30,14.25\nt,60,60,8\n")
    for name, origin in SITES.items():
        image = np.full((3, 100, 100), 120, np.uint8) + np.random.default_rng(0).integers(0, 30, (3, 100, 100))
        image = image.astype(np.uint8)
        make_raster(root / "town" / f"{name}.tif", values=image, resolution=0.4, origin=origin, crs="EPSG:32611")
        nir = np.full((1, 100, 100), 200, np.uint8)
        nir[0, 20:30, 20:30] = 120
        make_raster(root / "town" / f"{name}_nir.tif", values=nir, resolution=0.4, origin=origin, crs="EPSG:32611")
    common: dict[str, Any] = {"licence": "CC0-1.0", "credit": "towns"}
    weak = {"kind": "weak", "points": "town/trees.csv", "nir": "town/{image}_nir.tif", **common}
    sources = {name: {"images": f"town/{name}.tif", "site": name, **weak} for name in SITES}
    stems = {"images": "town/t.tif", "kind": "stems", "points": "town/stems.csv", "site": "t", **common}
    config = forest_config(root)
    forests = {name: source.model_dump() for name, source in config.sources.items()}
    return forest_config(
        root, chip_px=96, sources={**forests, **sources, "stems": stems},
        splits={"test_sites": ["b", "u"], "block_m": 100, "test_share": 0.25},
    )  # fmt: skip


def build_town(folder: Path) -> Path:
    """Build the store and return its folder."""
    build(write_town(folder / "data"), folder / "store")
    return folder / "store"
