"""Descriptions of bundles, height maps and imagery, from what their files say."""

from pathlib import Path
from typing import Any

import rasterio

from canopy.imagery import open_imagery
from canopy.models.bundle import find_bundle, read_card
from tiles.cog import validate


def describe(target: str | Path) -> dict[str, Any]:
    """Describe a bundle by its card, a height map by grid, tags and problems, or imagery by how it is read.

    Args:
        target: Name of a bundled model, or a file, folder or glob.

    Raises:
        CanopyError: The target is neither a model nor readable imagery.
    """
    path = Path(target)
    if path.suffix == ".safetensors" or not (path.exists() or "*" in str(target)):
        return read_card(find_bundle(target)).model_dump(mode="json")
    source = open_imagery(target)
    if path.is_file():
        with rasterio.open(path) as opened:
            if "CANOPY_MODEL" in opened.tags():
                return _height_map(path, opened)
    return {"imagery": source.describe(), "gsd_m": source.gsd_m, "datetime": source.datetime, "files": source.uris}


def _height_map(path: Path, opened: Any) -> dict[str, Any]:
    """Describe a map that carries the tags of Canopy."""
    tags = {key: value for key, value in opened.tags().items() if key.startswith("CANOPY_")}
    return {
        "height_map": str(path),
        "crs": opened.crs.to_string(),
        "bounds": list(opened.bounds),
        "shape": list(opened.shape),
        "cell": list(opened.res),
        "bands": list(opened.descriptions),
        "unit": opened.units[0],
        "tags": tags,
        "problems": list(validate(path)),
    }
