"""The generated forest of the package, under the name that tests use."""

from canopy.example.forest import FLOWN, ROOF_M, UNKNOWN_CM, Forest, make_forest, write_laz, write_pair

__all__ = ["FLOWN", "ROOF_M", "UNKNOWN_CM", "Forest", "make_forest", "write_laz", "write_pair"]
