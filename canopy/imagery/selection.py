"""Which rasters of a folder are imagery: masks, thumbnails, height maps and unplaced files are left out, and listed."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median_low

from rasterio.enums import ColorInterp
from rasterio.io import DatasetReader

from canopy.errors import ImageryError
from canopy.imagery.files import Listing
from canopy.imagery.placement import is_placed

_MAP_TAGS = ("CANOPY_MODEL", "CANOPY_LIDAR")
_MAP_BAND = "canopy_height"
_COARSE = 4.0
COLOURS = 3
_NAMES = 5

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Skipped:
    """A raster of a folder that is not read as imagery."""

    path: str
    reason: str


def colour_count(dataset: DatasetReader) -> int:
    """Return how many colours a raster has; a palette counts as three."""
    kinds = dataset.colorinterp
    if dataset.count == 1 and kinds[0] == ColorInterp.palette:
        return COLOURS
    return sum(kind != ColorInterp.alpha for kind in kinds)


def is_height_map(dataset: DatasetReader) -> bool:
    """Return whether a raster is a height map of this product."""
    tags = dataset.tags()
    return any(tag in tags for tag in _MAP_TAGS) or (dataset.descriptions[:1] or (None,))[0] == _MAP_BAND


def reason_to_skip(dataset: DatasetReader) -> str | None:
    """Return why a raster found in a folder is no imagery; None for imagery."""
    if is_height_map(dataset):
        return "a height map"
    if not is_placed(dataset):
        return "no georeference"
    return None


def too_coarse(gsd_m: Mapping[str, float]) -> dict[str, str]:
    """Return the rasters with pixels over 4 times the median, thumbnails and overviews, and why they are left out."""
    if not gsd_m:
        return {}
    middle = median_low(gsd_m.values())
    return {
        path: f"GSD of {size:.3g} m, the others' is {middle:.3g} m"
        for path, size in gsd_m.items()
        if size > _COARSE * middle
    }


def report_skipped(listing: Listing, skipped: Sequence[Skipped], used: int) -> None:
    """Log which rasters of a folder are left out.

    Raises:
        ImageryError: All are.
    """
    if not skipped:
        return
    names = ", ".join(f"{one.path} ({one.reason})" for one in skipped[:_NAMES])
    more = f" and {len(skipped) - _NAMES} more" if len(skipped) > _NAMES else ""
    if not used:
        raise ImageryError(
            f"{listing.uri}: no imagery among {len(skipped)} rasters: {names}{more}; expected red, green and blue "
            "with a georeference, or name the files one by one"
        )
    _LOG.warning(
        "imagery: skipped %d of %d rasters of %s: %s%s", len(skipped), used + len(skipped), listing.uri, names, more
    )
