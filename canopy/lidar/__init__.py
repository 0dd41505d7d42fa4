"""Point clouds to canopy height models: `build_chm`."""

from canopy.lidar.chm import METHODS, Chm, build_chm

__all__ = ["METHODS", "Chm", "build_chm"]
