"""Imagery: any RGB raster GDAL reads, as display reflectance on any GeoBox.

    source = open_imagery("scenes/")
    image = source.read(geobox)     # (band=3, y, x) float32 in [0, 1], NaN where unknown

A pixel's value depends on the files and on its place on the pixel grid, never on the window it is read through.
"""

from canopy.imagery.opening import open_imagery
from canopy.imagery.rescale import Rescale
from canopy.imagery.search import Search
from canopy.imagery.selection import Skipped
from canopy.imagery.source import ImagerySource

__all__ = ["ImagerySource", "Rescale", "Search", "Skipped", "open_imagery"]
