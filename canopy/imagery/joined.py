"""Several sources read as one image: the first with a valid pixel wins."""

import hashlib
from collections.abc import Sequence

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from odc.geo.geom import unary_union

from canopy.imagery.acquisition import span
from canopy.imagery.licences import combine
from canopy.imagery.source import ImagerySource


class JoinedImagery:
    """Sources on top of each other."""

    def __init__(self, sources: Sequence[ImagerySource]) -> None:
        """Join sources; earlier ones lie on top."""
        self.sources = tuple(sources)
        self.uris = tuple(uri for source in sources for uri in source.uris)
        self.footprint = unary_union(source.footprint.to_crs("EPSG:4326") for source in sources) or sources[0].footprint
        self.gsd_m = max(source.gsd_m for source in sources)
        self.datetime = span([_ends(source.datetime) for source in sources])
        self.rescale = sources[0].rescale
        self.skipped = tuple(one for source in sources for one in source.skipped)
        self.licence = combine(source.licence for source in sources)

    def describe(self) -> str:
        """Describe the imagery in one line, source by source."""
        return "; then ".join(source.describe() for source in self.sources)

    def fingerprint(self) -> str:
        """Return a sha256 over the sources' own, in order."""
        return hashlib.sha256(repr([source.fingerprint() for source in self.sources]).encode()).hexdigest()

    def read(self, geobox: GeoBox) -> xr.DataArray:
        """Fill a GeoBox; see `ImagerySource.read`."""
        image = self.sources[0].read(geobox)
        for source in self.sources[1:]:
            unknown = np.isnan(image.values[0])
            if not unknown.any():
                break
            image = image.copy(data=np.where(unknown, source.read(geobox).values, image.values))
        return image

    def dates(self, geobox: GeoBox) -> NDArray[np.uint16]:
        """Return the day of acquisition at each pixel, of the first source that has it; see `ImagerySource.dates`."""
        unknown = np.ones(geobox.shape, np.bool_)
        days = np.zeros(geobox.shape, np.uint16)
        for number, source in enumerate(self.sources):
            # The last source needs no look at where it has imagery.
            last = number == len(self.sources) - 1
            valid = unknown if last else unknown & ~np.isnan(source.read(geobox).values[0])
            if valid.any():
                days[valid] = source.dates(geobox)[valid]
            unknown = unknown & ~valid
        return days


def _ends(datetime: str | None) -> tuple[str, str] | None:
    """Return the first and last moment of an acquisition."""
    if datetime is None:
        return None
    first, _, second = datetime.partition("/")
    return first, second or first
