"""Point clouds to canopy height models: `build_chm`."""

from canopy.lidar.chm import METHODS, build_chm
from canopy.lidar.outputs import Chm

__all__ = ["METHODS", "Chm", "build_chm"]
