"""How a tile becomes part of a batch: its data first, under a name of the attempt, and its marker last, once."""

import hashlib
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import shapely
import shapely.geometry
from numpy.typing import NDArray
from rasterio.windows import Window

from canopy.batch.plan import Plan, PlannedTile, marker_key
from canopy.batch.store import Store, StoreError
from canopy.batch.zones import BLOCK_PX, footprints
from canopy.prediction import Prediction
from tiles.publish import item_path
from tiles.stac import UNKNOWN, acquisition_times
from tiles.windows import PixelWindow

ITEM_FOLDER = "../.."
"""The root of a batch, from the folder of a marker."""


@dataclass(frozen=True)
class Attempt:
    """One attempt at a tile, and what it says of itself in the tile's marker."""

    nonce: str
    """Random name; data objects of two attempts never share one."""
    facts: Mapping[str, Any]
    """Properties of the marker, such as the time that the attempt took."""

    @classmethod
    def begin(cls) -> "Attempt":
        """Return an attempt with a name of its own."""
        return cls(uuid.uuid4().hex[:12], {})


def data_key(tile: PlannedTile, nonce: str) -> str:
    """Return the key of a tile's heights."""
    return f"data/{tile.zone}/{tile.name}-{nonce}.tif"


def blocks_key(tile: PlannedTile, nonce: str) -> str:
    """Return the key of a tile's blocks, of which overviews are made without reading its heights."""
    return f"data/{tile.zone}/{tile.name}-{nonce}.npz"


def plane_key(tile: PlannedTile, nonce: str, plane: str) -> str:
    """Return the key of what a tile says besides heights: its reasons or dates."""
    return f"data/{tile.zone}/{tile.name}-{nonce}_{plane}.tif"


def commit(store: Store, plan: Plan, tile: PlannedTile, published: Prediction | None, attempt: Attempt) -> bool:
    """Commit a tile.

    Args:
        store: Store of the batch.
        plan: Plan of the batch.
        tile: Tile.
        published: Map of the tile in a local folder; None where the imagery is unknown throughout.
        attempt: This attempt.

    Returns:
        Whether this attempt is the one that counts; else another has committed the tile, and nothing of ours is left.

    Raises:
        StoreError: The store does not return what was written.
    """
    objects: dict[str, str] = {}
    if published is not None:
        item = json.loads(item_path(published.path).read_text(encoding="utf-8"))
        rasters = {"canopy_height": published.path, **_planes(published)}
        objects = {name: _key(tile, attempt.nonce, name) for name in (*rasters, "blocks")}
        store.create(objects["blocks"], blocks_bytes(published.path, tile.window))
        for name, path in rasters.items():
            store.upload(objects[name], path)
            _check_written(store, objects[name], item["assets"][name]["file:checksum"].removeprefix("1220"))
    else:
        item = _empty_item(plan, tile)
    item = _marker(item, plan, tile, objects, attempt)
    if store.create(marker_key(tile.name), json.dumps(item, indent=1, allow_nan=False).encode()) is not None:
        return True
    store.delete(list(objects.values()))
    return False


def _planes(published: Prediction) -> dict[str, Path]:
    """Return the rasters next to a map by the names of their assets."""
    return {path.stem.removeprefix(f"{published.path.stem}_"): path for path in published.planes}


def _key(tile: PlannedTile, nonce: str, asset: str) -> str:
    if asset == "canopy_height":
        return data_key(tile, nonce)
    return blocks_key(tile, nonce) if asset == "blocks" else plane_key(tile, nonce, asset)


