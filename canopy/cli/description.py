"""Descriptions of bundles, height maps and imagery, from what their files say."""

from pathlib import Path
from typing import Any

import rasterio
from rasterio.errors import RasterioError

from canopy.imagery import open_imagery
from canopy.models.bundle import find_bundle, read_card
from tiles.validation import validate


def describe(target: str | Path) -> dict[str, Any]:
    """Describe a bundle by its card, a height map by grid, tags and problems, or imagery by how it is read.

    Args:
        target: Name of a bundled model, or a file, folder or glob.

    Raises:
        CanopyError: The target is neither a model nor readable imagery.
    """
    path = Path(target)
    # A word without a suffix names a model; anything else that does not exist is a file that is missing.
    is_name = path.name == str(target) and not path.suffix and not path.exists() and "*" not in path.name
    if path.suffix == ".safetensors" or is_name:
        return read_card(find_bundle(target)).model_dump(mode="json")
    if (description := _describe_map(path)) is not None:
        return description
    source = open_imagery(target)
    return {"imagery": source.describe(), "gsd_m": source.gsd_m, "datetime": source.datetime, "files": source.uris}


def _describe_map(path: Path) -> dict[str, Any] | None:
    """Describe a height map; None where the path is anything else."""
    if not path.is_file():
        return None
    try:
        # Only as what our maps are: other formats may read further files, and imagery has its own reader.
        with rasterio.open(path, driver="GTiff") as opened:
            return _height_map(path, opened) if "CANOPY_MODEL" in opened.tags() else None
    except RasterioError:
        return None


def _height_map(path: Path, opened: Any) -> dict[str, Any]:
    """Describe a map that carries the tags of Canopy."""
    tags = {key: value for key, value in opened.tags().items() if key.startswith("CANOPY_")}
    return {
        "height_map": str(path),
        "crs": opened.crs.to_string() if opened.crs else None,
        "bounds": list(opened.bounds),
        "shape": list(opened.shape),
        "cell": list(opened.res),
        "bands": list(opened.descriptions),
        "unit": opened.units[0],
        "tags": tags,
        "problems": list(validate(path)),
    }
