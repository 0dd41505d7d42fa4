"""The imagery used when none is named: the bundled sample scene, then the user's own list."""

import logging
import os
from pathlib import Path

from odc.geo.crs import CRS
from odc.geo.geom import Geometry

from canopy.config import Config, load_config
from canopy.errors import CoverageError, ImageryError
from canopy.imagery.opening import open_imagery
from canopy.imagery.source import ImagerySource
from tiles.aoi import to_crs

SAMPLE_SCENE = Path(__file__).parents[1] / "data" / "yellowstone.tif"

_LOG = logging.getLogger(__name__)


class UserConfig(Config):
    """The user's configuration file: ``CANOPY_CONFIG``, else ``~/.config/canopy/config.yaml``."""

    imagery: tuple[str, ...] = ()
    """Files, folders or globs, tried in order."""


def configured_imagery(area: Geometry) -> ImagerySource:
    """Open the imagery for an area: of the sample and the configured sources the first that covers it, else touches it.

    Args:
        area: The area of interest, in any CRS.

    Raises:
        CoverageError: No source touches the area.
        ConfigError: The user's configuration file is not valid.
    """
    outline = to_crs(area, CRS("EPSG:4326"))
    sources = [open_imagery(SAMPLE_SCENE), *_configured_sources()]
    footprints = [source.footprint.to_crs("EPSG:4326") for source in sources]
    for test in ("contains", "intersects"):
        for source, footprint in zip(sources, footprints, strict=True):
            if getattr(footprint, test)(outline):
                return source
    raise CoverageError(
        f"no imagery over the AOI: the bundled sample and {len(sources) - 1} configured source(s) lie elsewhere; "
        f"name imagery with --imagery, or list it under 'imagery:' in {user_config_path()}"
    )


def _configured_sources() -> list[ImagerySource]:
    """Open the imagery of the user's configuration; what cannot be opened is left out with a warning."""
    sources = []
    for uri in read_user_config().imagery:
        try:
            sources.append(open_imagery(uri))
        except ImageryError as error:
            _LOG.warning("imagery listed in %s is left out: %s", user_config_path(), error)
    return sources


def user_config_path() -> Path:
    """Return the path of the user's configuration file, whether it exists or not."""
    return Path(os.environ.get("CANOPY_CONFIG") or Path.home() / ".config" / "canopy" / "config.yaml")


def read_user_config() -> UserConfig:
    """Read the user's configuration; the default where there is none.

    Raises:
        ConfigError: It is not valid.
    """
    path = user_config_path()
    return load_config(path, UserConfig) if path.is_file() else UserConfig()
