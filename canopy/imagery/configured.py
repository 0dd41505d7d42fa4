"""The imagery used when none is named: the sample scene, the user's own list, then public sources."""

import logging
from pathlib import Path
from typing import Unpack

from odc.geo.crs import CRS
from odc.geo.geom import Geometry

from canopy.errors import CoverageError, ImageryError, SourceError
from canopy.imagery.automatic import best_source
from canopy.imagery.opening import ReadingOptions, is_remote_uri, open_imagery
from canopy.imagery.registry import sources
from canopy.imagery.search import Search
from canopy.imagery.settings import read_user_config, user_config_path
from canopy.imagery.source import ImagerySource
from canopy.progress import Report, ignore
from tiles.aoi import to_crs

SAMPLE_SCENE = Path(__file__).parents[1] / "data" / "yellowstone.tif"

_LOG = logging.getLogger(__name__)


def configured_imagery(
    area: Geometry,
    *,
    search: Search | None = None,
    offline: bool = False,
    have_right: bool = False,
    report: Report = ignore,
    **options: Unpack[ReadingOptions],
) -> ImagerySource:
    """Open the imagery for an area.

    The first of the sample and the configured sources that covers the area is taken, else the first that touches it,
    else the public source that covers it best.

    Args:
        area: The area of interest, in any CRS.
        search: Dates and limits of imagery that is searched for.
        offline: Whether no server is asked.
        have_right: Whether the user has the right to use services whose terms forbid derived maps.
        report: Called while a catalogue is walked.
        options: What the user says of the imagery, in place of what its files declare.

    Raises:
        CoverageError: No source touches the area.
        ConfigError: The user's configuration file is not valid.
    """
    config = read_user_config()
    search = search or Search()
    outline = to_crs(area, CRS("EPSG:4326"))
    # Options are for the user's imagery: the sample has them only where it is what the area shows.
    sample = open_imagery(SAMPLE_SCENE)
    touched = sample.footprint.to_crs("EPSG:4326").intersects(outline)
    opened = [open_imagery(SAMPLE_SCENE, **options)] if touched else []
    for uri in config.imagery:
        if offline and is_remote_uri(uri):
            continue
        try:
            opened.append(open_imagery(uri, area=area, search=search, have_right=have_right, report=report, **options))
        except CoverageError:  # a catalogue without imagery of the area lies elsewhere, like a file
            continue
        except (ImageryError, SourceError) as error:
            _LOG.warning("imagery listed in %s is left out: %s", user_config_path(), error)
    footprints = [source.footprint.to_crs("EPSG:4326") for source in opened]
    for test in ("contains", "intersects"):
        for source, footprint in zip(opened, footprints, strict=True):
            if getattr(footprint, test)(outline):
                return source
    elsewhere = f"the bundled sample and {len(config.imagery)} configured source(s) lie elsewhere"
    remedy = f"name imagery with --imagery, or list it under 'imagery:' in {user_config_path()}"
    if offline or not config.auto:
        reason = "--offline" if offline else f"'auto: false' in {user_config_path()}"
        raise CoverageError(f"no imagery over the AOI: {elsewhere}, and {reason} keeps from asking others; {remedy}")
    try:
        return best_source(area, sources(), search, options, report)
    except CoverageError as error:
        raise CoverageError(f"no imagery over the AOI: {elsewhere}; {error}; {remedy}") from error
