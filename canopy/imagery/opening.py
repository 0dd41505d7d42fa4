"""Opening imagery: from what the user names to one source, decided before a pixel is read for a map."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from canopy.errors import ImageryError
from canopy.imagery.datasets import gdal, open_dataset, opened, quiet
from canopy.imagery.files import Listing, expand, shown
from canopy.imagery.references import Reach
from canopy.imagery.rescale import Rescale, choose_rescale, requested_rescale
from canopy.imagery.scene import Overrides, RasterScene, facts, fill_candidates, inspect, sample
from canopy.imagery.selection import COLOURS, Skipped, colour_count, reason_to_skip, report_skipped, too_coarse
from canopy.imagery.source import ImagerySource, RasterImagery

_SAMPLED_FILES = 32

_LOG = logging.getLogger(__name__)


def open_imagery(
    uri: str | Path | Sequence[str | Path],
    *,
    bands: Sequence[int] | None = None,
    scale: tuple[float, float] | None = None,
    datetime: str | None = None,
    nodata: float | Literal["none"] | None = None,
    alpha: bool | Literal["auto"] = "auto",
    crs: str | None = None,
    allow_outside: bool = False,
) -> ImagerySource:
    """Open imagery.

    Args:
        uri: A raster, a folder (all imagery below it), a glob, an http(s):// or s3:// address, or a list.
            Overlapping scenes: the first valid pixel wins, in order of name (of the list for a list).
        bands: 1-based bands of red, green and blue; by colour interpretation, names or number by default.
        scale: Values that become 0 and 1; decided by `Rescale`'s rules by default.
        datetime: Acquisition time, ISO 8601; read from the files' acquisition tags by default.
        nodata: Value that means unknown, in place of the files' own; "none" for no such value.
        alpha: Whether a band declared as alpha is opacity; by default where its values say so.
        crs: CRS of the files, in place of their own.
        allow_outside: Whether VRTs may read local files outside their folder and the imagery's folders.

    Raises:
        ImageryError: The imagery cannot be read or interpreted, or has no place on Earth.
    """
    listings = expand(uri)
    overrides = Overrides(bands, nodata, alpha, crs)
    reach = Reach.of(listings, allow_outside)
    # Keyed by path: a file that two URIs mean is read once, where it was named first.
    scenes: dict[str, RasterScene] = {}
    skipped: list[Skipped] = []
    for listing in listings:
        used, left_out = _scenes(listing, overrides, reach)
        report_skipped(listing, left_out, len(used))
        for scene in used:
            scenes.setdefault(scene.path, scene)
        skipped += left_out
    ordered = list(scenes.values())
    _log_remarks(ordered)
    rescale = requested_rescale(*scale) if scale is not None else _measured_rescale(ordered)
    return RasterImagery(ordered, rescale, datetime, skipped)


def _scenes(listing: Listing, overrides: Overrides, reach: Reach) -> tuple[list[RasterScene], list[Skipped]]:
    """Inspect the rasters of a listing; return those that are imagery, and the others with the reason."""
    if listing.kind == "file":
        return [inspect(path, reach, overrides) for path in listing.paths], []
    scenes, skipped, few = [], [], {}
    for path in listing.paths:
        with opened(path, reach) as file:
            # Counted before facts are read, which refuse what is no imagery.
            colours = colour_count(file.dataset)
            if reason := reason_to_skip(file.dataset):
                skipped.append(Skipped(path, reason))
            elif colours < COLOURS:
                few[path] = f"{colours} band{'' if colours == 1 else 's'}"
            else:
                scenes.append(facts(file, overrides))
    # Every raster of a folder needs three colours; a glob may name panchromatic imagery, as long as it is all.
    if listing.kind == "glob" and not scenes:
        scenes = [inspect(path, reach, overrides) for path in few]
    else:
        skipped += [Skipped(path, reason) for path, reason in few.items()]
    # Last, so that the median is that of imagery alone.
    coarse = too_coarse({scene.path: scene.gsd_m for scene in scenes})
    skipped += [Skipped(path, reason) for path, reason in coarse.items()]
    return [scene for scene in scenes if scene.path not in coarse], skipped


def _log_remarks(scenes: Sequence[RasterScene]) -> None:
    """Log what the user should know of the files, each remark once."""
    paths: dict[str, list[str]] = {}
    for scene in scenes:
        for remark in scene.remarks:
            paths.setdefault(remark, []).append(shown(scene.path))
    for remark, named in paths.items():
        more = f" and {len(named) - 1} more" if len(named) > 1 else ""
        _LOG.warning("imagery: %s%s: %s", named[0], more, remark)


def _measured_rescale(scenes: Sequence[RasterScene]) -> Rescale:
    """Decide the rescale of files by their values.

    Values that programs write for nodata are looked at last: where they lie far outside the light of the others they
    are undeclared nodata, which must not set the range.
    """
    dtype = _one_type(scenes)
    if dtype == "uint8":
        return choose_rescale((), dtype)
    light, doubtful = [], []
    for scene in scenes[:: -(-len(scenes) // _SAMPLED_FILES)]:
        with quiet(), gdal(scene.path, network=not scene.vrt), open_dataset(scene.path, scene.access) as dataset:
            pixels = sample(dataset, scene)
        fill = np.isin(pixels, fill_candidates(scene.dtype)).any(axis=0)
        light.append(scene.physical(pixels[:, ~fill]).ravel())
        doubtful.append(scene.physical(pixels[:, fill]).ravel())
    # First without the doubtful values: one of them could be real only if it fits the range of the others.
    rescale = choose_rescale(light, dtype)
    real = [values[~rescale.is_far(values.astype(np.float64))] for values in doubtful]
    if any(values.size for values in real):
        rescale = choose_rescale([*light, *real], dtype)
    if any(values.size < all_.size for values, all_ in zip(real, doubtful, strict=True)):
        _LOG.warning("imagery: values far outside the others, such as -9999 or 65535, are taken for unknown pixels")
    return rescale


def _one_type(scenes: Sequence[RasterScene]) -> str:
    """Return the type of the values of files; refuse several types, which have no common range."""
    dtypes = sorted({scene.value_type for scene in scenes})
    if len(dtypes) > 1:
        raise ImageryError(
            f"imagery: files of types {', '.join(dtypes)}, expected one type to decide one value range; "
            "say which values are black and white with --scale LOW,HIGH, or open them separately"
        )
    return dtypes[0]
