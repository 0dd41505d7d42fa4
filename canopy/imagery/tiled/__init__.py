"""Imagery in tiles: XYZ, TMS, quadkey and WMTS services, and folders of such tiles.

    source = open_tiles("xyz+https://tiles.example.org/{z}/{x}/{y}.jpg#zoom=0-19")

The same tiles give the same pixels, whether a service or a folder hands them out: one decoder, one way to the grid.
"""

from canopy.imagery.tiled.opening import is_tiled, open_tiles
from canopy.imagery.tiled.source import TiledImagery

__all__ = ["TiledImagery", "is_tiled", "open_tiles"]
