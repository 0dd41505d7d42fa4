"""Small batches for tests: a scene of noise, a model of milliseconds, and a store that keeps count."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasters import make_raster
from tiny_models import save_tiny_model

from canopy.batch.plan import Plan
from canopy.batch.planning import BatchRequest, make_plan
from canopy.batch.store import Store, open_store

AOI = "-111.0,44.2517,-110.9976,44.2535"
"""190 by 200 m on the scene's western half: six tiles of 256 px, two of them without imagery."""
TILE_PX = 256


def make_inputs(folder: Path) -> Path:
    """Write scene.tif, 200 by 200 m of noise, and tiny.safetensors into a folder."""
    make_raster(
        folder / "scene.tif", crs="EPSG:32612", origin=(500000, 4900100), resolution=0.5, shape=(400, 400),
        pattern="noise",
    )  # fmt: skip
    save_tiny_model(folder / "tiny.safetensors", chip_px=128)
    return folder


def request_of(inputs: Path, **changes: Any) -> BatchRequest:
    """Return the request of a small batch."""
    request = BatchRequest(
        AOI, str(inputs / "tiny.safetensors"), (str(inputs / "scene.tif"),), tile_px=TILE_PX, backend="eager"
    )
    return replace(request, **changes)


def plan_batch(inputs: Path, url: str | Path, **changes: Any) -> tuple[Store, Plan]:
    """Plan a small batch in a store."""
    store = open_store(url, make=True)
    return store, make_plan(request_of(inputs, **changes), store)


def copy_of(folder: Path, path: Path) -> Store:
    """Copy the folder of a batch, so that a test may damage it."""
    shutil.copytree(folder, path)
    return open_store(path)


def mosaic(folder: Path, name: str = "32612.vrt") -> NDArray[Any]:
    """Read the mosaic of a collected batch."""
    (path,) = folder.glob(f"mosaic-*/{name}")
    with rasterio.open(path) as opened:
        values: NDArray[Any] = opened.read()
    return values


def keys(store: Store, prefix: str) -> list[str]:
    """List keys below a prefix, sorted."""
    return sorted(entry.key for entry in store.list(prefix))


def heights_of(store_folder: Path) -> dict[str, NDArray[np.float32]]:
    """Read the heights of each committed tile of a local batch."""
    tiles = {}
    for path in sorted((store_folder / "data").rglob("*.tif")):
        with rasterio.open(path) as opened:
            tiles[path.name.rpartition("-")[0]] = opened.read()
    return tiles
