"""Data to try Canopy with: the sample scene with its area, the configurations, and a generated forest."""

from canopy.example.files import write_forest, write_sample

__all__ = ["write_forest", "write_sample"]