def blocks_bytes(path: Path, window: PixelWindow) -> bytes:
    """Return the sums of a map over squares of the lattice, as a NumPy archive.

    Its arrays: ``sum_m`` and ``count``, (rows, columns) of the first band's known heights over squares of `BLOCK_PX`,
    and ``first``, row and column of the first square on the lattice of squares.
    """
    row0, col0 = window.row0 // BLOCK_PX, window.col0 // BLOCK_PX
    row1, col1 = -(-window.row1 // BLOCK_PX), -(-window.col1 // BLOCK_PX)
    sums, counts = np.zeros((row1 - row0, col1 - col0)), np.zeros((row1 - row0, col1 - col0), np.int32)
    with rasterio.open(path) as src:
        # By rows of squares, so that memory does not grow with the tile.
        for row in range(row0, row1):
            top, bottom = max(row * BLOCK_PX, window.row0), min((row + 1) * BLOCK_PX, window.row1)
            heights = src.read(1, window=Window(0, top - window.row0, window.width, bottom - top))
            cuts = [0, *range(BLOCK_PX - window.col0 % BLOCK_PX, window.width, BLOCK_PX)]
            valid = ~np.isnan(heights)
            sums[row - row0] = np.add.reduceat(np.where(valid, heights, 0).sum(axis=0, dtype=np.float64), cuts)
            counts[row - row0] = np.add.reduceat(valid.sum(axis=0), cuts)
    sink = BytesIO()
    np.savez_compressed(sink, sum_m=sums, count=counts, first=np.array([row0, col0]))
    return sink.getvalue()


def read_blocks(content: bytes) -> tuple[NDArray[np.float64], NDArray[np.int32], tuple[int, int]]:
    """Read what `blocks_bytes` wrote: sums, counts, and the first square."""
    with np.load(BytesIO(content), allow_pickle=False) as arrays:
        row, col = arrays["first"].tolist()
        return arrays["sum_m"], arrays["count"], (row, col)


def _check_written(store: Store, key: str, sha256: str) -> None:
    """Read an object back: some stores keep what a broken connection cut off."""
    digest = hashlib.sha256()
    for part in store.download(key):
        digest.update(part)
    if digest.hexdigest() != sha256:
        store.delete([key])
        raise StoreError(f"{key} in {store.url} reads back differently: the store does not keep what it is sent")


def _empty_item(plan: Plan, tile: PlannedTile) -> dict[str, Any]:
    """Return the item of a tile without one valid pixel of imagery."""
    window = tile.window
    frame = np.array([[window.row0, window.col0, window.height, window.width]])
    outline = footprints(plan.zone[tile.zone].lattice, frame)[0]
    now = datetime.now(UTC)
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": [],
        "geometry": shapely.geometry.mapping(outline),
        "bbox": [float(value) for value in outline.bounds],
        "properties": {**acquisition_times(None, now), "canopy:acquisition_datetime": UNKNOWN},
        "assets": {},
    }


def _marker(
    item: dict[str, Any], plan: Plan, tile: PlannedTile, objects: Mapping[str, str], attempt: Attempt
) -> dict[str, Any]:
    """Return the STAC item of a tile, as the marker that the tile is committed."""
    window = tile.window
    properties = {
        **item["properties"],
        "canopy:plan": plan.id,
        "canopy:tile": tile.name,
        "canopy:zone": tile.zone,
        "canopy:window": [window.row0, window.col0, window.height, window.width],
        "canopy:attempt": attempt.nonce,
        **attempt.facts,
    }
    # The style lies once with the mosaic, not with each of 200,000 tiles.
    assets = {
        name: {**item["assets"][name], "href": f"{ITEM_FOLDER}/{key}"}
        for name, key in objects.items() if name != "blocks"
    }  # fmt: skip
    if objects:
        assets["blocks"] = {
            "href": f"{ITEM_FOLDER}/{objects['blocks']}",
            "title": f"Sums of heights over squares of {BLOCK_PX} px",
            "type": "application/octet-stream",
            "roles": ["metadata"],
        }
    links = [{"rel": rel, "href": f"{ITEM_FOLDER}/collection.json", "type": "application/json"} for rel in
             ("root", "parent", "collection")]  # fmt: skip
    return {
        **item, "id": tile.name, "collection": collection_id(plan), "properties": properties, "links": links,
        "assets": assets,
    }  # fmt: skip


def collection_id(plan: Plan) -> str:
    """Return the identifier of a batch's collection."""
    return f"{plan.document['aoi']['name']}-canopy-height-{plan.id[:8]}"
