"""The version of Canopy, which stands under every other module."""

__version__ = "0.1.0"
